"""The command line without Ray: exit codes, errors in four parts, dry runs, configs by name."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from helpers.cli import HOMES, raymtl
from helpers.logs import small_log
from raymtl.config import TrainConfig
from raymtl.errors import DamagedCheckpoint, InputError, NonFinite, RankFailed
from raymtl_jobs import names
from raymtl_jobs.cli import app
from raymtl_jobs.output import four_parts, report, without_traceback

SMALL = ["data.chunk_rows=400", "train.global_batch_size=256"]


def invoke(*arguments: str):
    """Runs a command in this process."""
    return CliRunner().invoke(app, list(arguments))


def is_four_parts(text: str, what: str) -> bool:
    lines = text.strip().splitlines()
    heads = [line[:10] for line in lines[1:4]]
    return lines[0] == f"error: {what}" and heads == ["  got:    ", "  wanted: ", "  do:     "]


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "log"
    small_log(folder, rows=3000)
    return folder


def test_an_unknown_key_is_a_users_error_on_stderr_with_the_nearest_key(tmp_path):
    done = raymtl("train", "stem", "data.train=log", "tarin.num_epochs=2", folder=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert is_four_parts(done.stderr, "unknown key tarin")
    assert "did you mean train?" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_config_name_is_answered_with_the_nearest():
    result = invoke("train", "kuairand_stme")
    assert result.exit_code == 2
    assert is_four_parts(result.stderr, "there is no config kuairand_stme")
    assert "did you mean kuairand_stem?" in result.stderr


def test_a_log_that_is_not_there_is_named(tmp_path):
    result = invoke("train", "stem", f"data.train={tmp_path}/nowhere")
    assert result.exit_code == 2
    assert f"{tmp_path}/nowhere" in result.stderr


def test_a_log_without_a_schema_leads_to_raymtl_schema(tmp_path, log):
    (tmp_path / "bare").mkdir()
    for file in (log / "train").glob("*.parquet"):
        (tmp_path / "bare" / file.name).write_bytes(file.read_bytes())
    result = invoke("train", "stem", f"data.train={tmp_path}/bare")
    assert result.exit_code == 2
    assert "raymtl schema LOG" in result.stderr


@pytest.mark.parametrize("override", ["num_epochs", "train..x=1", "=3"])
def test_an_override_that_is_not_key_and_value_is_refused(override):
    result = invoke("train", "stem", "data.train=log", override)
    assert result.exit_code == 2
    assert is_four_parts(result.stderr, "an override is not key=value")


def test_a_generic_config_says_that_data_train_is_missing():
    result = invoke("train", "stem")
    assert result.exit_code == 2
    assert "raymtl train stem data.train=LOG" in result.stderr


def test_training_without_a_config_says_how():
    result = invoke("train", "data.train=log")
    assert result.exit_code == 2
    assert is_four_parts(result.stderr, "no config is named")


def test_a_config_of_another_verb_is_refused():
    result = invoke("synth", "stem", "out")
    assert result.exit_code == 2
    assert "run `raymtl train stem`" in result.stderr


def test_a_dry_run_prints_the_resolved_config_and_writes_nothing(tmp_path, log):
    arguments = [f"data.train={log}/train", f"storage={tmp_path}/runs", *SMALL]
    result = invoke("train", "stem", *arguments, "--dry-run")
    assert result.exit_code == 0, result.stderr
    printed = TrainConfig.model_validate(yaml.safe_load(result.stdout))
    assert printed.data.train == f"{log}/train"
    assert printed.train.global_batch_size == 256
    assert printed.model.model_dump()["gate_input"] == "task+shared"
    assert "would train 10 steps with 2 workers" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_of_synth_prints_its_config_and_writes_nothing(tmp_path):
    result = invoke("synth", "demo_synth", str(tmp_path / "log"), "rows=1000", "--dry-run")
    assert result.exit_code == 0
    assert yaml.safe_load(result.stdout)["rows"] == 1000
    assert not (tmp_path / "log").exists()


def test_a_dry_run_of_prepare_prints_its_config_and_writes_nothing(tmp_path):
    result = invoke("prepare", "kuairand_prepare", str(tmp_path / "log"), "--dry-run")
    assert result.exit_code == 0, result.stderr
    assert yaml.safe_load(result.stdout)["sources"]
    assert not (tmp_path / "log").exists()


def test_a_dry_run_refuses_a_run_that_is_there(tmp_path, log):
    (tmp_path / "stem").mkdir()
    (tmp_path / "stem" / "config.yaml").write_text("{}")
    arguments = [f"data.train={log}/train", f"storage={tmp_path}", *SMALL]
    result = invoke("train", "stem", *arguments, "--dry-run")
    assert result.exit_code == 2
    assert f"raymtl train --resume {tmp_path}/stem" in result.stderr


def test_evaluating_what_is_no_run_is_a_users_error(tmp_path):
    done = raymtl("evaluate", str(tmp_path), "--log", "log", folder=tmp_path)
    assert done.returncode == 2
    assert is_four_parts(done.stderr, "there is no such checkpoint")


def test_resuming_what_is_no_run_is_a_users_error(tmp_path):
    result = invoke("train", "--resume", str(tmp_path / "nothing"))
    assert result.exit_code == 2
    assert is_four_parts(result.stderr, "this is no run folder")


@pytest.mark.parametrize("item", ["stem", "name=other", "storage=there"])
def test_a_resumed_run_keeps_its_config_name_and_place(tmp_path, item):
    result = invoke("train", item, "--resume", str(tmp_path))
    assert result.exit_code == 2
    assert is_four_parts(result.stderr, "a resumed run keeps its config, name and place")


def test_init_lists_the_shipped_configs_and_copies_one_without_overwriting(tmp_path):
    assert [line.split()[0] for line in invoke("init").stdout.splitlines()] == names.shipped()
    target = tmp_path / "mine.yaml"
    assert invoke("init", "stem", str(target)).exit_code == 0
    assert target.read_text() == names.text_of("stem")
    target.write_text("edited")
    again = invoke("init", "stem", str(target))
    assert again.exit_code == 2
    assert target.read_text() == "edited"


def test_a_copied_config_trains_by_its_path(tmp_path, log):
    target = tmp_path / "mine.yaml"
    invoke("init", "stem", str(target))
    result = invoke("train", str(target), f"data.train={log}/train", *SMALL, "--dry-run")
    assert result.exit_code == 0, result.stderr


def test_a_drafted_schema_is_written_once_and_lets_the_log_train(tmp_path, log):
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in (log / "train").glob("*.parquet"):
        (bare / file.name).write_bytes(file.read_bytes())
    out = bare / "schema.yaml"
    arguments = ["schema", str(bare), "--out", str(out)]
    labels = [part for name in ("click", "like", "share") for part in ("--label", name)]
    assert invoke(*arguments, *labels).exit_code == 0
    drafted = out.read_text()
    assert [t["label"] for t in yaml.safe_load(drafted)["tasks"]] == ["click", "like", "share"]
    assert invoke(*arguments).exit_code == 2
    assert out.read_text() == drafted
    result = invoke("train", "stem", f"data.train={bare}", *SMALL, "--dry-run")
    assert result.exit_code == 0, result.stderr


def test_a_drafted_schema_goes_to_stdout_without_a_file(log):
    result = invoke("schema", str(log / "train"))
    assert result.exit_code == 0, result.stderr
    assert yaml.safe_load(result.stdout)["features"]


def test_the_users_errors_exit_with_2_and_failures_with_1(capsys):
    assert report(InputError("a", "b", "c", "d")) == 2
    assert report(DamagedCheckpoint("a", "b", "c", "d")) == 2
    assert report(RankFailed("rank 1: OSError: disk full")) == 1
    assert (
        report(NonFinite("loss is not finite\n  rows: 3\n  wanted: numbers\n  do:     look")) == 1
    )
    assert "Traceback" not in capsys.readouterr().err


def test_a_failure_is_told_in_four_parts_without_the_workers_stack():
    text = "rank 1: OSError: disk full\nTraceback (most recent call last):\n  File x\nrank 2: same"
    assert without_traceback(text) == "rank 1: OSError: disk full\nrank 2: same"
    assert is_four_parts("error: " + four_parts("disk full"), "the command failed")


def test_a_traceback_is_printed_when_asked_for(tmp_path):
    done = raymtl("train", "nothing", folder=tmp_path, RAYMTL_TRACEBACK="1")
    assert done.returncode == 2
    assert "Traceback (most recent call last)" in done.stderr
    assert "error: there is no config nothing" in done.stderr


def test_help_needs_neither_ray_nor_torch(tmp_path):
    done = raymtl("--help", folder=tmp_path)
    assert done.returncode == 0
    assert "evaluate" in done.stdout
    lines = "import sys, raymtl_jobs.cli; print([m for m in ('ray', 'torch') if m in sys.modules])"
    code = f"import sys; sys.path[:0] = {HOMES!r}; {lines}"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_the_version_is_one_line(tmp_path):
    done = raymtl("--version", folder=tmp_path)
    assert (done.returncode, done.stdout.startswith("raymtl ")) == (0, True)
