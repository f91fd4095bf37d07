"""DEPHN and MT-PHN: their forward passes written out, and what the virtual gradient may change."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from helpers.batches import labelled
from helpers.models import grad_of, random_inputs, shape_of, small_model, small_section
from raymtl import losses
from raymtl.batch import InputShape
from raymtl.config import DenseOptimizerSection
from raymtl.errors import InputError
from raymtl.models import virtual_gradient
from raymtl.models.dephn import Dephn, DephnConfig
from raymtl.models.phn import logit_of_mean

NUM_ROWS = 32
ASSIGNMENTS = ["d_pub_cf_pri", "all_pub", "d_pri_cf_pub"]
FUNCTIONS = {"identity": lambda x: x, "sin": torch.sin, "cos": torch.cos}
every_assignment = pytest.mark.parametrize("assignment", ASSIGNMENTS)


def made(name: str = "dephn", num_tasks: int = 2, **values) -> Any:
    """A small model whose gates and links differ, and inputs for it."""
    section = small_section(name, num_dnn_experts=2, num_interaction_experts=2, **values)
    model = small_model(section, num_tasks)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model, random_inputs(shape_of(section, num_tasks), NUM_ROWS)


def labels(num_tasks: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return (torch.rand(NUM_ROWS, num_tasks, generator=generator) < 0.4).float()


def gradients(model: Any, inputs: Any, labels_BT: torch.Tensor) -> dict[str, torch.Tensor]:
    """By parameter, after a training step's forward and backward with the labels' statistics."""
    batch = labelled(labels_BT)
    model.train().zero_grad()
    model.take_statistics(model.statistics(batch))
    kinds = ["binary"] * labels_BT.shape[1]
    losses.task_losses(model(inputs), batch, kinds).sum().backward()
    return {name: grad_of(p).clone() for name, p in model.named_parameters()}


# The network written out with loops over tasks, owners, experts and mappings.


def selected(selection: Any, owner: int, fields_BFD: torch.Tensor) -> torch.Tensor:
    q, k, v = (fields_BFD @ selection.projections[n, owner] for n in range(3))
    attention = torch.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, dim=-1) @ v
    share = torch.sigmoid(selection.gate_OFD[owner])
    return share * attention + (1 - share) * fields_BFD


def dnn(branch: Any, owner: int, expert: int, fields_BFD: torch.Tensor) -> torch.Tensor:
    x = selected(branch.selection, owner, fields_BFD).flatten(1)
    for weight, bias in zip(branch.experts.weights, branch.experts.biases, strict=True):
        x = F.leaky_relu(x @ weight[owner, expert] + bias[owner, expert])
    return x


def interaction(branch: Any, owner: int, expert: int, fields_BFD: torch.Tensor) -> torch.Tensor:
    first = x = selected(branch.cross_selection, owner, fields_BFD).flatten(1)
    cross, at = branch.cross, (owner, expert)
    for n in range(len(cross.matrices)):
        new = first * (x @ cross.matrices[n][at]) + first * (x @ cross.vectors[n][at])
        x = new + cross.biases[n][at] + cross.links[n].weight[at] * x
    begun = v = selected(branch.field_selection, owner, fields_BFD)
    for matrix, link in zip(branch.field.matrices, branch.field.links, strict=True):
        v = begun * (matrix[at].t() @ v) + link.weight[at][0, 0, :, None] * v
    return torch.cat([x, v.flatten(1)], dim=1)


def parts(model: Any, inputs: Any, gates: Any, mappings: list[str], task: int) -> list[Any]:
    """The shared and (where there is one) the own part of a task's logit, without biases."""
    network, at = model.network, 0
    fields_BFD = network.fields(inputs)[0].unflatten(1, (-1, network.fields.width))
    shared, own = torch.zeros(NUM_ROWS), None
    for name, run in (("dnn", dnn), ("interaction", interaction)):
        branch, tower = getattr(network, name), network.towers[name]
        for expert in range(branch.num_experts):
            if network.branch_is_shared[name]:
                e = run(branch, 0, expert, fields_BFD)
                for p, mapping in enumerate(mappings):
                    term = FUNCTIONS[mapping](e) @ tower[task, expert, p]
                    shared = shared + gates[task][at][p] * term
                at += 1
            else:
                term = run(branch, task, expert, fields_BFD) @ tower[task, expert]
                own = term if own is None else own + term
    return [shared, own]


@every_assignment
@pytest.mark.parametrize("output", ["sum_logit", "mean_sigmoid"])
@pytest.mark.parametrize("num_tasks", [1, 3])
def test_dephn_is_the_formula_expert_by_expert(assignment, output, num_tasks):
    mappings = ["identity", "sin", "cos"]
    model, inputs = made(
        num_tasks=num_tasks, assignment=assignment, output=output, mappings=mappings
    )
    got = model(inputs)
    for task in range(num_tasks):
        shared, own = parts(model, inputs, model.gates, mappings, task)
        logit = shared + model.network.shared_bias_T[task]
        if own is not None:
            own_logit = own + model.network.own_bias_T[task]
            both = torch.sigmoid(logit) + torch.sigmoid(own_logit)
            mean = torch.logit((both / 2).double()).float()
            logit = logit + own_logit if output == "sum_logit" else mean
        torch.testing.assert_close(got[:, task], logit, rtol=1e-3, atol=1e-4)


@every_assignment
def test_mt_phn_is_the_same_network_under_a_softmax_of_the_input(assignment):
    model, inputs = made("mt_phn", num_tasks=3, assignment=assignment)
    x_BI, got = model.network.fields(inputs)[0], model(inputs)
    for task in range(3):
        scores = x_BI @ model.gates.weights[0][task] + model.gates.biases[0][task]
        gates = {task: [[g] for g in torch.softmax(scores, dim=1).t()]}
        shared, own = parts(model, inputs, gates, ["identity"], task)
        wanted = shared + model.network.shared_bias_T[task]
        if own is not None:
            wanted = wanted + own + model.network.own_bias_T[task]
        torch.testing.assert_close(got[:, task], wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("mode", ["straight_through", "ratio"])
def test_the_forward_value_is_that_of_the_plain_gate_bit_for_bit(mode):
    (model, inputs), (plain, _) = made(virtual_gradient=mode), made(virtual_gradient="none")
    model.take_statistics(model.statistics(labelled(labels())))
    assert torch.equal(model.train()(inputs), plain.train()(inputs))
    assert torch.equal(model.eval()(inputs), plain.eval()(inputs))


def test_only_the_gates_gradient_changes_and_it_is_the_coefficient_times_the_plain_one():
    model, inputs = made(num_tasks=3)
    plain, _ = made(num_tasks=3, virtual_gradient="none")
    got, wanted = (gradients(m, inputs, labels(3)) for m in (model, plain))
    correlation = model.correlation_TT
    torch.testing.assert_close(correlation, torch.corrcoef(labels(3).t()).abs().double())
    c_TEP = virtual_gradient.coefficient(model.gates.detach(), correlation, "add_sqrt")
    assert (c_TEP - 1).abs().max() > 0.3
    torch.testing.assert_close(got.pop("gates"), c_TEP * wanted.pop("gates"))
    assert all(torch.equal(grad, wanted[name]) for name, grad in got.items())


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_coefficient_of_1_is_the_plain_gate_and_of_0_holds_the_gates_alone_still(
    monkeypatch, value
):
    model, inputs = made()
    plain, _ = made(virtual_gradient="none")
    constant = {"add_sqrt": lambda x, y: torch.full_like(x * y, value)}
    monkeypatch.setattr(virtual_gradient, "GAMMAS", constant)
    got, wanted = (gradients(m, inputs, labels()) for m in (model, plain))
    for name, grad in got.items():
        assert torch.equal(grad, value * wanted[name] if name == "gates" else wanted[name])
        assert grad.any() or name == "gates"


def test_gates_are_plain_before_any_statistics_and_in_evaluation():
    (model, inputs), (plain, _) = made(), made(virtual_gradient="none")
    for m in (model.train(), plain.train()):
        m(inputs).sum().backward()
    assert torch.equal(grad_of(model.gates), grad_of(plain.gates))
    model.take_statistics(model.statistics(labelled(labels())))
    model.eval().zero_grad()
    model(inputs).sum().backward()
    assert torch.equal(grad_of(model.gates), grad_of(plain.gates))


def test_a_tasks_loss_reaches_no_gate_of_another_task():
    model, inputs = made(num_tasks=3)
    labels_BT = labels(3)
    model.take_statistics(model.statistics(labelled(labels_BT)))
    model.train()(inputs)[:, 1].sum().backward()
    assert grad_of(model.gates)[1].all()
    assert not grad_of(model.gates)[[0, 2]].any()


def test_a_tasks_loss_reaches_no_expert_nor_selection_of_another_task():
    model, inputs = made(num_tasks=3)
    model(inputs)[:, 1].sum().backward()
    for name, parameter in model.network.interaction.named_parameters():
        others = grad_of(parameter)
        if "projections" in name:  # (3, T, D, D)
            others = others.transpose(0, 1)
        assert others[1].any(), name
        assert not others[[0, 2]].any(), name


def test_the_shared_experts_learn_from_every_task():
    for task in range(3):
        model, inputs = made(num_tasks=3)
        model(inputs)[:, task].sum().backward()
        assert all(grad_of(p).any() for p in model.network.dnn.parameters())


@pytest.mark.parametrize("mode", ["straight_through", "ratio"])
def test_labels_that_are_constant_in_the_batch_leave_all_finite(mode):
    model, inputs = made(virtual_gradient=mode)
    labels_BT = labels()
    labels_BT[:, 1] = 0
    grads = gradients(model, inputs, labels_BT)
    assert model.correlation_TT[0, 1] == 0
    assert all(grad.isfinite().all() for grad in grads.values())


def test_without_own_part_and_mappings_it_is_an_ensemble_of_bottoms_under_linear_towers():
    model, inputs = made(mappings=["identity"])
    tower = model.network.towers
    with torch.no_grad():
        model.gates.fill_(0.5)
        tower["interaction"].zero_()
        model.network.own_bias_T.zero_()
    fields_BFD = model.network.fields(inputs)[0].unflatten(1, (-1, model.network.fields.width))
    bottoms = [dnn(model.network.dnn, 0, expert, fields_BFD) for expert in range(2)]
    for task in range(2):
        towers = [e @ tower["dnn"][task, n, 0] for n, e in enumerate(bottoms)]
        wanted = sum(towers) / 2 + model.network.shared_bias_T[task]
        torch.testing.assert_close(model(inputs)[:, task], wanted, rtol=1e-4, atol=1e-5)


def test_the_logit_of_a_mean_stays_finite_where_sigmoids_saturate():
    a = torch.tensor([800.0, -800.0, 800.0, 0.0], requires_grad=True)
    b = torch.tensor([800.0, -900.0, -800.0, 2.0])
    got = logit_of_mean(a, b)
    got.sum().backward()
    last = (0.5 + 1 / (1 + math.exp(-2))) / 2
    wanted = [800.0, -800 - math.log(2), 0.0, math.log(last / (1 - last))]
    assert got.tolist() == pytest.approx(wanted, abs=1e-4)
    assert grad_of(a).isfinite().all()


def test_a_regression_task_adds_its_parts_whatever_the_binary_ones_do():
    config = DephnConfig(expert_hidden_units=(8,), output="mean_sigmoid")
    shape = InputShape(2, 1, 3, 4, 0, ("a", "b"), kinds=("regression", "binary"))
    torch.manual_seed(0)
    model: Any = Dephn(config, shape)
    inputs = random_inputs(shape, 6)
    x_1BI = model.network.fields(inputs)
    shared, own = model.network.contributions(x_1BI, model.gates.unsqueeze(-1))
    added = (shared.sum(1) + own.sum(1)).t()
    torch.testing.assert_close(model(inputs)[:, 0], added[:, 0])
    assert (model(inputs)[:, 1] - added[:, 1]).abs().min() > 1e-4


def test_statistics_of_two_ranks_are_those_of_the_global_batch():
    model, _ = made(num_tasks=3)
    whole = model.statistics(labelled(labels(3)))
    halves = [model.statistics(labelled(part)) for part in labels(3).split([11, 21])]
    assert whole.shape == (model.num_statistics,) == (36,) and whole.dtype == torch.float64
    assert torch.equal(halves[0] + halves[1], whole)
    plain, _ = made(virtual_gradient="none")
    assert plain.num_statistics == 0 and plain.statistics(labelled(labels())).shape == (0,)


def test_the_gates_have_an_optimizer_of_their_own_unless_told_otherwise():
    model, _ = made()
    [(names, section)] = model.optimizer_groups()
    assert names == ["gates"] and "gates" in dict(model.named_parameters())
    assert section == DenseOptimizerSection(name="sgd", lr=0.1)
    assert made(gate_optimizer=None)[0].optimizer_groups() == []


@pytest.mark.parametrize("name", ["dephn", "mt_phn"])
@every_assignment
def test_gate_mass_is_each_experts_share_of_what_moves_the_logit(name, assignment):
    model, inputs = made(name, num_tasks=3, assignment=assignment)
    weight_B = torch.arange(float(NUM_ROWS))
    mass = model.gate_mass(inputs, weight_B)
    assert mass.shape == (1, 3, 4) and len(model.gate_sources) == 4
    torch.testing.assert_close(mass.sum(-1), torch.ones(1, 3))
    with torch.no_grad():
        model.network.towers["dnn"][2].zero_()
    mass = model.gate_mass(inputs)[0, 2]
    of_dnn = [source.startswith("dnn") for source in model.gate_sources]
    assert (mass == 0).tolist() == of_dnn
    assert model.gate_sources[0] == ("interaction_1" if assignment == "d_pri_cf_pub" else "dnn_1")


@pytest.mark.parametrize("name", ["dephn", "mt_phn"])
@pytest.mark.parametrize("output", ["sum_logit", "mean_sigmoid"])
def test_bfloat16_is_close_to_float32(name, output):
    model, inputs = made(name, output=output)
    with torch.autocast("cpu", torch.bfloat16):
        low = model(inputs)
    torch.testing.assert_close(low.float(), model(inputs), rtol=0.1, atol=0.1)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(InputError, match=r"model\.attention_heads = 3, embedding\.width = 4"):
        small_model(small_section("dephn", attention_heads=3))


@pytest.mark.parametrize(
    "values", [{"mappings": []}, {"gamma": "add_tan"}, {"output": "sum"}, {"num_dnn_experts": 0}]
)
def test_settings_the_paper_does_not_know_are_refused(values):
    with pytest.raises(InputError, match="is not valid"):
        small_model(small_section("dephn", **values))
