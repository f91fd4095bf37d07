"""MMoE, OMoE and ME-MMoE against their formulas, and what makes them one another."""

from typing import Any

import pytest
import torch

from helpers.mlps import expert, gate, mix, randomise, tower
from helpers.models import WIDTH, grad_of, random_inputs, shape_of, small_model, small_section


def _random(name: str, num_tasks: int = 3, **values) -> tuple[Any, Any]:
    """A small model with random weights and biases, and inputs."""
    section = small_section(name, **values)
    model = small_model(section, num_tasks)
    randomise(model)
    return model, random_inputs(shape_of(section, num_tasks), 7)


@pytest.mark.parametrize("gate_hidden_units", [[], [5]])
def test_mmoe_is_each_tasks_tower_on_its_own_mix_of_the_experts(gate_hidden_units):
    model, inputs = _random("mmoe", num_experts=4, gate_hidden_units=gate_hidden_units)
    logits, head = model(inputs), model.head
    for b, x in enumerate(model.fields(inputs)[0]):
        experts = [expert(head.experts, e, x) for e in range(4)]
        for t in range(3):
            wanted = tower(head.towers, t, mix(gate(head.gates, t, x), experts))
            torch.testing.assert_close(logits[b, t], wanted)


def test_omoe_is_each_tasks_tower_on_one_mix_of_the_experts():
    model, inputs = _random("omoe", num_experts=4)
    logits, head = model(inputs), model.head
    assert head.gates.num == 1
    for b, x in enumerate(model.fields(inputs)[0]):
        mixed = mix(gate(head.gates, 0, x), [expert(head.experts, e, x) for e in range(4)])
        for t in range(3):
            torch.testing.assert_close(logits[b, t], tower(head.towers, t, mixed))


def test_omoe_is_mmoe_with_equal_gates():
    omoe, inputs = _random("omoe")
    mmoe, _ = _random("mmoe")
    weights = {
        name: value.expand(3, *value.shape[1:]) if ".gates." in name else value
        for name, value in omoe.state_dict().items()
    }
    mmoe.load_state_dict(weights)
    torch.testing.assert_close(mmoe(inputs), omoe(inputs))
    torch.testing.assert_close(mmoe.gate_mass(inputs), omoe.gate_mass(inputs))


def test_mmoe_with_one_expert_is_shared_bottom():
    mmoe, inputs = _random("mmoe", num_experts=1)
    bottom, _ = _random("shared_bottom", bottom_hidden_units=[8, 6], tower_hidden_units=[8, 6])
    bottom.load_state_dict(
        {
            name.replace("experts", "bottom"): value
            for name, value in mmoe.state_dict().items()
            if ".gates." not in name
        }
    )
    torch.testing.assert_close(mmoe(inputs), bottom(inputs))


def test_a_new_linear_gate_is_the_papers_without_bias():
    head: Any = small_model(small_section("mmoe", gate_hidden_units=[])).head
    assert [tuple(w.shape) for w in head.gates.weights] == [(2, 7 * WIDTH, 8)]
    assert not head.gates.biases[0].any()


@pytest.mark.parametrize("name", ["mmoe", "omoe"])
def test_a_gate_that_picks_one_expert_has_all_its_mass_there(name):
    model, inputs = _random(name, num_tasks=2, num_experts=3, gate_hidden_units=[])
    picks = [1, 2] if name == "mmoe" else [1, 1]
    with torch.no_grad():
        model.head.gates.weights[0].zero_()
        for g in range(model.head.gates.num):
            model.head.gates.biases[0][g, picks[g]] = 100
    assert model.gate_sources == ("expert 0", "expert 1", "expert 2")
    wanted = torch.eye(3)[picks].unsqueeze(0)
    torch.testing.assert_close(model.gate_mass(inputs), wanted)
    x = model.fields(inputs)[0, 0]
    for t, pick in enumerate(picks):
        wanted = tower(model.head.towers, t, expert(model.head.experts, pick, x))
        torch.testing.assert_close(model(inputs)[0, t], wanted)


def test_gate_mass_is_the_mean_over_rows_by_weight():
    model, inputs = _random("mmoe", num_experts=3)
    weight = torch.tensor([1.0, 0.0, 3.0, 0.0, 0.0, 0.0, 0.0])
    x = model.fields(inputs)[0]
    for t in range(3):
        first, third = (gate(model.head.gates, t, x[b]) for b in (0, 2))
        wanted = first / 4 + third * 3 / 4
        torch.testing.assert_close(model.gate_mass(inputs, weight)[0, t], wanted)
    assert not model.gate_mass(inputs, torch.zeros(7)).any()


def _stem_and_me_mmoe(num_tasks: int = 3) -> tuple[Any, Any, Any]:
    """One-layer STEM-Net and ME-MMoE with the same weights, two experts of each, and inputs."""
    sizes = {"num_specific_experts": 2, "num_shared_experts": 2}
    model, inputs = _random("me_mmoe", num_tasks, **sizes)
    stem = small_model(small_section("stem", **sizes), num_tasks)
    names = {"head.towers": "towers", "head": "layers.0"}
    weights = {}
    for name, value in model.state_dict().items():
        prefix = next((p for p in names if name.startswith(p)), None)
        weights[name.replace(prefix, names[prefix], 1) if prefix else name] = value
    stem.load_state_dict(weights)
    return stem, model, inputs


def test_me_mmoe_mixes_the_experts_of_all_views_by_gates_on_the_tasks_and_the_shared_view():
    model, inputs = _random("me_mmoe", num_specific_experts=2, num_shared_experts=2)
    logits, head = model(inputs), model.head
    for b, views in enumerate(model.fields(inputs).transpose(0, 1)):
        experts = [expert(head.specific_experts, e, views[e // 2]) for e in range(6)]
        experts += [expert(head.shared_experts, k, views[3]) for k in range(2)]
        for t in range(3):
            mixed = mix(gate(head.gates, t, views[t] + views[3]), experts)
            torch.testing.assert_close(logits[b, t], tower(head.towers, t, mixed))


def test_me_mmoe_has_the_outputs_and_gate_mass_of_one_layer_stem_with_the_same_weights():
    stem, model, inputs = _stem_and_me_mmoe()
    torch.testing.assert_close(model(inputs), stem(inputs))
    torch.testing.assert_close(model.gate_mass(inputs), stem.gate_mass(inputs))
    assert model.gate_sources == stem.gate_sources == ("task_0", "task_1", "task_2", "shared")


def test_me_mmoe_trains_the_other_tasks_experts_and_tables_where_stem_does_not():
    stem, model, inputs = _stem_and_me_mmoe()
    moved, gates = {}, {}
    for name, net, layer in (("stem", stem, stem.layers[0]), ("me", model, model.head)):
        inputs.views_BVFD.grad = None
        net(inputs)[:, 1].square().sum().backward()
        views = grad_of(inputs.views_BVFD).abs().sum((0, 2, 3)) > 0
        experts = grad_of(layer.specific_experts.weights[0]).flatten(1).any(1)
        moved[name] = views.tolist(), experts.unflatten(0, (3, 2)).any(1).tolist()
        gates[name] = [grad_of(p) for p in layer.gates.parameters()]
    assert moved["stem"] == ([False, True, False, True], [False, True, False])
    assert moved["me"] == ([True] * 4, [True] * 3)
    torch.testing.assert_close(gates["me"], gates["stem"])


def test_me_mmoe_of_one_task_has_stems_gradients():
    stem, model, inputs = _stem_and_me_mmoe(num_tasks=1)
    grads = []
    for net in (stem, model):
        inputs.views_BVFD.grad = None
        net(inputs).square().sum().backward()
        grads.append(grad_of(inputs.views_BVFD).clone())
    torch.testing.assert_close(grads[0], grads[1])
