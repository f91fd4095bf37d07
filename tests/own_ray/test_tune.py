"""Tuning studies on one Ray: trials that fail, stopping early, results, a killed driver."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray

from helpers.local_ray import HOMES, NUM_CPUS, running_ray
from helpers.logs import small_log
from helpers.training import read_lines
from helpers.troubled_model import Troubled
from helpers.tunings import small_tuning
from raymtl import alone
from raymtl.config import dump
from raymtl.errors import InputError
from raymtl.models import registry
from raymtl_jobs.train import of_config
from raymtl_tuning.conduct import conduct
from raymtl_tuning.records import StudyFolder
from raymtl_tuning.space import first, random_points

DRIVER_S = 400
"""Until a driver of its own has made two trials: 30 s, and many times that on a busy machine."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A small log, and a Ray with the dashboard that Ray Tune asks."""
    made = tmp_path_factory.mktemp("tune")
    small_log(made, rows=3000)
    with running_ray(dashboard=True):
        yield str(made)


def quietly(line: str) -> None:
    pass


def all_free(timeout_s: float = 60.0) -> bool:
    """Whether every CPU comes free: no trial's process or placement group is left."""
    ends = time.monotonic() + timeout_s
    while (free := ray.available_resources().get("CPU", 0.0) == NUM_CPUS) is False:
        if time.monotonic() > ends:
            break
        time.sleep(0.2)
    return free


@pytest.mark.long
def test_trials_that_fail_are_recorded_and_the_study_goes_on(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_models", dict(registry._models))
    registry.register("troubled", Troubled)
    study = small_tuning(
        folder,
        name="troubled",
        base={"model": {"name": "troubled"}},
        space={"model.trouble": {"choice": ["kill", "raise", "none", "nan", "memory"]}},
        search={"method": "grid"},
        parallel=2,
        memory_per_trial_bytes=2**31,
    )
    said: list[str] = []
    found = conduct(study, show=said.append)
    assert [r.point["model.trouble"] for r in found.records] == [
        *("kill", "raise", "none", "nan", "memory")
    ]
    assert [r.status for r in found.records] == ["failed", "failed", "finished", *["failed"] * 2]
    reasons = {r.point["model.trouble"]: (r.reason or "").split(":")[0] for r in found.records}
    assert reasons == {
        "kill": "died",
        "raise": "raised",
        "none": "",
        "nan": "not finite",
        "memory": "out of memory",
    }
    assert "no such expert" in (found.records[1].reason or "")
    assert found.best.point == {"model.trouble": "none"}
    assert any("decoded 2 logs" in line for line in said)
    table = pq.read_table(f"{found.folder.url}/trials.parquet").to_pylist()
    assert [row["model.trouble"] for row in table if row["value"] is None] == [
        *("kill", "raise", "nan", "memory")
    ]
    assert all_free()


def test_a_study_stops_what_is_behind_and_leaves_a_config_that_trains(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)  # trials work in folders of their own; paths begin at this one
    study = small_tuning(
        ".",
        name="stopping",
        space={"optimizer.rows.lr": {"choice": [0.3, 0.1, 1e-6, 1e-7, 1e-8]}},
        search={"method": "grid"},
        scheduler={"name": "asha", "by": "steps", "grace": 2, "reduction": 2},
        base={"train": {"global_batch_size": 64, "num_epochs": 2}},
        parallel=1,
    )
    found = conduct(study, show=quietly)
    by_rate = {r.point["optimizer.rows.lr"]: r for r in found.records}
    assert [r.status for r in found.records].count("stopped") >= 2
    assert by_rate[0.3].status == "finished"
    assert all(r.step < by_rate[0.3].step for r in found.records if r.status == "stopped")
    home = Path(folder, "tunings", "stopping")
    assert len(list(home.glob("runs/*/metrics.jsonl"))) == len(found.records)
    kept = {path.parent.name for path in home.glob("runs/*/checkpoints") if any(path.iterdir())}
    assert kept == {f"{found.best.number:04d}-2023"}
    result = json.loads((home / "result.json").read_text())
    assert result["best"]["number"] == found.best.number
    assert result["ended"] == Counter(record.status for record in found.records)
    report = (home / "report.html").read_text()
    assert "Pareto" not in report and "optimizer.rows.lr" in report and "<script" not in report
    assert "validations; the best in colour" in report
    best = of_config([str(home / "best.yaml"), f"storage={folder}/runs"])
    trained = alone.train(best)
    lines = [line for line in read_lines(trained["run"]) if "valid/auc" in line]
    assert max(line["valid/auc"] for line in lines) == pytest.approx(found.best.value)
    assert all_free()


@pytest.mark.long
def test_two_objectives_and_seeds_give_a_front(folder: str) -> None:
    study = small_tuning(
        folder,
        name="front",
        space={"embedding.width": {"choice": [2, 8]}},
        objective={"cost": "parameters"},
        search={"method": "tpe"},
        seeds_per_trial=2,
        trials=3,
        parallel=1,
    )
    found = conduct(study, show=quietly)
    costs = {r.point["embedding.width"]: r.cost for r in found.records}
    if len(costs) == 2:
        assert (costs[2] or 0) < (costs[8] or 0)
    for record in found.records:
        assert len(record.values) == 2 and record.spread is not None
        assert record.value == pytest.approx(sum(record.values) / 2)
    assert "Pareto front" in Path(found.folder.url, "report.html").read_text()


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_study_whose_driver_is_killed_goes_on_and_repeats_nothing(folder: str) -> None:
    study = small_tuning(
        folder, name="killed", trials=6, parallel=2, base={"train": {"num_epochs": 4}}
    )
    path = Path(folder, "killed.yaml")
    path.write_text(dump(study))
    home = StudyFolder.of(study)
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-m", "raymtl_jobs.cli", "tune", str(path), "--address", address]
    said_by_driver = Path(folder, "driver.txt")
    with open(said_by_driver, "w") as stream:
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(HOMES)}
        driver = subprocess.Popen(command, env=environ, stderr=stream)
    ends = time.monotonic() + DRIVER_S
    while len(home.records()) < 2 and driver.poll() is None and time.monotonic() < ends:
        time.sleep(0.05)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    before = {record.number: record for record in home.records()}
    assert 2 <= len(before) < 6, said_by_driver.read_text()
    assert all_free(), "trials of the killed driver are still there"
    with pytest.raises(InputError, match="of this name is there already"):
        conduct(study, show=quietly)
    said: list[str] = []
    found = conduct(study, resume=True, show=said.append)
    assert any(line.startswith(f"{6 - len(before)} trials to make") for line in said)
    assert [r.number for r in found.records] == list(range(6))
    assert {n: r for n, r in enumerate(found.records) if n in before} == before
    again: list[str] = []
    same = conduct(study, resume=True, show=again.append)
    assert same.records == found.records and again == []
    assert [r.point for r in found.records] == first(random_points(study.space, study.seed), 6)
