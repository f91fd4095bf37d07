"""Gated sums of experts, as a product of its own: gradients in the experts' own layout."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def mix(gate_QBE: Tensor, experts_EBH: Tensor, live_QE: Tensor | None = None) -> Tensor:
    """Sums experts by the weights of Q gates.

    Args:
        gate_QBE: float weights; may be of a wider type than the experts.
        live_QE: 1 where a gate's loss may train an expert, 0 where the expert is a constant to it
            (its weight learns all the same); null means 1 throughout.

    Returns:
        (Q, B, H), in the experts' type.
    """
    return _Mix.apply(gate_QBE, experts_EBH, live_QE)  # type: ignore[no-any-return]


def mix_each(gate_PQBE: Tensor | Sequence[Tensor], experts_PEBH: Tensor) -> Tensor:
    """`mix` of each of P streams by its own gates, one behind the other, (P * Q, B, H)."""
    mixed = [mix(gate, own) for gate, own in zip(gate_PQBE, experts_PEBH, strict=True)]
    return torch.cat(mixed) if len(mixed) > 1 else mixed[0]


class _Mix(torch.autograd.Function):
    """einsum("qbe,ebh->qbh"), expert by expert.

    As products of small matrices, row by row, the experts would be copied to lie row by row.
    """

    @staticmethod
    def forward(ctx: Any, gate_QBE: Tensor, experts_EBH: Tensor, live_QE: Tensor | None) -> Tensor:
        ctx.save_for_backward(gate_QBE, experts_EBH, live_QE)
        weight_EQB1 = _by_expert(gate_QBE, experts_EBH)
        mixed_QBH = weight_EQB1[0] * experts_EBH[0]
        for weight_QB1, expert_BH in zip(weight_EQB1[1:], experts_EBH[1:], strict=True):
            mixed_QBH.addcmul_(weight_QB1, expert_BH)
        return mixed_QBH

    @staticmethod
    def backward(ctx: Any, grad_QBH: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        gate_QBE, experts_EBH, live_QE = ctx.saved_tensors
        gate_grad = experts_grad = None
        if ctx.needs_input_grad[0]:
            by_query = [torch.linalg.vecdot(grad_BH, experts_EBH) for grad_BH in grad_QBH]
            gate_grad = torch.stack(by_query).transpose(1, 2).to(gate_QBE.dtype)
        if ctx.needs_input_grad[1]:
            trained_QBE = gate_QBE if live_QE is None else gate_QBE * live_QE.unsqueeze(1)
            weight_QEB1 = _by_expert(trained_QBE, experts_EBH).transpose(0, 1)
            experts_grad = weight_QEB1[0] * grad_QBH[0]
            for weight_EB1, grad_BH in zip(weight_QEB1[1:], grad_QBH[1:], strict=True):
                experts_grad.addcmul_(weight_EB1, grad_BH)
        return gate_grad, experts_grad, None


def _by_expert(gate_QBE: Tensor, experts_EBH: Tensor) -> Tensor:
    """Contiguous weights (E, Q, B, 1) in the experts' type."""
    weight_EQB = gate_QBE.permute(2, 0, 1).to(experts_EBH.dtype)
    return weight_EQB.contiguous().unsqueeze(-1)
