"""From decoded pieces to batches: each step takes the next rows of each of a rank's lanes.

Without torch, which the process that feeds a rank does not need.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from raymtl.data.order import Order, Piece
from raymtl.data.stream import Arrays, Stream
from raymtl.layout import PAD, Layout

Fields = dict[str, Any]
"""Of one `batch.Batch`, by name; numpy arrays where it has tensors."""


def batches(blocks: Iterable[tuple[Piece, Arrays]], stream: Stream) -> Iterator[Fields]:
    """Cuts pieces into the fields of the stream's batches.

    A batch has G / L rows of each lane, lanes ascending, within a lane in the lane's order; a
    lane that has run out is padded at its end, so B is the same in every step.

    Args:
        blocks: pieces as `stream.pieces` gives them, read; taken only when a step needs one.
    """
    source = iter(blocks)
    order, span = stream.order, stream.span
    rank, world_size = span.rank, span.world_size
    lines, num_rows = _Lines(order, rank, world_size), order.batch_rows(rank, world_size)
    for step in range(span.start_step, span.stop_step):
        counts = order.row_counts(rank, world_size, step)
        lines.begin(step)
        while (lines.ready < counts).any():
            block = next(source, None)
            assert block is not None, f"the pieces end before step {step}"
            lines.add(*block)
        yield _batch(step, lines.take(counts), stream.layout, num_rows)
    assert next(source, None) is None, f"pieces are left after step {span.stop_step - 1}"


@dataclass
class _Open:
    """A piece that has not been used up."""

    arrays: Arrays
    file: int
    rows: np.ndarray
    at: int = 0


@dataclass
class _Part:
    """Rows that go to `start` and after in the batch."""

    start: int
    arrays: Arrays
    file: int
    rows: np.ndarray


class _Lines:
    """The open pieces of each of a rank's lines."""

    def __init__(self, order: Order, rank: int, world_size: int):
        lines = order.lines(rank, world_size)
        self._order = order
        self._share = (rank, world_size)
        self._place = {int(line): i for i, line in enumerate(lines)}
        self._open: list[deque[_Open]] = [deque() for _ in lines]
        self._rows_per_step = order.batch_rows(rank, world_size) // len(lines)
        self._epoch = 0
        self._taken = 0
        self.ready = np.zeros(len(lines), np.int64)
        """Rows at hand in each line."""

    def begin(self, step: int) -> None:
        """Notes which step comes, so that a piece of any other place in the order is caught."""
        self._epoch, in_epoch = divmod(step, self._order.steps_per_epoch)
        self._taken = in_epoch * self._rows_per_step

    def add(self, piece: Piece, arrays: Arrays) -> None:
        """Appends a piece to its line."""
        i = self._place[piece.lane]
        expected = (self._epoch, self._taken + int(self.ready[i]), self._share)
        got = (piece.epoch, piece.offset, piece.share)
        assert got == expected, f"a piece of (epoch, offset, share) {got} came for {expected}"
        assert len(arrays["ids"]) == piece.num_rows
        rows = piece.chunk.file_row + self._order.rows(piece)
        self._open[i].append(_Open(arrays, piece.chunk.file, rows))
        self.ready[i] += piece.num_rows

    def take(self, counts: np.ndarray) -> list[_Part]:
        """Takes the next counts[i] rows of each line i."""
        parts = []
        for i, count in enumerate(counts.tolist()):
            start = i * self._rows_per_step
            while count:
                first = self._open[i][0]
                stop = min(first.at + count, len(first.rows))
                cut = slice(first.at, stop)
                arrays = {name: values[cut] for name, values in first.arrays.items()}
                parts.append(_Part(start, arrays, first.file, first.rows[cut]))
                start, count = start + stop - first.at, count - (stop - first.at)
                first.at = stop
                if stop == len(first.rows):
                    self._open[i].popleft()
        self.ready -= counts
        return parts


def _batch(step: int, parts: list[_Part], layout: Layout, num_rows: int) -> Fields:
    tasks = len(layout.task_names)
    ids = np.full((num_rows, layout.num_id_columns), PAD, np.int64)
    bag_weights = np.zeros((num_rows, layout.num_bag_weights), np.float32)
    numeric = np.zeros((num_rows, len(layout.numeric_names)), np.float32)
    labels = np.full((num_rows, tasks), np.nan, np.float32)
    weights = np.zeros(num_rows, np.float32)
    task_weights = np.zeros((num_rows, tasks), np.float32)
    group = np.full(num_rows, -1, np.int64)
    file, row = np.full(num_rows, -1, np.int32), np.full(num_rows, -1, np.int64)
    columns = {
        "ids": ids,
        "bag_weights": bag_weights,
        "numeric": numeric,
        "labels": labels,
        "weights": weights,
        "task_weights": task_weights,
        "group": group,
    }
    for part in parts:
        place = slice(part.start, part.start + len(part.rows))
        for name, values in columns.items():
            values[place] = part.arrays[name]
        file[place], row[place] = part.file, part.rows
    lost = weights < 0
    names, counts = np.unique(file[lost], return_counts=True)
    weights[lost], file[lost], row[lost] = 0, -1, -1
    observed = ~np.isnan(labels)
    return {
        "step": step,
        "ids_BC": ids,
        "bag_weights": bag_weights,
        "numeric_BN": numeric,
        "labels_BT": np.where(observed, labels, np.float32(0)),
        "mask_BT": observed,
        "weight_B": weights,
        "weight_BT": weights[:, None] * task_weights * observed,
        "group_B": group,
        "file_B": file,
        "row_B": row,
        "keys": _keys(parts, num_rows),
        "skipped": dict(zip(names.tolist(), counts.tolist(), strict=True)),
    }


def _keys(parts: list[_Part], num_rows: int) -> Arrays:
    names = [name for name in parts[0].arrays if name.startswith("key:")] if parts else []
    keys = {}
    for name in names:
        types = {part.arrays[name].dtype for part in parts}
        column = np.zeros(num_rows, types.pop() if len(types) == 1 else object)
        for part in parts:
            column[part.start : part.start + len(part.rows)] = part.arrays[name]
        keys[name.removeprefix("key:")] = column
    return keys
