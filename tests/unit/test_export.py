"""An exported artifact scores as the trainer does, whatever the model, and says what it is."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

import raymtl
from helpers.artifacts import prepared_artifact, trained
from helpers.logs import small_log
from helpers.prepared import prepared_log, raw_columns
from raymtl import alone, calibration
from raymtl.artifact.bundle import MODULES, one_file
from raymtl.artifact.trace import trace
from raymtl.calibration import Curve
from raymtl.config import parse_yaml
from raymtl.errors import InputError
from raymtl.models import registry
from raymtl.schema import LogSchema
from raymtl.scorer import RequestError, Scorer
from raymtl.storage import Folder

pytestmark = pytest.mark.timeout(400)  # tracing is slow on a busy machine
AGREES = 1e-6


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    yield prepared_artifact(tmp_path_factory.mktemp("prepared"))


def columns_of(scorer: Scorer, form: str, table: Any) -> dict[str, list[Any]]:
    return {name: table[name].to_pylist() for name in scorer.columns(form)}


@pytest.mark.parametrize("name", registry.names())
def test_every_models_artifact_scores_as_load_and_predict_do(
    name: str, prepared: tuple[str, Path]
) -> None:
    home = prepared[1].parent
    run = trained(home / name, name, {"train": f"{home}/log/train"})
    scorer = Scorer(raymtl.export(run, home / name / "artifact")["out"])
    rows = pq.read_table(home / "log" / "test" / "part-0.parquet")
    request = columns_of(scorer, "log", rows)
    scores = scorer.score(request, "log")
    alone.predict(run, f"{home}/log/test", f"{home}/{name}/scores")
    written = pq.read_table(next((home / name / "scores").glob("*.parquet"))).sort_by("log_row")
    for task, loaded in raymtl.load(run).predict(rows).items():
        np.testing.assert_allclose(scores[task], loaded, rtol=AGREES, atol=AGREES)
        np.testing.assert_allclose(scores[task], written[task].to_numpy(), rtol=AGREES, atol=AGREES)
        assert np.unique(scores[task]).size > 100
    for row in (0, 7):
        single = {column: values[row : row + 1] for column, values in request.items()}
        for task, score in scorer.score(single, "log").items():
            np.testing.assert_allclose(score, scores[task][row], rtol=AGREES, atol=AGREES)


def test_a_log_that_was_never_prepared_is_asked_for_with_its_own_columns(tmp_path: Path) -> None:
    small_log(tmp_path, rows=600)
    run = trained(tmp_path, "stem", {"train": f"{tmp_path}/train"})
    scorer = Scorer(raymtl.export(run, tmp_path / "artifact")["out"])
    assert scorer.forms == ("log",)
    rows = pq.read_table(sorted((tmp_path / "test").glob("part-*.parquet")))
    scores = scorer.score(columns_of(scorer, "log", rows))
    for task, loaded in raymtl.load(run).predict(rows).items():
        np.testing.assert_allclose(scores[task], loaded, rtol=AGREES, atol=AGREES)


def test_raw_and_prepared_columns_of_the_same_rows_score_alike(
    prepared: tuple[str, Path],
) -> None:
    run, artifact = prepared
    scorer = Scorer(artifact)
    rows = pq.read_table(artifact.parent / "log" / "test" / "part-0.parquet")
    expected = raymtl.load(run).predict(rows)
    as_log = scorer.score(columns_of(scorer, "log", rows), "log")
    as_raw = scorer.score(columns_of(scorer, "raw", raw_columns(300)))
    assert scorer.forms == ("raw", "log")
    for task in ("click", "stay", "like"):
        np.testing.assert_allclose(as_log[task], expected[task], rtol=AGREES, atol=AGREES)
        np.testing.assert_allclose(as_raw[task], expected[task], rtol=AGREES, atol=AGREES)


def test_arrays_and_lists_of_numpy_and_python_values_are_one_request(
    prepared: tuple[str, Path],
) -> None:
    scorer = Scorer(prepared[1])
    request = {name: values.to_pylist()[:9] for name, values in raw_columns(9, seed=5).items()}
    request = {name: request[name] for name in scorer.columns()}
    arrays: dict[str, Any] = {
        name: np.array(values, object)
        for name, values in request.items()
        if name not in ("seen", "tags")
    }
    arrays |= {"seen": [np.array(v, object) for v in request["seen"]], "tags": request["tags"]}
    arrays["age"] = np.array([np.nan if v is None else v for v in request["age"]])
    one, other = scorer.score(request), scorer.score(arrays)
    assert all(np.array_equal(one[task], other[task]) for task in scorer.tasks)


def test_no_rows_get_no_scores(prepared: tuple[str, Path]) -> None:
    scorer = Scorer(prepared[1])
    for form in scorer.forms:
        scores = scorer.score({name: [] for name in scorer.columns(form)}, form)
        assert {task: s.shape for task, s in scores.items()} == {
            "click": (0,),
            "stay": (0,),
            "like": (0,),
        }


def test_a_column_with_a_default_may_be_left_out(prepared: tuple[str, Path]) -> None:
    scorer = Scorer(prepared[1])
    request = {name: values.to_pylist() for name, values in raw_columns(20).items()}
    request = {name: request[name] for name in scorer.columns()}
    spelled = scorer.score(request | {"device": ["phone"] * 20})
    del request["device"]
    left_out = scorer.score(request)
    assert all(np.array_equal(spelled[t], left_out[t]) for t in scorer.tasks)
    del request["city"]
    with pytest.raises(RequestError, match="lacks a column") as error:
        scorer.score(request)
    assert error.value.got == "city"


def test_calibration_is_applied_unless_the_request_says_no(
    prepared: tuple[str, Path], tmp_path: Path
) -> None:
    run, _ = prepared
    with pytest.raises(InputError, match="was not calibrated"):
        raymtl.export(run, tmp_path / "early", calibrated=True)
    name = "step-00000002"
    tasks = {"click": {"curve": vars(Curve("platt", 0.5, -1.0))}}
    Folder(run).write(calibration.path_of(name), json.dumps({"tasks": tasks}).encode())
    scorer = Scorer(raymtl.export(run, tmp_path / "artifact", calibrated=True)["out"])
    request = {n: v.to_pylist() for n, v in raw_columns(50).items() if n in scorer.columns()}
    plain, made = scorer.score(request, calibrated=False), scorer.score(request)
    odds = 0.5 * np.log(plain["click"] / (1 - plain["click"])) - 1
    np.testing.assert_allclose(made["click"], 1 / (1 + np.exp(-odds)), atol=1e-6)
    assert np.array_equal(made["stay"], plain["stay"])
    rows = pq.read_table(Path(run).parents[1] / "log" / "test" / "part-0.parquet")
    expected = raymtl.load(run, calibrated=True).predict(rows.slice(0, 50))
    np.testing.assert_allclose(
        scorer.score(columns_of(scorer, "log", rows.slice(0, 50)), "log")["click"],
        expected["click"],
        atol=AGREES,
    )


def test_an_artifact_says_where_it_comes_from(prepared: tuple[str, Path]) -> None:
    run, artifact = prepared
    info = Scorer(artifact).info
    assert (info["model"], info["step"]) == ("stem", 2)
    assert info["checkpoint"].startswith(run)
    assert (info["log"]["first_time"], info["log"]["last_time"]) == (1000, 1299)
    assert info["log"]["rows"] == 300
    schema = parse_yaml((artifact / "schema.yaml").read_text(encoding="utf-8"), "schema.yaml")
    assert LogSchema.model_validate(schema).transforms == info["transforms"]


def test_without_its_transforms_an_artifact_takes_prepared_rows_and_says_why(
    tmp_path: Path,
) -> None:
    prepared_log(tmp_path)
    (tmp_path / "log" / "transforms.yaml").unlink()
    run = trained(tmp_path, "shared_bottom", {"train": f"{tmp_path}/log/train"})
    result = raymtl.export(run, tmp_path / "out")
    assert result["forms"] == ["log"]
    assert "no transforms" in result["warning"]
    assert Scorer(tmp_path / "out").forms == ("log",)


def test_what_is_known_in_training_only_is_neither_needed_nor_read(
    prepared: tuple[str, Path],
) -> None:
    scorer = Scorer(prepared[1])
    assert not {"place", "rank"} & scorer.columns().keys()
    made = {name: values.to_pylist() for name, values in raw_columns(20).items()}
    request = {name: made[name] for name in scorer.columns()}
    scores = scorer.score(request)
    given = scorer.score(request | {"place": [4] * 20, "rank": made["rank"]})
    assert all(np.array_equal(scores[task], given[task]) for task in scorer.tasks)


def test_an_export_writes_into_no_folder_that_holds_something(
    prepared: tuple[str, Path],
) -> None:
    with pytest.raises(InputError, match="is not empty"):
        raymtl.export(prepared[0], prepared[1])


def test_scorer_py_scores_without_raymtl_installed(prepared: tuple[str, Path]) -> None:
    _, artifact = prepared
    scorer = Scorer(artifact)
    rows = {name: values.to_pylist()[:5] for name, values in raw_columns(5).items()}
    request = {name: rows[name] for name in scorer.columns()}
    code = (
        "import sys, runpy\n"
        "class Refused:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('raymtl', 'ray', 'pyarrow', 'pydantic', 'yaml'):\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refused())\n"
        f"runpy.run_path({str(artifact / 'scorer.py')!r}, run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(request), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for task, scores in scorer.score(request).items():
        np.testing.assert_allclose(json.loads(done.stdout)[task], scores, atol=AGREES)


def test_the_one_file_has_every_module_and_no_name_twice() -> None:
    folder = Path(raymtl.__path__[0], "scorer")
    assert {f.stem for f in folder.glob("*.py")} == {"__init__", *MODULES}
    names: dict[str, Any] = {}
    for line in one_file().splitlines():
        if line.startswith(("def ", "class ")) or (" = " in line and line[:1].isupper()):
            name = line.replace("class ", "").replace("def ", "").split("(")[0].split(" ")[0]
            assert name.rstrip(":") not in names, name
            names[name.rstrip(":")] = line
    assert {"Scorer", "Program", "RequestError", "FILES"} <= names.keys()


class _Sorted(nn.Module):
    def forward(self, inputs: Any) -> torch.Tensor:
        return torch.linalg.svd(inputs.views_BVFD[:, 0])[1]


class _Branching(nn.Module):
    def forward(self, inputs: Any) -> torch.Tensor:
        return inputs.numeric_BN if inputs.numeric_BN.sum() > 0 else -inputs.numeric_BN


@pytest.mark.parametrize(
    ("model", "what"), [(_Sorted(), "does not run"), (_Branching(), "cannot trace")]
)
def test_a_model_that_cannot_be_a_program_is_refused(model: nn.Module, what: str) -> None:
    from helpers.models import shape_of, small_section

    with pytest.raises(InputError, match=what):
        trace(model, shape_of(small_section("stem")))
