"""How old a row is: what `observed_if` rules with `min_age_days` ask. No Ray."""

import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymtl.data.encode import column_of
from raymtl.errors import InputError, one_line
from raymtl.schema import LogSchema, Task, Time

PER_DAY = {"s": 86_400, "ms": 86_400_000, "us": 86_400_000_000, "ns": 86_400_000_000_000}


def old_enough(table: pa.Table, task: Task, schema: LogSchema, where: str) -> np.ndarray:
    """Bool (n,): rows whose age at `schema.as_of` the task's rule asks for, or all without one.

    A row without a time is not old enough.

    Args:
        where: file and row group, for errors.

    Raises:
        InputError: a time cannot be read, or `as_of` is not known.
    """
    least = task.observed_if.min_age_days if task.observed_if else None
    if least is None:
        return np.ones(table.num_rows, bool)
    assert schema.time is not None, "checked by LogSchema"
    if schema.as_of is None:
        raise InputError(
            f"task {task.name} asks for a row's age, and it is not known when that was taken",
            f"as_of = null   ({where})",
            "the time at which the labels were read",
            "set as_of in the schema",
        )
    days = days_of(column_of(table, schema.time), schema, where)
    now = days_of(pa.array([schema.as_of]), schema, "as_of")[0]
    with np.errstate(invalid="ignore"):
        return now - days >= least


def days_of(values: pa.Array, schema: LogSchema, where: str) -> np.ndarray:
    """Times as days since 1970-01-01, float64 (n,), NaN where null.

    Args:
        values: dates, time stamps, ISO 8601 text, or numbers of `schema.time_unit`.

    Raises:
        InputError: they are none of these, or numbers whose unit the schema does not say.
    """
    number = pa.types.is_integer(values.type) or pa.types.is_floating(values.type)
    unit = schema.time_unit
    try:
        if number and unit in PER_DAY:
            return _floats(values) / PER_DAY[unit]
        if number and unit == "date":
            values = pc.call_function(
                "strptime",
                [values.cast(pa.int64()).cast(pa.string())],
                pc.StrptimeOptions("%Y%m%d", "s"),
            )
        elif number:
            raise pa.ArrowInvalid("numbers without a unit")
        stamps = values.cast(pa.timestamp("us"), safe=False)
    except (pa.ArrowException, ValueError) as error:
        raise InputError(
            f"column {schema.time} does not tell a row's time",
            f"{values.type}, time_unit = {unit}: {one_line(error)}   ({where})",
            "dates, time stamps, ISO text, or numbers and their time_unit",
            "set time_unit in the schema (s, ms, us, ns, or date for 20220425), or mend the file",
        ) from None
    return _floats(stamps.cast(pa.int64())) / PER_DAY["us"]


def newest(values: pa.ChunkedArray) -> Time | None:
    """The latest of a column of times as a plain value; null where there is none."""
    return plain_time(pc.call_function("max", [values]).as_py())


def plain_time(value: object) -> Time | None:
    """A time as the schema writes it: a number, or ISO 8601 text."""
    if isinstance(value, datetime.date | datetime.datetime):
        return value.isoformat()
    return value if isinstance(value, int | float | str) else None


def later(one: Time | None, other: Time | None) -> Time | None:
    """The later of two times of one column, either of which may be missing."""
    known = [time for time in (one, other) if time is not None]
    return max(known, default=None)  # pyright: ignore[reportArgumentType]  # of one type


def _floats(values: pa.Array) -> np.ndarray:
    return values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
