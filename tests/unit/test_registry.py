from importlib.metadata import EntryPoint
from typing import Literal

import pytest
from torch import nn

from helpers.models import WIDTH, mixed_schema, small_section
from raymtl.batch import Layout
from raymtl.config import ModelSection, Section
from raymtl.errors import InputError
from raymtl.models import registry
from raymtl.models.shared_bottom import SharedBottom
from raymtl.models.stem import Stem, StemConfig
from raymtl.schema import Task


class TinyConfig(Section):
    name: Literal["tiny"] = "tiny"


class Tiny(SharedBottom):
    Config = TinyConfig  # pyright: ignore


@pytest.fixture(autouse=True)
def _leave_the_registry_as_it_was(monkeypatch):
    monkeypatch.setattr(registry, "_models", dict(registry._models))


def _offer(monkeypatch, value: str):
    point = EntryPoint("tiny", value, registry.ENTRY_POINTS)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])


def test_the_built_in_models_are_named():
    assert {"shared_bottom", "single_task", "stem"} <= set(registry.names())


def test_a_model_section_becomes_that_models_config():
    config = registry.parse(ModelSection.model_validate({"name": "stem", "num_layers": 2}))
    assert config == StemConfig(num_layers=2)


def test_a_misspelt_model_is_answered_with_the_nearest_and_the_list():
    with pytest.raises(InputError) as error:
        registry.parse(ModelSection(name="stemm"))
    assert error.value.do == "did you mean stem?"
    assert error.value.wanted == f"one of {', '.join(registry.names())}"


def test_a_misspelt_key_is_answered_with_the_nearest():
    section = ModelSection.model_validate({"name": "stem", "num_shared_expert": 2})
    with pytest.raises(InputError) as error:
        registry.parse(section)
    assert "model.num_shared_expert" in str(error.value)
    assert error.value.do == "did you mean num_shared_experts?"


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_shared_experts": 0},
        {"num_specific_experts": 0},
        {"num_layers": 0},
        {"expert_hidden_units": []},
        {"expert_hidden_units": [8, 0]},
        {"gate_input": "shared"},
        {"dropout": 1.0},
        {"gate_temperature": 0.0},
    ],
)
def test_a_value_stem_cannot_have_is_refused_by_its_key(wrong):
    with pytest.raises(InputError, match=f"model.{next(iter(wrong))}"):
        registry.parse(ModelSection.model_validate({"name": "stem", **wrong}))


@pytest.mark.parametrize(
    ("name", "num_views"), [("stem", 3), ("single_task", 2), ("shared_bottom", 1)]
)
def test_the_shape_says_how_many_views_the_tables_hold(name, num_views):
    shape = registry.shape(small_section(name), Layout.of(mixed_schema(2)), WIDTH)
    assert shape.num_views == num_views


def test_a_registered_model_is_built_by_its_name():
    registry.register("tiny", Tiny)
    assert "tiny" in registry.names()
    assert registry.parse(ModelSection(name="tiny")) == TinyConfig()


def test_a_taken_name_is_refused():
    with pytest.raises(InputError, match="the model name stem is taken"):
        registry.register("stem", Tiny)
    registry.register("stem", Stem)


@pytest.mark.parametrize("cls", [nn.Linear, object, 3])
def test_what_is_no_model_is_refused(cls):
    with pytest.raises(InputError, match="broken is not a model"):
        registry.register("broken", cls)


def test_a_model_registered_under_a_name_its_config_does_not_bear_is_refused():
    with pytest.raises(InputError, match='name: Literal\\["other"\\]'):
        registry.register("other", Tiny)


def test_another_package_offers_a_model_that_is_imported_only_when_asked_for(monkeypatch):
    _offer(monkeypatch, f"{__name__}:Tiny")
    monkeypatch.setattr(EntryPoint, "load", lambda self: Tiny)
    assert "tiny" in registry.names()
    assert "tiny" not in registry._models
    assert registry.parse(ModelSection(name="tiny")) == TinyConfig()


def test_a_package_that_does_not_import_is_named(monkeypatch):
    _offer(monkeypatch, "no_such_package.models:Tiny")
    with pytest.raises(InputError, match="the model tiny cannot be imported") as error:
        registry.parse(ModelSection(name="tiny"))
    assert "no_such_package" in error.value.got


@pytest.mark.parametrize(
    "section", [{"name": "esmm"}, {"name": "dtrn", "head": {"name": "aitm"}}], ids=["esmm", "dtrn"]
)
def test_a_model_that_does_not_fit_the_schema_is_refused_before_it_is_built(section):
    schema = mixed_schema(2)
    value = Task(name="minutes", label="minutes", kind="regression")
    wanted = ModelSection.model_validate(section)
    registry.require_fit(wanted, schema, 16)
    with pytest.raises(InputError, match="cannot chain a regression task"):
        registry.require_fit(
            wanted, schema.model_copy(update={"tasks": [schema.tasks[0], value]}), 16
        )


def test_sequences_come_pooled_to_models_that_do_not_read_them_whole():
    schema = mixed_schema(2)
    pooled = registry.layout(ModelSection(name="stem"), schema)
    whole = registry.layout(ModelSection(name="dtrn"), schema)
    assert [c.feature for c in whole.sequences] == ["watched"]
    assert pooled.sequences == ()
    assert next(c for c in pooled.fields if c.feature == "watched").pooling == "mean"
    assert [c.start for c in pooled.id_columns] == [c.start for c in whole.id_columns]
