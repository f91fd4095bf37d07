"""What runs in Ray Data's reading tasks. Without torch, which would cost each of them seconds."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import ray

from raymtl.data.order import Piece
from raymtl.data.stream import Arrays, Stream


@dataclass(frozen=True)
class Reference:
    """A stream in the object store, which Ray would fetch anew for every task."""

    ref: ray.ObjectRef

    def get(self) -> Stream:
        """The stream, kept by the worker process for its next task."""
        if self.ref not in _streams:
            _streams.clear()
            _streams[self.ref] = ray.get(self.ref)
        return _streams[self.ref]


_streams: dict[ray.ObjectRef, Stream] = {}


def step_back() -> None:
    """Puts this process, which reads ahead, behind all that train: their steps wait for no core."""
    os.setpriority(os.PRIO_PROCESS, 0, 19)


def read(items: Arrays, stream: Reference) -> Iterator[pa.Table]:
    """Reads and decodes the pieces of some items, a block each.

    Args:
        items: "epoch", "first" and "last" (exclusive): which pieces of the rank's line of an epoch.
    """
    step_back()
    s = stream.get()
    span, order = s.span, s.order
    for epoch, first, last in zip(items["epoch"], items["first"], items["last"], strict=True):
        start = int(epoch) * order.steps_per_epoch
        line = order.line(int(epoch), span.rank, span.world_size)
        line = line.cut(span.start_step - start, span.stop_step - start)
        for piece in order.pieces_of(line, int(first), int(last)):
            yield _table(s.read(piece), piece)


def _table(arrays: Arrays, piece: Piece) -> pa.Table:
    """A decoded piece as a block: matrices become fixed-size lists, those without columns go."""
    columns: dict[str, pa.Array] = {"piece": pa.array(np.full(piece.num_rows, piece.number))}
    for name, values in arrays.items():
        if values.ndim == 1:
            columns[name] = pa.array(values)
        elif values.shape[1]:
            flat = pa.array(np.ascontiguousarray(values).ravel())
            columns[name] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    return pa.table(columns)
