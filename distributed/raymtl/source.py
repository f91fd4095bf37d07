"""LogSource: a training and a validation log as one rank's batches, in lane order."""

import warnings
from collections.abc import Callable, Iterator

import numpy as np
from torch import Tensor

from raymtl import collectives
from raymtl.batch import Batch, Layout
from raymtl.config import TrainConfig
from raymtl.data.lanes import batches
from raymtl.data.log import LogIndex
from raymtl.data.order import Order
from raymtl.data.stream import Span, Stream
from raymtl.schema import LogSchema

Read = Callable[[Stream], Iterator[Batch]]
"""Gives a stream's batches."""
MOST_NAMED = 5
"""Row groups named in a message; the rest are counted."""


def read_batches(stream: Stream) -> Iterator[Batch]:
    """A stream's batches, read in this process as they are asked for.

    Raises:
        InputError: a chunk cannot be read, or a value is not what its column must hold.
    """
    pieces = ((piece, stream.read(piece)) for piece in stream.pieces())
    return (Batch.of(fields) for fields in batches(pieces, stream))


class LogSource:
    """Batches of this rank; `read` is the plain reader or Ray Data's."""

    def __init__(
        self,
        config: TrainConfig,
        schema: LogSchema,
        train: LogIndex,
        valid: LogIndex | None,
        read: Read = read_batches,
        warn: Callable[[str], None] = warnings.warn,
    ):
        self.schema, self.layout, self._read, self._warn = schema, Layout.of(schema), read, warn
        self._skip = config.data.on_unreadable == "skip"
        self._told: set[int] = set()
        self._index, self._valid_index = train, valid
        shuffled = config.data.order == "shuffled"
        self._order = order_of(config, train, shuffled=shuffled)
        self._valid_order = (
            order_of(config, valid, max_rows=config.validation.max_rows) if valid else None
        )
        self.steps_per_epoch = self._order.steps_per_epoch
        self.num_valid_steps = self._valid_order.steps_per_epoch if self._valid_order else 0

    def train(self, start_step: int, stop_step: int) -> Iterator[Batch]:
        """This rank's batches of global steps start to stop, across epochs."""
        for batch in self._batches(self._index, self._order, start_step, stop_step, self._skip):
            for file in batch.skipped.keys() - self._told:
                self._warn(f"rows of {self._index.name(file)} cannot be read and are skipped")
                self._told.add(file)
            yield batch

    def valid(self) -> Iterator[Batch]:
        """This rank's validation batches, the same ones each time."""
        assert self._valid_index is not None and self._valid_order is not None
        return self._batches(self._valid_index, self._valid_order, 0, self.num_valid_steps)

    def origin(self, batch: Batch, rows: Tensor) -> str:
        """Files, row groups and rows of the marked rows of a training batch, for messages."""
        return origin(self._index, batch, rows)

    def _batches(
        self, index: LogIndex, order: Order, start_step: int, stop_step: int, skip: bool = False
    ) -> Iterator[Batch]:
        span = Span(collectives.rank(), collectives.world_size(), start_step, stop_step)
        return self._read(Stream(index, self.schema, order, span, skip_unreadable=skip))


def order_of(
    config: TrainConfig, index: LogIndex, shuffled: bool = True, max_rows: int | None = None
) -> Order:
    """The order a log is read in under a config."""
    return Order(
        index=index,
        seed=config.seed,
        num_lanes=config.data.num_lanes,
        chunk_rows=config.data.chunk_rows,
        rows_per_step=config.train.global_batch_size // config.data.num_lanes,
        shuffled=shuffled,
        max_rows=max_rows,
    )


def planned_steps(config: TrainConfig, steps_per_epoch: int) -> int:
    """Steps of a run that nothing ends early."""
    steps = config.train.num_epochs * steps_per_epoch
    return min(steps, config.train.max_steps or steps)


def origin(index: LogIndex, batch: Batch, rows: Tensor) -> str:
    """`file row group g (row r, …)` of the marked rows, the first few row groups."""
    marked = np.flatnonzero(rows.cpu().numpy() & (batch.file_B >= 0))
    groups: dict[tuple[str, int], list[int]] = {}
    for i in marked.tolist():
        file = index.files[batch.file_B[i]]
        ends = np.cumsum(file.row_group_rows)
        group = int(np.searchsorted(ends, batch.row_B[i], side="right"))
        groups.setdefault((file.path, group), []).append(int(batch.row_B[i]))
    named = [
        f"{path} row group {group} (row {first}{f' and {len(more)} more' if more else ''})"
        for (path, group), (first, *more) in list(groups.items())[:MOST_NAMED]
    ]
    rest = len(groups) - len(named)
    return "; ".join(named) + (f"; and {rest} more row groups" if rest > 0 else "")
