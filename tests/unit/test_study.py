"""What a study is made of: points of its grid, names of its runs, and what it refuses."""

import pytest

from helpers.logs import small_log
from helpers.studies import small_study
from helpers.training import train_config
from raymtl import alone
from raymtl.errors import InputError
from raymtl.study.cell import train_cell
from raymtl.study.conduct import conduct
from raymtl.study.plan import merged, planned, searched


def test_every_model_is_tried_at_every_point_of_its_grid_with_the_first_seed():
    runs = searched(small_study("/nowhere"))
    assert [(run.label, dict(run.point), run.seed) for run in runs] == [
        ("single_task", {"optimizer.rows.lr": 0.02}, 1),
        ("single_task", {"optimizer.rows.lr": 0.1}, 1),
        ("bottom", {}, 1),
    ]
    assert [run.config.optimizer.rows.lr for run in runs] == [0.02, 0.1, 0.02]
    assert str(runs[1]) == "single_task (lr 0.1)"


def test_a_runs_name_follows_from_its_config_alone():
    made = small_study("/nowhere")
    model = made.models[0]
    once, again = (planned(made, model, {"optimizer.rows.lr": 0.1}, 1) for _ in range(2))
    other_seed = planned(made, model, {"optimizer.rows.lr": 0.1}, 2)
    other_point = planned(made, model, {"optimizer.rows.lr": 0.2}, 1)
    assert once.config.name == again.config.name
    assert once.config.name[:-1] == other_seed.config.name[:-1]
    assert once.config.name != other_point.config.name
    assert once.config.storage == "/nowhere/studies/study/runs"


def test_values_are_merged_section_by_section_and_the_model_as_a_whole():
    base = {"train": {"a": 1, "b": {"c": 2}}, "model": {"name": "x", "units": [1]}}
    got = merged(base, {"train": {"b": {"d": 3}}, "model": {"name": "y"}})
    assert got == {"train": {"a": 1, "b": {"c": 2, "d": 3}}, "model": {"name": "y"}}
    assert base["train"] == {"a": 1, "b": {"c": 2}}


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"external": [{"label": "bottom", "scores": "x"}]}, "two models have one label"),
        ({"seeds": [1, 1]}, "a seed is given twice"),
        ({"search": {"optimizer.rows.lr": []}}, "a key of the search has no values"),
        ({"base": {"seed": 3}}, "base sets what the study sets"),
        ({"modles": []}, "unknown key modles"),
    ],
)
def test_a_study_that_cannot_be_is_refused(values: dict, complaint: str):
    with pytest.raises(InputError, match=complaint):
        small_study("/nowhere", **values)


def test_a_refused_config_names_the_model():
    wrong = {"label": "wrong", "values": {"model": {"name": "stem", "num_layers": 0}}}
    with pytest.raises(InputError, match=r"model\.num_layers"):
        searched(small_study("/nowhere", models=[wrong]))
    with pytest.raises(InputError) as caught:
        searched(small_study("/nowhere", search={"optimizer.rows.speed": [1]}))
    assert "model single_task of the study" in str(caught.value)


def test_a_study_is_checked_before_any_run(tmp_path):
    small_log(tmp_path, rows=1500)
    base = small_study(str(tmp_path)).base
    without = {**base, "data": {k: v for k, v in base["data"].items() if k != "valid"}}
    external = [{"label": "trees", "scores": str(tmp_path / "none.parquet")}]
    for values, complaint in (
        ({"base": without}, "a study needs a validation log"),
        ({"test": str(tmp_path / "gone")}, "there is no log"),
        ({"external": external}, "there are no scores of trees"),
    ):
        with pytest.raises(InputError, match=complaint):
            conduct(small_study(str(tmp_path), **values))
    assert not (tmp_path / "studies").exists()


def test_a_run_that_was_cut_off_goes_on_with_the_start_it_had(tmp_path):
    class Cut(Exception):
        pass

    def cut(values: dict) -> None:
        if values["step"] == 10:
            raise Cut

    small_log(tmp_path, rows=3000)
    first = alone.train(train_config(str(tmp_path), "name=first", "train.max_steps=3"))["run"]
    config = train_config(
        str(tmp_path), f"init_from={first}", "train.max_steps=14", "checkpoint.every_steps=4"
    )
    with pytest.raises(Cut):
        alone.train(config, line=cut)
    outcome = train_cell(config.model_dump(mode="json"), threads=1, models={})
    assert outcome["result"]["state"]["step"] == 14
