"""Comparing runs: which run is which model and seed, scores kept, the verb, and errors."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from helpers.comparison import run_folder, schema_of, silent
from raymtl.analysis import predictions
from raymtl.analysis.runs import named_runs, without_seed
from raymtl.checkpoint import FileEntry
from raymtl.config import LaunchSection, dump
from raymtl.data.log import LogIndex
from raymtl.errors import InputError
from raymtl.schema import Task
from raymtl.storage import Folder
from raymtl_jobs.cli import app


@pytest.mark.parametrize(
    ("name", "seed", "label"),
    [
        ("stem-1", 1, "stem"),
        ("stem_seed2023", 2023, "stem"),
        ("stem", 2023, "stem"),
        ("stem-11", 1, "stem-11"),
        ("big_stem_3", 3, "big_stem"),
        ("7", 7, "7"),
    ],
)
def test_a_label_is_the_runs_name_without_its_seed(name, seed, label) -> None:
    assert without_seed(name, seed) == label


def test_runs_are_grouped_by_label_and_may_be_renamed(tmp_path) -> None:
    runs = [run_folder(tmp_path / f"stem-{seed}", seed) for seed in (1, 2)]
    wide = run_folder(tmp_path / "wide-1", 1, embedding={"width": 32})
    found = named_runs([*runs, f"STEM 32={wide}"])
    assert [(run.label, run.seed) for run in found] == [("stem", 1), ("stem", 2), ("STEM 32", 1)]


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (["stem-1", "stem-1"], "a run is named twice"),
        (["stem-1", "stem=wide-1"], "runs of stem were not trained alike"),
        (["stem-1", "three-1"], "the runs have different tasks"),
        (["stem-1", "nothing"], "this is no run folder"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(tmp_path, given, what) -> None:
    run_folder(tmp_path / "stem-1", 1)
    run_folder(tmp_path / "wide-1", 1, embedding={"width": 32})
    run_folder(tmp_path / "three-1", 1, tasks=("click", "like", "share"))
    paths = [f"{label}{sep}{tmp_path}/{run}" for label, sep, run in map(split, given)]
    with pytest.raises(InputError) as caught:
        named_runs(paths)
    assert caught.value.what == what


def split(text: str) -> tuple[str, str, str]:
    """`label=run` or `run`, as what stands before the run and the run."""
    return text.partition("=") if "=" in text else ("", "", text)


def test_a_dry_run_of_the_verb_names_logs_and_baseline_and_writes_nothing(tmp_path) -> None:
    runs = [run_folder(tmp_path / "stem-1", 1), run_folder(tmp_path / "single-1", 1, "single_task")]
    result = CliRunner().invoke(app, ["compare", *runs, "--dry-run", "--out", f"{tmp_path}/out"])
    assert result.exit_code == 0, result.stderr
    assert "2 runs of stem, single" in result.stderr
    assert "against single" in result.stderr
    assert not (tmp_path / "out").exists()


def test_the_verb_refuses_runs_with_different_tasks_in_four_parts(tmp_path) -> None:
    runs = [run_folder(tmp_path / "a-1", 1), run_folder(tmp_path / "b-1", 1, tasks=("click",))]
    result = CliRunner().invoke(app, ["compare", *runs, "--dry-run"])
    assert result.exit_code == 2
    assert "error: the runs have different tasks" in result.stderr
    assert "  do:     compare runs of the same tasks" in result.stderr


def test_tasks_with_other_loss_weights_are_the_same_tasks(tmp_path) -> None:
    runs = [run_folder(tmp_path / "a-1", 1), run_folder(tmp_path / "b-1", 1)]
    schema = schema_of().model_copy(
        update={
            "tasks": [
                Task(name="click", label="click", loss_weight=3.0),
                Task(name="like", label="like"),
            ]
        }
    )
    (tmp_path / "b-1" / "schema.yaml").write_text(dump(schema))
    assert len(named_runs(runs)) == 2


class Scoring:
    """Stands in for checkpoints and workers: counts what is scored, and fails when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.scored: list[str] = []
        self.fails = False
        self.digest = "aa"
        monkeypatch.setattr(predictions, "choose", self.choose)
        monkeypatch.setattr(predictions, "session", lambda launch: nullcontext())
        monkeypatch.setattr(predictions, "indexed", lambda log, schema: LogIndex(log, ()))
        monkeypatch.setattr(predictions, "predict", self.predict)

    def choose(self, url: str, which: str) -> SimpleNamespace:
        entry = FileEntry("dense.safetensors", 1, f"{url} {self.digest}")
        return SimpleNamespace(entries={entry.name: entry}, folder=SimpleNamespace(url=url))

    def predict(self, url: str, log: str, out: str, keys, launch, show) -> dict[str, int]:
        assert Folder(out).names() == []
        assert keys == ("log_row",)
        Folder(out).write("part-00000.parquet", b"scores")
        if self.fails:
            raise RuntimeError("a worker died")
        self.scored.append(url)
        return {"rows": 1}


def test_scores_are_made_once_for_a_checkpoint_and_log_and_a_broken_attempt_again(
    tmp_path, monkeypatch
) -> None:
    runs = named_runs([run_folder(tmp_path / f"stem-{seed}", seed) for seed in (1, 2)])
    scoring, out = Scoring(monkeypatch), str(tmp_path / "scores")
    scoring.fails = True
    with pytest.raises(RuntimeError):
        predictions.cells_of(runs, "log", out, LaunchSection(), show=silent)
    scoring.fails = False
    first = predictions.cells_of(runs, "log", out, LaunchSection(), show=silent)
    again = predictions.cells_of(runs, "log", out, LaunchSection(), show=silent)
    assert scoring.scored == [run.url for run in runs]
    assert first == again
    assert [(c.label, c.seed, c.run) for c in first] == [
        ("stem", s, runs[s - 1].url) for s in (1, 2)
    ]
    scoring.digest = "bb"
    predictions.cells_of(runs, "log", out, LaunchSection(), show=silent)
    assert len(scoring.scored) == 4
