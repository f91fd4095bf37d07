"""Gated sums against plain einsum, gradients and detached experts included."""

import pytest
import torch
from torch import Tensor

from raymtl.models.mixing import mix

Q, B, E, H = 3, 5, 4, 2


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_()


def plain(gate: Tensor, experts: Tensor, live: Tensor) -> Tensor:
    """Each gate sees an expert it may not train as a constant."""
    outputs = []
    for q in range(len(gate)):
        parts = [
            gate[q, :, e, None] * (experts[e] if live[q, e] else experts[e].detach())
            for e in range(len(experts))
        ]
        outputs.append(torch.stack(parts).sum(0))
    return torch.stack(outputs)


@pytest.mark.parametrize("num_gates", [1, Q])
@pytest.mark.parametrize("masked", [False, True])
def test_outputs_and_gradients_are_those_of_the_plain_sum(num_gates: int, masked: bool) -> None:
    gate, experts = random(num_gates, B, E), random(E, B, H, seed=1)
    live = (torch.arange(num_gates * E).view(num_gates, E) % 3 != 0).double()
    live = live if masked else torch.ones_like(live)
    found, wanted = mix(gate, experts, live if masked else None), plain(gate, experts, live)
    torch.testing.assert_close(found, wanted)
    toward = random(num_gates, B, H, seed=2).detach()
    got = torch.autograd.grad(found, (gate, experts), toward)
    torch.testing.assert_close(got, torch.autograd.grad(wanted, (gate, experts), toward))


def test_either_side_may_be_a_constant() -> None:
    gate, experts = random(Q, B, E), random(E, B, H, seed=1)
    mix(gate.detach(), experts).sum().backward()
    mix(gate, experts.detach()).sum().backward()
    assert experts.grad is not None and gate.grad is not None


def test_low_precision_experts_keep_their_type_and_gates_theirs() -> None:
    gate = random(Q, B, E, dtype=torch.float32)
    experts = random(E, B, H, seed=1, dtype=torch.bfloat16)
    out = mix(gate, experts)
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert gate.grad is not None and gate.grad.dtype == torch.float32
    wanted = plain(gate.double(), experts.double(), torch.ones(Q, E))
    torch.testing.assert_close(out.double(), wanted, rtol=0.05, atol=0.05)


def test_under_autocast_experts_of_float32_stay_so() -> None:
    gate, experts = random(Q, B, E, dtype=torch.float32), random(E, B, H, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = mix(gate, experts)
    assert out.dtype == torch.float32
    out.sum().backward()
    assert experts.grad is not None and experts.grad.dtype == torch.float32
