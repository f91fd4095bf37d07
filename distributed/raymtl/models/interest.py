"""Interests: one vector per task and behaviour type from whole behaviour sequences.

DTRN's Task-specific Interest Module (see `dtrn`): `conditional_transformer` on every behaviour
type, then pooling. Pooling, positions and sizes are our reconstruction.
"""

from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from raymtl.batch import Inputs, InputShape
from raymtl.config import Section
from raymtl.errors import InputError
from raymtl.models.behaviours import Behaviour, behaviours_of
from raymtl.models.blocks import Dropout, masked_mean
from raymtl.models.conditional_transformer import (
    ConditionalTransformer,
    Conditions,
    HyperNorms,
    SharedNorms,
)
from raymtl.models.length_buckets import LengthBuckets

Pooling = Literal["target", "append", "mean"]


class InterestSection(Section):
    interest: bool = True
    """Whether a hypernetwork sets the norms per task and behaviour type; without it one Transformer
    with ordinary LayerNorms serves all of them (the ablation "without TIM")."""
    conditions: Conditions = "task+behaviour"
    """What the hypernetwork is told; the others are ablations. Not read without `interest`."""
    task_width: PositiveInt = 8
    """Width of a task's embedding, the hypernetwork's input. As all sizes here ours: none is
    published."""
    behaviour_width: PositiveInt = 8
    """Width of a behaviour type's embedding, the hypernetwork's other input."""
    hyper_hidden: PositiveInt = 32
    """Width of the hypernetwork's hidden layer."""
    num_blocks: PositiveInt = 1
    """Transformer blocks; the first one's attention runs once for all tasks, later ones' once per
    task."""
    num_heads: PositiveInt = 2
    """Heads of the attention; they divide embedding.width."""
    ffn_factor: PositiveInt = 4
    """Hidden width of a block's feed-forward part over embedding.width."""
    dropout: Dropout = 0.0
    """Dropout after a block's attention and after its feed-forward part, while training."""
    pooling: Pooling | None = None
    """How a sequence becomes one vector: attention of the target impression (`target`), the output
    of the target appended as the newest event (`append`), or the mean over events (`mean`). Null is
    `target` for a behaviour that has a target and `mean` for one that has none."""
    target: tuple[str, ...] | None = None
    """Fields whose sum is the target of every behaviour; null takes the categorical fields that
    look up a table of the behaviour's own sequences (the item of a sequence of items)."""
    positions: bool = True
    """Whether events carry a trained embedding of how many events are newer."""


class Interests(nn.Module):
    """z_tm = pool(Transformer_tm(events of behaviour m)), for every task t and behaviour type m.

    Sequences aligned with each other are one behaviour type, their vectors summed per event. A row
    without events of a type has z_tm = 0. Rows run in buckets of like length. All of this is ours.
    """

    def __init__(self, config: InterestSection, shape: InputShape):
        super().__init__()
        self.behaviours = behaviours_of(shape, config.target)
        self.poolings: list[Pooling] = [
            _pooling(config, behaviour) for behaviour in self.behaviours
        ]
        self.names = tuple(behaviour.name for behaviour in self.behaviours)
        self.width = shape.width
        if shape.width % config.num_heads:
            raise InputError(
                "the heads do not divide the embedding width",
                f"model.num_heads = {config.num_heads}, embedding.width = {shape.width}",
                "model.num_heads that divides embedding.width",
                "change either",
            )
        self.transformer = ConditionalTransformer(
            shape.width, config.num_heads, config.num_blocks, config.ffn_factor, config.dropout
        )
        self.norms = _norms(config, shape, len(self.behaviours), self.transformer.num_norms)
        self.attention = TargetAttention(shape.width) if "target" in self.poolings else None
        longest = max(behaviour.length for behaviour in self.behaviours)
        num_places = longest + int("append" in self.poolings)
        # From 0, so that positions do not drown new items, whose vectors start small.
        places = torch.zeros(num_places, shape.width) if config.positions else None
        self.positions_SD = None if places is None else nn.Parameter(places)

    def forward(self, inputs: Inputs) -> Tensor:
        """Returns interest_KBMD; K is T, or 1 where nothing depends on the task."""
        norms_KMN2D = self.norms()
        interests = [self._interest(inputs, m, norms_KMN2D[:, m]) for m in range(len(self.names))]
        return torch.stack(interests, dim=2)

    def _interest(self, inputs: Inputs, m: int, norms_KN2D: Tensor) -> Tensor:
        """z_KBD of behaviour m."""
        events_BSD, mask_BS = self.behaviours[m].events(inputs)
        target_BD = self.behaviours[m].target(inputs)
        if torch.compiler.is_compiling():  # counts of rows would be values of the data
            return self._padded(events_BSD, mask_BS, target_BD, m, norms_KN2D)
        buckets = LengthBuckets.of(mask_BS)
        events, masks = buckets.split(events_BSD), buckets.split(mask_BS)
        targets = [None] * len(events) if target_BD is None else buckets.split(target_BD)
        parts = []
        for n, width in enumerate(buckets.widths):
            is_last = n == len(buckets.widths) - 1
            # The last bucket runs even without rows, so that every parameter has a gradient.
            if width and (buckets.counts[n] or is_last):
                cut = events[n][:, :width], masks[n][:, :width]
                parts.append(self._pooled(*cut, targets[n], self.poolings[m], norms_KN2D))
            else:
                parts.append(events_BSD.new_zeros(len(norms_KN2D), buckets.counts[n], self.width))
        return buckets.join(parts)

    def _padded(
        self,
        events_BSD: Tensor,
        mask_BS: Tensor,
        target_BD: Tensor | None,
        m: int,
        norms_KN2D: Tensor,
    ) -> Tensor:
        """z_KBD with all rows at full width; a row without events runs as one, and is then 0."""
        held_B1 = mask_BS.any(dim=1, keepdim=True)
        some_BS = torch.cat([mask_BS[:, :1] | ~held_B1, mask_BS[:, 1:]], dim=1)
        pooled_KBD = self._pooled(events_BSD, some_BS, target_BD, self.poolings[m], norms_KN2D)
        return torch.where(held_B1, pooled_KBD, pooled_KBD.new_zeros(()))

    def _pooled(
        self,
        events_RSD: Tensor,
        mask_RS: Tensor,
        target_RD: Tensor | None,
        pooling: Pooling,
        norms_KN2D: Tensor,
    ) -> Tensor:
        """z_KRD of rows that have events."""
        append = pooling == "append"
        if append and target_RD is not None:
            events_RSD = torch.cat([events_RSD, target_RD.unsqueeze(1)], dim=1)
            mask_RS = torch.cat([mask_RS, mask_RS.new_ones(mask_RS.shape[0], 1)], dim=1)
        if self.positions_SD is not None:
            events_RSD = events_RSD + self.positions_SD[num_newer(mask_RS)]
        encoded_KRSD = self.transformer(events_RSD, mask_RS, norms_KN2D, last_only=append)
        if append:
            return encoded_KRSD.squeeze(2)
        if pooling == "target" and self.attention is not None and target_RD is not None:
            return self.attention(encoded_KRSD, mask_RS, target_RD)
        return masked_mean(encoded_KRSD.permute(1, 2, 0, 3), mask_RS).transpose(0, 1)


class TargetAttention(nn.Module):
    """z = sum_s a_s x_s,  a = softmax over events of (v W_q)(x_s W_k)^T / sqrt(D). Ours.

    The keys are not formed: v W_q W_k^T is, once for all tasks.
    """

    def __init__(self, width: int):
        super().__init__()
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)

    def forward(self, encoded_KRSD: Tensor, mask_RS: Tensor, target_RD: Tensor) -> Tensor:
        """Returns z_KRD; every row has an event."""
        width = target_RD.shape[-1]
        query_RD1 = (self.query(target_RD) @ self.key.weight / width**0.5).unsqueeze(-1)
        scores_KRS = (encoded_KRSD @ query_RD1).squeeze(-1)
        lowest = torch.finfo(scores_KRS.dtype).min
        weights_KRS = scores_KRS.masked_fill(~mask_RS, lowest).softmax(dim=-1)
        return (weights_KRS.to(encoded_KRSD.dtype).unsqueeze(2) @ encoded_KRSD).squeeze(2)


def num_newer(mask_RS: Tensor) -> Tensor:
    """How many events are newer than each place: 0 at the newest."""
    held_RS = mask_RS.long()
    return held_RS.flip(1).cumsum(1).flip(1) - held_RS


def _pooling(config: InterestSection, behaviour: Behaviour) -> Pooling:
    has_target = bool(behaviour.target_fields)
    if config.pooling is None:
        return "target" if has_target else "mean"
    if config.pooling == "mean" or has_target:
        return config.pooling
    raise InputError(
        f"the sequence {behaviour.name} has no target to be pooled for",
        f"model.pooling = {config.pooling}; no categorical feature looks up a table of "
        f"{', '.join(behaviour.sequences)}",
        "fields that describe the impression as the sequence describes its events",
        "name them in model.target, or leave model.pooling out",
    )


def _norms(
    config: InterestSection, shape: InputShape, num_behaviours: int, num_norms: int
) -> nn.Module:
    if not config.interest:
        return SharedNorms(num_behaviours, num_norms, shape.width)
    task_width = 0 if config.conditions == "behaviour" else config.task_width
    behaviour_width = 0 if config.conditions == "task" else config.behaviour_width
    return HyperNorms(
        (shape.num_tasks, num_behaviours),
        (task_width, behaviour_width),
        config.hyper_hidden,
        num_norms,
        shape.width,
    )
