"""Which split each row belongs to: by source and condition, by time, or by order. No Ray."""

# pyarrow makes its compute functions at import.
# pyright: reportAttributeAccessIssue=false

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymtl.data.prepare_config import SPLITS, OrderSplit, Part, SourceSplit, TimeSplit, Value
from raymtl.data.raw import Origin
from raymtl.errors import InputError

NO_SPLIT = -1


@dataclass
class Places:
    """Each user's rows so far and in all, for a split by order per user.

    `take` must see a share's tables in reading order.
    """

    users: pa.Array
    before: np.ndarray
    """int64, rows of the user before this share; counts up as the share is read."""
    totals: np.ndarray
    """int64, rows of the user in all sources."""

    def take(self, column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """Each row's place among its user's rows, and how many that user has.

        Returns:
            int64 (n,), int64 (n,).
        """
        found = pc.index_in(column.cast(self.users.type), value_set=self.users)
        at = found.to_numpy(zero_copy_only=False).astype(np.int64)
        order = np.argsort(at, kind="stable")
        starts = np.flatnonzero(np.diff(at[order], prepend=-1))
        counts = np.diff(starts, append=len(at))
        within = np.empty(len(at), np.int64)
        within[order] = np.arange(len(at)) - np.repeat(starts, counts)
        places = self.before[at] + within
        np.add.at(self.before, at, 1)
        return places, self.totals[at]


def split_of(
    table: pa.Table,
    origin: Origin,
    split: SourceSplit | TimeSplit | OrderSplit,
    num_rows: int,
    places: Places | None = None,
) -> np.ndarray:
    """The split of each row.

    Args:
        num_rows: rows of all sources together.
        places: for OrderSplit with `per`.

    Returns:
        int8 (n,): index into SPLITS, NO_SPLIT where none takes the row.

    Raises:
        InputError: two splits take a row, or the column of a split by time or user is null.
    """
    match split:
        case SourceSplit():
            return _by_source(table, origin, split)
        case TimeSplit():
            return _by_time(table, origin, split)
        case OrderSplit():
            return _by_order(table, origin, split, num_rows, places)


def _by_source(table: pa.Table, origin: Origin, split: SourceSplit) -> np.ndarray:
    out = np.full(table.num_rows, NO_SPLIT, np.int8)
    for number, name in enumerate(SPLITS):
        mine = np.zeros(table.num_rows, bool)
        for part in getattr(split, name):
            if part.source == origin.source:
                mine |= _holds(table, part, origin.where)
        both = np.flatnonzero(mine & (out != NO_SPLIT))
        if len(both):
            raise InputError(
                "a row belongs to two splits",
                f"{SPLITS[out[both[0]]]} and {name}: {origin.row(both[0])}",
                "parts that share no row",
                "mend the split's limits",
            )
        out[mine] = number
    return out


def _holds(table: pa.Table, part: Part, where: str) -> np.ndarray:
    holds = np.ones(table.num_rows, bool)
    if part.column is None:
        return holds
    column = table.column(part.column).combine_chunks()
    for limit, compare in (
        (part.equals, pc.equal),
        (part.at_least, pc.greater_equal),
        (part.at_most, pc.less_equal),
    ):
        if limit is not None:
            result = compare(column, _like(limit, column.type, part.column, where))
            holds &= result.fill_null(False).to_numpy(zero_copy_only=False)
    return holds


def _by_time(table: pa.Table, origin: Origin, split: TimeSplit) -> np.ndarray:
    column = table.column(split.column).combine_chunks()
    if column.null_count:
        row = int(np.flatnonzero(column.is_null())[0])
        raise InputError(
            "a row has no time to split it by",
            f"{split.column} = null   ({origin.row(row)})",
            "a value in every row",
            "use `by: source` for sources without time, or mend the file",
        )
    out = np.zeros(table.num_rows, np.int8)
    for border, name in ((split.valid_from, "valid"), (split.test_from, "test")):
        if border is not None:
            out[_reached(column, border, split.column)] = SPLITS.index(name)
    if split.train_from is not None:
        out[~_reached(column, split.train_from, split.column)] = SPLITS.index("pretrain")
    return out


def _reached(column: pa.Array, border: Value, name: str) -> np.ndarray:
    """Boolean (n,): values from a border on."""
    at_least = pc.greater_equal(column, _like(border, column.type, name, "split"))
    return at_least.to_numpy(zero_copy_only=False)


def _by_order(
    table: pa.Table, origin: Origin, split: OrderSplit, num_rows: int, places: Places | None
) -> np.ndarray:
    n = table.num_rows
    if split.per is None:
        place, total = origin.first_row + np.arange(n), np.full(n, num_rows)
    else:
        column = table.column(split.per).combine_chunks()
        if column.null_count:
            row = int(np.flatnonzero(column.is_null())[0])
            raise InputError(
                "a row has no user to split it by",
                f"{split.per} = null   ({origin.row(row)})",
                "a value in every row",
                "mend the file, or split without `per`",
            )
        place, total = (np.zeros(n, np.int64),) * 2 if places is None else places.take(column)
    train, valid = borders(total, split)
    return (place >= train).astype(np.int8) + (place >= valid).astype(np.int8)


def borders(total: np.ndarray, split: OrderSplit) -> tuple[np.ndarray, np.ndarray]:
    """First places of the validation and the test part among `total` rows; rounded up."""
    parts = (1 - split.valid - split.test, 1 - split.test)
    train, valid = (np.ceil(total * share - 1e-9).astype(np.int64) for share in parts)
    return train, valid


def _like(value: Value, t: pa.DataType, column: str, where: str) -> pa.Scalar:
    """The limit as a value the column can be compared with."""
    try:
        if isinstance(value, float) and not math.isfinite(value):
            raise pa.ArrowInvalid("not finite")
        return pa.scalar(None, t) if pa.types.is_null(t) else pa.scalar(value).cast(t)
    except pa.ArrowException as error:
        raise InputError(
            f"the split compares column {column} with something else",
            f"{value!r} with {t}: {' '.join(str(error).split())[:120]}   ({where})",
            f"a limit of type {t}",
            "mend the split's limit, or its column",
        ) from None
