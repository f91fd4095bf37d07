"""Searchers without Ray: what is still to do, and a killed study's points going on as they were."""

import math
from collections.abc import Sequence
from typing import Any

import pytest

from helpers.tunings import SPACE, small_tuning
from raymtl.errors import InputError
from raymtl_tuning.adaptive import noted, optuna_search
from raymtl_tuning.config import TuneConfig
from raymtl_tuning.effects import effects
from raymtl_tuning.records import Record, StudyFolder
from raymtl_tuning.search import search
from raymtl_tuning.space import Point, first, name_of, random_points

CHOICES = {k: v for k, v in SPACE.items() if k != "optimizer.rows.lr"}


def score(point: Point) -> float:
    """The more shared experts and the fewer layers the better."""
    return point["model.num_shared_experts"] - 0.5 * point["model.num_layers"]


def conduct(
    study: TuneConfig, records: Sequence[Record], count: int, begun: dict[int, Point] | None = None
) -> list[Record]:
    """Goes on with a study one trial at a time, each judged by `score` as it comes."""
    searcher, found = optuna_search(study, records, begun)
    made = list(records)
    for step in range(count):
        given: Any = searcher.suggest(f"trial{step}")
        number, point = given["number"], given["point"]
        failed = number == 2
        result = {"value": score(point), "cost": 1.0 + point["model.num_shared_experts"]}
        searcher.on_trial_complete(f"trial{step}", None if failed else result, error=failed)
        made.append(
            Record(
                number,
                point,
                "failed" if failed else "finished",
                value=None if failed else result["value"],
                cost=None if failed else result["cost"],
                attrs=noted(found, number),
            )
        )
    return made


def test_random_and_grid_hand_out_what_has_not_ended_under_its_number():
    for method, space, total in (("random", SPACE, 5), ("grid", CHOICES, 9)):
        study = small_tuning("/nowhere", search={"method": method}, space=space, trials=5)
        whole = search(study, [], {})
        given = whole.param_space["trial"]["grid_search"]
        assert whole.count == whole.total == total
        ended = [Record(n, given[n]["point"], "finished") for n in (0, 3)]
        rest = search(study, ended, {})
        assert rest.param_space["trial"]["grid_search"] == [
            g for g in given if g["number"] not in (0, 3)
        ]
        assert (rest.count, rest.total) == (total - 2, total)


def told(records: Sequence[Record]) -> list[tuple[int, Point, float | None]]:
    return [(r.number, r.point, r.value) for r in records]


@pytest.mark.parametrize("stop", [1, 3, 9, 14])
def test_a_killed_search_goes_on_as_it_would_have(stop: int):
    study = small_tuning("/nowhere", search={"method": "tpe", "startup": 4}, trials=18)
    whole = conduct(study, [], 18)
    part = conduct(study, [], stop)
    assert told(part) == told(whole[:stop])
    assert told(conduct(study, part, 18 - stop)) == told(whole)
    begun = {r.number: r.point for r in whole[: stop + 1]}
    assert told(conduct(study, part, 18 - stop, begun)) == told(whole)


def test_a_killed_evolution_goes_on_from_its_generations():
    study = small_tuning(
        "/nowhere",
        search={"method": "nsga2", "startup": 4},
        objective={"cost": "parameters"},
        trials=20,
    )
    part = conduct(study, [], 10)
    whole = conduct(study, part, 10, {r.number: r.point for r in part})
    assert told(whole[:10]) == told(part)
    assert [r.number for r in whole] == list(range(20))
    generations = [r.attrs["NSGAIISampler:generation"] for r in whole]
    assert generations == sorted(generations)
    assert generations[-1] > generations[9] > 0


def test_a_trial_that_was_begun_comes_again_under_its_number():
    study = small_tuning("/nowhere", search={"method": "tpe", "startup": 4}, trials=8)
    whole = conduct(study, [], 6)
    ended = [r for r in whole if r.number not in (1, 4)]
    begun = {r.number: r.point for r in whole}
    again = conduct(study, ended, 2, begun)[4:]
    assert told(again) == told([whole[1], whole[4]])


def test_tpe_begins_as_random_does_and_tries_no_point_twice():
    values = {"space": CHOICES, "trials": 9}
    study = small_tuning("/nowhere", search={"method": "tpe", "startup": 3}, **values)
    points = [record.point for record in conduct(study, [], 9)]
    assert points[:3] == first(random_points(study.space, study.seed), 3)
    assert len({name_of(point) for point in points}) == 9


def test_tpe_goes_to_what_is_better():
    """By chance a rate would lie in the best tenth of its (logarithmic) range two times in 20."""
    space = {"optimizer.rows.lr": {"loguniform": [0.001, 1.0]}}
    study = small_tuning("/nowhere", search={"method": "tpe"}, space=space, trials=30)
    searcher, _ = optuna_search(study)
    late = 0
    for step in range(30):
        point: Any = searcher.suggest(f"trial{step}")
        off = abs(math.log10(point["point"]["optimizer.rows.lr"] / 0.03))
        late += step >= 10 and off < 0.15
        searcher.on_trial_complete(f"trial{step}", {"value": -off})
    assert late >= 5


def test_a_resumed_study_may_not_become_another_one(tmp_path):
    study = small_tuning(str(tmp_path))
    folder = StudyFolder.of(study)
    with pytest.raises(InputError, match="no tuning study to go on with"):
        folder.begin(study, resume=True)
    folder.begin(study, resume=False)
    with pytest.raises(InputError, match="of this name is there already"):
        folder.begin(study, resume=False)
    more = small_tuning(str(tmp_path), trials=9, parallel=1, budget={"rows": 100})
    folder.begin(more, resume=True)
    assert folder.read_config() == more
    for changed in ({"seed": 4}, {"space": CHOICES}, {"objective": {"metric": "gauc"}}):
        with pytest.raises(InputError, match="a resumed study cannot change this key"):
            folder.begin(small_tuning(str(tmp_path), **changed), resume=True)


def test_a_record_comes_back_as_it_was_written(tmp_path):
    folder = StudyFolder(str(tmp_path))
    folder.begin_trial(3, {"model.gate_hidden_units": [8]})
    record = Record(3, {"model.gate_hidden_units": [8]}, "finished", value=0.5, values=[0.5])
    folder.end_trial(record)
    assert folder.records() == [record]
    assert folder.begun() == {3: {"model.gate_hidden_units": [8]}}


def test_the_key_that_moved_the_objective_is_the_important_one():
    study = small_tuning("/nowhere", search={"method": "random"}, space=SPACE)
    searched = search(study.model_copy(update={"trials": 40}), [], {})
    records = []
    for given in searched.param_space["trial"]["grid_search"]:
        value = 1.0 * given["point"]["model.num_shared_experts"]
        records.append(Record(given["number"], given["point"], "finished", value=value))
    found = effects(study, records)
    assert next(iter(found.importance)) == "model.num_shared_experts"
    assert found.importance["model.num_shared_experts"] > 0.9
    groups = found.groups["model.num_shared_experts"]
    assert [(g.label, g.mean, g.best) for g in groups] == [("1", 1, 1), ("2", 2, 2), ("4", 4, 4)]
    assert sum(g.count for g in groups) == 40
    lr = found.groups["optimizer.rows.lr"]
    assert [g.count for g in lr] == [10, 10, 10, 10]
    assert effects(study, records[:5]).importance == {}
