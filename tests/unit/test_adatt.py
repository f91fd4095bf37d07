"""AdaTT-sp against its formulas."""

from math import sqrt
from typing import Any

import pytest
import torch

from helpers.mlps import expert, gate, mix, randomise, tower
from helpers.models import grad_of, random_inputs, shape_of, small_model, small_section


def _random(num_tasks: int = 3, **values) -> tuple[Any, Any]:
    """A small model with random weights, and inputs."""
    section = small_section("adatt", **values)
    model = small_model(section, num_tasks)
    randomise(model)
    return model, random_inputs(shape_of(section, num_tasks), 5)


@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("num_own", [1, 2, 3])
def test_a_task_adds_its_own_experts_to_a_gated_mix_of_all(num_layers, num_own):
    model, inputs = _random(num_layers=num_layers, num_specific_experts=num_own)
    logits, head = model(inputs), model.head
    for b, row in enumerate(model.fields(inputs)[0]):
        x = [row] * 3
        for layer in head.layers:
            experts = [expert(layer.experts, e, x[e // num_own]) for e in range(3 * num_own)]
            own = torch.ones(3, 1) if num_own == 1 else layer.own_weight_TK
            x = [
                mix(gate(layer.gates, t, x[t]), experts)
                + mix(own[t], experts[t * num_own : (t + 1) * num_own])
                for t in range(3)
            ]
        for t in range(3):
            torch.testing.assert_close(logits[b, t], tower(head.towers, t, x[t]))


def test_one_task_of_one_expert_counts_it_twice():
    model, inputs = _random(num_tasks=1, num_layers=1, num_specific_experts=1)
    head = model.head
    for b, x in enumerate(model.fields(inputs)[0]):
        wanted = tower(head.towers, 0, 2 * expert(head.layers[0].experts, 0, x))
        torch.testing.assert_close(model(inputs)[b, 0], wanted)


def test_a_task_moves_all_tasks_experts_but_its_own_weights_of_its_experts_only():
    model, inputs = _random(num_layers=1)
    model(inputs)[:, 1].square().sum().backward()
    layer = model.head.layers[0]
    experts = grad_of(layer.experts.weights[0]).flatten(1).any(1)
    assert experts.unflatten(0, (3, 2)).any(1).tolist() == [True] * 3
    assert grad_of(layer.own_weight_TK).any(1).tolist() == [False, True, False]


def test_the_weights_of_a_tasks_own_experts_start_uniform_within_one_over_root_k():
    section = small_section("adatt", num_specific_experts=400)
    weight = small_model(section, 3).head.layers[0].own_weight_TK
    limit = 1 / sqrt(400)
    assert 0.98 * limit < weight.abs().max().item() <= limit
    assert weight.std().item() == pytest.approx(limit / sqrt(3), rel=0.05)
    assert weight.mean().item() == pytest.approx(0, abs=limit / 10)


def test_gate_mass_is_by_task_and_without_the_experts_counted_beside_the_gate():
    model, inputs = _random(num_layers=2)
    assert model.gate_sources == ("task_0", "task_1", "task_2")
    mass = model.gate_mass(inputs)
    assert mass.shape == (2, 3, 3)
    torch.testing.assert_close(mass.sum(-1), torch.ones(2, 3))
    for t in range(3):
        gates = [gate(model.head.layers[0].gates, t, x) for x in model.fields(inputs)[0]]
        wanted = torch.stack(gates).mean(0).unflatten(0, (3, 2)).sum(1)
        torch.testing.assert_close(mass[0, t], wanted)
