"""Banks of linear layers against one layer after the other, gradients included."""

import pytest
import torch
from torch import Tensor

from raymtl.models.bank_linear import bank_linear

B = 5


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_()


def plain(x: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
    each = len(weight) // len(x)
    outputs = [x[e // each] @ weight[e] + bias[e] for e in range(len(weight))]
    return torch.stack([o.relu() if relu else o for o in outputs])


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("groups, num", [(1, 1), (1, 4), (4, 4), (2, 6), (1, 3)])
@pytest.mark.parametrize("inputs, outputs", [(3, 7), (7, 3), (4, 4), (6, 1)])
def test_outputs_and_gradients_are_those_of_single_layers(
    groups: int, num: int, inputs: int, outputs: int, relu: bool
) -> None:
    x, weight = random(groups, B, inputs, seed=1), random(num, inputs, outputs, seed=2)
    bias, toward = random(num, outputs, seed=3), random(num, B, outputs, seed=4).detach()
    found, wanted = bank_linear(x, weight, bias, relu), plain(x, weight, bias, relu)
    torch.testing.assert_close(found, wanted)
    assert found.is_contiguous()
    got = torch.autograd.grad(found, (x, weight, bias), toward)
    torch.testing.assert_close(got, torch.autograd.grad(wanted, (x, weight, bias), toward))


@pytest.mark.parametrize("inputs, outputs", [(3, 7), (7, 3)])
def test_strided_inputs_give_the_same(inputs: int, outputs: int) -> None:
    x = random(B, 4, inputs, seed=1).transpose(0, 1)
    weight, bias = random(4, inputs, outputs, seed=2), random(4, outputs, seed=3)
    torch.testing.assert_close(bank_linear(x, weight, bias, True), plain(x, weight, bias, True))


@pytest.mark.parametrize("inputs, outputs", [(3, 7), (7, 3)])
def test_constants_get_no_gradient_and_backward_may_be_run_twice(inputs: int, outputs: int) -> None:
    x, weight = random(1, B, inputs, seed=1), random(2, inputs, outputs, seed=2)
    bias = random(2, outputs, seed=3)
    bank_linear(x.detach(), weight, bias, True).sum().backward()
    assert x.grad is None and weight.grad is not None
    loss = bank_linear(x, weight.detach(), bias.detach(), True).sum()
    loss.backward(retain_graph=True)
    assert x.grad is not None
    once = x.grad.clone()
    loss.backward()
    torch.testing.assert_close(x.grad, 2 * once)


@pytest.mark.parametrize("inputs, outputs", [(3, 7), (7, 3)])
def test_under_autocast_it_computes_in_bfloat16_and_gradients_keep_their_types(
    inputs: int, outputs: int
) -> None:
    low = torch.float32
    x, weight = (
        random(1, B, inputs, seed=1, dtype=low),
        random(3, inputs, outputs, seed=2, dtype=low),
    )
    bias = random(3, outputs, seed=3, dtype=low)
    with torch.autocast("cpu", torch.bfloat16):
        found = bank_linear(x, weight, bias, True)
    assert found.dtype == torch.bfloat16
    wanted = plain(x.double(), weight.double(), bias.double(), True)
    torch.testing.assert_close(found.double(), wanted, rtol=0.05, atol=0.05)
    found.float().sum().backward()
    for leaf in (x, weight, bias):
        assert leaf.grad is not None and leaf.grad.dtype == torch.float32
