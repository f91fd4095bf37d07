"""SNR-Trans against its formulas written with loops; its gates and their penalty."""

import math

import pytest
import torch

from helpers.models import random_inputs, shape_of, small_model, small_section
from raymtl.models.snr_trans import SnrTransConfig, SnrTransHead


def _head(**values) -> SnrTransHead:
    torch.manual_seed(0)
    config = SnrTransConfig(
        num_experts=3, expert_hidden_units=(6, 4), tower_hidden_units=(), **values
    )
    return SnrTransHead(config, 2, 5)


def _set_log_alpha(head: SnrTransHead, values: list[list[float]]) -> None:
    with torch.no_grad():
        head.log_alpha_TE.copy_(torch.tensor(values))


def _settled(log_alpha: float) -> float:
    return min(1.0, max(0.0, 1.2 / (1 + math.exp(-log_alpha)) - 0.1))


@torch.no_grad()
def test_the_forward_is_the_formula_with_loops():
    head, x = _head().eval(), torch.randn(7, 5)
    log_alpha = [[0.0, 1.0, -4.0], [4.0, -1.0, 0.5]]
    _set_log_alpha(head, log_alpha)
    logits = head(x[None])
    for b in range(7):
        for t in range(2):
            v = torch.zeros(4)
            for j in range(3):
                u = x[b]
                for weight, bias in zip(head.experts.weights, head.experts.biases, strict=True):
                    u = (u @ weight[j] + bias[j]).clamp(min=0)
                v += _settled(log_alpha[t][j]) * (u @ head.transforms_TEIO[t, j])
            y = v @ head.towers.weights[0][t] + head.towers.biases[0][t]
            torch.testing.assert_close(logits[b, t], y[0])


def test_a_gate_settles_at_0_one_half_and_1():
    head = _head().eval()
    _set_log_alpha(head, [[-10.0, 0.0, 10.0], [-2.39, math.log(2), 2.39]])
    # 1.2 sigmoid(log alpha) - 0.1 passes 0 and 1 at log alpha = -log 11 = -2.398 and 2.398.
    assert head.gates()[0].tolist() == [0.0, 0.5, 1.0]
    low, middle, high = head.gates()[1].tolist()
    assert 0 < low < 0.001 and middle == pytest.approx(0.7) and 0.999 < high < 1


def test_a_closed_gate_cuts_its_sub_network_off():
    head, x = _head().eval(), torch.randn(1, 9, 5)
    _set_log_alpha(head, [[0.0, -10.0, 0.0], [0.0, 0.0, 0.0]])
    head(x)[:, 0].sum().backward()
    grad = head.experts.weights[0].grad
    assert grad is not None
    assert grad.flatten(1).any(1).tolist() == [True, False, True]


def test_noise_is_one_draw_for_all_rows_and_only_while_training():
    head, x = _head(), torch.randn(5).expand(1, 8, 5)
    once, again = head(x), head(x)
    assert torch.equal(once, once[:1].expand(8, 2))
    assert not torch.equal(once, again)
    head.eval()
    assert torch.equal(head(x), head(x))
    assert torch.equal(_head(gate_noise=False)(x), head(x))


@torch.no_grad()
def test_draws_are_hard_concrete():
    """P(z = 0) = P(s < 1/12), P(z = 1) = P(s > 11/12), s = sigmoid((logit u + log alpha) / .9)."""
    head = _head()
    _set_log_alpha(head, [[0.0, 1.0, -1.0]] * 2)
    draws = torch.stack([head.gates() for _ in range(5000)]).flatten(0, 1)
    assert draws.min() == 0 and draws.max() == 1
    for j, log_alpha in enumerate([0.0, 1.0, -1.0]):
        closed = 1 / (1 + math.exp(0.9 * math.log(11) + log_alpha))
        opened = 1 / (1 + math.exp(0.9 * math.log(11) - log_alpha))
        assert float((draws[:, j] == 0).float().mean()) == pytest.approx(closed, abs=0.02)
        assert float((draws[:, j] == 1).float().mean()) == pytest.approx(opened, abs=0.02)


def test_the_penalty_is_the_expected_number_of_gates_above_0():
    head = _head(l0_weight=0.5)
    log_alpha = [[0.0, 1.0, -1.0], [3.0, 0.0, 0.0]]
    _set_log_alpha(head, log_alpha)
    opened = [1 - 1 / (1 + math.exp(0.9 * math.log(11) + a)) for row in log_alpha for a in row]
    penalty = head.penalty(torch.zeros(4, 2))
    torch.testing.assert_close(penalty, torch.tensor(0.5 * sum(opened)))
    penalty.backward()
    assert head.log_alpha_TE.grad is not None and (head.log_alpha_TE.grad > 0).all()


def test_the_model_has_its_heads_penalty():
    section = small_section("snr_trans", num_experts=2, l0_weight=1.0)
    model = small_model(section, 3)
    logits = model(random_inputs(shape_of(section, 3), 4))
    wanted = 6 / (1 + 11**-0.9)
    assert model.penalty(logits).item() == pytest.approx(wanted)


def test_with_a_vector_per_task_the_sub_networks_read_the_shared_one_or_their_mean():
    head, x = _head().eval(), torch.randn(2, 6, 5)
    shared = torch.randn(1, 6, 5)
    torch.testing.assert_close(head(x, shared), head(shared))
    torch.testing.assert_close(head(x), head(((x[0] + x[1]) / 2)[None]))
