"""Balancing of tasks: projection against the paper's algorithm, weights by hand."""

import math

import pytest
import torch
from torch import Tensor

from raymtl.balancing import Balancer, projection
from raymtl.config import BalancingSection
from raymtl.embedding.rows import RowPart, RowStore, combined, inner_products

CPU = torch.device("cpu")


def _balancer(kinds: tuple[str, ...] = ("binary", "binary"), **values) -> Balancer:
    return Balancer(BalancingSection.model_validate(values), kinds, CPU)


def _pcgrad(grads_Tn: Tensor, seed: int) -> Tensor:
    """Algorithm 1 of the paper on the gradients themselves."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros_like(grads_Tn[0])
    for i, gradient in enumerate(grads_Tn):
        own = gradient.clone()
        for j in torch.randperm(len(grads_Tn), generator=generator).tolist():
            inner = own @ grads_Tn[j]
            if j != i and inner < 0:
                own -= inner / grads_Tn[j].square().sum() * grads_Tn[j]
        total += own
    return total


@pytest.mark.parametrize("num_tasks", [1, 2, 3, 5])
def test_projection_by_inner_products_is_the_papers_algorithm(num_tasks):
    generator = torch.Generator().manual_seed(num_tasks)
    grads_Tn = torch.randn(num_tasks, 4, generator=generator, dtype=torch.float64)
    for seed in range(5):
        weights = projection(grads_Tn @ grads_Tn.t(), seed)
        torch.testing.assert_close(weights @ grads_Tn, _pcgrad(grads_Tn, seed))


def test_two_opposed_gradients_by_hand():
    grads_Tn = torch.tensor([[1.0, 0.0], [-1.0, 1.0]], dtype=torch.float64)
    # g_1 loses its part along g_2: (1, 0) + 1/2 (-1, 1); g_2 its part along g_1: (0, 1).
    got = projection(grads_Tn @ grads_Tn.t(), 0) @ grads_Tn
    torch.testing.assert_close(got, torch.tensor([0.5, 1.5], dtype=torch.float64))


def test_gradients_that_agree_and_a_task_without_gradient_are_left_as_they_are():
    agreeing = torch.tensor([[1.0, 0.5], [0.5, 2.0]], dtype=torch.float64)
    assert projection(agreeing, 0).tolist() == [1.0, 1.0]
    assert projection(torch.zeros(3, 3, dtype=torch.float64), 0).tolist() == [1.0, 1.0, 1.0]


def test_row_gradients_are_multiplied_and_combined_part_by_part():
    store = RowStore.of(5, 2, 2, {})
    parts = [
        [RowPart(store, 0, 5, torch.tensor([1, 3]), torch.full((2, 4), value), counted=True)]
        for value in (1.0, -2.0)
    ]
    assert inner_products(parts).tolist() == [[8.0, -16.0], [-16.0, 32.0]]
    (got,) = combined(parts, [3.0, 0.5])
    assert got.grads.tolist() == [[2.0] * 4] * 2
    assert got.touched_nV.all()


def test_uncertainty_weighs_by_e_to_the_minus_log_variance_and_adds_half_of_it():
    balancer = _balancer(("binary", "regression"), name="uncertainty")
    assert balancer.log_variance_T is not None
    with torch.no_grad():
        balancer.log_variance_T.copy_(torch.tensor([math.log(2.0), math.log(4.0)]))
    torch.testing.assert_close(balancer.weights_T(), torch.tensor([0.5, 0.125]))
    penalty = balancer.penalty()
    assert penalty is not None and penalty.item() == pytest.approx(0.5 * math.log(8.0))


def test_dwa_weighs_a_task_whose_loss_falls_slowly_more():
    balancer = _balancer(name="dwa", window_steps=2, temperature=2.0)
    for loss_T in ([1.0, 1.0], [1.0, 1.0], [1.0, 0.5]):
        balancer.record(torch.tensor(loss_T))
        assert balancer.weights_T().tolist() == [1.0, 1.0]
    balancer.record(torch.tensor([1.0, 0.5]))
    ratios = torch.tensor([1.0, 0.5])
    torch.testing.assert_close(balancer.weights_T(), 2 * torch.softmax(ratios / 2.0, dim=0))
    other = _balancer(name="dwa", window_steps=2)
    other.load_state({key: t.clone() for key, t in balancer.state().items()})
    assert torch.equal(other.weights_T(), balancer.weights_T())
