"""Blocks of raw values to typed columns; what does not fit is named by line and column. No Ray."""

# pyarrow makes its compute functions at import.
# pyright: reportAttributeAccessIssue=false

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymtl.data.convert.text import Block
from raymtl.errors import InputError

NANS = pa.array(["", "nan", "NaN"])
"""How missing numbers are written; missing text is empty."""


@dataclass(frozen=True)
class Column:
    """A column of a raw file, and what its values may be."""

    name: str
    type: pa.DataType
    required: bool = False
    """Whether each row must have a value; else empty ones become nulls."""
    low: int | None = None
    high: int | None = None
    """Least and greatest value."""
    as_float: bool = False
    """Whole numbers may be written like 9.0, as pandas does in columns with missing values."""


def ids(name: str) -> Column:
    """A whole number of at least 0 in every row."""
    return Column(name, pa.int64(), required=True, low=0)


def whole(name: str, kind: pa.DataType | None = None) -> Column:
    """A whole number in every row."""
    return Column(name, kind or pa.int64(), required=True)


def flag(name: str) -> Column:
    """0 or 1 in every row."""
    return Column(name, pa.int8(), required=True, low=0, high=1)


def category(name: str) -> Column:
    """A whole number where known, perhaps written as 9.0."""
    return Column(name, pa.int64(), as_float=True)


def number(name: str) -> Column:
    """A number where known."""
    return Column(name, pa.float64())


def text(name: str) -> Column:
    """Text where known."""
    return Column(name, pa.string())


def typed(block: Block, columns: Sequence[Column], trim: bool = False) -> pa.Table:
    """The block's values with their columns' types.

    Args:
        trim: whether white space around values is no part of them.

    Raises:
        InputError: a value is missing, of another kind, or outside its range.
    """
    return pa.table({c.name: _typed(block, c, trim) for c in columns})


def schema_of(columns: Sequence[Column]) -> pa.Schema:
    """Names and types."""
    return pa.schema([(c.name, c.type) for c in columns])


def _typed(block: Block, column: Column, trim: bool) -> pa.Array:
    raw = block.table.column(column.name).combine_chunks()
    values = _convert(block, column, raw, lambda a: a.cast(pa.string()), "text in UTF-8")
    if trim:
        values = pc.utf8_trim_whitespace(values)
    is_text = pa.types.is_string(column.type)
    missing = pc.equal(values, "") if is_text else pc.is_in(values, value_set=NANS)
    if column.required:
        _require(block, column, values, ~missing.to_numpy(zero_copy_only=False), "a value")
    values = pc.if_else(missing, pa.scalar(None, pa.string()), values)
    if not is_text:
        values = _convert(block, column, values, lambda a: _parsed(a, column), _wanted(column))
    if column.low is not None or column.high is not None:
        _require(block, column, values, _inside(values, column), _wanted(column))
    return values


def _parsed(values: pa.Array, column: Column) -> pa.Array:
    if column.as_float:
        values = values.cast(pa.float64())
    made = values.cast(column.type)
    if pa.types.is_floating(made.type) and pc.all(pc.is_finite(made)).as_py() is False:
        raise pa.ArrowInvalid("not finite")
    return made


def _convert(
    block: Block,
    column: Column,
    values: pa.Array,
    convert: Callable[[pa.Array], pa.Array],
    wanted: str,
) -> pa.Array:
    try:
        return convert(values)
    except pa.ArrowInvalid:
        row = first_refused(values, convert)
        raise wrong_value(block, column.name, row, values[row].as_py(), wanted) from None


def first_refused(values: pa.Array, convert: Callable[[pa.Array], pa.Array]) -> int:
    """The first value that `convert` refuses, by halving; it refuses some."""
    start, length = 0, len(values)
    while length > 1:
        half = length // 2
        try:
            convert(values.slice(start, half))
            start, length = start + half, length - half
        except pa.ArrowInvalid:
            length = half
    return start


def _inside(values: pa.Array, column: Column) -> np.ndarray:
    inside = np.ones(len(values), bool)
    for limit, compare in ((column.low, pc.greater_equal), (column.high, pc.less_equal)):
        if limit is not None:
            inside &= compare(values, limit).fill_null(True).to_numpy(zero_copy_only=False)
    return inside


def _require(block: Block, column: Column, values: pa.Array, fine: np.ndarray, wanted: str) -> None:
    if not fine.all():
        row = int(np.flatnonzero(~fine)[0])
        raise wrong_value(block, column.name, row, values[row].as_py(), wanted)


def _wanted(column: Column) -> str:
    kind = "a number" if pa.types.is_floating(column.type) else "a whole number"
    if column.low is not None and column.high is not None:
        return f"{kind} from {column.low} to {column.high}"
    if column.low is not None:
        return f"{kind} of at least {column.low}"
    return f"{kind} that fits {column.type}" + ("" if column.required else ", or nothing")


def wrong_value(block: Block, column: str, row: int, value: object, wanted: str) -> InputError:
    """The error of one value."""
    shown = repr(value)
    return InputError(
        f"a value of column {column} does not fit",
        f"{shown if len(shown) < 120 else shown[:120] + '...'}   ({block.where(row)})",
        wanted,
        "use the official file, or mend the line",
    )
