r"""The feature lists of Ali-CCP: `field \x02 feature \x03 value`, joined by \x01. No Ray.

Form: the data set's page (tianchi.aliyun.com/dataset/408) and the AITM authors' reader of it
(github.com/xidongbo/AITM, process_public_dataset.py). The 23 fields are those of the page; which
of them lie in which file is what public readers found.
"""

# pyarrow makes its compute functions at import.
# pyright: reportAttributeAccessIssue=false

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymtl.data.convert.columns import Column, first_refused, typed, whole, wrong_value
from raymtl.data.convert.plan import Tally
from raymtl.data.convert.text import Block
from raymtl.errors import InputError

ITEM = ("205", "206", "207", "216", "301")
USER = ("101", "121", "122", "124", "125", "126", "127", "128", "129")
ITEM_LISTS = ("210", "508", "509", "702", "853")
USER_LISTS = ("109_14", "110_14", "127_14", "150_14")
FORM_TEXT = "field \\x02 feature \\x03 value, joined by \\x01"


@dataclass(frozen=True)
class Fields:
    """Which fields a file has: those with one feature a row, and lists with a weight each."""

    single: tuple[str, ...]
    lists: tuple[str, ...]

    @property
    def all(self) -> tuple[str, ...]:
        return self.single + self.lists

    @property
    def schema(self) -> list[pa.Field]:
        """Their columns: f205 int64; f210 and f210_weight, lists of equal length. Null: none."""
        made = [pa.field(f"f{name}", pa.int64()) for name in self.single]
        for name in self.lists:
            made.append(pa.field(f"f{name}", pa.list_(pa.int64())))
            made.append(pa.field(f"f{name}_weight", pa.list_(pa.float32())))
        return made


SKELETON, COMMON = Fields(ITEM, ITEM_LISTS), Fields(USER, USER_LISTS)


@dataclass(frozen=True)
class Tokens:
    """Every feature of a block, in the file's order."""

    row: np.ndarray
    """int64, row of the block it belongs to."""
    field: np.ndarray
    """int64, place in Fields.all; -1 for a field that this file should not have."""
    feature: np.ndarray
    """int64."""
    value: np.ndarray
    """float32, finite."""


def features(block: Block, fields: Fields, max_values: int, tally: Tally) -> pa.Table:
    """A block's columns `num` and `features` as one column, or pair of columns, per field.

    A single field that a row has twice keeps its last feature, as the AITM authors' reader does.

    Args:
        max_values: features kept of a list, those with the largest values; 0 keeps all. Ours.
        tally: counts what was left out.

    Raises:
        InputError: a list is not of the form, or not as long as `num` says.
    """
    tokens = read_tokens(block, fields)
    foreign = tokens.field < 0
    tally.count("features of fields that this file should not have", int(foreign.sum()))
    num_rows, columns = block.table.num_rows, {}
    for place, name in enumerate(fields.single):
        columns[f"f{name}"] = _last(tokens, tokens.field == place, num_rows, tally)
    for place, name in enumerate(fields.lists, start=len(fields.single)):
        chosen = np.flatnonzero(tokens.field == place)
        kept = _largest(tokens, chosen, max_values)
        tally.count("features beyond the most that are kept of a list", len(chosen) - len(kept))
        columns |= _lists(f"f{name}", tokens, kept, num_rows)
    return pa.table(columns)


def read_tokens(block: Block, fields: Fields) -> Tokens:
    """Takes every row's list apart.

    Raises:
        InputError: as `features`.
    """
    columns = (whole("num"), Column("features", pa.string()))
    table = typed(block, columns)
    text = table["features"].combine_chunks().fill_null("")
    lists = pc.split_pattern(text, "\x01")
    row = np.repeat(np.arange(len(text)), pc.list_value_length(lists).to_numpy())
    tokens = lists.flatten()
    present = pc.not_equal(tokens, "").to_numpy(zero_copy_only=False)
    row, tokens = row[present], tokens.filter(pa.array(present))
    field, rest = _halves(block, row, tokens, "\x02")
    feature, value = _halves(block, row, rest, "\x03")
    found = pc.index_in(field, value_set=pa.array(fields.all)).fill_null(-1)
    made = Tokens(
        row,
        found.to_numpy(zero_copy_only=False).astype(np.int64),
        _numbers(block, row, feature, pa.int64()),
        _numbers(block, row, value, pa.float32()),
    )
    _check_counts(block, table["num"].to_numpy(), np.bincount(row, minlength=len(text)))
    return made


def _halves(
    block: Block, row: np.ndarray, tokens: pa.Array, separator: str
) -> tuple[pa.Array, pa.Array]:
    halves = pc.split_pattern(tokens, separator)
    wrong = np.flatnonzero(pc.list_value_length(halves).to_numpy() != 2)
    if len(wrong):
        token = tokens[wrong[0]].as_py()
        raise wrong_value(block, "features", int(row[wrong[0]]), token, FORM_TEXT)
    flat = halves.flatten()
    even = pa.array(np.arange(0, len(flat), 2))
    odd = pa.array(np.arange(1, len(flat), 2))
    return flat.take(even), flat.take(odd)


def _numbers(block: Block, row: np.ndarray, values: pa.Array, kind: pa.DataType) -> np.ndarray:
    def convert(values: pa.Array) -> pa.Array:
        made = values.cast(kind)
        if pa.types.is_floating(kind) and pc.all(pc.is_finite(made)).as_py() is False:
            raise pa.ArrowInvalid("not finite")
        return made

    try:
        return convert(values).to_numpy()
    except pa.ArrowInvalid:
        wrong = first_refused(values, convert)
        what = "a feature that is a whole number" if kind == pa.int64() else "a number as value"
        raise wrong_value(
            block, "features", int(row[wrong]), values[wrong].as_py(), f"{what}: {FORM_TEXT}"
        ) from None


def _check_counts(block: Block, said: np.ndarray, found: np.ndarray) -> None:
    wrong = np.flatnonzero(said != found)
    if len(wrong):
        row = int(wrong[0])
        raise InputError(
            "a line has another number of features than it says",
            f"{found[row]} features, num = {said[row]}   ({block.where(row)})",
            f"as many as num says: {FORM_TEXT}",
            "use the official file; it may be cut off",
        )


def _last(tokens: Tokens, mine: np.ndarray, num_rows: int, tally: Tally) -> pa.Array:
    """The last feature of each row, null where it has none."""
    row = tokens.row[mine]
    feature, there = np.zeros(num_rows, np.int64), np.zeros(num_rows, bool)
    feature[row] = tokens.feature[mine]  # numpy keeps the last of several
    there[row] = True
    tally.count("features of a field with one a row, before its last", len(row) - int(there.sum()))
    return pa.array(feature, mask=~there)


def _largest(tokens: Tokens, chosen: np.ndarray, max_values: int) -> np.ndarray:
    """Of the chosen tokens at most so many a row, in their order; ties go to the first."""
    row = tokens.row[chosen]
    if not max_values or np.bincount(row, minlength=1).max() <= max_values:
        return chosen
    order = np.lexsort((np.arange(len(row)), -tokens.value[chosen], row))
    starts = np.flatnonzero(np.diff(row[order], prepend=-1))
    lengths = np.diff(starts, append=len(row))
    rank = np.arange(len(row)) - np.repeat(starts, lengths)
    return chosen[np.sort(order[rank < max_values])]


def _lists(name: str, tokens: Tokens, kept: np.ndarray, num_rows: int) -> dict[str, pa.Array]:
    lengths = np.bincount(tokens.row[kept], minlength=num_rows)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    none = pa.array(lengths == 0)
    return {
        column: pa.ListArray.from_arrays(offsets, pa.array(values[kept]), mask=none)
        for column, values in ((name, tokens.feature), (f"{name}_weight", tokens.value))
    }
