"""Dense parameters as one flat buffer: one all-reduce, one optimizer, no DDP."""

import math

import torch
from torch import Tensor, nn

from raymtl.config import DenseOptimizerSection, ScheduleSection

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}


class DenseParameters:
    """A model's parameters and gradients laid in one buffer each; the module sees views of them.

    The gradient buffer has `num_extra` floats at its end that ride along in the all-reduce.
    """

    def __init__(self, model: nn.Module, section: DenseOptimizerSection, num_extra: int):
        self.names, parameters = (
            zip(*model.named_parameters(), strict=True)
            if any(True for _ in model.parameters())
            else ((), ())
        )
        self.parameters: list[nn.Parameter] = list(parameters)
        sizes = [p.numel() for p in self.parameters]
        device = next(iter(self.parameters)).device if self.parameters else torch.device("cpu")
        self.flat = nn.Parameter(torch.cat([p.detach().reshape(-1) for p in self.parameters]))
        self.buffer = torch.zeros(sum(sizes) + num_extra, device=device)
        """Gradients of `flat`, then the extras."""
        self.extras = self.buffer[sum(sizes) :]
        self.flat.grad = self.buffer[: sum(sizes)]
        for p, values, grads in zip(
            self.parameters, self.flat.data.split(sizes), self.flat.grad.split(sizes), strict=True
        ):
            p.data = values.view_as(p)
            p.grad = grads.view_as(p)
        self._sizes = sizes
        self.optimizer = _optimizer(self.flat, section)

    def zero_grad(self) -> None:
        """Clears the gradients and the extras."""
        self.buffer.zero_()

    def squared_norm(self) -> Tensor:
        """Sum of squares of the gradients, float64 scalar."""
        assert self.flat.grad is not None
        return self.flat.grad.double().square().sum()

    def step(self, scale: Tensor, lr: float) -> None:
        """Multiplies the gradients by `scale` (the clip) and moves the parameters."""
        assert self.flat.grad is not None
        self.flat.grad.mul_(scale)
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.step()

    def state(self) -> dict[str, Tensor]:
        """`model/<name>` and `optimizer/<state>/<name>`, views of the live tensors."""
        tensors = self._by_name("model", self.flat.data)
        for key, value in self.optimizer.state[self.flat].items():
            if value.shape == self.flat.shape:
                tensors |= self._by_name(f"optimizer/{key}", value)
            else:
                tensors[f"optimizer/{key}"] = value
        return tensors

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Takes what `state` gave; the optimizer's part only where it is there."""
        self.flat.data.copy_(self._flattened("model", tensors))
        keys = {k.split("/")[1] for k in tensors if k.startswith("optimizer/")}
        for key in keys:
            whole = tensors.get(f"optimizer/{key}")
            value = self._flattened(f"optimizer/{key}", tensors) if whole is None else whole
            self.optimizer.state[self.flat][key] = value.to(
                self.flat.device if whole is None else value.device
            )

    def _by_name(self, prefix: str, flat: Tensor) -> dict[str, Tensor]:
        parts = zip(self.names, self.parameters, flat.split(self._sizes), strict=True)
        return {f"{prefix}/{name}": part.view_as(p) for name, p, part in parts}

    def _flattened(self, prefix: str, tensors: dict[str, Tensor]) -> Tensor:
        return torch.cat([tensors[f"{prefix}/{name}"].reshape(-1) for name in self.names])


def _optimizer(flat: nn.Parameter, section: DenseOptimizerSection) -> torch.optim.Optimizer:
    if section.name == "sgd":
        return torch.optim.SGD([flat], lr=section.lr, weight_decay=section.weight_decay)
    return OPTIMIZERS[section.name](
        [flat],
        lr=section.lr,
        betas=section.betas,
        eps=section.eps,
        weight_decay=section.weight_decay,
        fused=True,
    )


def learning_rate_factor(section: ScheduleSection, step: int, num_steps: int) -> float:
    """What the learning rates are multiplied with at a step (0-based), in [0, 1]."""
    if step < section.warmup_steps:
        return (step + 1) / section.warmup_steps
    if section.name == "constant":
        return 1.0
    decay = max(1, (section.decay_steps or num_steps) - section.warmup_steps)
    done = min(1.0, (step - section.warmup_steps) / decay)
    shape = 1 - done if section.name == "linear" else (1 + math.cos(math.pi * done)) / 2
    return section.final + (1 - section.final) * shape


def clip_scale(squared_norm: Tensor, clip_norm: float | None) -> Tensor:
    """Factor that brings a gradient's norm to at most `clip_norm`, as torch's clip_grad_norm_."""
    if clip_norm is None:
        return torch.ones((), device=squared_norm.device)
    return (clip_norm / (squared_norm.sqrt() + 1e-6)).clamp(max=1.0).float()
