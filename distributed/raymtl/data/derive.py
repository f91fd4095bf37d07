"""Derived columns: null_if, division, a cap, text split to a list, days between dates."""

# pyarrow makes its compute functions at import.
# pyright: reportAttributeAccessIssue=false

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymtl.data.prepare_config import Derived
from raymtl.errors import InputError


def derive(table: pa.Table, name: str, derived: Derived, where: str) -> pa.Table:
    """Adds one derived column; nulls stay null.

    Raises:
        InputError: the column is missing or its values do not allow the step.
    """
    for column in filter(None, [derived.column, derived.days_since]):
        if column not in table.column_names:
            raise InputError(
                f"derive.{name} needs a column that is not there",
                f"{column}; there are {', '.join(table.column_names)}",
                "a column of the sources, the joins, or derived earlier",
                "mend derive, or its order",
            )
    values = table.column(derived.column).combine_chunks()
    try:
        made = _made(values, table, derived)
    except (pa.ArrowException, ValueError) as error:
        raise InputError(
            f"derive.{name} does not fit column {derived.column}",
            f"{values.type}: {' '.join(str(error).split())[:200]}   ({where})",
            "numbers to divide, text to split, dates for days_since",
            "mend derive, or the file",
        ) from None
    return table.append_column(name, made)


def _made(values: pa.Array, table: pa.Table, derived: Derived) -> pa.Array:
    if derived.null_if is not None:
        given = pa.scalar(derived.null_if).cast(values.type)
        values = pc.if_else(pc.equal(values, given), pa.scalar(None, values.type), values)
    if derived.divide is not None:
        return _divide(values, derived.divide)
    if derived.at_most is not None:
        return pc.min_element_wise(
            values, pa.scalar(derived.at_most).cast(values.type), skip_nulls=False
        )
    if derived.split is not None:
        return pc.split_pattern(values.cast(pa.string()), derived.split)
    if derived.days_since is not None:
        earlier = _days(table.column(derived.days_since).combine_chunks())
        return pc.subtract(_days(values), earlier)
    return values


def _divide(values: pa.Array, by: int) -> pa.Array:
    if pa.types.is_floating(values.type):
        values = pc.floor(values)  # floor(floor(x) / by) is floor(x / by)
    elif not (pa.types.is_integer(values.type) or pa.types.is_null(values.type)):
        raise ValueError(f"{values.type} is not a number")
    integers = values.cast(pa.int64())
    quotient = np.floor_divide(integers.fill_null(0).to_numpy(zero_copy_only=False), by)
    return pa.array(quotient, mask=integers.is_null().to_numpy(zero_copy_only=False))


def _days(values: pa.Array) -> pa.Array:
    """Days since 1970-01-01, int32."""
    if pa.types.is_integer(values.type):
        values = pc.strptime(values.cast(pa.string()), format="%Y%m%d", unit="s")
    elif pa.types.is_string(values.type):
        values = pc.strptime(values, format="%Y-%m-%d", unit="s")
    return values.cast(pa.date32(), safe=False).cast(pa.int32())
