"""The flat buffer of dense parameters: its norm."""

import pytest
import torch
from torch import nn

from raymtl.config import DenseOptimizerSection
from raymtl.dense import DenseParameters, Group


def with_gradients(values: torch.Tensor) -> DenseParameters:
    parameter = nn.Parameter(torch.zeros_like(values))
    dense = DenseParameters({"w": parameter}, [Group(("w",), DenseOptimizerSection())], 3)
    dense.gradients.copy_(values)
    dense.extras.fill_(float("inf"))
    return dense


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 50_000])
def test_the_squared_norm_is_that_of_float64(size: int) -> None:
    values = torch.randn(size, generator=torch.Generator().manual_seed(size)) * 1e-3
    wanted = values.double().square().sum()
    torch.testing.assert_close(with_gradients(values).squared_norm(), wanted, rtol=1e-6, atol=0)


def test_large_gradients_do_not_overflow() -> None:
    found = with_gradients(torch.full((10_000,), 1e30)).squared_norm()
    assert float(found) == pytest.approx(1e64, rel=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [5, 4999])
def test_a_gradient_that_is_not_finite_shows(bad: float, place: int) -> None:
    values = torch.zeros(5000)
    values[place] = bad
    assert not torch.isfinite(with_gradients(values).squared_norm())
