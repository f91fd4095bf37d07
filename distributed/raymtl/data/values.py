"""Raw columns as plain ids, numbers and labels, with their values checked. No Ray."""

# pyarrow makes its compute functions at import.
# pyright: reportAttributeAccessIssue=false

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymtl.data.raw import Origin
from raymtl.errors import InputError
from raymtl.schema import NumericFeature, Rule, Task


def ids(column: pa.ChunkedArray, name: str, where: str) -> pa.Array:
    """Plain ids: int64 or text, or lists of these. Floats pass where they are whole numbers.

    Raises:
        InputError: a float is not whole, or an integer too large.
    """
    values = column.combine_chunks()
    if pa.types.is_list(values.type):
        return with_elements(values, ids(pa.chunked_array([values.flatten()]), name, where))
    if pa.types.is_string(values.type):
        return values
    if pa.types.is_floating(values.type):
        values = pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)
        fraction = values.filter(pc.not_equal(pc.floor(values), values).fill_null(False))
        if len(fraction) or pc.any(pc.is_inf(values)).as_py():
            raise InputError(
                f"feature {name} holds numbers that are no ids",
                f"{fraction[0].as_py() if len(fraction) else 'infinity'}   ({where})",
                "whole numbers, integers or text",
                "use kind: numeric, or mend the file",
            )
    try:
        return values.cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise InputError(
            f"feature {name} holds an integer that is no 64-bit one",
            f"{error}   ({where})",
            "integers of at most 63 bits and a sign",
            "store such ids as text",
        ) from None


def with_elements(lists: pa.Array, elements: pa.Array) -> pa.Array:
    """The same lists with other elements; null lists stay null.

    Args:
        elements: one for each of `lists.flatten()`.
    """
    lengths = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), elements, mask=lists.is_null())


def numbers(column: pa.ChunkedArray, f: NumericFeature, origin: Origin) -> np.ndarray:
    """float64 (n,) after log1p, NaN where missing (null or NaN).

    Raises:
        InputError: a value is infinite.
    """
    raw = floats(column)
    if np.isinf(raw).any():
        row = int(np.flatnonzero(np.isinf(raw))[0])
        raise InputError(
            f"feature {f.name} is not finite",
            f"{f.source} = {raw[row]:g}   ({origin.row(row)})",
            "finite numbers, null where missing",
            "mend the file",
        )
    return np.sign(raw) * np.log1p(np.abs(raw)) if f.log1p else raw


def labels(table: pa.Table, task: Task, origin: Origin) -> np.ndarray:
    """float64 (n,), NaN where null, NaN, or not observed by the task's rule (ages apart).

    Raises:
        InputError: naming the row, where a binary label is neither 0 nor 1 or one is infinite.
    """
    values = floats(table.column(task.label))
    if task.observed_if:
        values = np.where(holds(table, task.observed_if), values, np.nan)
    good = (values == 0) | (values == 1) if task.kind == "binary" else np.isfinite(values)
    wrong = np.flatnonzero(~(good | np.isnan(values)))
    if len(wrong):
        wanted = "0, 1" if task.kind == "binary" else "a finite number"
        raise InputError(
            f"a label of task {task.name} is not {wanted} or null",
            f"{task.label} = {values[wrong[0]]:g}   ({origin.row(wrong[0])}; "
            f"{len(wrong)} such rows near it)",
            f"{wanted}, or null where the task was not observed",
            "mend the file, or make it a regression task",
        )
    return values


def check_weights(table: pa.Table, column: str, needed: np.ndarray, origin: Origin) -> None:
    """Checks a weight column.

    Args:
        needed: bool (n,), the rows whose weight is used.

    Raises:
        InputError: naming the row, where a weight is null, negative or infinite.
    """
    values = floats(table.column(column))
    wrong = np.flatnonzero(needed & ~(np.isfinite(values) & (values >= 0)))
    if len(wrong):
        raise InputError(
            f"a weight in column {column} is null, negative or not finite",
            f"{values[wrong[0]]:g}   ({origin.row(wrong[0])})",
            "a finite number of at least 0",
            "mend the file",
        )


def holds(table: pa.Table, rule: Rule) -> np.ndarray:
    """Bool (n,), the rows that fulfil a rule but for their age."""
    if rule.column is None:
        return np.ones(table.num_rows, bool)
    return rule.holds(floats(table.column(rule.column)))


def floats(column: pa.ChunkedArray) -> np.ndarray:
    """Numbers as float64 (n,), NaN where null."""
    values = column.combine_chunks()
    return values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
