"""Batch: one rank's rows of one step as tensors, and where the rows came from.

Shape legend, used by tensor names all over raymtl:
    B rows of this rank's batch · F fields · D embedding width · V views of a field (one per task,
    shared last; 1 in models without task-specific embeddings) · T tasks · E experts · H expert
    width · S sequence length · M behaviour types · L lanes · W world size · N numeric columns ·
    C id columns (one per categorical, max_length per bag or sequence).
"""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raymtl.errors import InputError
from raymtl.layout import PAD, IdColumns, Layout

__all__ = ["PAD", "Batch", "IdColumns", "InputShape", "Inputs", "Layout", "Sequence"]

_ON_HOST = ("file_B", "row_B")
"""Arrays of a batch that never become tensors."""


@dataclass
class Batch:
    """One rank's rows of global step `step`. Padding rows have weight 0 and PAD ids."""

    step: int
    ids_BC: Tensor
    """int64 row numbers within each feature's table, PAD where empty."""
    bag_weights: Tensor
    """float32 (B, layout.num_bag_weights), 0 where the id is PAD."""
    numeric_BN: Tensor
    """float32, finite."""
    labels_BT: Tensor
    """float32, 0 where unobserved."""
    mask_BT: Tensor
    """bool, True where the label is observed."""
    weight_B: Tensor
    """float32 row weights; 0 marks padding."""
    weight_BT: Tensor
    """float32, row weight times task weight, 0 where unobserved."""
    group_B: Tensor
    """int64 hash of the group (user), -1 where there is none."""
    file_B: np.ndarray
    """int32 index into LogIndex.files, -1 for padding."""
    row_B: np.ndarray
    """int64 row within that file, -1 for padding."""
    keys: dict[str, np.ndarray] = field(default_factory=dict)
    """Columns carried along untouched (predict's row keys); padding rows hold anything."""
    skipped: dict[int, int] = field(default_factory=dict)
    """Number of a file -> rows of it that could not be read and are padding here."""

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "Batch":
        """From `lanes.Fields`, whose arrays it shares."""
        tensors: dict[str, Any] = {
            name: torch.from_numpy(values)
            for name, values in fields.items()
            if isinstance(values, np.ndarray) and name not in _ON_HOST
        }
        return cls(**fields | tensors)

    def __len__(self) -> int:
        return self.ids_BC.shape[0]

    @property
    def num_rows(self) -> int:
        """Rows that are not padding."""
        return int((self.file_B >= 0).sum())

    def head(self, num_rows: int) -> "Batch":
        """Its first rows; keys are left out."""
        by_row = {k: v for k, v in vars(self).items() if isinstance(v, Tensor | np.ndarray)}
        return replace(self, keys={}, **{k: v[:num_rows] for k, v in by_row.items()})

    def to(self, device: torch.device) -> "Batch":
        """Moves the tensors; the origin and the keys stay on the host."""
        moved = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return Batch(**{**vars(self), **moved})


@dataclass
class Sequence:
    """One behaviour sequence, whole."""

    values_BSVD: Tensor
    mask_BS: Tensor
    """bool, True where there is an item; items stand at the front, oldest first."""


@dataclass
class Inputs:
    """What a model sees of a batch."""

    views_BVFD: Tensor
    numeric_BN: Tensor
    sequences: dict[str, Sequence]


@dataclass(frozen=True)
class InputShape:
    """Sizes a model is built from."""

    num_tasks: int
    num_views: int
    num_fields: int
    width: int
    num_numeric: int
    task_names: tuple[str, ...]
    sequence_lengths: dict[str, int] = field(default_factory=dict)
    """Sequence name -> S, for sequences passed whole."""
    field_names: tuple[str, ...] = ()
    """Of the F fields that are looked up."""
    field_tables: tuple[str, ...] = ()
    """The table each of them looks up; a sequence's target is the field of its table."""
    field_poolings: tuple[str, ...] = ()
    """How its ids become one vector: `one` (a categorical), `sum` or `mean`; see `IdColumns`."""
    sequence_tables: dict[str, str] = field(default_factory=dict)
    """Whole sequence -> the table of its ids."""
    sequence_aligned: dict[str, str] = field(default_factory=dict)
    """Whole sequence -> the whole sequence of the same events, where there is one."""
    given: tuple[int | None, ...] = ()
    """Per task the task that must be positive for it to be."""
    kinds: tuple[str, ...] = ()
    """`binary` or `regression` per task."""

    @classmethod
    def of(
        cls, layout: Layout, width: int, task_specific: bool, shared_view: bool = True
    ) -> "InputShape":
        """Sizes for a layout; V is T + 1 with task-specific embeddings, else 1.

        Without the shared view (models whose tasks share nothing) V is T.
        """
        num_tasks = len(layout.task_names)
        return cls(
            num_tasks=num_tasks,
            num_views=num_tasks + int(shared_view) if task_specific else 1,
            num_fields=len(layout.fields),
            width=width,
            num_numeric=len(layout.numeric_names),
            task_names=layout.task_names,
            sequence_lengths={c.feature: c.width for c in layout.sequences},
            field_names=tuple(c.feature for c in layout.fields),
            field_tables=tuple(c.table for c in layout.fields),
            field_poolings=tuple(c.pooling for c in layout.fields),
            sequence_tables={c.feature: c.table for c in layout.sequences},
            sequence_aligned={
                c.feature: c.aligned_with
                for c in layout.sequences
                if c.aligned_with in {other.feature for other in layout.sequences}
            },
            given=layout.task_given,
            kinds=layout.task_kinds,
        )

    def require(self, inputs: Inputs) -> None:
        """Raises InputError where inputs are of other sizes; the number of rows is free."""
        rows = inputs.views_BVFD.shape[:1]
        views = (self.num_views, self.num_fields, self.width)
        wrong = _unlike("views_BVFD", inputs.views_BVFD, (*rows, *views))
        wrong += _unlike("numeric_BN", inputs.numeric_BN, (*rows, self.num_numeric))
        for name, length in self.sequence_lengths.items():
            whole = inputs.sequences.get(name)
            values = (*rows, length, self.num_views, self.width)
            wrong += _unlike(f"values_BSVD of {name}", whole and whole.values_BSVD, values)
            wrong += _unlike(f"mask_BS of {name}", whole and whole.mask_BS, (*rows, length))
        if wrong:
            raise InputError(
                "the inputs are not of the sizes the model was built for",
                "; ".join(f"{name} {got}" for name, got, _ in wrong),
                "; ".join(f"{name} {wanted}" for name, _, wanted in wrong),
                "build the model from the schema and embedding.width that made the inputs",
            )


def _unlike(name: str, tensor: Tensor | None, wanted: tuple[int, ...]) -> list[tuple]:
    """Nothing, or (name, what there is, wanted)."""
    got = "missing" if tensor is None else tuple(tensor.shape)
    return [] if got == wanted else [(name, got, wanted)]
