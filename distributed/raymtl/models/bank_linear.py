"""One linear layer of several MLPs as one product, its activation with it."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor


def bank_linear(x_GBI: Tensor, weight_EIO: Tensor, bias_EO: Tensor, relu: bool) -> Tensor:
    """E linear layers on G inputs; G divides E, and input g goes to layers g*E/G .. (g+1)*E/G - 1.

    Computes in the type of autocast where that is on; gradients come in the types of the arguments.

    Args:
        relu: whether the outputs go through ReLU.

    Returns:
        (E, B, out), contiguous.
    """
    groups, num = x_GBI.shape[0], weight_EIO.shape[0]
    assert num % groups == 0, f"{groups} inputs for {num} layers"
    return _BankLinear.apply(x_GBI, weight_EIO, bias_EO, relu)  # type: ignore[no-any-return]


class _BankLinear(torch.autograd.Function):
    """Autograd's own would add the bias, clip and copy in passes of their own."""

    @staticmethod
    def forward(ctx: Any, x_GBI: Tensor, weight_EIO: Tensor, bias_EO: Tensor, relu: bool) -> Tensor:
        device = x_GBI.device.type
        low = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if low else x_GBI.dtype
        # Not where it is off already: torch.export would keep the region as a call of its own.
        with torch.autocast(device, enabled=False) if low else nullcontext():
            x, weight, bias = x_GBI.to(dtype), weight_EIO.to(dtype), bias_EO.to(dtype)
            out_EBO = _product(x, weight, bias)
            if relu:
                out_EBO.relu_()
        ctx.types = x_GBI.dtype, weight_EIO.dtype, bias_EO.dtype
        ctx.relu = relu
        ctx.save_for_backward(x, weight, out_EBO if relu else None)
        return out_EBO

    @staticmethod
    def backward(ctx: Any, grad_EBO: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x_GBI, weight_EIO, out_EBO = ctx.saved_tensors
        if ctx.relu:
            grad_EBO = torch.ops.aten.threshold_backward(grad_EBO, out_EBO, 0)
        grads = _gradients(x_GBI, weight_EIO, grad_EBO, ctx.needs_input_grad[:2])
        bias_EO = grad_EBO.sum(1) if ctx.needs_input_grad[2] else None
        made = (*grads, bias_EO)
        typed = [g if g is None else g.to(t) for g, t in zip(made, ctx.types, strict=True)]
        return (*typed, None)


def _is_wide(x_GBI: Tensor, weight_EIO: Tensor) -> bool:
    """Whether layers of one input are one wide product: cheaper where inputs outnumber outputs.

    Else each layer reads the input for itself, and the gradients of its copies are no more than
    those of the outputs.
    """
    return len(x_GBI) < len(weight_EIO) and weight_EIO.shape[1] > weight_EIO.shape[2]


def _product(x_GBI: Tensor, weight_EIO: Tensor, bias_EO: Tensor) -> Tensor:
    bias_E1O = bias_EO.unsqueeze(1)
    if _is_wide(x_GBI, weight_EIO):
        out_GBW = torch.bmm(x_GBI, _side_by_side(weight_EIO, len(x_GBI)))
        out_GKBO = out_GBW.unflatten(2, (-1, bias_EO.shape[1])).transpose(1, 2)
        # Contiguous and with its bias in one pass.
        out = out_GBW.new_empty(out_GKBO.shape)
        return torch.add(out_GKBO, bias_E1O.view(*out.shape[:2], 1, -1), out=out).flatten(0, 1)
    return torch.bmm(_for_each(x_GBI, len(weight_EIO)), weight_EIO).add_(bias_E1O)


def _gradients(
    x_GBI: Tensor, weight_EIO: Tensor, grad_EBO: Tensor, needed: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Of the inputs and of the weights, where they are needed."""
    groups, num = len(x_GBI), len(weight_EIO)
    if _is_wide(x_GBI, weight_EIO):
        grad_GBW = grad_EBO.unflatten(0, (groups, -1)).transpose(1, 2).flatten(2)
        x_grad = weight_grad = None
        if needed[0]:
            x_grad = torch.bmm(grad_GBW, _side_by_side(weight_EIO, groups).transpose(1, 2))
        if needed[1]:
            wide_GIW = torch.bmm(x_GBI.transpose(1, 2), grad_GBW)
            weight_GIKO = wide_GIW.unflatten(2, (num // groups, -1))
            weight_grad = weight_GIKO.transpose(1, 2).reshape(weight_EIO.shape)
        return x_grad, weight_grad
    x_grad = torch.bmm(grad_EBO, weight_EIO.transpose(1, 2)) if needed[0] else None
    if x_grad is not None and groups < num:
        x_grad = x_grad.unflatten(0, (groups, -1)).sum(1)
    x_EBI = _for_each(x_GBI, num)
    return x_grad, torch.bmm(x_EBI.transpose(1, 2), grad_EBO) if needed[1] else None


def _for_each(x_GBI: Tensor, num: int) -> Tensor:
    """Each layer's input, (E, B, I)."""
    if len(x_GBI) == num:
        return x_GBI
    return x_GBI.unsqueeze(1).expand(-1, num // len(x_GBI), -1, -1).flatten(0, 1)


def _side_by_side(weight_EIO: Tensor, groups: int) -> Tensor:
    """The weights of the layers of one input next to one another, (G, I, K * O)."""
    weight_GKIO = weight_EIO.unflatten(0, (groups, -1))
    return weight_GKIO.transpose(1, 2).flatten(2)
