"""Weights taken into a model with more features or tasks: what was learnt stays as it was."""

import pytest
import torch
from torch import Tensor

from helpers.models import WIDTH, mixed_schema, random_inputs, small_section
from raymtl.batch import Inputs
from raymtl.embedding.tables import TableSpec
from raymtl.errors import InputError
from raymtl.growth import TAKE_TASKS, Growth
from raymtl.models import registry
from raymtl.schema import CategoricalFeature, LogSchema, NumericFeature, Table, Task

REFUSING = ("dephn", "dtrn", "mt_phn")
"""Models with a part that is made for each pair of fields or the like."""
TAKE_FEATURES = [name for name in registry.names() if name not in REFUSING]
SHUT = -1e9
"""A gate's logit at which it takes nothing."""


def with_features(schema: LogSchema) -> LogSchema:
    """One more id, before all others, and one more number, between them."""
    first = CategoricalFeature(kind="categorical", name="place")
    number = NumericFeature(kind="numeric", name="price")
    old = list(schema.features)
    update = {
        "features": [first, *old[:3], number, *old[3:]],
        "tables": [*schema.tables, Table(name="place", rows=5)],
    }
    return schema.model_copy(update=update)


def with_task(schema: LogSchema) -> LogSchema:
    return schema.model_copy(update={"tasks": [*schema.tasks, Task(name="new", label="new")]})


def growth_of(name: str, new: LogSchema) -> Growth:
    return Growth(small_section(name), WIDTH, mixed_schema(2), new)


def built(growth: Growth, schema: LogSchema, seed: int):
    torch.manual_seed(seed)
    layout = registry.layout(growth.model, schema)
    return registry.build(growth.model, layout, WIDTH).eval()


def grown(growth: Growth):
    """The old model, and the new one with the old one's weights."""
    old, new = built(growth, growth.old, 1), built(growth, growth.new, 2)
    saved = dict(old.named_parameters())
    with torch.no_grad():
        for name, parameter in new.named_parameters():
            if name in saved:
                parameter.copy_(growth.filled(name, saved[name], parameter))
    return old, new


def inputs_of(growth: Growth, schema: LogSchema, num_rows: int = 6) -> Inputs:
    layout = registry.layout(growth.model, schema)
    return random_inputs(registry.shape(growth.model, layout, WIDTH), num_rows)


def spread(part: Tensor, names: tuple[str, ...], wanted: tuple[str, ...], dim: int) -> Tensor:
    """Zeros of the new fields among the old ones."""
    places = torch.tensor([wanted.index(name) for name in names])
    shape = list(part.shape)
    shape[dim] = len(wanted)
    return torch.zeros(shape).index_copy(dim, places, part.detach())


@pytest.mark.parametrize("name", TAKE_FEATURES)
def test_predictions_stay_where_new_features_are_empty(name: str) -> None:
    growth = growth_of(name, with_features(mixed_schema(2)))
    growth.check()
    old, new = grown(growth)
    then, now = (registry.layout(growth.model, s) for s in (growth.old, growth.new))
    before = inputs_of(growth, growth.old)
    fields = [tuple(c.feature for c in layout.fields) for layout in (then, now)]
    after = Inputs(
        spread(before.views_BVFD, *fields, dim=2),
        spread(before.numeric_BN, then.numeric_names, now.numeric_names, dim=1),
        before.sequences,
    )
    torch.testing.assert_close(new(after), old(before), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", TAKE_TASKS)
def test_old_tasks_predict_as_before_beside_a_new_one(name: str) -> None:
    growth = growth_of(name, with_task(mixed_schema(2)))
    growth.check()
    old, new = grown(growth)
    _shut_new_gates(growth, old, new)
    before = inputs_of(growth, growth.old)
    after = inputs_of(growth, growth.new)
    _put_views(growth, before.views_BVFD, after.views_BVFD, dim=1)
    after.numeric_BN.data.copy_(before.numeric_BN)
    for sequence, whole in before.sequences.items():
        _put_views(growth, whole.values_BSVD, after.sequences[sequence].values_BSVD, dim=2)
    torch.testing.assert_close(new(after)[:, :2], old(before), rtol=1e-5, atol=1e-6)


def _put_views(growth: Growth, saved: Tensor, wanted: Tensor, dim: int) -> None:
    """Old views in their places: the tasks' first, the shared one last."""
    a, b = saved.shape[dim], wanted.shape[dim]
    places = torch.arange(a) if a == b else growth._with_tasks(a, b)
    wanted.data.index_copy_(dim, places, saved.detach())


def _shut_new_gates(growth: Growth, old, new) -> None:
    """Closes gates to the new task's experts, so that only old ones speak."""
    saved = dict(old.named_parameters())
    with torch.no_grad():
        for name, bias in new.named_parameters():
            before, after = saved[name].shape[-1], bias.shape[-1]
            if "gates.biases" in name and before != after:
                closed = torch.ones(after, dtype=torch.bool)
                closed[growth._with_tasks(before, after)] = False
                bias[:, closed] = SHUT


def test_what_is_new_is_named_and_a_model_that_cannot_take_it_refuses() -> None:
    new = with_task(with_features(mixed_schema(2)))
    growth = Growth(small_section("stem"), WIDTH, mixed_schema(2), new, {"place": 0, "user": 4})
    assert growth.lines() == [
        "feature place is new",
        "feature price is new",
        "task new is new",
        "table place has 5 rows, all new",
        "table user has 6 new rows behind 4",
    ]
    with pytest.raises(InputError, match=r"(?s)cannot be taken.*new tasks new"):
        growth_of("aitm", new).check()
    for name in REFUSING:
        with pytest.raises(InputError, match=rf"(?s)cannot be taken.*{name}"):
            growth_of(name, with_features(mixed_schema(2))).check()


def test_a_row_keeps_each_task_s_view_and_the_shared_one_stays_last() -> None:
    growth = growth_of("stem", with_task(mixed_schema(2)))
    spec = TableSpec("user", 10, views=4, width=WIDTH)
    columns = growth.columns(spec, 3 * WIDTH, 4 * WIDTH)
    assert columns.tolist() == [*range(8), *range(12, 16)]
    assert growth.columns(spec, 3, 4).tolist() == [0, 1, 3], "one number a view: Adagrad's sums"
