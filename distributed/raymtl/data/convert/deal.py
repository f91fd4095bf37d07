"""Rows dealt by a hash of a column to parts in scratch files, to be read part by part. No Ray."""

from collections.abc import Iterator
from contextlib import ExitStack
from types import TracebackType

import numpy as np
import pyarrow as pa

from raymtl.data.encode import digests
from raymtl.storage import filesystem

HELD_BYTES = 64 << 20
"""Bytes of rows held before they are dealt: a part's records must not become too small."""


class Deal:
    """Takes tables of one schema; as a context, writes what it holds at the end.

    Rows with equal values of the column lie in one part; a part keeps the order of its rows.
    """

    def __init__(self, url: str, num_parts: int, column: str):
        self._fs, self._root = filesystem(url)
        self._fs.create_dir(self._root)
        self._num_parts, self._column = num_parts, column
        self._held: list[pa.Table] = []
        self._held_bytes = 0
        self._schema: pa.Schema | None = None
        self._writers: list[pa.ipc.RecordBatchStreamWriter] = []
        self._open = ExitStack()

    def add(self, table: pa.Table) -> None:
        """Adds rows; the column must be text without nulls."""
        if self._schema is None:
            self._start(table.schema)
        self._held.append(table)
        self._held_bytes += table.nbytes
        if self._held_bytes >= HELD_BYTES:
            self._write()

    def read(self, part: int) -> pa.Table:
        """A part's rows, all at once."""
        if self._schema is None:
            return pa.table({self._column: pa.array([], pa.string())})
        tables = list(self.stream(part))
        return pa.concat_tables(tables).combine_chunks() if tables else self._schema.empty_table()

    def stream(self, part: int) -> Iterator[pa.Table]:
        """A part's rows as they were written."""
        if self._schema is None:
            return
        with (
            self._fs.open_input_stream(self._path(part)) as file,
            pa.ipc.open_stream(file) as reader,
        ):
            for batch in reader:
                yield pa.Table.from_batches([batch])

    def _start(self, schema: pa.Schema) -> None:
        self._schema = schema
        for part in range(self._num_parts):
            file = self._open.enter_context(self._fs.open_output_stream(self._path(part)))
            writer = pa.ipc.new_stream(file, schema)
            self._writers.append(self._open.enter_context(writer))

    def _path(self, part: int) -> str:
        return f"{self._root}/{part:04d}.arrow"

    def _write(self) -> None:
        if not self._held:
            return
        table = pa.concat_tables(self._held).combine_chunks()
        self._held, self._held_bytes = [], 0
        keys = table.column(self._column).combine_chunks()
        parts = (digests(keys) % np.uint64(self._num_parts)).astype(np.int64)
        order = np.argsort(parts, kind="stable")
        ends = np.cumsum(np.bincount(parts, minlength=self._num_parts))
        table = table.take(pa.array(order))
        for part, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            if end > start:
                self._writers[part].write_table(table.slice(start, end - start))

    def __enter__(self) -> "Deal":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._open:
            if error is None:
                self._write()
