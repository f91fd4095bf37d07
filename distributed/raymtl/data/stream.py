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
from raymtl.errors import InputError
from raymtl.layout import Layout
from raymtl.schema import LogSchema

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
        table = read_chunk(self.index, piece.chunk, columns)
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
