"""Stream: the rows of a log that one rank reads for some steps, and what it reads of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from raymtl.data.decode import decode
from raymtl.data.log import LogIndex
from raymtl.data.order import Order, Piece
from raymtl.data.read import read_chunk, where
from raymtl.errors import InputError, UnreadableChunk
from raymtl.layout import PAD, Layout
from raymtl.schema import LogSchema

SKIPPED = -1.0
"""Weight of a row that could not be read; no row of a log has one below 0."""
Arrays = dict[str, np.ndarray]
"""What `decode` returns."""


@dataclass(frozen=True)
class Span:
    """The global steps that one rank of `world_size` reads for."""

    rank: int
    world_size: int
    start_step: int
    stop_step: int
    """Exclusive."""


@dataclass(frozen=True)
class Stream:
    """One rank's rows of a span of steps; a value that crosses processes."""

    index: LogIndex
    schema: LogSchema
    order: Order
    span: Span
    keys: tuple[str, ...] = ()
    """Columns carried along untouched."""
    labels: bool = True
    """False where labels and weights are not needed; they may then be missing."""
    skip_unreadable: bool = False
    """Whether rows of damaged chunks come as `SKIPPED` instead of an error."""

    @cached_property
    def layout(self) -> Layout:
        """The schema's layout."""
        return Layout.of(self.schema)

    def pieces(self) -> Iterator[Piece]:
        """The rank's pieces of these steps, in order of first need."""
        s = self.span
        return self.order.pieces(s.rank, s.world_size, s.start_step, s.stop_step)

    def read(self, piece: Piece) -> Arrays:
        """Reads and decodes a piece: `decode`'s arrays, rows in the line's order.

        Raises:
            InputError: the chunk cannot be read, or a value is not what its column must hold.
        """
        columns = list(dict.fromkeys([*self.schema.columns(), *self.keys]))
        try:
            table = read_chunk(self.index, piece.chunk, columns)
        except UnreadableChunk:
            if self.skip_unreadable:
                return skipped(piece.num_rows, self.layout)
            raise
        place = where(self.index, piece.chunk)
        try:
            return self._decode(table.take(self.order.rows(piece)), place)
        except InputError:
            # Once more over the whole chunk, so that the error counts rows as the file does.
            self._decode(table, place)
            raise

    def _decode(self, table: pa.Table, place: str) -> Arrays:
        schema = self.index.as_of(self.schema)
        return decode(table, schema, self.layout, place, self.keys, self.labels)


def skipped(num_rows: int, layout: Layout) -> Arrays:
    """`decode`'s arrays for rows that cannot be read: nothing to look up, nothing observed."""
    tasks = len(layout.task_names)
    return {
        "ids": np.full((num_rows, layout.num_id_columns), PAD, np.int32),
        "bag_weights": np.zeros((num_rows, layout.num_bag_weights), np.float32),
        "numeric": np.zeros((num_rows, len(layout.numeric_names)), np.float32),
        "labels": np.full((num_rows, tasks), np.nan, np.float32),
        "weights": np.full(num_rows, SKIPPED, np.float32),
        "task_weights": np.zeros((num_rows, tasks), np.float32),
        "group": np.full(num_rows, -1, np.int64),
    }
