"""Single-task, Shared-Bottom and the blocks they are made of."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from helpers.models import WIDTH, grad_of, random_inputs, shape_of, small_model, small_section
from raymtl.batch import Inputs, InputShape, Sequence
from raymtl.models.blocks import BankOfMLPs, FieldStack, masked_mean


def _one_task(inputs: Inputs, task: int) -> Inputs:
    view = slice(task, task + 1)
    return Inputs(
        inputs.views_BVFD[:, view],
        inputs.numeric_BN,
        {n: Sequence(s.values_BSVD[:, :, view], s.mask_BS) for n, s in inputs.sequences.items()},
    )


def test_single_task_moves_one_tasks_own_tables_and_mlp_only():
    section = small_section("single_task")
    model, inputs = small_model(section, 3), random_inputs(shape_of(section, 3), 16)
    model(inputs)[:, 1].square().sum().backward()
    assert grad_of(inputs.views_BVFD).abs().sum((0, 2, 3)).gt(0).tolist() == [False, True, False]
    watched = grad_of(inputs.sequences["watched"].values_BSVD)
    assert watched.abs().sum((0, 1, 3)).gt(0).tolist() == [False, True, False]
    for parameter in model.head.towers.parameters():
        assert grad_of(parameter).flatten(1).any(1).tolist() == [False, True, False]


def test_single_task_of_three_tasks_is_three_models_of_one_task_side_by_side():
    section = small_section("single_task")
    together, inputs = small_model(section, 3), random_inputs(shape_of(section, 3), 16)
    logits = together(inputs)
    for task in range(3):
        alone = small_model(section, 1)
        assert shape_of(section, 1).num_views == 1
        with torch.no_grad():
            for mine, theirs in zip(
                alone.head.towers.parameters(), together.head.towers.parameters(), strict=True
            ):
                mine.copy_(theirs[task : task + 1])
            weight = together.fields.numeric_weight_NVD[:, task : task + 1]
            alone.fields.numeric_weight_NVD.copy_(weight)
        torch.testing.assert_close(alone(_one_task(inputs, task))[:, 0], logits[:, task])


def test_shared_bottom_is_one_mlp_and_a_tower_per_task():
    section = small_section("shared_bottom")
    model, inputs = small_model(section), random_inputs(shape_of(section), 5)
    x = model.fields(inputs)[0]
    for weight, bias in zip(model.head.bottom.weights, model.head.bottom.biases, strict=True):
        x = F.relu(x @ weight[0] + bias[0])
    for task in range(2):
        y = x
        weights, biases = list(model.head.towers.weights), list(model.head.towers.biases)
        for n in range(2):
            y = F.relu(y @ weights[n][task] + biases[n][task])
        y = y @ weights[2][task] + biases[2][task]
        torch.testing.assert_close(model(inputs)[:, task], y[:, 0])


def test_shared_bottom_without_a_bottom_reads_the_embeddings():
    section = small_section("shared_bottom", bottom_hidden_units=[])
    model = small_model(section)
    assert model.head.towers.in_features == model.fields.out_features
    assert model(random_inputs(shape_of(section), 3)).shape == (3, 2)


@pytest.mark.parametrize("num_groups", [1, 2, 6])
@pytest.mark.parametrize("out_features", [None, 3])
def test_a_bank_is_its_mlps_one_by_one(num_groups, out_features):
    torch.manual_seed(0)
    bank = BankOfMLPs(6, 4, [5, 7], out_features)
    with torch.no_grad():
        for bias in bank.biases:
            bias.normal_()
    inputs = torch.randn(num_groups, 8, 4)
    outputs = bank(inputs)
    assert outputs.shape == (6, 8, out_features or 7)
    for e in range(6):
        x = inputs[e * num_groups // 6]
        for n, (weight, bias) in enumerate(zip(bank.weights, bank.biases, strict=True)):
            x = x @ weight[e] + bias[e]
            x = F.relu(x) if n < 2 else x
        torch.testing.assert_close(outputs[e], x)


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "tanh"])
def test_a_bank_applies_the_activation_it_is_told(activation):
    bank = BankOfMLPs(1, 3, [3], activation=activation)
    with torch.no_grad():
        bank.weights[0].copy_(torch.eye(3)[None])
    x = torch.tensor([[[-1.0, 0.0, 2.0]]])
    wanted = torch.tanh(x) if activation == "tanh" else getattr(F, activation)(x)
    torch.testing.assert_close(bank(x), wanted)


def test_numbers_and_sequences_become_fields_after_the_ids():
    shape = InputShape(1, 1, 1, 2, 2, ("a",), {"watched": 3})
    stack: Any = FieldStack(shape)
    assert stack.out_features == 4 * 2
    with torch.no_grad():
        stack.numeric_weight_NVD.copy_(torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]]))
    items = torch.tensor([[1.0, 1.0], [3.0, 5.0], [0.0, 0.0]]).view(1, 3, 1, 2)
    inputs = Inputs(
        torch.tensor([[[[7.0, 8.0]]]]),
        torch.tensor([[10.0, -1.0]]),
        {"watched": Sequence(items, torch.tensor([[True, True, False]]))},
    )
    assert stack(inputs).tolist() == [[[7.0, 8.0, 10.0, 20.0, -3.0, -4.0, 2.0, 3.0]]]


def test_the_mean_of_an_empty_sequence_is_zero_and_has_a_gradient():
    values = torch.zeros(1, 3, 1, WIDTH, requires_grad=True)
    mean = masked_mean(values, torch.zeros(1, 3, dtype=torch.bool))
    mean.sum().backward()
    assert not mean.any()
    assert grad_of(values).isfinite().all()
