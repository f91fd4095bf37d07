"""One drafted feature from one column of the sample."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.compute as pc

from raymtl.data.facts import Column
from raymtl.schema import (
    BagFeature,
    CategoricalFeature,
    NumericFeature,
    SequenceFeature,
    Table,
)

if TYPE_CHECKING:
    from raymtl.data.draft import Draft

SEQUENCE = re.compile(r"hist|seq|recent|past|last|previous|behaviou?r")
ITEM = re.compile(r"^(item|video|product|goods|news|article|movie|song|ad|doc|post|sku)s?(_?id)?$")
MOST_ROWS = 1 << 24
LONGEST_BAG, LONGEST_SEQUENCE = 20, 50
HEAVY_TAIL = 5.0
"""A number is heavy-tailed when its 99th percentile is this many times its mean or median."""


def hash_rows_for(distinct: int) -> int:
    """Rows of a hash table for so many values: a power of two, few collisions.

    64 rows a value as long as that stays a small table (4,096 rows), then 4 rows a value, at most
    2^24: about 1 value in 64, later 1 in 4, then shares its row with another one.
    """
    wanted = max(min(64 * distinct, 4096), 4 * distinct, 16)
    return min(MOST_ROWS, 1 << (wanted - 1).bit_length())


def hash_table(name: str, column: Column, doubt: Callable[[str, str], None]) -> Table:
    """A table for the column's values, with doubts about its size."""
    rows = hash_rows_for(column.estimate)
    if 4 * column.estimate > MOST_ROWS:
        doubt(column.name, f"about {column.estimate:,} values share {rows:,} hash rows")
    elif column.estimate > 2 * column.distinct:
        doubt(
            column.name,
            f"{column.distinct:,} values in the sample, {rows:,} rows for an estimate of "
            f"{column.estimate:,}",
        )
    return Table(name=name, rows=rows)


def categorical(
    column: Column, doubt: Callable[[str, str], None]
) -> tuple[CategoricalFeature, Table]:
    """A hashed categorical and its table."""
    feature = CategoricalFeature(kind="categorical", name=column.name, encoding="hash")
    return feature, hash_table(column.name, column, doubt)


def numeric(column: Column, doubt: Callable[[str, str], None]) -> NumericFeature:
    """A standardised number, log1p where its tail is heavy; fitted on the sample."""
    x = column.numbers
    middle = max(float(np.median(np.abs(x))), float(np.abs(x).mean()) / 2, 1e-12)
    heavy = bool(np.percentile(np.abs(x), 99) > HEAVY_TAIL * middle or x.max() > 100 * middle)
    log1p = heavy and float(x.max()) > HEAVY_TAIL
    x = np.sign(x) * np.log1p(np.abs(x)) if log1p else x
    if column.kind == "integer":
        doubt(column.name, "read as a number by its name; categorical if it is a code")
    elif column.distinct <= 50 and (x == np.round(x)).all():
        doubt(column.name, "few whole numbers; store them as integers if they are codes")
    if len(column.numbers) < len(column.values):
        doubt(column.name, "some values are NaN (read as missing) or infinite (an error)")
    return NumericFeature(
        kind="numeric",
        name=column.name,
        log1p=log1p,
        standardise=True,
        mean=float(f"{x.mean():.6g}"),
        std=float(f"{x.std():.6g}") or 1.0,
        missing_indicator=column.has_missing,
    )


def bag_or_sequence(column: Column, lists: dict[str, Column], draft: "Draft") -> None:
    """Adds a list column to the draft: a sequence, a bag, a bag's weights, or left out."""
    if column.kind == "list of numbers":
        bag = _bag_weighed_by(column, lists)
        if bag is None:
            draft.leave_out(column.name, "a list of numbers that weighs no bag")
        return
    assert column.lengths is not None
    draft.tables.append(hash_table(column.name, column, draft.doubt))
    longest = max(1, int(np.ceil(np.percentile(column.lengths, 99))))
    if SEQUENCE.search(column.name.lower()):
        draft.features.append(
            SequenceFeature(
                kind="sequence", name=column.name, max_length=min(LONGEST_SEQUENCE, longest)
            )
        )
        draft.doubt(column.name, "read as a sequence, oldest first; a bag if it has no order")
        return
    weights = next((n for n, c in lists.items() if _bag_weighed_by(c, lists) == column.name), None)
    length = min(LONGEST_BAG, longest)
    draft.features.append(
        BagFeature(kind="bag", name=column.name, max_length=length, weights=weights)
    )
    draft.doubt(column.name, "read as a bag; a sequence if its order is that of time")


def share_and_align(draft: "Draft", columns: dict[str, Column]) -> None:
    """Sequences of items share the item's table; sequences of equal lengths are aligned."""
    items = [f.name for f in draft.features if ITEM.match(f.name.lower())]
    sequences = [f for f in draft.features if isinstance(f, SequenceFeature)]
    for f in sequences:
        first = next(g for g in sequences if _same_lengths(columns[f.name], columns[g.name]))
        update: dict[str, object] = {}
        item = next((i for i in items if _within(columns[f.name], columns[i])), None)
        if item is not None:
            update["table"] = item
            draft.tables[:] = [t for t in draft.tables if t.name != f.name]
            draft.doubt(f.name, f"shares the table of {item}, where its values occur")
        if first.name != f.name:
            update |= {"aligned_with": first.name, "max_length": first.max_length}
        at = draft.features.index(f)
        draft.features[at] = f.model_copy(update=update)


def _same_lengths(a: Column, b: Column) -> bool:
    return bool(np.array_equal(a.lengths, b.lengths))  # type: ignore[arg-type]


def _within(sequence: Column, item: Column) -> bool:
    """Whether most of a sequence's many values are values of the item column."""
    same = sequence.kind.removeprefix("list of ").removesuffix("s") == item.kind
    if not same or sequence.distinct < min(50, item.distinct / 2):
        return False
    known = pc.SetLookupOptions(item.values.unique().cast(sequence.values.type))
    found = pc.call_function("is_in", [sequence.values], known)
    return found.true_count > 0.8 * len(sequence.values)


def _bag_weighed_by(column: Column, lists: dict[str, Column]) -> str | None:
    """The list of ids, named alike, that a list of numbers weighs."""
    name = re.sub(r"_?(weight|score|value)s?$", "", column.name)
    if column.kind != "list of numbers" or name == column.name:
        return None
    for other in (name, f"{name}s", f"{name}_ids", f"{name}_id"):
        if other in lists and _same_lengths(lists[other], column):
            return other
    return None
