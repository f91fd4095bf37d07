"""What a bounded sample shows about each column of a log."""

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymtl.data.encode import plain
from raymtl.data.lists import Lists
from raymtl.data.log import LogFile, LogIndex, read_chunk
from raymtl.data.order import Chunk
from raymtl.schema import fits

SAMPLE_GROUPS = 32
"""Row groups, spread evenly over the log, whose first rows make the sample."""


def sample(index: LogIndex, rows: int) -> pa.Table:
    """At most about `rows` rows of the columns that all files have, from all over the log."""
    groups = [
        Chunk(file=file, row_group=group, start=0, num_rows=count, file_row=before)
        for file, f in enumerate(index.files)
        for group, (count, before) in enumerate(zip(f.row_group_rows, _before(f), strict=True))
        if count
    ]
    picks = np.unique(np.linspace(0, len(groups) - 1, SAMPLE_GROUPS).round().astype(int))
    each = max(1, rows // len(picks))
    columns = common_columns(index)
    chunks = [replace(groups[i], num_rows=min(each, groups[i].num_rows)) for i in picks]
    parts = [read_chunk(index, chunk, columns) for chunk in chunks]
    return pa.concat_tables(parts, promote_options="permissive").select(columns)


def _before(file: LogFile) -> list[int]:
    """Rows of the file before each row group."""
    return [0, *accumulate(file.row_group_rows[:-1])]


def common_columns(index: LogIndex) -> list[str]:
    """Columns that every file has, in the first file's order."""
    first, *others = index.schemas
    return [name for name in first.names if all(name in other.names for other in others)]


@dataclass(frozen=True)
class Column:
    """One column of the sample, taken apart."""

    name: str
    kind: str
    """integer, number (not whole by type), text, time, null, list of the first three, or other."""
    values: pa.Array
    """Without nulls; a list column's elements."""
    lengths: np.ndarray | None
    """Elements per row of a list column."""
    num_nulls: int
    num_rows: int
    log_rows: int
    """Rows of the whole log."""

    @classmethod
    def of(cls, table: pa.Table, name: str, log_rows: int) -> "Column":
        """Reads one column of the sample."""
        column = plain(table.column(name).combine_chunks())
        kind = kind_of(column.type)
        values, lengths = column, None
        if kind.startswith("list of"):
            lists = Lists.of(table, name)
            values, lengths = lists.values, lists.lengths
        return cls(
            name, kind, values.drop_null(), lengths, column.null_count, len(column), log_rows
        )

    @cached_property
    def counts(self) -> np.ndarray:
        """How often each distinct value occurs."""
        if not len(self.values) or self.kind in ("other", "null"):
            return np.zeros(0, np.int64)
        counted = pc.call_function("value_counts", [self.values])
        return counted.field("counts").to_numpy(zero_copy_only=False)

    @property
    def distinct(self) -> int:
        """Distinct values in the sample."""
        return len(self.counts)

    @property
    def is_clustered(self) -> bool:
        """Whether equal values stand together, as in a log sorted by user."""
        codes = self.values.dictionary_encode().indices.to_numpy()
        beside, again = int((codes[1:] == codes[:-1]).sum()), len(codes) - self.distinct
        return self.distinct > 50 and beside > 0.5 * again

    @cached_property
    def estimate(self) -> int:
        """Distinct values in the whole log.

        From the once- and twice-seen ones (Chao 1984), which presumes rows in no order; of a
        clustered column in proportion to the rows, which is rather too many.
        """
        if self.num_rows >= self.log_rows:
            return self.distinct
        most = self.distinct * self.log_rows / max(1, self.num_rows)
        if self.is_clustered:
            return int(most)
        once, twice = int((self.counts == 1).sum()), int((self.counts == 2).sum())
        return int(min(self.distinct + once * (once - 1) / (2 * (twice + 1)), most))

    @cached_property
    def numbers(self) -> np.ndarray:
        """float64, finite values only."""
        values = self.values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        return values[np.isfinite(values)]

    @property
    def is_ids(self) -> bool:
        """Whether it holds one id a row."""
        return self.kind in ("integer", "text")

    @property
    def is_binary(self) -> bool:
        """Whether it holds both 0 and 1 and nothing else."""
        if self.kind not in ("integer", "number") or not 1 < self.distinct <= 2:
            return False
        return set(self.numbers.tolist()) == {0.0, 1.0}

    @property
    def has_missing(self) -> bool:
        """Whether some value is null or NaN."""
        return self.num_nulls > 0 or len(self.numbers) < self.num_rows


def kind_of(t: pa.DataType) -> str:
    """The kind of `Column.kind` an arrow type is."""
    if pa.types.is_null(t):
        return "null"
    for wanted in ("integer", "id", "number"):
        if fits(t, f"list of {wanted}s"):
            return {"id": "list of text"}.get(wanted, f"list of {wanted}s")
    if fits(t, "integer") or pa.types.is_boolean(t):
        return "integer"
    if fits(t, "id"):
        return "text"
    return "number" if fits(t, "number") else "time" if pa.types.is_temporal(t) else "other"
