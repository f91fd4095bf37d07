"""Dense parameters as one flat buffer: one all-reduce, one optimizer, no DDP."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raymtl.config import DenseOptimizerSection, ScheduleSection

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
_RUN = 4096
"""Gradients whose squares are added up in float32."""


@dataclass(frozen=True)
class Group:
    """Parameters that one optimizer moves."""

    names: tuple[str, ...]
    section: DenseOptimizerSection


class DenseParameters:
    """A model's parameters and gradients laid in one buffer each; the module sees views of them.

    Parameters of a group lie side by side, and each group has its own optimizer. The gradient
    buffer has `num_extra` floats at its end that ride along in the all-reduce.

    Args:
        parameters: by name.
        groups: which optimizer moves which; each parameter in just one.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], groups: Sequence[Group], num_extra: int
    ):
        self.names = tuple(name for group in groups for name in group.names)
        assert sorted(self.names) == sorted(parameters), "every parameter is in one group"
        self.parameters = [parameters[name] for name in self.names]
        self._sizes = [p.numel() for p in self.parameters]
        device = self.parameters[0].device if self.parameters else torch.device("cpu")
        flat = [p.detach().reshape(-1) for p in self.parameters]
        self.values = torch.cat(flat) if flat else torch.zeros(0, device=device)
        self.buffer = torch.zeros(len(self.values) + num_extra, device=device)
        """Gradients of `values`, then the extras."""
        self.gradients = self.buffer[: len(self.values)]
        self.extras = self.buffer[len(self.values) :]
        for p, values, gradients in zip(
            self.parameters,
            self.values.split(self._sizes),
            self.gradients.split(self._sizes),
            strict=True,
        ):
            p.data = values.view_as(p)
            p.grad = gradients.view_as(p)
        self._moved = self._optimizers(groups)

    def zero_grad(self) -> None:
        """Clears the gradients and the extras."""
        self.buffer.zero_()

    def squared_norm(self) -> Tensor:
        """Sum of squares of the gradients, float64 scalar."""
        # Norms of short runs in float32 are as exact as the gradients; all of it in float64 takes
        # thirty times as long, so only where a run overflows.
        cut = len(self.gradients) - len(self.gradients) % _RUN
        norms = torch.linalg.vector_norm(self.gradients[:cut].view(-1, _RUN), dim=1)
        rest = torch.linalg.vector_norm(self.gradients[cut:], dtype=torch.float64)
        total: Tensor = norms.double().square().sum() + rest.square()
        if not torch.isfinite(total):
            total = self.gradients.double().square().sum()
        return total

    def step(self, scale: float, factor: float) -> None:
        """Multiplies the gradients by `scale` (the clip) and moves the parameters.

        Args:
            factor: of every group's learning rate, from the schedule.
        """
        if scale != 1:
            self.gradients.mul_(scale)
        for group, flat, optimizer in self._moved:
            if len(flat):
                optimizer.param_groups[0]["lr"] = group.section.lr * factor
                optimizer.step()

    def state(self) -> dict[str, Tensor]:
        """`model/<name>` and `optimizer/<state>/<name>`, views of the live tensors.

        What an optimizer holds once (Adam's step count) is `optimizer_once/<state>/<first name>`.
        """
        tensors = self._by_name("model", self.names, self.values)
        for group, flat, optimizer in self._moved:
            for key, value in optimizer.state[flat].items():
                if value.shape == flat.shape:
                    tensors |= self._by_name(f"optimizer/{key}", group.names, value)
                else:
                    tensors[f"optimizer_once/{key}/{group.names[0]}"] = value
        return tensors

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes what `state` gave; the optimizer's part only where it is there."""
        self.values.copy_(_joined("model", self.names, tensors))
        for group, flat, optimizer in self._moved:
            for path, value in tensors.items():
                prefix, key, *name = path.split("/")
                if not group.names or name != [group.names[0]]:
                    continue
                if prefix == "optimizer":
                    joined = _joined(f"optimizer/{key}", group.names, tensors)
                    optimizer.state[flat][key] = joined.to(flat.device)
                elif prefix == "optimizer_once":
                    optimizer.state[flat][key] = value

    def _optimizers(
        self, groups: Sequence[Group]
    ) -> list[tuple[Group, nn.Parameter, torch.optim.Optimizer]]:
        size_of, start, moved = dict(zip(self.names, self._sizes, strict=True)), 0, []
        for group in groups:
            stop = start + sum(size_of[name] for name in group.names)
            flat = nn.Parameter(self.values[start:stop])
            flat.grad = self.gradients[start:stop]
            moved.append((group, flat, _optimizer(flat, group.section)))
            start = stop
        return moved

    def _by_name(self, prefix: str, names: Sequence[str], flat: Tensor) -> dict[str, Tensor]:
        like = dict(zip(self.names, self.parameters, strict=True))
        parts = flat.split([like[name].numel() for name in names])
        return {
            f"{prefix}/{name}": part.view_as(like[name])
            for name, part in zip(names, parts, strict=True)
        }


def groups_of(
    model: nn.Module, names: Sequence[str], section: DenseOptimizerSection
) -> list[Group]:
    """The model's own groups (`optimizer_groups`), and first the one of all other parameters."""
    own = [
        Group(tuple(group), of_its_own)
        for group, of_its_own in getattr(model, "optimizer_groups", list)()
    ]
    taken = {name for group in own for name in group.names}
    return [Group(tuple(n for n in names if n not in taken), section), *own]


def _joined(prefix: str, names: Sequence[str], tensors: Mapping[str, Tensor]) -> Tensor:
    parts = [tensors[f"{prefix}/{name}"].reshape(-1) for name in names]
    return torch.cat(parts) if parts else torch.zeros(0)


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
