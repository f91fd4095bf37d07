"""Vocabularies: values counted in bounded parts, merged, ordered, looked up. No Ray.

Counts travel as tables of `COUNTS`: which list they belong to, the value, how often it occurred.
A value's part follows from its hash, so that each part is merged alone, in its own memory.
"""

# pyarrow makes its compute functions at import.
# pyright: reportAttributeAccessIssue=false

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymtl.data.encode import digests

COUNTS = pa.schema(
    {"list": pa.int32(), "integer": pa.int64(), "text": pa.string(), "count": pa.int64()}
)
KEYS = ["list", "integer", "text"]
PENDING_ROWS = 262_144
"""Least counts gathered before they are added up; more once the sum itself is longer."""


class Counter:
    """Adds up how often values occur, for several lists at once.

    Memory is that of the distinct values, twice, plus PENDING_ROWS.
    """

    def __init__(self):
        self._sum = COUNTS.empty_table()
        self._pending: list[pa.Table] = []
        self._num_pending = 0

    def add_values(self, number: int, values: pa.Array) -> None:
        """Counts the values of list `number`: int64 or text; nulls do not count."""
        counted = values.drop_null().value_counts()
        found, n = counted.field("values"), len(counted)
        is_text = pa.types.is_string(found.type)
        columns = [
            pa.array(np.full(n, number, np.int32)),
            pa.nulls(n, pa.int64()) if is_text else found.cast(pa.int64()),
            found if is_text else pa.nulls(n, pa.string()),
            counted.field("counts"),
        ]
        self.add_counts(pa.Table.from_arrays(columns, schema=COUNTS))

    def add_counts(self, counts: pa.Table) -> None:
        """Adds counts made elsewhere."""
        self._pending.append(counts)
        self._num_pending += counts.num_rows
        if self._num_pending > max(PENDING_ROWS, self._sum.num_rows):
            self.sum()

    def sum(self) -> pa.Table:
        """The counts so far: COUNTS, each value once."""
        if self._pending:
            together = pa.concat_tables([self._sum, *self._pending])
            grouped = together.group_by(KEYS, use_threads=False).aggregate([("count", "sum")])
            self._sum = grouped.rename_columns([*KEYS, "count"]).cast(COUNTS)
            self._pending, self._num_pending = [], 0
        return self._sum


def buckets_of(counts: pa.Table, num_buckets: int) -> np.ndarray:
    """The part each value belongs to, int64 (n,), by BLAKE2b of the value."""
    buckets = np.zeros(counts.num_rows, np.int64)
    for name in ("integer", "text") if num_buckets > 1 else ():
        values = counts.column(name).combine_chunks()
        present = values.is_valid().to_numpy(zero_copy_only=False)
        if present.any():
            buckets[present] = digests(values.drop_null()) % np.uint64(num_buckets)
    return buckets


def frequent(counts: pa.Table, min_count: int) -> pa.Table:
    """The values that occur at least `min_count` times."""
    return counts.filter(pc.greater_equal(counts.column("count"), min_count))


def ordered(counts: Iterable[pa.Table], is_text: bool) -> pa.Table:
    """A vocabulary: columns value and count, by falling count, equals by rising value.

    Args:
        counts: of one list, each value in one of them only.
    """
    table = pa.concat_tables([COUNTS.empty_table(), *counts])
    made = pa.table(
        {"value": table.column("text" if is_text else "integer"), "count": table["count"]}
    )
    return made.sort_by([("count", "descending"), ("value", "ascending")]).combine_chunks()


def written_out(values: list[str], is_text: bool) -> pa.Table:
    """A vocabulary whose values the schema lists; their counts are null.

    Raises:
        pa.ArrowInvalid: a value of an integer column is no integer.
    """
    column = pa.array(values, pa.string())
    column = column if is_text else column.cast(pa.int64())
    return pa.table({"value": column, "count": pa.nulls(len(values), pa.int64())})


def look_up(values: pa.Array, vocabulary: pa.Array) -> pa.Array:
    """Row numbers, int32: value i of the vocabulary is row i + 1, others row 0, null stays null."""
    found = pc.index_in(values, value_set=vocabulary)
    rows = pc.add(found, pa.scalar(1, pa.int32())).fill_null(0)
    return pc.if_else(values.is_valid(), rows, pa.scalar(None, pa.int32()))
