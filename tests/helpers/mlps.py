"""One MLP of a bank, one layer after the other, for checking models against their formulas."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def run_mlp(bank: Any, number: int, x_I: Tensor, linear_output: bool) -> Tensor:
    """MLP `number` of a bank on one row; ReLU after all layers but a linear output."""
    last = len(bank.weights) - 1
    for n, (weight, bias) in enumerate(zip(bank.weights, bank.biases, strict=True)):
        x_I = x_I @ weight[number] + bias[number]
        x_I = x_I if linear_output and n == last else F.relu(x_I)
    return x_I


def expert(bank: Any, number: int, x_I: Tensor) -> Tensor:
    return run_mlp(bank, number, x_I, linear_output=False)


def gate(bank: Any, number: int, x_I: Tensor) -> Tensor:
    """Weights of the experts, computed from the definition of the softmax."""
    powers = run_mlp(bank, number, x_I, linear_output=True).exp()
    return powers / powers.sum()


def tower(bank: Any, number: int, x_I: Tensor) -> Tensor:
    return run_mlp(bank, number, x_I, linear_output=True)[0]


def mix(weights: Tensor, vectors: list[Tensor]) -> Tensor:
    """sum_k weights[k] * vectors[k]."""
    assert len(weights) == len(vectors)
    return sum((w * v for w, v in zip(weights, vectors, strict=True)), torch.zeros(()))


def randomise(module: torch.nn.Module, seed: int = 0) -> None:
    """Standard normal / 2 for every parameter, so that biases count too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)


def shut(gates: Any, experts: list[int], number: int | None = None) -> None:
    """Takes experts out of a bank's gates for good: out of gate `number`, or out of all."""
    with torch.no_grad():
        gates.biases[-1][slice(None) if number is None else number, experts] = -torch.inf
