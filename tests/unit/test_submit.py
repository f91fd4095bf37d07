"""Jobs: what is shipped, what is said of them, and what their end means. No cluster."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from helpers.cli import raymtl
from raymtl.errors import InputError
from raymtl_jobs import submit as jobs
from raymtl_jobs.submit import Job, exit_code, followed, retried
from raymtl_jobs.wheel import pack


def test_the_wheel_holds_the_program_and_runs_without_the_checkout(tmp_path: Path) -> None:
    wheel = pack(tmp_path)
    assert pack(tmp_path).name == wheel.name, "the same sources give the same name"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = next(archive.read(n).decode() for n in names if n.endswith("/METADATA"))
        archive.extractall(tmp_path / "unpacked")
    assert "Requires-Dist" not in metadata
    assert {"raymtl/trainer.py", "raymtl_jobs/configs/demo_stem.yaml", "raymtl/py.typed"} <= names
    assert wheel.stat().st_size < 2_000_000
    done = subprocess.run(
        [sys.executable, "-m", "raymtl_jobs.cli", "init"],
        env={"PYTHONPATH": str(tmp_path / "unpacked"), "HOME": str(tmp_path), "PATH": "/usr/bin"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "demo_stem" in done.stdout


def test_a_changed_program_is_a_wheel_of_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = pack(tmp_path).name
    changed = jobs.pack.__globals__["sources"]() | {"raymtl/new.py": b"x = 1\n"}
    monkeypatch.setitem(jobs.pack.__globals__, "sources", lambda: changed)
    assert pack(tmp_path).name != before


def test_a_dry_run_shows_the_job_with_its_config_resources_and_metadata(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("data: {train: log/train}\nname: first\n")
    words = ["train", "mine.yaml", "train.num_epochs=2", "--no-install", "--dry-run"]
    done = raymtl("submit", *words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    job = json.loads(done.stdout)
    command = "exec python -m raymtl_jobs.cli train ./mine.yaml train.num_epochs=2"
    assert job["entrypoint"] == command
    assert job["entrypoint_resources"] == {"node:__internal_head__": 0.001}
    assert job["runtime_env"]["env_vars"] == {"RAYMTL_FOLDER": str(tmp_path)}
    assert "pip" not in job["runtime_env"] and len(job["runtime_env"]["py_modules"]) == 1
    metadata = job["metadata"]
    assert metadata["verb"] == "train" and len(metadata["config_hash"]) == 16
    assert metadata["run_folder"] == f"{tmp_path}/runs/first" and metadata["git_revision"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["convert", "census", "a", "b"], "this cannot be a job"),
        (["train", "no_such_config"], "there is no config no_such_config"),
        (["evaluate", "runs/first"], "the job's command would be refused"),
        (["train", "stem"], "does not say what to train on"),
    ],
)
def test_a_slip_is_told_before_a_job_starts(tmp_path: Path, words: list[str], said: str) -> None:
    done = raymtl("submit", *words, "--no-install", "--dry-run", folder=tmp_path)
    assert done.returncode == 2 and said in done.stderr


def test_requirements_are_sent_as_they_stand_without_comments(tmp_path: Path) -> None:
    path = tmp_path / "requirements.txt"
    path.write_text("# nodes\n--index-url https://x/simple\ntorch==2.13.0  # cpu\n\n")
    lines = ["--index-url https://x/simple", "torch==2.13.0"]
    assert jobs.requirements_of(path) == lines


@pytest.mark.parametrize(
    ("status", "code", "wanted"),
    [
        ("SUCCEEDED", 0, 0),
        ("FAILED", 2, 2),
        ("FAILED", 1, 1),
        ("FAILED", -9, None),
        ("FAILED", 137, None),
        ("FAILED", None, None),
        ("STOPPED", None, 130),
    ],
)
def test_the_end_of_a_job_is_the_commands_exit_code_unless_its_driver_died(
    status: str, code: int | None, wanted: int | None
) -> None:
    assert exit_code(status, code) == wanted


def test_training_that_died_goes_on_with_its_run() -> None:
    job = Job(["train", "stem", "name=x"], {}, {})
    assert retried(job).arguments == ["train", "stem", "name=x", "--or-resume"]
    assert retried(retried(job)).arguments == retried(job).arguments
    resumed = Job(["train", "--resume", "runs/x"], {}, {})
    assert retried(resumed).arguments == resumed.arguments
    assert retried(Job(["study", "s.yaml"], {}, {})).arguments == ["study", "s.yaml"]


class Cluster:
    """Stands in for Ray's client: refuses, is busy at first, or ends a job as told."""

    def __init__(self, *refusals: str):
        self.refusals, self.submitted = list(refusals), 0

    def submit_job(self, **job: Any) -> str:
        self.submitted += 1
        if self.refusals:
            raise RuntimeError(self.refusals.pop(0))
        return "job-1"


def test_a_busy_head_is_asked_again_and_one_that_refuses_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jobs, "PAUSES_S", (0.0, 0.0))
    busy = Cluster("No available agent, please try again later.")
    assert jobs.submitted(busy, Job(["doctor"], {}, {})) == "job-1" and busy.submitted == 2
    shut = Cluster("Authentication required: Unauthorized")
    with pytest.raises(InputError, match="the cluster does not take the job") as caught:
        followed(shut, Job(["doctor"], {}, {}))
    assert "RAY_AUTH_TOKEN" in caught.value.do and shut.submitted == 1
