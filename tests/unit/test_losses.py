import math

import pytest
import torch

from helpers.batches import labelled
from raymtl import losses

NAN, INF = math.nan, math.inf


def test_binary_loss_is_the_cross_entropy_of_the_logit():
    # -log(1/2) for each of a hit and a miss at logit 0; log(1 + 1/3) at logit log 3 and label 1.
    logits = torch.tensor([[0.0], [0.0], [math.log(3)]])
    sums = losses.task_losses(logits, labelled(torch.tensor([[1.0], [0.0], [1.0]])), ["binary"])
    torch.testing.assert_close(sums, torch.tensor([2 * math.log(2) + math.log(4 / 3)]))


def test_regression_loss_is_the_squared_error():
    batch = labelled(torch.tensor([[3.0], [-1.0]]))
    sums = losses.task_losses(torch.tensor([[1.0], [0.5]]), batch, ["regression"])
    torch.testing.assert_close(sums, torch.tensor([4 + 2.25]))


def test_rows_count_with_their_weight():
    batch = labelled(torch.tensor([[3.0], [1.0]]), weight_B=torch.tensor([2.0, 0.5]))
    sums = losses.task_losses(torch.tensor([[1.0], [0.0]]), batch, ["regression"])
    torch.testing.assert_close(sums, torch.tensor([2 * 4 + 0.5]))


def test_extreme_logits_give_a_finite_loss_and_gradient():
    logits = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    sums = losses.task_losses(logits, labelled(torch.tensor([[0.0], [1.0]])), ["binary"])
    sums.sum().backward()
    torch.testing.assert_close(sums.detach(), torch.tensor([2e4]))
    torch.testing.assert_close(logits.grad, torch.tensor([[1.0], [-1.0]]))


@pytest.mark.parametrize("kind", ["binary", "regression"])
@pytest.mark.parametrize("garbage", [NAN, INF, 1e30])
def test_what_stands_in_unobserved_and_padding_rows_never_counts(kind, garbage):
    labels = torch.tensor([[1.0], [garbage], [garbage]])
    batch = labelled(
        labels, torch.tensor([[True], [False], [True]]), weight_B=torch.tensor([1.0, 1.0, 0.0])
    )
    logits = torch.tensor([[0.0], [garbage], [garbage]], requires_grad=True)
    sums = losses.task_losses(logits, batch, [kind])
    sums.sum().backward()
    assert sums.item() == pytest.approx(math.log(2) if kind == "binary" else 1.0)
    assert logits.grad is not None and logits.grad[0] != 0
    assert not logits.grad[1:].any()


def test_a_non_finite_logit_of_an_observed_row_is_not_hidden():
    logits = torch.tensor([[0.0], [NAN]])
    assert losses.task_losses(logits, labelled(torch.ones(2, 1)), ["binary"]).isnan().all()


def test_kinds_may_differ_between_tasks():
    batch = labelled(torch.tensor([[1.0, 5.0]]))
    sums = losses.task_losses(torch.tensor([[0.0, 2.0]]), batch, ["binary", "regression"])
    torch.testing.assert_close(sums, torch.tensor([math.log(2), 9.0]))
    out = losses.probabilities(torch.tensor([[0.0, 2.0]]), ["binary", "regression"])
    assert out.tolist() == [[0.5, 2.0]]


def test_denominators_are_row_weight_and_observed_weight_per_task():
    batch = labelled(
        torch.tensor([[1.0, NAN], [0.0, 1.0], [NAN, NAN]]), weight_B=torch.tensor([2.0, 0.5, 1.0])
    )
    got = losses.local_denominators(batch)
    assert got.dtype == torch.float64
    assert got.tolist() == [3.5, 2.5, 0.5]


def test_both_denominators_by_hand():
    sums, denominators = torch.tensor([6.0, 4.0]), torch.tensor([8.0, 3.0, 2.0])
    assert losses.per_task(sums, denominators, "batch").tolist() == [0.75, 0.5]
    assert losses.per_task(sums, denominators, "observed").tolist() == [2.0, 2.0]


@pytest.mark.parametrize("mode", ["batch", "observed"])
def test_a_task_nobody_observed_contributes_nothing(mode):
    logits = torch.zeros(2, 2, requires_grad=True)
    batch = labelled(torch.tensor([[1.0, NAN], [0.0, NAN]]))
    sums = losses.task_losses(logits, batch, ["binary"] * 2)
    per_task = losses.per_task(sums, losses.local_denominators(batch), mode)
    loss = per_task.sum()
    loss.backward()
    assert per_task[1] == 0
    assert loss.item() == pytest.approx(math.log(2))
    assert logits.grad is not None and logits.grad[:, 0].all() and not logits.grad[:, 1].any()


@pytest.mark.parametrize("mode", ["batch", "observed"])
def test_a_batch_of_padding_alone_has_loss_0_and_gradient_0(mode):
    logits = torch.full((3, 2), NAN, requires_grad=True)
    batch = labelled(torch.full((3, 2), NAN), weight_B=torch.zeros(3))
    sums = losses.task_losses(logits, batch, ["binary"] * 2)
    loss = losses.per_task(sums, losses.local_denominators(batch), mode).sum()
    loss.backward()
    assert loss == 0
    assert logits.grad is not None and not logits.grad.any()


@pytest.mark.parametrize("mode", ["batch", "observed"])
def test_parts_of_uneven_ranks_add_up_to_the_loss_of_the_whole_batch(mode):
    torch.manual_seed(0)
    logits, labels = torch.randn(10, 3), (torch.rand(10, 3) > 0.5).float()
    labels[torch.rand(10, 3) > 0.6] = NAN
    weight, kinds = torch.rand(10), ["binary", "regression", "binary"]
    slices = [slice(0, 10), slice(0, 7), slice(7, 7), slice(7, 10)]
    batches = [labelled(labels[s], weight_B=weight[s]) for s in slices]
    sums = [losses.task_losses(logits[s], b, kinds) for s, b in zip(slices, batches, strict=True)]
    total = losses.local_denominators(batches[0])
    whole, *parts = (losses.per_task(s, total, mode) for s in sums)
    torch.testing.assert_close(sum(parts), whole)
    torch.testing.assert_close(sum(losses.local_denominators(b) for b in batches[1:]), total)
