"""ESMM against products of probabilities written out, and its chains."""

import math
from typing import Any

import pytest
import torch

from helpers.batches import labelled
from helpers.models import WIDTH, mixed_schema, random_inputs, shape_of, small_model, small_section
from raymtl import losses
from raymtl.batch import InputShape, Layout
from raymtl.errors import InputError
from raymtl.models import chains, registry
from raymtl.models.esmm import EsmmConfig, EsmmHead
from raymtl.schema import LogSchema


def _schema(given: dict[int, int], regressions: tuple[int, ...] = ()) -> LogSchema:
    """Five tasks, of which some are given others."""
    schema = mixed_schema(5)
    tasks = [
        task.model_copy(
            update={
                "given": f"task_{given[t]}" if t in given else None,
                "kind": "regression" if t in regressions else "binary",
            }
        )
        for t, task in enumerate(schema.tasks)
    ]
    return schema.model_copy(update={"tasks": tasks})


def _probability(head: EsmmHead, x_BI: torch.Tensor, task: int) -> torch.Tensor:
    """sigmoid of one tower, layer by layer, in float64."""
    weights, biases = list(head.towers.weights), list(head.towers.biases)
    x = x_BI.double()
    for n, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        x = x @ weight[task].double() + bias[task].double()
        x = x.clamp(min=0) if n < len(weights) - 1 else x
    return torch.sigmoid(x[:, 0])


def test_a_task_is_the_product_of_the_towers_along_its_chain():
    torch.manual_seed(0)
    head = EsmmHead(EsmmConfig(tower_hidden_units=(7, 5)), 4, 6)
    x = torch.randn(9, 6)
    p = torch.sigmoid(head(x[None]).double())
    product = torch.ones(9, dtype=torch.float64)
    for task in range(4):
        product = product * _probability(head, x, task)
        torch.testing.assert_close(p[:, task], product, atol=1e-7, rtol=1e-6)


def test_the_chain_is_the_schemas_and_other_tasks_stand_alone():
    """0 -> 2 -> 1 and 0 -> 4; 3 alone."""
    torch.manual_seed(0)
    head = EsmmHead(EsmmConfig(tower_hidden_units=(5,)), 5, 6, given=(None, 2, 0, None, 0))
    x = torch.randn(9, 6)
    p = [_probability(head, x, task) for task in range(5)]
    wanted = [p[0], p[0] * p[2] * p[1], p[0] * p[2], p[3], p[0] * p[4]]
    got = torch.sigmoid(head(x[None]).double())
    torch.testing.assert_close(got, torch.stack(wanted, dim=1), atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize(
    ("a", "b", "wanted"),
    [
        (0.0, 0.0, math.log(1 / 3)),
        (200.0, 200.0, 200.0 - math.log(2)),
        (-200.0, -200.0, -400.0),
        (300.0, -5.0, -5.0),
        (-5.0, 300.0, -5.0),
    ],
)
def test_the_logit_of_a_product_is_right_where_probabilities_are_0_or_1(a, b, wanted):
    head = EsmmHead(EsmmConfig(tower_hidden_units=(1,)), 2, 1)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.zero_()
        head.towers.biases[1].copy_(torch.tensor([[a], [b]]))
    logits = head(torch.zeros(1, 1, 1))
    torch.testing.assert_close(logits, torch.tensor([[a, wanted]]))
    logits.sum().backward()
    for parameter in head.parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all()


def test_a_task_is_never_more_probable_than_the_one_before_it():
    section = small_section("esmm")
    logits = small_model(section, 5)(random_inputs(shape_of(section, 5), 50))
    assert (logits[:, 1:] < logits[:, :-1]).all()


def test_a_masked_first_tasks_tower_still_learns_from_the_task_after_it():
    section = small_section("esmm")
    model, inputs = small_model(section, 2), random_inputs(shape_of(section), 8)
    mask = torch.tensor([[False, True]]).expand(8, 2)
    batch = labelled(torch.zeros(8, 2), mask)
    losses.task_losses(model(inputs), batch, ["binary"] * 2).sum().backward()
    bias = model.head.towers.biases[-1]
    # d/da of -log(1 - sigmoid(a) sigmoid(b)) summed over rows, from the product in float64.
    a_b = model.head.conditional(model.fields(inputs)).detach().double().requires_grad_()
    (-torch.log(1 - torch.sigmoid(a_b).prod(dim=1))).sum().backward()
    assert a_b.grad is not None
    torch.testing.assert_close(bias.grad[:, 0].double(), a_b.grad.sum(dim=0), rtol=1e-4, atol=1e-6)


def test_the_schema_s_given_reaches_the_model():
    layout = Layout.of(_schema({1: 2, 2: 0}))
    model: Any = registry.build(small_section("esmm"), layout, WIDTH)
    assert model.head.links == ((0, 2), (2, 1))


def test_without_any_given_the_order_of_the_tasks_is_the_chain():
    assert chains.links(4) == ((0, 1), (1, 2), (2, 3))
    assert chains.links(4, (None,) * 4) == ((0, 1), (1, 2), (2, 3))
    assert chains.links(1) == ()


def test_the_link_to_a_task_comes_before_the_links_from_it():
    assert chains.links(5, (None, 2, 4, None, 0)) == ((0, 4), (4, 2), (2, 1))


@pytest.mark.parametrize("name", ["esmm", "aitm"])
def test_a_circle_of_tasks_is_refused(name):
    layout = Layout.of(_schema({1: 2, 2: 3, 3: 1}))
    with pytest.raises(InputError, match="given each other in a circle") as error:
        registry.build(small_section(name), layout, WIDTH)
    assert "task 1 given task 2" in error.value.got


@pytest.mark.parametrize("name", ["esmm", "aitm"])
@pytest.mark.parametrize("given", [{}, {3: 0}, {0: 3}])
def test_a_regression_task_cannot_be_chained(name, given):
    layout = Layout.of(_schema(given, regressions=(3,)))
    with pytest.raises(InputError, match=f"{name} cannot chain a regression task") as error:
        registry.build(small_section(name), layout, WIDTH)
    assert "task_3" in error.value.got
    assert "given" in error.value.do


@pytest.mark.parametrize("name", ["esmm", "aitm"])
def test_a_regression_task_beside_the_chain_is_its_own_output(name):
    layout = Layout.of(_schema({1: 0}, regressions=(3,)))
    section = small_section(name)
    torch.manual_seed(0)
    model: Any = registry.build(section, layout, WIDTH)
    logits = model(random_inputs(InputShape.of(layout, WIDTH, task_specific=False), 9))
    assert logits[:, 3].isfinite().all()
    assert 3 not in {task for link in model.head.links for task in link}
