"""Behaviour types of a log: whole sequences of the same events, and the target they serve."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from raymtl.batch import Inputs, InputShape
from raymtl.batch import Sequence as WholeSequence
from raymtl.errors import InputError


@dataclass(frozen=True)
class Behaviour:
    """One type of behaviour: clicks, say, with the item and the author of each."""

    sequences: tuple[str, ...]
    """Whole sequences aligned with each other; the first one names the behaviour."""
    length: int
    """S."""
    target_fields: tuple[int, ...]
    """Fields that describe the impression as the sequences describe an event; may be empty."""

    @property
    def name(self) -> str:
        """That of its first sequence."""
        return self.sequences[0]

    def events(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """One vector per event, the sum over its sequences, and where there is one.

        Returns:
            events_BSD, zeros where there is none, and mask_BS.
        """
        found = [inputs.sequences[name] for name in self.sequences]
        events_BSD, mask_BS = _items(found[0]), found[0].mask_BS
        for sequence in found[1:]:
            events_BSD = events_BSD + _items(sequence)
            mask_BS = mask_BS | sequence.mask_BS
        return events_BSD, mask_BS

    def target(self, inputs: Inputs) -> Tensor | None:
        """The sum of the target's fields, (B, D); null where the behaviour has none."""
        if not self.target_fields:
            return None
        return inputs.views_BVFD[:, 0, list(self.target_fields)].sum(dim=1)


def behaviours_of(shape: InputShape, target: Sequence[str] | None = None) -> list[Behaviour]:
    """The behaviour types of a log, in the order of its whole sequences.

    Args:
        target: fields that make up the target of all behaviours; null takes for each behaviour the
            categorical fields that look up a table of its sequences.

    Raises:
        InputError: a field of `target` is not there.
    """
    named = None if target is None else tuple(_place(shape, name) for name in target)
    return [
        Behaviour(
            names,
            shape.sequence_lengths[names[0]],
            _fields_of_tables(shape, names) if named is None else named,
        )
        for names in _aligned_groups(shape)
    ]


def _aligned_groups(shape: InputShape) -> list[tuple[str, ...]]:
    """Sequences that are aligned with each other, directly or through others."""
    groups = {name: [name] for name in shape.sequence_lengths}
    for name, other in shape.sequence_aligned.items():
        if groups[name] is not groups[other]:
            merged = groups[name] + groups[other]
            groups |= dict.fromkeys(merged, merged)
    order = list(shape.sequence_lengths)
    found = (tuple(sorted(group, key=order.index)) for group in groups.values())
    return list(dict.fromkeys(found))


def _fields_of_tables(shape: InputShape, sequences: tuple[str, ...]) -> tuple[int, ...]:
    tables = {shape.sequence_tables[name] for name in sequences if name in shape.sequence_tables}
    poolings = shape.field_poolings or ("one",) * len(shape.field_tables)
    fields = enumerate(zip(shape.field_tables, poolings, strict=True))
    return tuple(f for f, (table, pooling) in fields if pooling == "one" and table in tables)


def _place(shape: InputShape, name: str) -> int:
    if name in shape.field_names:
        return shape.field_names.index(name)
    near = difflib.get_close_matches(name, shape.field_names, 1)
    raise InputError(
        f"the target {name} is not a field of the log",
        f"model.target = {name}",
        f"one or more of {', '.join(shape.field_names)}",
        f"did you mean {near[0]}?" if near else "name fields of the schema, or leave it out",
    )


def _items(sequence: WholeSequence) -> Tensor:
    values_BSD = sequence.values_BSVD[:, :, 0]
    return values_BSD.masked_fill(~sequence.mask_BS.unsqueeze(-1), 0.0)
