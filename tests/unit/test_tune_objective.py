"""Objectives are what their names say, and the best of some trials is the best."""

import json

import pytest

from helpers.logs import small_log
from raymtl.config import parse
from raymtl.errors import InputError
from raymtl_tuning import objective
from raymtl_tuning.config import ObjectiveSection
from raymtl_tuning.records import Record, front

METRICS = {
    "auc": 0.7,
    "click/auc": 0.8,
    "like/auc": 0.6,
    "click/gauc": 0.7,
    "like/gauc": 0.5,
    "click/log_loss": 0.4,
    "like/log_loss": 0.2,
    "click/rows": 100,
}


def section(**values) -> ObjectiveSection:
    return parse(ObjectiveSection, values, "a test")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, 0.7),
        ({"metric": "gauc"}, 0.6),
        ({"metric": "log_loss"}, 0.3),
        ({"name": "weighted", "weights": {"click": 3, "like": 1}}, 0.75),
        ({"name": "weighted", "weights": {"like": 2}}, 0.6),
        ({"name": "worst"}, 0.6),
        ({"name": "worst", "metric": "log_loss"}, 0.4),
        ({"name": "gain", "against": {"click": 0.7, "like": 0.6}}, 0.05),
        ({"name": "gain", "against": {"click": 0.7}}, 0.1),
        ({"name": "gain", "metric": "log_loss", "against": {"click": 0.5, "like": 0.1}}, 0.0),
    ],
)
def test_an_objective_is_what_its_name_says(values: dict, expected: float):
    assert objective.value(section(**values), METRICS) == pytest.approx(expected)


@pytest.mark.parametrize("missing", [None, float("nan"), float("inf")])
def test_an_objective_without_a_task_it_needs_does_not_exist(missing: float | None):
    broken = {**METRICS, "like/auc": missing}
    assert objective.value(section(), broken) is None
    assert objective.value(section(name="worst"), broken) is None
    assert objective.value(section(name="weighted", weights={"click": 1}), broken) == 0.8
    assert objective.value(section(), {}) is None


def test_a_direction_follows_from_the_metric_and_a_gain_is_always_more():
    assert section().maximised and section(metric="gauc").maximised
    assert not section(metric="log_loss").maximised
    assert section(name="gain", metric="log_loss", against={"a": 1.0}).maximised


def test_a_gain_is_against_the_mean_of_stored_runs(tmp_path):
    schema = small_log(tmp_path, rows=1500)
    for number, auc in enumerate((0.6, 0.7)):
        run = tmp_path / f"single-{number}"
        run.mkdir()
        state = {"best_metrics": {"click/auc": auc, "auc": 0.5, "click/rows": 10}}
        (run / "result.json").write_text(json.dumps({"state": state}))
    runs = [str(tmp_path / "single-0"), str(tmp_path / "single-1")]
    made = objective.resolved(section(name="gain", against=runs), schema)
    assert made.against == {"click": pytest.approx(0.65)}
    assert objective.value(made, METRICS) == pytest.approx(0.15)
    for values, what in (
        ({"name": "gain", "against": str(tmp_path)}, "is no finished run"),
        ({"name": "gain", "against": runs, "metric": "gauc"}, "have no gauc"),
        ({"name": "gain", "against": {"clik": 0.5}}, "a task without its metric"),
        ({"name": "weighted", "weights": {"clik": 0.5}}, "a task without its metric"),
        ({"metric": "rmse"}, "is not a metric of these tasks"),
    ):
        with pytest.raises(InputError, match=what):
            objective.resolved(section(**values), schema)


def record(number: int, value: float | None, cost: float | None = None, **more) -> Record:
    return Record(number, {}, more.pop("status", "finished"), value=value, cost=cost, **more)


def test_the_best_is_the_first_of_the_best_values_failures_apart():
    records = [record(0, 0.5), record(1, 0.7), record(2, 0.7), record(3, None, status="failed")]
    assert [r.number for r in front(section(), records)] == [1]
    assert [r.number for r in front(section(metric="log_loss"), records)] == [0]
    assert front(section(), [records[3]]) == []


def test_the_front_holds_what_nothing_beats_in_both():
    cheap = [record(0, 0.70, 10), record(1, 0.75, 20), record(2, 0.72, 30), record(3, 0.75, 20)]
    found = front(section(cost="parameters"), [*cheap, record(4, 0.9, None)])
    assert [r.number for r in found] == [1, 0]
    fast = front(section(cost="rows_per_s"), cheap)
    assert [r.number for r in fast] == [1, 2]
