"""The commands one after the other, as a user types them, each with a Ray of its own."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import raymtl as engine
from helpers.cli import raymtl
from raymtl.data.log import LOG_ROW

SYNTH = ["rows=6000", "num_users=200", "num_items=100", "block_rows=3000", "chunk_rows=256"]
TINY = ["embedding.width=4", "model.expert_hidden_units=[8]", "train.global_batch_size=512"]
TINY += ["data.chunk_rows=256", "data.num_lanes=8", "validation.max_rows=400"]


def run(folder: Path, *arguments: str) -> str:
    """One command that must succeed, without a word from Ray; returns its stdout."""
    done = raymtl(*arguments, folder=folder, timeout_s=240)
    assert done.returncode == 0, done.stderr
    assert "(raylet)" not in done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with log/ and runs/stem, made by `raymtl synth` and `raymtl train`."""
    folder = tmp_path_factory.mktemp("user")
    run(folder, "synth", "demo_synth", "log", *SYNTH)
    urls = ["data.train=log/train", "data.valid=log/valid", "launch.num_workers=1"]
    run(folder, "train", "stem", *urls, *TINY)
    return folder


@pytest.mark.timeout(600)
def test_training_writes_a_run_with_its_result(folder):
    assert json.loads((folder / "log" / "result.json").read_text())["rows"]["train"] == 5100
    result = json.loads((folder / "runs" / "stem" / "result.json").read_text())
    assert result["state"]["rows"] == 5100
    assert result["state"]["stopped"] == "num_epochs"
    assert Path(result["run"]) == folder / "runs" / "stem"


@pytest.mark.timeout(600)
def test_predictions_of_two_workers_and_of_the_loaded_model_are_equal(folder):
    log = rows_of_test(folder)
    options = ["--key", "user", "--key", "item", "--key", "time", "--key", LOG_ROW]
    options += ["--log", "log/test", "--out", "scores", "--workers", "2"]
    run(folder, "predict", "runs/stem", *options)
    written = pq.read_table(folder / "scores")
    assert written.column_names == ["user", "item", "time", LOG_ROW, "click", "like"]
    assert sorted(written[LOG_ROW].to_pylist()) == list(range(log.num_rows)) == list(range(600))
    scores = engine.load(folder / "runs" / "stem").predict(log)
    for task in ("click", "like"):
        here = log.select(["user", "item", "time"]).append_column(task, [scores[task]])
        assert rows_by_key(here, task) == pytest.approx(rows_by_key(written, task), abs=1e-6)


def rows_of_test(folder: Path) -> pa.Table:
    return pq.read_table(sorted((folder / "log" / "test").glob("*.parquet")))


def rows_by_key(table: pa.Table, task: str) -> list[float]:
    order = [(name, "ascending") for name in ("user", "item", "time", task)]
    return table.sort_by(order).column(task).to_pylist()


@pytest.mark.timeout(600)
def test_evaluating_gives_the_metrics_of_the_loaded_models_scores(folder):
    text = run(folder, "evaluate", "runs/stem", "--log", "log/test", "--json")
    printed = json.loads(text)
    stored = folder / "runs" / "stem" / "evaluate" / "test" / "result.json"
    assert json.loads(stored.read_text()) == printed
    log = rows_of_test(folder)
    scores = engine.load(folder / "runs" / "stem").predict(log)["click"]
    labels = log.column("click").to_numpy()
    pairs = scores[labels == 1][:, None] - scores[labels == 0][None, :]
    auc = float(np.mean((pairs > 0) + (pairs == 0) / 2))
    assert printed["rows"] == 600
    assert printed["metrics"]["click/auc"] == pytest.approx(auc, abs=1e-6)


@pytest.mark.timeout(600)
def test_doctor_finds_this_machine_able_to_train(tmp_path):
    lines = run(tmp_path, "doctor").splitlines()
    assert lines[-1] == "ready to train"
    assert all(line.startswith("ok ") for line in lines[:-1])
