"""AITM against its formulas written with loops, and its calibrator."""

import math

import torch

from helpers.models import random_inputs, shape_of, small_model, small_section
from raymtl.models.aitm import AitmConfig, AitmHead


def _head(num_tasks: int, given: tuple[int | None, ...] = (), **values) -> AitmHead:
    torch.manual_seed(0)
    config = AitmConfig(bottom_hidden_units=(7, 4), tower_hidden_units=(8,), **values)
    head = AitmHead(config, num_tasks, 5, given)
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            if "biases" in name:
                parameter.normal_(std=0.3)
    return head


def _mlp(bank, number: int, x: torch.Tensor, linear_output: bool) -> torch.Tensor:
    weights, biases = list(bank.weights), list(bank.biases)
    for n, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        x = x @ weight[number] + bias[number]
        x = x if linear_output and n == len(weights) - 1 else x.clamp(min=0)
    return x


def _transfer(head: AitmHead, p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Equations 5 to 7, one row: z = sum_u w_u h1(u)."""
    assert head.transfer is not None
    bank, k = head.transfer.projections, len(q)
    h = [lambda u, n=n: u @ bank.weights[0][n] + bank.biases[0][n] for n in range(3)]
    score = [float((h[1](u) * h[2](u)).sum()) / math.sqrt(k) for u in (p, q)]
    total = sum(math.exp(s) for s in score)
    return sum(
        (math.exp(s) / total * h[0](u) for s, u in zip(score, (p, q), strict=True)),
        torch.zeros(k),
    )


@torch.no_grad()
def _row(head: AitmHead, x: torch.Tensor, before: dict[int, int], order: list[int]) -> list[float]:
    """The logits of one row, task after task."""
    z: dict[int, torch.Tensor] = {}
    for task in order:
        q = _mlp(head.bottoms, task, x, linear_output=False)
        if task in before:
            gate = head.info_gates[str(before[task])]
            p = _mlp(gate, 0, z[before[task]], linear_output=False)
            z[task] = _transfer(head, p, q)
        else:
            z[task] = q
    return [float(_mlp(head.towers, t, z[t], linear_output=True)) for t in sorted(z)]


def test_the_forward_is_the_papers_formulas_row_by_row():
    head, x = _head(4), torch.randn(6, 5)
    wanted = [_row(head, row, {1: 0, 2: 1, 3: 2}, [0, 1, 2, 3]) for row in x]
    torch.testing.assert_close(head(x[None]), torch.tensor(wanted))


def test_information_follows_the_schemas_given():
    head, x = _head(4, given=(2, None, None, 2)), torch.randn(6, 5)
    wanted = [_row(head, row, {0: 2, 3: 2}, [1, 2, 0, 3]) for row in x]
    torch.testing.assert_close(head(x[None]), torch.tensor(wanted))
    assert sorted(head.info_gates) == ["2"]


def test_a_bottom_reads_its_tasks_vector_where_there_is_one_each():
    head, x = _head(2, given=(None, None)), torch.randn(2, 6, 5)
    own = [head(row.expand(2, -1, -1)) for row in x]
    torch.testing.assert_close(head(x)[:, 0], own[0][:, 0])
    assert not torch.allclose(head(x)[:, 1], own[0][:, 1])


def test_a_later_task_moves_the_bottoms_before_it_and_no_later_one():
    head, x = _head(3, activation="tanh"), torch.randn(1, 20, 5)
    for task in range(3):
        head.zero_grad()
        head(x)[:, task].sum().backward()
        grad = head.bottoms.weights[0].grad
        assert grad is not None
        assert grad.flatten(1).any(1).tolist() == [t <= task for t in range(3)]


def test_the_calibrator_counts_what_a_task_is_above_the_one_before_it():
    head = _head(3, calibration_weight=0.5)
    p = torch.tensor([[0.2, 0.5, 0.6], [0.9, 0.5, 0.1], [0.3, 0.1, 0.4]])
    wanted = torch.tensor([0.5 * (0.3 + 0.1), 0.0, 0.5 * 0.3])
    torch.testing.assert_close(head.penalty(torch.logit(p)), wanted)


def test_the_calibrator_pulls_a_task_down_and_the_one_before_it_up():
    head = _head(2)
    logits = torch.zeros(1, 2)
    logits[0, 1] = 1.0
    logits.requires_grad_()
    head.penalty(logits).sum().backward()
    slope = torch.sigmoid(logits.detach()) * (1 - torch.sigmoid(logits.detach()))
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, 0.6 * slope * torch.tensor([-1.0, 1.0]))


def test_the_model_has_its_heads_penalty():
    section = small_section("aitm", calibration_weight=2.0)
    model = small_model(section, 3)
    logits = model(random_inputs(shape_of(section, 3), 9))
    p = torch.sigmoid(logits)
    wanted = 2 * ((p[:, 1] - p[:, 0]).clamp(min=0) + (p[:, 2] - p[:, 1]).clamp(min=0))
    torch.testing.assert_close(model.penalty(logits), wanted)
    assert not small_model(small_section("aitm"), 1).penalty(logits[:, :1]).any()
