"""A log decoded once and held by the caller: the batches that reading it from disk gives.

For many runs side by side on one log. Where the decoded rows lie (the object store, say) is the
caller's; here is only how a log is cut for it and how batches are made of the cuts.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from raymtl.batch import Batch
from raymtl.data.decode import decode
from raymtl.data.lanes import batches
from raymtl.data.log import LogIndex
from raymtl.data.order import Chunk, Piece
from raymtl.data.read import read_chunk, where
from raymtl.data.stream import Arrays, Stream
from raymtl.layout import Layout
from raymtl.schema import LogSchema


@dataclass(frozen=True)
class Part:
    """Neighbouring row groups of one file, decoded together."""

    file: int
    """Place in LogIndex.files."""
    row_groups: tuple[int, ...]
    first_row: int
    """Within the file."""
    num_rows: int


def parts(index: LogIndex, part_rows: int) -> list[Part]:
    """Cuts a log into parts of at most `part_rows` rows, or of one row group where that has more.

    No part ends within a row group, so every chunk of any size lies in one of them.
    """
    made = []
    for number, file in enumerate(index.files):
        groups: list[int] = []
        first = rows = 0
        for group, group_rows in enumerate(file.row_group_rows):
            if groups and rows + group_rows > part_rows:
                made.append(Part(number, tuple(groups), first, rows))
                groups, first, rows = [], first + rows, 0
            groups.append(group)
            rows += group_rows
        if groups:
            made.append(Part(number, tuple(groups), first, rows))
    return made


def decode_part(index: LogIndex, schema: LogSchema, part: Part) -> Arrays:
    """Reads and decodes a part: `decode`'s arrays, rows in the file's order.

    Raises:
        InputError: a row group cannot be read, or a value is not what its column must hold.
    """
    schema = index.as_of(schema)
    layout, columns = Layout.of(schema), schema.columns()
    decoded, row = [], part.first_row
    for group in part.row_groups:
        num_rows = index.files[part.file].row_group_rows[group]
        chunk = Chunk(part.file, group, 0, num_rows, row)
        table = read_chunk(index, chunk, columns)
        decoded.append(decode(table, schema, layout, where(index, chunk)))
        row += num_rows
    return {name: np.concatenate([arrays[name] for arrays in decoded]) for name in decoded[0]}


@dataclass(frozen=True)
class DecodedLog:
    """A log's parts, and how to come by what they hold."""

    digest: str
    """Of the index it was cut from."""
    schema: LogSchema
    parts: Sequence[Part]
    arrays: Callable[[int], Arrays]
    """Gives the decoded rows of the n-th part; they are only read."""

    def holds(self, stream: Stream) -> bool:
        """Whether the stream reads these rows, decoded in this way, and nothing besides."""
        same = stream.index.digest == self.digest and stream.schema == self.schema
        return same and stream.labels and not stream.keys

    def read(self, stream: Stream) -> Iterator[Batch]:
        """The stream's batches, as `source.read_batches` gives them."""
        assert self.holds(stream), "a stream of another log"
        pieces = ((piece, self._rows(stream, piece)) for piece in stream.pieces())
        return (Batch.of(fields) for fields in batches(pieces, stream))

    def _rows(self, stream: Stream, piece: Piece) -> Arrays:
        number = self._part_of(piece.chunk)
        first = piece.chunk.file_row - self.parts[number].first_row
        rows = first + stream.order.rows(piece)
        return {name: values[rows] for name, values in self.arrays(number).items()}

    def _part_of(self, chunk: Chunk) -> int:
        return bisect_right(self._first_rows, (chunk.file, chunk.file_row)) - 1

    @cached_property
    def _first_rows(self) -> list[tuple[int, int]]:
        """File and first row of each part; rises, as the parts were cut."""
        return [(part.file, part.first_row) for part in self.parts]
