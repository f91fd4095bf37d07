"""The space of a tuning study: what is drawn from it, and what is refused before any trial."""

from collections import Counter
from itertools import islice
from typing import Any

import pytest

from helpers.logs import small_log
from helpers.tunings import SPACE, small_tuning
from raymtl.config import load
from raymtl.errors import InputError
from raymtl_jobs import names
from raymtl_tuning.checks import checked, runs_at
from raymtl_tuning.config import TuneConfig
from raymtl_tuning.space import drawn, grid_points, random_points


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("log")
    small_log(folder, rows=1500)
    return str(folder)


def test_a_draw_follows_from_seed_and_number_alone():
    space = small_tuning("/nowhere").space
    assert [drawn(space, 7, n) for n in range(20)] == [drawn(space, 7, n) for n in range(20)]
    assert drawn(space, 7, 0) != drawn(space, 8, 0)
    points = list(islice(random_points(space, 7), 50))
    assert points[:20] == list(islice(random_points(space, 7), 20))


def test_every_kind_of_distribution_gives_values_within_its_bounds():
    kinds: dict[str, Any] = {
        "choice": [[64], [64, 32]],
        "uniform": [0.5, 2.0],
        "quniform": [0.0, 0.4, 0.1],
        "loguniform": [0.001, 1.0],
        "qloguniform": [0.1, 10.0, 0.1],
        "randint": [1, 4],
        "qrandint": [2, 8, 2],
        "lograndint": [1, 100],
        "qlograndint": [2, 64, 2],
    }
    space = {f"model.{kind}": {kind: arguments} for kind, arguments in kinds.items()}
    made = small_tuning("/nowhere", space=space).space
    values = {kind: [drawn(made, 1, n)[f"model.{kind}"] for n in range(200)] for kind in kinds}
    assert {tuple(v) for v in values["choice"]} == {(64,), (64, 32)}
    assert sorted(set(values["randint"])) == [1, 2, 3]
    assert sorted(set(values["qrandint"])) == [2, 4, 6, 8]
    assert sorted({round(v, 6) for v in values["quniform"]}) == [0.0, 0.1, 0.2, 0.3, 0.4]
    for kind, (low, high, *_) in kinds.items():
        if kind != "choice":
            assert low <= min(values[kind]) and max(values[kind]) <= high
            assert all(type(v) is (int if "int" in kind else float) for v in values[kind])
    below = sum(v < 0.0316 for v in values["loguniform"])  # half of it, by its logarithm
    assert 70 < below < 130


def test_a_key_is_searched_only_where_its_condition_holds():
    space = small_tuning("/nowhere").space
    points = [drawn(space, 1, n) for n in range(100)]
    layers = Counter((p["model.num_layers"], "model.isolation" in p) for p in points)
    assert set(layers) == {(1, False), (2, True)}


def test_a_grid_holds_every_point_once_and_no_inactive_key():
    space = {k: v for k, v in SPACE.items() if k != "optimizer.rows.lr"}
    points = grid_points(small_tuning("/nowhere", space=space).space)
    assert len(points) == 3 * (1 + 2)
    assert {str(p) for p in points} == {str(p) for p in points if len(p) == 2 or len(p) == 3}
    assert points[0] == {"model.num_shared_experts": 1, "model.num_layers": 1}
    with pytest.raises(InputError, match="a grid cannot hold a continuous distribution"):
        grid_points(small_tuning("/nowhere").space)


def test_random_points_differ_and_end_with_the_space():
    space = {k: v for k, v in SPACE.items() if k != "optimizer.rows.lr"}
    points = list(random_points(small_tuning("/nowhere", space=space).space, 3))
    assert len(points) == len({str(p) for p in points}) == 9


@pytest.mark.parametrize(
    ("space", "what", "part"),
    [
        (
            {"model.num_shared": {"choice": [1]}},
            "a key that no training config has",
            "did you",
        ),
        ({"optimizer.row.lr": {"choice": [1]}}, "a key that no training config has", "rows"),
        ({"model.num_layers": {"choice": []}}, "a choice is empty", "model.num_layers"),
        ({"model.dropout": {"uniform": [0.5, 0.1]}}, "low end is not below", "0.5 and 0.1"),
        ({"model.dropout": {"uniform": [0.1, 0.1]}}, "low end is not below", "base"),
        ({"optimizer.rows.lr": {"loguniform": [0.0, 0.1]}}, "starts at 0 or below", "above 0"),
        ({"model.num_layers": {"uniform": [1, 3]}}, "refuses a value", "valid integer"),
        ({"model.num_layers": {"choice": [1, "two"]}}, "refuses a value", "valid integer"),
        ({"model.isolation": {"choice": ["hard"]}}, "refuses a value", "official"),
        ({"model.dropout": {"uniform": [0.0, 1.5]}}, "refuses a value", "less than 1"),
        ({"model.num_layers": {"randint": [0, 3]}}, "refuses a value", "model.num_layers = 0"),
        ({"train.global_batch_size": {"choice": [255]}}, "refuses a value", "divide over"),
        ({"data.train": {"choice": ["x"]}}, "must be alike in all trials", "data.train"),
        ({"seed": {"randint": [1, 3]}}, "must be alike in all trials", "seed"),
        ({"optimizer.rows.lr_by_table.itm": {"choice": [1.0]}}, "refuses a value", "item"),
    ],
)
def test_a_bad_space_is_refused_before_any_trial(log: str, space: dict, what: str, part: str):
    with pytest.raises(InputError, match=what) as caught:
        checked(small_tuning(log, space=space))
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("when", "what"),
    [
        ({"model.layers": 2}, "names a key that is not searched"),
        ({"model.num_layers": 7}, "names a value that its key never has"),
        ({"model.num_layers": []}, "names a value that its key never has"),
        ({"model.isolation": "strict"}, "conditions wait for each other"),
    ],
)
def test_a_bad_condition_is_refused(log: str, when: dict, what: str):
    space = {**SPACE, "model.isolation": {"choice": ["strict"], "when": when}}
    with pytest.raises(InputError, match=what):
        checked(small_tuning(log, space=space))


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"space": {"model.dropout": {"uniform": [0, 1], "choice": [1]}}}, "not one distribution"),
        ({"space": {"model.dropout": {"unifrom": [0, 0.5]}}}, "unknown key space.model.dropout"),
        ({"space": {"model.dropout": {"uniform": ["a", 0.5]}}}, "is not valid"),
        ({"search": {"method": "nsga2"}}, "nsga2 needs two objectives"),
        ({"scheduler": {"name": "asha"}}, "needs to know where it may stop"),
        ({"objective": {"name": "weighted"}}, "weights belong to the weighted objective"),
        ({"objective": {"name": "gain"}}, "a gain is against single-task results"),
        ({"base": {"name": "mine"}}, "base sets what the study sets"),
        (
            {"objective": {"cost": "parameters"}, "scheduler": {"name": "asha", "grace": 5}},
            "a scheduler does not go with two objectives",
        ),
        (
            {"base": {"validation": {}}, "scheduler": {"name": "asha", "grace": 5}},
            "would see a trial at its end alone",
        ),
    ],
)
def test_a_study_that_cannot_be_is_refused(values: dict, what: str):
    with pytest.raises(InputError, match=what):
        small_tuning("/nowhere", **values)


def test_a_study_without_a_validation_log_is_refused(log: str):
    with pytest.raises(InputError, match="tuning needs a validation log"):
        checked(small_tuning(log, base={"data": {"train": f"{log}/train"}}))
    with pytest.raises(InputError, match="does not say what to train on"):
        checked(small_tuning(log, base={"data": {}}))


def test_a_value_is_tried_where_its_condition_holds(log: str):
    """Without its parent's value the config would refuse a key of the other head."""
    space = {
        "model.head.name": {"choice": ["mmoe", "shared_bottom"]},
        "model.head.num_experts": {"choice": [2, 4], "when": {"model.head.name": "mmoe"}},
    }
    base = {"model": {"name": "dtrn", "interest": False, "head": {"name": "shared_bottom"}}}
    checked(small_tuning(log, space=space, base=base))
    del space["model.head.num_experts"]["when"]
    with pytest.raises(InputError, match="no training config has"):
        checked(small_tuning(log, space=space, base=base))


def test_a_trials_runs_have_its_point_its_seed_and_a_name_of_their_own(log: str):
    study = small_tuning(log, pretrain={"data": {"valid": None}, "train": {"max_steps": 1}})
    point = {"model.num_shared_experts": 4, "optimizer.rows.lr": 0.2}
    before, run = runs_at(study, 7, point, 11)
    assert (before.name, run.name, run.seed) == ("0007-11-pretrained", "0007-11", 11)
    assert run.init_from == f"{before.storage}/{before.name}"
    assert run.optimizer.rows.lr == before.optimizer.rows.lr == 0.2
    assert (before.train.max_steps, run.train.max_steps) == (1, None)
    assert run.launch.num_workers == 1


@pytest.mark.parametrize("name", [n for n in names.shipped() if names.verb_of(n) == "tune"])
def test_every_shipped_space_fits_its_model(name: str, log: str):
    path = f"tuning/raymtl_tuning/spaces/{name}.yaml"
    data = {"base.data.train": f"{log}/train", "base.data.valid": f"{log}/valid"}
    overrides = [f"{key}={value}" for key, value in data.items()]
    if name.startswith("kuairand"):
        overrides += [f"pretrain.data.train={log}/train", "base.optimizer.rows.lr_by_table={}"]
    made = names.load(TuneConfig, name, overrides, "tune")
    assert made == load(TuneConfig, path, overrides)
    assert made.name == name
    checked(made)
