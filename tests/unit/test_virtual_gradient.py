"""The virtual gradient: its coefficients, its three modes, and the correlation it is fed with."""

import numpy as np
import pytest
import torch

from helpers.batches import labelled
from helpers.models import grad_of
from raymtl.models.virtual_gradient import (
    GAMMAS,
    absolute_correlation,
    coefficient,
    label_sums,
    virtual_gate,
)

every_gamma = pytest.mark.parametrize("gamma", GAMMAS)
CORNERS = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])


def pair(correlation: float) -> torch.Tensor:
    return torch.tensor([[1.0, correlation], [correlation, 1.0]])


def gates(*values: float) -> torch.Tensor:
    """One gate per task, (T, 1, 1)."""
    return torch.tensor(values).view(-1, 1, 1).requires_grad_()


def on_the_square(gamma: str, steps: int = 1001) -> torch.Tensor:
    line = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    return GAMMAS[gamma](line[:, None], line[None, :])


@pytest.mark.parametrize(
    ("gamma", "wanted"),
    [
        ("add_cos", 1 + np.cos(0.75 * np.pi)),
        ("add_abs", 0.5),
        ("add_square", 0.125),
        ("add_sqrt", 1.0),
        ("mul_cos", 1 + np.cos(0.27 * np.pi)),
        ("mul_abs", 2 * 0.73),
        ("mul_square", 2 * 0.73**2),
        ("mul_sqrt", 2 * 0.73**0.5),
    ],
)
def test_each_function_gives_the_value_computed_by_hand(gamma, wanted):
    assert float(GAMMAS[gamma](torch.tensor(0.3), torch.tensor(0.45))) == pytest.approx(wanted)


@every_gamma
def test_corners_are_2_0_0_2_for_sums_and_2_everywhere_for_products(gamma):
    wanted = [2.0, 0.0, 0.0, 2.0] if gamma.startswith("add") else [2.0] * 4
    assert GAMMAS[gamma](*CORNERS.t()).tolist() == pytest.approx(wanted, abs=1e-6)


@every_gamma
def test_values_lie_in_0_to_2_and_vanish_on_their_line(gamma):
    assert on_the_square(gamma).min() >= 0 and on_the_square(gamma).max() <= 2
    x = torch.linspace(0.5, 1, 9, dtype=torch.float64)
    y = 1 - x if gamma.startswith("add") else 0.5 / x
    torch.testing.assert_close(GAMMAS[gamma](x, y), torch.zeros(9).double(), atol=1e-7, rtol=0)


@pytest.mark.parametrize(
    ("gamma", "wanted"),
    [
        *[("add_sqrt", 16 / 15), ("add_abs", 2 / 3), ("add_cos", 1 - 4 / np.pi**2)],
        *[("add_square", 1 / 3), ("mul_abs", 0.5 + np.log(2)), ("mul_square", 8 / 9)],
    ],
)
def test_the_mean_over_the_unit_square_is_the_integral(gamma, wanted):
    assert float(on_the_square(gamma).mean()) == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("mode", ["straight_through", "ratio", "none"])
@every_gamma
def test_the_value_is_the_gates_own_bit_for_bit(gamma, mode):
    torch.manual_seed(0)
    gate_TEP = torch.randn(3, 4, 2)
    correlation = torch.rand(3, 3)
    assert torch.equal(virtual_gate(gate_TEP, correlation + correlation.t(), gamma, mode), gate_TEP)


@every_gamma
def test_straight_through_multiplies_the_gradient_by_the_coefficient_and_leaks_nothing(gamma):
    torch.manual_seed(0)
    gate_TEP = torch.rand(2, 3, 2, requires_grad=True)
    upstream_EP = torch.randn(3, 2)
    out_TEP = virtual_gate(gate_TEP, pair(0.3), gamma, "straight_through")
    (out_TEP[0] * upstream_EP).sum().backward()
    distance = (gate_TEP[0] - gate_TEP[1]).detach().abs().clamp(max=1)
    wanted = GAMMAS[gamma](torch.tensor(0.3), distance) * upstream_EP
    torch.testing.assert_close(grad_of(gate_TEP)[0], wanted)
    assert not grad_of(gate_TEP)[1].any()


@pytest.mark.parametrize(
    ("gamma", "wanted"),
    [("add_cos", -4.31), ("add_abs", -1.80), ("add_square", -4.60), ("add_sqrt", -0.40)],
)
def test_the_literal_ratio_turns_the_gradients_sign(gamma, wanted):
    gate_TEP = gates(0.7, 0.25)
    virtual_gate(gate_TEP, pair(0.3), gamma, "ratio")[0].sum().backward()
    own, others = grad_of(gate_TEP).flatten().tolist()
    assert own == pytest.approx(wanted, abs=0.005)
    assert own + others == pytest.approx(1, abs=1e-4)


@every_gamma
def test_of_the_literal_ratio_two_tasks_parts_add_up_to_the_plain_gradient(gamma):
    gate_TEP = gates(0.6, 0.4)
    virtual_gate(gate_TEP, pair(0.5), gamma, "ratio")[1].mul(3).sum().backward()
    assert float(grad_of(gate_TEP).sum()) == pytest.approx(3, abs=1e-4)
    assert grad_of(gate_TEP)[0].any()


def test_the_literal_ratio_is_the_plain_gate_where_the_coefficient_is_0():
    gate_TEP = gates(1.0, 0.5)  # x + y - 1 = 0
    for gamma in ("add_sqrt", "add_abs", "add_square"):
        gate_TEP.grad = None
        virtual_gate(gate_TEP, pair(0.5), gamma, "ratio")[0].sum().backward()
        assert grad_of(gate_TEP).flatten().tolist() == [1.0, 0.0]


def test_a_difference_above_1_counts_as_1():
    torch.testing.assert_close(
        coefficient(gates(5.0, -2.0), pair(0.25), "add_abs"),
        coefficient(gates(1.0, 0.0), pair(0.25), "add_abs"),
    )


@every_gamma
def test_a_single_task_has_the_plain_gate(gamma):
    assert coefficient(gates(0.3), torch.ones(1, 1), gamma).tolist() == [[[1.0]]]


@every_gamma
def test_two_tasks_share_one_coefficient_and_three_have_products_of_pairs(gamma):
    both = coefficient(gates(0.7, 0.25), pair(0.3), gamma)
    assert torch.equal(both[0], both[1])
    correlation = torch.tensor([[1.0, 0.2, 0.6], [0.2, 1.0, 0.9], [0.6, 0.9, 1.0]])
    values, f = (0.1, 0.5, 0.9), GAMMAS[gamma]
    got = coefficient(gates(*values), correlation, gamma).flatten()
    for t, (j, k) in enumerate([(1, 2), (0, 2), (0, 1)]):
        first = f(correlation[t, j], torch.tensor(abs(values[t] - values[j])))
        second = f(correlation[t, k], torch.tensor(abs(values[t] - values[k])))
        torch.testing.assert_close(got[t], first * second)
    assert got.min() >= 0 and got.max() <= 4


def weighted_pearson(x: np.ndarray, y: np.ndarray, w: np.ndarray) -> float:
    x, y = x - np.average(x, weights=w), y - np.average(y, weights=w)
    return abs((w * x * y).sum() / np.sqrt((w * x * x).sum() * (w * y * y).sum()))


def labels_with_holes() -> tuple[torch.Tensor, torch.Tensor]:
    """Two binary labels and a regression's, a fifth of each unobserved; row weights."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(200, 3, generator=generator)
    base[:, 1] += base[:, 0]
    labels = torch.stack([base[:, 0] > 0, base[:, 1] > 0.5, 100 - 3 * base[:, 1]], dim=1)
    labels[torch.rand(200, 3, generator=generator) < 0.2] = torch.nan
    return labels, torch.rand(200, generator=generator)


@pytest.mark.parametrize("kind", ["pearson", "cosine"])
def test_correlations_are_those_of_the_rows_where_both_labels_are_observed(kind):
    labels, weight = labels_with_holes()
    got = absolute_correlation(label_sums(labelled(labels, weight_B=weight)), kind)
    y, w = labels.double().numpy(), weight.double().numpy()
    for t in range(3):
        for j in range(3):
            seen = ~np.isnan(y[:, t]) & ~np.isnan(y[:, j])
            a, b, c = y[seen, t], y[seen, j], w[seen]
            cosine = (c * a * b).sum() / np.sqrt((c * a * a).sum() * (c * b * b).sum())
            wanted = weighted_pearson(a, b, c) if kind == "pearson" else abs(cosine)
            assert float(got[t, j]) == pytest.approx(wanted, rel=1e-9)


def test_sums_over_ranks_and_padding_give_the_global_batchs_correlation():
    labels, weight = labels_with_holes()
    whole = label_sums(labelled(labels, weight_B=weight))
    padded = torch.cat([labels[70:], torch.ones(9, 3)]), torch.cat([weight[70:], torch.zeros(9)])
    parts = [
        label_sums(labelled(labels[:70], weight_B=weight[:70])),
        label_sums(labelled(padded[0], weight_B=padded[1])),
    ]
    assert whole.dtype == torch.float64 and whole.shape == (4 * 3 * 3,)
    torch.testing.assert_close(parts[0] + parts[1], whole, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("kind", ["pearson", "cosine"])
@pytest.mark.parametrize("constant", [0.0, 0.1, torch.nan])
def test_a_label_that_is_constant_or_unobserved_correlates_0_and_is_no_nan(kind, constant):
    varying = (torch.arange(1000) % 3 == 0).float()
    labels = torch.stack([varying, torch.full((1000,), constant)], dim=1)
    got = absolute_correlation(label_sums(labelled(labels)), kind)
    undefined = kind == "pearson" or constant != 0.1
    assert got.isfinite().all()
    assert float(got[0, 1]) == pytest.approx(0.0 if undefined else 334 / (334 * 1000) ** 0.5)


def test_an_empty_batch_correlates_0():
    got = absolute_correlation(label_sums(labelled(torch.empty(0, 2))), "pearson")
    assert got.tolist() == [[0.0, 0.0], [0.0, 0.0]]
