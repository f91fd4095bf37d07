"""What every head keeps to; a new head is in this suite by standing in HEADS."""

from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.mlps import randomise
from raymtl.errors import InputError
from raymtl.models.blocks import BankOfMLPs, shared_input
from raymtl.models.heads import HEADS, build_head, parse_head

WIDTH = 11
"""I; no head's own width, so that a bank reading the input is known by it."""

every_head = pytest.mark.parametrize("name", HEADS)


def _section(name: str) -> dict[str, Any]:
    """Small, and without noise."""
    fields = HEADS[name][0].model_fields
    units = {f: [8, 6] for f in fields if f.endswith("hidden_units")}
    return {"name": name, **units, **{f: False for f in fields if f.endswith("noise")}}


def _head(name: str, num_tasks: int = 3) -> Any:
    """A small head with random weights."""
    head = build_head(_section(name), num_tasks, WIDTH, (None,) * num_tasks)
    randomise(head)
    return head


def _normal(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


@every_head
@pytest.mark.parametrize("num_tasks", [1, 2, 4])
@pytest.mark.parametrize("num_rows", [0, 1, 5])
def test_logits_are_finite_rows_by_tasks_on_one_vector_for_all_and_on_one_per_task(
    name, num_tasks, num_rows
):
    head = _head(name, num_tasks)
    for num_views in {1, num_tasks}:
        for shared in (None, _normal(1, num_rows, WIDTH)):
            logits = head(_normal(num_views, num_rows, WIDTH), shared)
            assert logits.shape == (num_rows, num_tasks)
            assert logits.isfinite().all()


@every_head
def test_equal_vectors_per_task_give_what_one_vector_for_all_gives(name):
    head, x_1BI = _head(name), _normal(1, 5, WIDTH)
    logits = head(x_1BI)
    torch.testing.assert_close(head(x_1BI.expand(3, -1, -1)), logits)
    torch.testing.assert_close(head(x_1BI, x_1BI), logits)


@every_head
def test_without_a_shared_vector_the_mean_over_tasks_stands_for_it(name):
    head, x_TBI = _head(name), _normal(3, 5, WIDTH)
    mean = (x_TBI[0] + x_TBI[1] + x_TBI[2]) / 3
    torch.testing.assert_close(head(x_TBI), head(x_TBI, mean.unsqueeze(0)))
    assert shared_input(x_TBI[:1], None) is not None
    torch.testing.assert_close(shared_input(x_TBI[:1], None), x_TBI[:1])


@every_head
def test_on_one_vector_for_all_nothing_reads_a_row_twice(name):
    head, rows = _head(name), []
    for module in head.modules():
        if isinstance(module, BankOfMLPs) and module.in_features == WIDTH:
            module.register_forward_hook(lambda _, given, __: rows.append(given[0].shape[:2]))
    head(_normal(1, 5, WIDTH))
    assert set(rows) == {(1, 5)}


@every_head
@pytest.mark.parametrize("num_tasks", [1, 3])
def test_a_tasks_logits_depend_on_its_own_vector(name, num_tasks):
    head, x_TBI = _head(name, num_tasks), _normal(num_tasks, 8, WIDTH).requires_grad_()
    for task in range(num_tasks):
        (grad,) = torch.autograd.grad(head(x_TBI)[:, task].sum(), x_TBI)
        assert grad[task].any()


@every_head
@pytest.mark.parametrize("num_views", [1, 3])
def test_every_parameter_gets_a_gradient(name, num_views):
    head = _head(name)
    head(_normal(num_views, 64, WIDTH)).square().sum().backward()
    assert [n for n, p in head.named_parameters() if p.grad is None or not p.grad.any()] == []


@every_head
@pytest.mark.parametrize("num_views", [1, 3])
def test_bfloat16_is_close_to_float32(name, num_views):
    head, x_VBI = build_head(_section(name), 3, WIDTH), _normal(num_views, 5, WIDTH)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = head(x_VBI)
    torch.testing.assert_close(rounded.float(), head(x_VBI), rtol=0.05, atol=0.05)


@every_head
@pytest.mark.parametrize("num_views", [1, 3])
def test_gate_mass_of_each_layer_and_task_sums_to_one_over_the_named_sources(name, num_views):
    head, x_VBI = _head(name), _normal(num_views, 5, WIDTH)
    if not hasattr(head, "gate_mass"):
        return
    mass = head.gate_mass(x_VBI)
    assert mass.shape[1:] == (3, len(head.gate_sources(("a", "b", "c"))))
    torch.testing.assert_close(mass.sum(-1), torch.ones(mass.shape[:2]))
    weight = torch.tensor([0.0, 2.0, 0.0, 0.0, 0.0])
    torch.testing.assert_close(head.gate_mass(x_VBI, None, weight), head.gate_mass(x_VBI[:, 1:2]))


def test_a_head_that_is_not_there_is_refused_with_the_nearest_name():
    with pytest.raises(InputError) as error:
        build_head({"name": "mmoee"}, 2, WIDTH)
    assert error.value.got == "model.head.name = mmoee"
    assert "shared_bottom, single_task" in error.value.wanted
    assert error.value.do == "did you mean mmoe?"


def test_a_head_without_a_name_is_refused():
    with pytest.raises(InputError, match="a head without a name"):
        build_head({"num_experts": 3}, 2, WIDTH)


@pytest.mark.parametrize(
    ("values", "got"),
    [({"num_expert": 3}, "model.head.num_expert = 3"), ({"num_experts": 0}, "num_experts = 0")],
)
def test_a_heads_key_is_checked_by_its_own_config(values, got):
    with pytest.raises(InputError) as error:
        parse_head({"name": "mmoe", **values})
    assert got in error.value.got
    assert "head mmoe" in error.value.got
