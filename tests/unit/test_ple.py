"""CGC, PLE and ME-PLE against their formulas, and whom a task's loss moves."""

from typing import Any

import pytest
import torch

from helpers.mlps import expert, gate, mix, randomise, shut, tower
from helpers.models import grad_of, random_inputs, shape_of, small_model, small_section
from raymtl.errors import InputError
from raymtl.models import registry

SIZES = {"num_specific_experts": 2, "num_shared_experts": 2}
OWN = [[0, 1], [2, 3], [4, 5]]
"""The specific experts of each of three tasks."""


def _random(name: str, num_tasks: int = 3, **values) -> tuple[Any, Any]:
    """A small model with random weights, two experts of each kind, and inputs."""
    section = small_section(name, **(values if name == "mmoe" else {**SIZES, **values}))
    model = small_model(section, num_tasks)
    randomise(model)
    return model, random_inputs(shape_of(section, num_tasks), 5)


def _layer(layer: Any, x: list, x_shared: Any, read: list) -> tuple[list, Any]:
    """A layer on one row, by the formulas: the tasks' outputs and the shared one."""
    specific = [expert(layer.specific_experts, e, x[e // 2]) for e in range(2 * len(x))]
    shared = [expert(layer.shared_experts, k, x_shared) for k in range(2)]
    outputs = [
        mix(gate(layer.gates, t, read[t]), [specific[e] for e in OWN[t]] + shared)
        for t in range(len(x))
    ]
    if layer.shared_gate is None:
        return outputs, None
    return outputs, mix(gate(layer.shared_gate, 0, x_shared), specific + shared)


def _moved(model: Any, inputs: Any, task: int) -> list[list[bool]]:
    """For each layer, the tasks whose specific experts a task's loss moves."""
    model.zero_grad()
    model(inputs)[:, task].square().sum().backward()
    weights = [layer.specific_experts.weights[0] for layer in model.head.layers]
    return [grad_of(w).flatten(1).any(1).unflatten(0, (-1, 2)).any(1).tolist() for w in weights]


def test_cgc_mixes_a_tasks_own_and_the_shared_experts():
    model, inputs = _random("cgc")
    logits, head = model(inputs), model.head
    for b, x in enumerate(model.fields(inputs)[0]):
        outputs, _ = _layer(head.layers[0], [x] * 3, x, [x] * 3)
        for t in range(3):
            torch.testing.assert_close(logits[b, t], tower(head.towers, t, outputs[t]))


@pytest.mark.parametrize("num_layers", [2, 3])
def test_ple_feeds_each_layer_with_the_tasks_and_the_shared_mix_of_the_one_below(num_layers):
    model, inputs = _random("ple", num_layers=num_layers)
    logits, head = model(inputs), model.head
    for b, row in enumerate(model.fields(inputs)[0]):
        x, x_shared = [row] * 3, row
        for layer in head.layers:
            x, x_shared = _layer(layer, x, x_shared, x)
        for t in range(3):
            torch.testing.assert_close(logits[b, t], tower(head.towers, t, x[t]))


@pytest.mark.parametrize("num_layers", [1, 2])
def test_me_ple_starts_from_the_views_and_its_gates_read_the_tasks_and_the_shared_stream(
    num_layers,
):
    model, inputs = _random("me_ple", num_layers=num_layers)
    logits, head = model(inputs), model.head
    for b, views in enumerate(model.fields(inputs).transpose(0, 1)):
        x, x_shared = list(views[:3]), views[3]
        for layer in head.layers:
            x, x_shared = _layer(layer, x, x_shared, [x_t + x_shared for x_t in x])
        for t in range(3):
            torch.testing.assert_close(logits[b, t], tower(head.towers, t, x[t]))


@pytest.mark.parametrize("name", ["cgc", "me_ple"])
def test_with_one_layer_a_task_moves_its_own_experts_only(name):
    model, inputs = _random(name)
    for task in range(3):
        assert _moved(model, inputs, task) == [[t == task for t in range(3)]]


def test_the_shared_gate_sees_all_experts_so_a_task_moves_all_below_the_last_layer():
    model, inputs = _random("ple")
    assert _moved(model, inputs, 1) == [[True] * 3, [False, True, False]]
    shut(model.head.layers[0].shared_gate, [0, 1])
    assert _moved(model, inputs, 1) == [[False, True, True], [False, True, False]]


def test_the_last_layer_holds_no_shared_gate():
    model, _ = _random("ple", num_layers=3)
    names = [name for name, _ in model.named_parameters() if "shared_gate" in name]
    assert {name.split(".")[2] for name in names} == {"0", "1"}


def test_cgc_that_shuts_its_specific_experts_out_is_mmoe_over_the_shared_ones():
    cgc, inputs = _random("cgc", gate_hidden_units=[])
    mmoe, _ = _random("mmoe", num_experts=2, gate_hidden_units=[])
    layer, head = cgc.head.layers[0], mmoe.head
    shut(layer.gates, [0, 1])
    head.experts.load_state_dict(layer.shared_experts.state_dict())
    head.towers.load_state_dict(cgc.head.towers.state_dict())
    with torch.no_grad():
        head.gates.weights[0].copy_(layer.gates.weights[0][..., 2:])
        head.gates.biases[0].copy_(layer.gates.biases[0][..., 2:])
        mmoe.fields.numeric_weight_NVD.copy_(cgc.fields.numeric_weight_NVD)
    torch.testing.assert_close(cgc(inputs), mmoe(inputs))


def test_cgc_that_shuts_the_shared_experts_out_is_a_mixture_per_task():
    model, inputs = _random("cgc")
    shut(model.head.layers[0].gates, [2, 3])
    model(inputs).sum().backward()
    for parameter in model.head.layers[0].shared_experts.parameters():
        assert not grad_of(parameter).any()
    wanted = torch.cat([torch.eye(3), torch.zeros(3, 1)], dim=1)
    torch.testing.assert_close(model.gate_mass(inputs)[0], wanted)


def test_me_ple_is_one_layer_stem_that_shuts_the_other_tasks_experts_out():
    me_ple, inputs = _random("me_ple")
    stem: Any = small_model(small_section("stem", **SIZES), 3)
    mine, theirs = me_ple.head.layers[0], stem.layers[0]
    stem.fields.load_state_dict(me_ple.fields.state_dict())
    stem.towers.load_state_dict(me_ple.head.towers.state_dict())
    for bank in ("specific_experts", "shared_experts"):
        getattr(theirs, bank).load_state_dict(getattr(mine, bank).state_dict())
    with torch.no_grad():
        for n, (weight, bias) in enumerate(zip(mine.gates.weights, mine.gates.biases, strict=True)):
            for t in range(3):
                seen = slice(None) if n < 2 else [*OWN[t], 6, 7]
                theirs.gates.weights[n][t][:, seen] = weight[t]
                theirs.gates.biases[n][t][seen] = bias[t]
    for t in range(3):
        shut(theirs.gates, [e for e in range(6) if e not in OWN[t]], t)
    grads = []
    for model in (me_ple, stem):
        inputs.views_BVFD.grad = None
        model(inputs).square().sum().backward()
        grads.append(grad_of(inputs.views_BVFD))
    torch.testing.assert_close(stem(inputs), me_ple(inputs))
    torch.testing.assert_close(grads[1], grads[0])
    torch.testing.assert_close(stem.gate_mass(inputs), me_ple.gate_mass(inputs))


@pytest.mark.parametrize("name", ["ple", "me_ple"])
def test_gate_mass_is_on_a_tasks_own_and_the_shared_experts(name):
    model, inputs = _random(name, num_layers=2)
    assert model.gate_sources == ("task_0", "task_1", "task_2", "shared")
    mass = model.gate_mass(inputs)
    assert mass.shape == (2, 3, 4)
    assert (mass[..., :3].gt(0) == torch.eye(3, dtype=torch.bool)).all()
    views = model.fields(inputs)
    reads = [views[0]] * 3 if name == "ple" else [views[t] + views[3] for t in range(3)]
    for t, read_BI in enumerate(reads):
        gates = torch.stack([gate(model.head.layers[0].gates, t, row) for row in read_BI])
        torch.testing.assert_close(mass[0, t, t], gates[:, :2].sum(1).mean())
        torch.testing.assert_close(mass[0, t, 3], gates[:, 2:].sum(1).mean())


def test_ple_of_one_layer_is_refused_for_that_is_cgc():
    with pytest.raises(InputError) as error:
        registry.parse(small_section("ple", num_layers=1))
    assert "model.num_layers" in error.value.got
