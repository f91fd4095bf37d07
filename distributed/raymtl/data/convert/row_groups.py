"""One parquet file, written in row groups of bounded size. No Ray."""

from types import TracebackType

import pyarrow as pa
import pyarrow.parquet as pq

from raymtl.data.raw import BATCH_ROWS
from raymtl.storage import filesystem

MAX_BYTES = 128 << 20
"""Bytes in memory above which a row group is written before it has all its rows."""


class RowGroups:
    """Takes tables of any number of rows; as a context, closes the file at the end."""

    def __init__(self, url: str, schema: pa.Schema, rows: int = BATCH_ROWS):
        fs, path = filesystem(url)
        self._schema, self._rows = schema, rows
        self._writer = pq.ParquetWriter(path, schema, filesystem=fs)
        self._waiting: list[pa.Table] = []
        self._waiting_rows = self._waiting_bytes = 0
        self.num_rows = 0
        """Rows taken so far."""

    def write(self, table: pa.Table) -> None:
        """Adds rows; their columns must be the schema's, in any order."""
        table = table.select(self._schema.names).cast(self._schema)
        self.num_rows += table.num_rows
        while self._waiting_rows + table.num_rows >= self._rows:
            head = self._rows - self._waiting_rows
            self._add(table.slice(0, head))
            self._flush()
            table = table.slice(head)
        self._add(table)
        if self._waiting_bytes >= MAX_BYTES:
            self._flush()

    def _add(self, table: pa.Table) -> None:
        if table.num_rows:
            self._waiting.append(table)
            self._waiting_rows += table.num_rows
            self._waiting_bytes += table.nbytes

    def _flush(self) -> None:
        if self._waiting:
            whole = pa.concat_tables(self._waiting)
            self._writer.write_table(whole, row_group_size=whole.num_rows)
        self._waiting, self._waiting_rows, self._waiting_bytes = [], 0, 0

    def __enter__(self) -> "RowGroups":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self._flush()
        self._writer.close()
