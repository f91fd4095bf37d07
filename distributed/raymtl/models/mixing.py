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
    """einsum("qbe,ebh->qbh") with the experts' gradients laid out expert by expert.

    Autograd's own come row by row and are copied wherever they are read.
    """

    @staticmethod
    def forward(ctx: Any, gate_QBE: Tensor, experts_EBH: Tensor, live_QE: Tensor | None) -> Tensor:
        ctx.save_for_backward(gate_QBE, experts_EBH, live_QE)
        # In the experts' type, whatever autocast would make of it: backward has no autocast.
        with torch.autocast(experts_EBH.device.type, enabled=False):
            return torch.einsum("qbe,ebh->qbh", gate_QBE.to(experts_EBH.dtype), experts_EBH)

    @staticmethod
    def backward(ctx: Any, grad_QBH: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        gate_QBE, experts_EBH, live_QE = ctx.saved_tensors
        gate_grad = experts_grad = None
        if ctx.needs_input_grad[0]:
            gate_grad = torch.einsum("qbh,ebh->qbe", grad_QBH, experts_EBH).to(gate_QBE.dtype)
        if ctx.needs_input_grad[1]:
            trained_QBE = gate_QBE if live_QE is None else gate_QBE * live_QE.unsqueeze(1)
            weight_QEB1 = trained_QBE.to(experts_EBH.dtype).transpose(1, 2).unsqueeze(-1)
            experts_grad = weight_QEB1[0] * grad_QBH[0]
            for weight_EB1, grad_BH in zip(weight_QEB1[1:], grad_QBH[1:], strict=True):
                experts_grad.addcmul_(weight_EB1, grad_BH)
        return gate_grad, experts_grad, None
