"""Which rows stand in which step: a pure function of the index, the seed, the epoch and the lane.

Shuffled, an epoch's chunks are permuted into one line and the line is cut into L lanes of equal
length (within one row). Chronological, row n of the log belongs to step n // G and, within it, to
lane (n mod G) // (G / L). Either way a step takes G / L rows of every lane, and rank r serves the
lanes l with l mod W = r; so a step's rows do not depend on W.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from raymtl.data.log import LogIndex

ALL_LANES = -1
"""Lane of a piece that holds rows of all lanes of its rank (chronological order)."""
_KEPT_LINES = 4


@dataclass(frozen=True)
class Chunk:
    """Rows of one row group that are read together."""

    file: int
    """Place in LogIndex.files."""
    row_group: int
    start: int
    """First row within the row group."""
    num_rows: int
    file_row: int
    """First row within the file."""


@dataclass(frozen=True)
class Piece:
    """The part of a chunk that goes into one rank's lane (or lanes, chronologically)."""

    number: int
    """Names the piece within the rank's pieces; rises through the epochs."""
    chunk: Chunk
    lane: int
    epoch: int
    offset: int
    """Rows of this epoch that stand before it in its line."""
    seed: int
    """Of the permutation of the chunk's rows; unused chronologically."""
    skip: int
    """Rows of the chunk, in the line's order, that are not part of this piece."""
    num_rows: int
    share: tuple[int, int]
    """Rank and world size it is cut for."""


@dataclass(frozen=True)
class Line:
    """A rank's pieces of one epoch as arrays, in order of first need."""

    epoch: int
    share: tuple[int, int]
    rows_per_step: int
    """Rows a step takes from each line of pieces: a lane's, or the rank's chronologically."""
    number: np.ndarray
    chunk: np.ndarray
    lane: np.ndarray
    offset: np.ndarray
    skip: np.ndarray
    num_rows: np.ndarray

    def __len__(self) -> int:
        return len(self.number)

    def cut(self, start_step: int, stop_step: int) -> "Line":
        """Only the rows of these steps of the epoch."""
        first, last = start_step * self.rows_per_step, stop_step * self.rows_per_step
        taken = np.clip(first - self.offset, 0, None)
        left = np.minimum(self.num_rows, last - self.offset) - taken
        keep = left > 0
        return Line(
            self.epoch,
            self.share,
            self.rows_per_step,
            self.number[keep],
            self.chunk[keep],
            self.lane[keep],
            (self.offset + taken)[keep],
            (self.skip + taken)[keep],
            left[keep],
        )


class Order:
    """The order of a log's rows, for any rank of any world size, from any step on."""

    def __init__(
        self,
        index: "LogIndex",
        seed: int,
        num_lanes: int,
        chunk_rows: int,
        rows_per_step: int,
        shuffled: bool,
        max_rows: int | None = None,
    ):
        """Lays out the chunks; no epoch is dealt yet.

        Args:
            rows_per_step: G / L, rows that a step takes from each lane.
            max_rows: only the first rows of each lane, about this many in all; chronologically the
                log's first rows.
        """
        self.index, self.seed, self.num_lanes = index, seed, num_lanes
        self.chunk_rows, self.rows_per_step = chunk_rows, rows_per_step
        self.shuffled = shuffled
        self._lay_out_chunks()
        total = int(self._chunk_rows.sum())
        self.num_rows = total if max_rows is None else min(total, max_rows)
        bounds = np.arange(num_lanes + 1) * total // num_lanes
        heads = np.diff(np.arange(num_lanes + 1) * self.num_rows // num_lanes)
        self._lane_starts = bounds[:-1]
        self._lane_rows = np.minimum(heads, np.diff(bounds))
        self._deals: dict[int, tuple[np.ndarray, ...]] = {}
        self._lines: dict[tuple[int, int, int], Line] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_deals": {}, "_lines": {}}

    def _lay_out_chunks(self) -> None:
        """Cuts every row group at multiples of chunk_rows, in file order."""
        groups = [np.asarray(f.row_group_rows, np.int64) for f in self.index.files]
        rows = np.concatenate([*groups, np.zeros(0, np.int64)])
        files = np.repeat(np.arange(len(groups)), [len(g) for g in groups])
        within = np.concatenate([*(np.arange(len(g)) for g in groups), np.zeros(0, np.int64)])
        file_rows = np.concatenate([*(np.cumsum(g) - g for g in groups), np.zeros(0, np.int64)])
        cuts = -(-rows // self.chunk_rows)
        group = np.repeat(np.arange(len(rows)), cuts)
        nth = np.arange(len(group)) - np.repeat(np.cumsum(cuts) - cuts, cuts)
        self._chunk_file, self._chunk_group = files[group], within[group]
        self._chunk_start = nth * self.chunk_rows
        self._chunk_rows = np.minimum(rows[group] - self._chunk_start, self.chunk_rows)
        self._chunk_file_row = file_rows[group] + self._chunk_start
        self._chunk_log_row = np.cumsum(self._chunk_rows) - self._chunk_rows

    @property
    def num_chunks(self) -> int:
        """Chunks of the log."""
        return len(self._chunk_rows)

    @property
    def global_batch_size(self) -> int:
        """G, rows of a step over all lanes, padding included."""
        return self.rows_per_step * self.num_lanes

    @cached_property
    def steps_per_epoch(self) -> int:
        """Steps until every row has been read once; the last one may be padded."""
        if self.shuffled:
            return -(-int(self._lane_rows.max()) // self.rows_per_step)
        return -(-self.num_rows // self.global_batch_size)

    def lanes(self, rank: int, world_size: int) -> np.ndarray:
        """The lanes a rank serves, ascending."""
        assert 0 <= rank < world_size <= self.num_lanes
        return np.arange(rank, self.num_lanes, world_size)

    def lines(self, rank: int, world_size: int) -> np.ndarray:
        """The lanes whose pieces a rank reads apart: its lanes, or ALL_LANES chronologically."""
        return self.lanes(rank, world_size) if self.shuffled else np.array([ALL_LANES])

    def batch_rows(self, rank: int, world_size: int) -> int:
        """B, rows of a rank's batch, padding included."""
        return self.rows_per_step * len(self.lanes(rank, world_size))

    def row_counts(self, rank: int, world_size: int, step: int) -> np.ndarray:
        """Rows that are no padding which a step takes from each of the rank's `lines`."""
        step_in_epoch = step % self.steps_per_epoch
        if self.shuffled:
            rows, per_step = self._lane_rows[self.lanes(rank, world_size)], self.rows_per_step
        else:
            rows = self._own_before(np.array([self.num_rows]), rank, world_size)
            per_step = self.batch_rows(rank, world_size)
        return np.clip(rows - step_in_epoch * per_step, 0, per_step)

    def pieces(
        self, rank: int, world_size: int, start_step: int, stop_step: int | None = None
    ) -> Iterator[Piece]:
        """A rank's pieces of steps start_step to stop_step (exclusive), in order of first need.

        Args:
            stop_step: null means the end of the epoch that holds start_step.
        """
        for line in self.cut_lines(rank, world_size, start_step, stop_step):
            yield from self.pieces_of(line, 0, len(line))

    def cut_lines(
        self, rank: int, world_size: int, start_step: int, stop_step: int | None = None
    ) -> Iterator[Line]:
        """The pieces of these steps as arrays, one line an epoch."""
        steps = self.steps_per_epoch
        if stop_step is None:
            stop_step = (start_step // steps + 1) * steps
        for epoch in range(start_step // steps, -(-stop_step // steps)):
            first = epoch * steps
            yield self.line(epoch, rank, world_size).cut(start_step - first, stop_step - first)

    def pieces_of(self, line: Line, first: int, last: int) -> list[Piece]:
        """Pieces `first` to `last` (exclusive) of a line."""
        columns = (line.number, line.chunk, line.lane, line.offset, line.skip, line.num_rows)
        seeds = self._chunk_seeds(line.epoch, line.chunk[first:last]).tolist()
        rows = zip(*(c[first:last].tolist() for c in columns), seeds, strict=True)
        return [
            Piece(
                number, self.chunk(chunk), lane, line.epoch, offset, seed, skip, count, line.share
            )
            for number, chunk, lane, offset, skip, count, seed in rows
        ]

    def chunk(self, number: int) -> Chunk:
        """A chunk by its place in the log."""
        return Chunk(
            int(self._chunk_file[number]),
            int(self._chunk_group[number]),
            int(self._chunk_start[number]),
            int(self._chunk_rows[number]),
            int(self._chunk_file_row[number]),
        )

    def rows(self, piece: Piece) -> np.ndarray:
        """The piece's rows within its chunk, int64, in the line's order."""
        if piece.lane != ALL_LANES:
            order = permutation(piece.chunk.num_rows, piece.seed)
        else:
            log_row = self._file_starts[piece.chunk.file] + piece.chunk.file_row
            n = log_row + np.arange(piece.chunk.num_rows)
            rank, world_size = piece.share
            lane = n % self.global_batch_size // self.rows_per_step
            order = np.flatnonzero(lane % world_size == rank)
        return order[piece.skip : piece.skip + piece.num_rows]

    @cached_property
    def _file_starts(self) -> np.ndarray:
        rows = np.array([f.num_rows for f in self.index.files], np.int64)
        return np.cumsum(rows) - rows

    def lane_pieces(self, epoch: int, lane: int) -> list[Piece]:
        """One lane's pieces of an epoch."""
        return list(self.pieces(lane, self.num_lanes, epoch * self.steps_per_epoch))

    def row_ranges(self, lane: int, step: int) -> list[tuple[int, int]]:
        """(file, row of the file) of each row that a step takes from a lane, in order."""
        return [
            (piece.chunk.file, piece.chunk.file_row + int(row))
            for piece in self.pieces(lane, self.num_lanes, step, step + 1)
            for row in self.rows(piece)
        ]

    def line(self, epoch: int, rank: int, world_size: int) -> Line:
        """A rank's pieces of a whole epoch; the last few are kept."""
        key = (epoch, rank, world_size)
        if key not in self._lines:
            if len(self._lines) >= _KEPT_LINES:
                del self._lines[next(iter(self._lines))]
            make = self._shuffled_line if self.shuffled else self._chronological_line
            self._lines[key] = make(epoch, rank, world_size)
        return self._lines[key]

    def _shuffled_line(self, epoch: int, rank: int, world_size: int) -> Line:
        chunk, lane, offset, skip, num_rows = self._deal(epoch)
        mine = np.flatnonzero(lane % world_size == rank)
        mine = mine[np.lexsort((lane[mine], offset[mine] // self.rows_per_step))]
        return Line(
            epoch,
            (rank, world_size),
            self.rows_per_step,
            self._numbers(epoch, len(mine)),
            chunk[mine],
            lane[mine],
            offset[mine],
            skip[mine],
            num_rows[mine],
        )

    def _deal(self, epoch: int) -> tuple[np.ndarray, ...]:
        """All pieces of a shuffled epoch: chunk, lane, offset, skip, number of rows."""
        if epoch in self._deals:
            return self._deals[epoch]
        chunks = permutation(self.num_chunks, _key(self.seed, epoch, 1))
        ends = np.cumsum(self._chunk_rows[chunks])
        starts = ends - self._chunk_rows[chunks]
        total = int(ends[-1])
        begins = np.unique(np.concatenate([starts, self._lane_starts[self._lane_starts < total]]))
        place = np.searchsorted(ends, begins, side="right")
        # Lanes without rows start where the next one does; `right` passes them over.
        lane = np.searchsorted(self._lane_starts, begins, side="right") - 1
        offset = begins - self._lane_starts[lane]
        num_rows = np.diff(np.append(begins, total))
        num_rows = np.minimum(num_rows, self._lane_rows[lane] - offset)
        keep = num_rows > 0
        columns = (chunks[place], lane, offset, begins - starts[place], num_rows)
        if len(self._deals) >= _KEPT_LINES:
            del self._deals[next(iter(self._deals))]
        self._deals[epoch] = tuple(c[keep] for c in columns)
        return self._deals[epoch]

    def _chronological_line(self, epoch: int, rank: int, world_size: int) -> Line:
        first = np.minimum(self._chunk_log_row, self.num_rows)
        last = np.minimum(self._chunk_log_row + self._chunk_rows, self.num_rows)
        offset = self._own_before(first, rank, world_size)
        num_rows = self._own_before(last, rank, world_size) - offset
        chunk = np.flatnonzero(num_rows > 0)
        return Line(
            epoch,
            (rank, world_size),
            self.batch_rows(rank, world_size),
            self._numbers(epoch, len(chunk)),
            chunk,
            np.full(len(chunk), ALL_LANES),
            offset[chunk],
            np.zeros(len(chunk), np.int64),
            num_rows[chunk],
        )

    def _own_before(self, n: np.ndarray, rank: int, world_size: int) -> np.ndarray:
        """How many of the log's first n rows lie in a rank's lanes, chronologically."""
        k = self.rows_per_step
        steps, rest = np.divmod(n, self.global_batch_size)
        lane, part = np.divmod(rest, k)
        lanes_before = (lane - rank + world_size - 1) // world_size
        own_part = np.where(lane % world_size == rank, part, 0)
        return steps * self.batch_rows(rank, world_size) + lanes_before * k + own_part

    def _numbers(self, epoch: int, count: int) -> np.ndarray:
        return epoch * (self.num_chunks + self.num_lanes) + np.arange(count)

    def _chunk_seeds(self, epoch: int, chunks: np.ndarray) -> np.ndarray:
        return _mix(np.uint64(_key(self.seed, epoch, 2)) + _steps(chunks))


def permutation(n: int, seed: int) -> np.ndarray:
    """A random order of 0 .. n-1 that no version of numpy will change: ranks of hashed counters."""
    return np.argsort(_mix(np.uint64(seed) + _steps(np.arange(n))), kind="stable")


def _key(*parts: int) -> int:
    """A 64-bit seed from several numbers."""
    state = np.zeros(1, np.uint64)
    for part in parts:
        state = _mix(state + np.uint64(part % 2**64) + _steps(np.ones(1)))
    return int(state[0])


def _steps(counters: np.ndarray) -> np.ndarray:
    """Multiples of the golden ratio's 64-bit fraction, SplitMix64's step."""
    return counters.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's output function (Steele, Lea, Flood 2014), which is a bijection."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
