"""STEM-Net: its numbers by hand, and whom a task's loss moves."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from helpers.models import grad_of, random_inputs, small_section
from raymtl.batch import Inputs, InputShape
from raymtl.models import registry
from raymtl.models.stem import Stem, StemConfig


def _shape(num_tasks: int, num_numeric: int = 0) -> InputShape:
    return InputShape(
        num_tasks=num_tasks,
        num_views=num_tasks + 1,
        num_fields=2,
        width=3,
        num_numeric=num_numeric,
        task_names=tuple(f"task_{t}" for t in range(num_tasks)),
    )


def _stem(num_tasks: int = 2, num_numeric: int = 0, **values) -> Any:
    """Small; tanh by default, so that no unit is dead and a zero gradient means no path."""
    small = {
        "num_shared_experts": 2,
        "expert_hidden_units": (5,),
        "gate_hidden_units": (4,),
        "tower_hidden_units": (4,),
        "activation": "tanh",
    }
    torch.manual_seed(3)
    config = StemConfig.model_validate({**small, **values})
    return Stem(config, _shape(num_tasks, num_numeric))


def _touched(model: Any, task: int) -> dict[str, list[float]]:
    """Sums of |gradient| of one task's logits: by view, and by task and layer in the dense part."""
    num_tasks = model.num_tasks
    shape = _shape(num_tasks, 0 if model.fields.numeric_weight_NVD is None else 1)
    inputs = random_inputs(shape, 16)
    model.zero_grad()
    model(inputs)[:, task].square().sum().backward()
    touched = {"views": _sums(grad_of(inputs.views_BVFD).transpose(0, 1))}
    if model.fields.numeric_weight_NVD is not None:
        touched["numeric"] = _sums(_gradient(model.fields.numeric_weight_NVD).transpose(0, 1))
    banks = {"towers": model.towers}
    for n, layer in enumerate(model.layers):
        banks[f"specific {n}"] = layer.specific_experts
        banks[f"gates {n}"] = layer.gates
        shared = [_sums(_gradient(w)) for w in layer.shared_experts.weights]
        touched[f"shared {n}"] = [min(min(s) for s in shared)]
    for name, bank in banks.items():
        parts = [_sums(_gradient(p).unflatten(0, (num_tasks, -1))) for p in bank.parameters()]
        touched[name] = [sum(by_task) for by_task in zip(*parts, strict=True)]
    return touched


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _sums(gradient: Tensor) -> list[float]:
    """Sum of |gradient| per index of dimension 0."""
    return gradient.abs().flatten(1).sum(1).tolist()


def _foreign(touched: dict[str, list[float]], task: int, num_tasks: int) -> dict[str, float]:
    """What a task's loss does to the views and parts of other tasks."""
    return {
        name: sum(values[t] for t in range(num_tasks) if t != task)
        for name, values in touched.items()
        if not name.startswith("shared")
    }


@pytest.mark.parametrize("isolation", ["official", "strict"])
def test_outputs_and_gradients_of_two_tasks_on_one_float_are_those_computed_by_hand(isolation):
    config = StemConfig(
        num_shared_experts=1,
        expert_hidden_units=(1,),
        gate_hidden_units=(),
        tower_hidden_units=(),
        isolation=isolation,
    )
    model: Any = Stem(config, InputShape(2, 3, 1, 1, 0, ("a", "b")))
    layer = model.layers[0]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        # Experts: e_a = 2 x_a, e_b = 3 x_b, s = x_S; gates (1/4, 1/2, 1/4) and (1/4, 1/4, 1/2).
        layer.specific_experts.weights[0].copy_(torch.tensor([2.0, 3.0]).view(2, 1, 1))
        layer.shared_experts.weights[0].fill_(1)
        layer.gates.biases[0].copy_(torch.tensor([[1.0, 2.0, 1.0], [1.0, 1.0, 2.0]]).log())
        # Towers: 2 o_a + 1 and -o_b.
        model.towers.weights[0].copy_(torch.tensor([2.0, -1.0]).view(2, 1, 1))
        model.towers.biases[0].copy_(torch.tensor([[1.0], [0.0]]))
    # x_a = 1, x_b = 2, x_S = 3, so e_a = 2, e_b = 6, s = 3; o_a = 4.25, o_b = 3.5.
    views = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1).requires_grad_()
    inputs = Inputs(views, torch.empty(1, 0), {})
    logits = model(inputs)
    torch.testing.assert_close(logits, torch.tensor([[9.5, -3.5]]))
    logits[0, 0].backward()
    # d/dx_a = 2 * 1/4 * 2, none for x_b though e_b makes up 3 of o_a, d/dx_S = 2 * 1/4 * 1.
    torch.testing.assert_close(grad_of(views).flatten(), torch.tensor([1.0, 0.0, 0.5]))
    torch.testing.assert_close(
        layer.specific_experts.weights[0].grad.flatten(), torch.tensor([0.5, 0.0])
    )
    torch.testing.assert_close(layer.shared_experts.weights[0].grad.flatten(), torch.tensor([1.5]))
    # The gate is steered by the stopped expert: 2 g_k (U_k - o_a) with U = (2, 6, 3).
    torch.testing.assert_close(
        layer.gates.biases[0].grad, torch.tensor([[-1.125, 1.75, -0.625], [0.0, 0.0, 0.0]])
    )
    torch.testing.assert_close(
        model.gate_mass(inputs), torch.tensor([[[0.25, 0.5, 0.25], [0.25, 0.25, 0.5]]])
    )


@pytest.mark.parametrize("task", [0, 1])
def test_with_one_layer_a_task_moves_its_own_and_the_shared_part_only(task):
    touched = _touched(_stem(num_specific_experts=2, num_numeric=1), task)
    assert set(_foreign(touched, task, 2).values()) == {0.0}
    own = {name: values[task] for name, values in touched.items() if name != "shared 0"}
    assert min(own.values()) > 0
    assert touched["views"][-1] > 0
    assert touched["numeric"][-1] > 0
    assert touched["shared 0"][0] > 0


@pytest.mark.parametrize("task", [0, 1])
def test_with_two_layers_the_official_mode_leaks_into_the_first_layer_of_the_other_task(task):
    touched = _touched(_stem(num_layers=2), task)
    foreign = _foreign(touched, task, 2)
    assert foreign["views"] > 0
    assert foreign["specific 0"] > 0
    assert foreign["specific 1"] == 0
    assert foreign["gates 0"] == foreign["gates 1"] == foreign["towers"] == 0


@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("gate_input", ["task+shared", "task"])
def test_strict_isolation_holds_at_every_depth(num_layers, gate_input):
    model = _stem(3, num_layers=num_layers, isolation="strict", gate_input=gate_input)
    for task in range(3):
        touched = _touched(model, task)
        assert set(_foreign(touched, task, 3).values()) == {0.0}
        assert touched["views"][task] > 0
        assert touched["views"][-1] > 0
        for n in range(num_layers):
            assert touched[f"specific {n}"][task] > 0
            assert touched[f"shared {n}"][0] > 0


@settings(max_examples=25, deadline=None)
@given(
    num_tasks=st.integers(2, 4),
    num_own=st.integers(1, 3),
    num_shared=st.integers(1, 3),
    num_layers=st.integers(1, 3),
    task=st.integers(0, 3),
)
def test_strict_never_leaks_and_official_leaks_only_below_the_last_layer(
    num_tasks, num_own, num_shared, num_layers, task
):
    task %= num_tasks
    sizes = {
        "num_specific_experts": num_own,
        "num_shared_experts": num_shared,
        "num_layers": num_layers,
    }
    strict = _stem(num_tasks, isolation="strict", **sizes)
    assert set(_foreign(_touched(strict, task), task, num_tasks).values()) == {0.0}
    foreign = _foreign(_touched(_stem(num_tasks, **sizes), task), task, num_tasks)
    assert foreign[f"specific {num_layers - 1}"] == 0
    assert (foreign["views"] > 0) == (num_layers > 1)


@settings(max_examples=20, deadline=None)
@given(
    num_tasks=st.integers(1, 3),
    num_own=st.integers(1, 2),
    num_shared=st.integers(1, 2),
    num_layers=st.integers(1, 3),
    gate_input=st.sampled_from(["task+shared", "task"]),
)
def test_strict_and_official_give_the_same_outputs(
    num_tasks, num_own, num_shared, num_layers, gate_input
):
    sizes = {
        "num_specific_experts": num_own,
        "num_shared_experts": num_shared,
        "num_layers": num_layers,
        "gate_input": gate_input,
    }
    official, strict = _stem(num_tasks, **sizes), _stem(num_tasks, isolation="strict", **sizes)
    strict.load_state_dict(official.state_dict())
    inputs = random_inputs(_shape(num_tasks), 7)
    torch.testing.assert_close(strict(inputs), official(inputs))
    torch.testing.assert_close(strict.gate_mass(inputs), official.gate_mass(inputs))


def test_with_one_layer_strict_and_official_have_the_same_gradients():
    official, strict = _stem(3), _stem(3, isolation="strict")
    grads = []
    for model in (official, strict):
        inputs = random_inputs(_shape(3), 7)
        model(inputs).square().sum().backward()
        grads.append([inputs.views_BVFD.grad, *(p.grad for p in model.parameters())])
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize(("gate_input", "moves"), [("task+shared", True), ("task", False)])
def test_the_shared_view_is_moved_through_the_gate_only_where_the_gate_reads_it(gate_input, moves):
    model = _stem(gate_input=gate_input)
    with torch.no_grad():  # no other way from the shared view to the output
        model.layers[0].shared_experts.weights[0].zero_()
        model.layers[0].shared_experts.biases[0].fill_(0.5)
    assert (_touched(model, 0)["views"][-1] > 0) == moves


def test_a_task_alone_is_isolated_from_nothing_and_still_runs():
    touched = _touched(_stem(1, num_layers=2), 0)
    assert min(min(values) for values in touched.values()) > 0


def test_gate_mass_sums_to_one_and_names_tasks_then_shared():
    model = _stem(3, num_specific_experts=2, num_layers=2)
    mass = model.gate_mass(random_inputs(_shape(3), 11))
    assert mass.shape == (2, 3, 4)
    torch.testing.assert_close(mass.sum(-1), torch.ones(2, 3))
    with torch.no_grad():  # send task 1's last gate to the two experts of task 2
        gates = model.layers[1].gates
        gates.weights[-1].zero_()
        gates.biases[-1][1, 4:6] = 50
    mass = model.gate_mass(random_inputs(_shape(3), 11))
    torch.testing.assert_close(mass[1, 1], torch.tensor([0.0, 0.0, 1.0, 0.0]))


def test_gate_mass_leaves_rows_of_weight_0_out_and_is_0_without_rows():
    model, inputs = _stem(), random_inputs(_shape(2), 6)
    head = Inputs(inputs.views_BVFD[:2], inputs.numeric_BN[:2], {})
    weight = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    torch.testing.assert_close(model.gate_mass(inputs, weight), model.gate_mass(head))
    assert not model.gate_mass(random_inputs(_shape(2), 0)).any()


def test_a_hot_gate_mixes_evenly_and_a_cold_one_picks_one_expert():
    inputs = random_inputs(_shape(2), 50)
    hot = _stem(gate_temperature=1e6).gate_mass(inputs)
    torch.testing.assert_close(hot, torch.tensor([[[0.25, 0.25, 0.5]] * 2]))
    cold = _stem(gate_temperature=1e-6)
    _, gates = cold._run(inputs)
    torch.testing.assert_close(gates[0].amax(-1), torch.ones(2, 50))


def test_gate_dropout_takes_experts_out_while_training_and_renormalises():
    model, inputs = _stem(gate_dropout=0.5), random_inputs(_shape(2), 2000)
    _, (gate_TBK,) = model._run(inputs)
    torch.testing.assert_close(gate_TBK.sum(-1), torch.ones(2, 2000))
    # Of 4 experts all go with chance 1/16 and then all stay: 1/2 - 1/16 are out.
    assert (gate_TBK == 0).float().mean().item() == pytest.approx(0.5 - 1 / 16, abs=0.02)
    _, (gate_TBK,) = model.eval()._run(inputs)
    assert (gate_TBK > 0).all()


def test_dropout_acts_while_training_only():
    model, inputs = _stem(dropout=0.5), random_inputs(_shape(2), 4)
    assert not torch.equal(model(inputs), model(inputs))
    model.eval()
    assert torch.equal(model(inputs), model(inputs))


def test_the_last_layer_holds_no_shared_gate():
    names = dict(_stem(num_layers=3).named_parameters())
    assert {n.split(".")[1] for n in names if "shared_gate" in n} == {"0", "1"}


def test_shipped_sizes_have_as_many_dense_parameters_as_the_official_code():
    # stem.md: 6,137,824 at F=8, d=16, T=2, its unused shared gate of 25,226 included.
    shape = InputShape(2, 3, 8, 16, 0, ("finish", "like"))
    model = Stem(StemConfig(), shape)
    shared_gate = 128 * 128 + 128 + 128 * 64 + 64 + 64 * 10 + 10
    assert sum(p.numel() for p in model.parameters()) + shared_gate == 6_137_824


def test_the_initial_weights_are_xavier_normal_per_expert_and_biases_0():
    torch.manual_seed(0)
    config = registry.parse(small_section("stem", expert_hidden_units=[300]))
    assert isinstance(config, StemConfig)
    model: Any = Stem(config, InputShape(2, 3, 50, 4, 0, ("a", "b")))
    weight = model.layers[0].specific_experts.weights[0]
    for expert in weight:
        assert expert.std().item() == pytest.approx(math.sqrt(2 / (200 + 300)), rel=0.02)
    assert not any(b.any() for b in model.towers.biases)
