"""Ray Data: one ordered dataset per rank, whose blocks become that rank's batches.

The dataset's items are ranges of a rank's pieces; a task works out which pieces these are, reads
and decodes them. So a run of any length costs the driver a few numbers per task.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data import DataIterator, Dataset, ExecutionResources
from ray.data._internal.execution.execution_callback import ExecutionCallback

from raymtl.data import reading
from raymtl.data.lanes import Fields, batches
from raymtl.data.order import Order, Piece
from raymtl.data.stream import Arrays, Span, Stream
from raymtl.errors import input_error_in
from raymtl.layout import Layout

_MOST_TASKS = 4_000
"""Tasks of one dataset, each of which costs the driver about a millisecond before the start;
beyond, a task reads more than a chunk's worth of pieces."""
_CHUNKS_IN_FLIGHT = 8
"""Decoded chunks of a stream in the object store, besides those that its reader has asked for."""
_LEAST_IN_FLIGHT = 64 * 2**20
"""Bytes that a stream may have in the object store however small its chunks are."""
_REST_S = 0.03, 0.5
"""Before the next turn of a dataset's scheduling, where nothing was to be done: at first, and the
longest, twice as long each time."""
_ORIGIN_BYTES = 16
"""File and row of one row, kept beside its decoded columns."""


@dataclass(frozen=True)
class Share:
    """What one rank's dataset may use of the cluster: its W-th of what training leaves over."""

    cpus: float = 1.0
    """Logical CPUs; a reading task takes one of them, or all if they are less than one. With 0
    tasks take none, one at a time."""
    object_store_bytes: float | None = None
    """Blocks in flight; null leaves Ray Data's own limit."""
    node_id: str | None = None
    """Node to read on while it has room: the rank's own."""

    def near(self) -> dict[str, Any]:
        """A Ray task's options that place it there."""
        if self.node_id is None:
            return {}
        labels = {"ray.io/node-id": self.node_id}
        return {"label_selector": labels, "fallback_strategy": [{"label_selector": {}}]}


def dataset(stream: Stream, share: Share | None = None) -> Dataset:
    """A stream's decoded rows in order; nothing is read before it is iterated.

    Blocks hold `decode`'s arrays and `piece`, the number of the piece each row belongs to. Must be
    given to `iterate` with the same stream.
    """
    share, order = share or Share(), stream.order
    items = _task_ranges(order, stream.span)
    source = ray.data.from_items(items, override_num_blocks=len(items))
    options = source.context.execution_options
    options.preserve_order = True
    options.resource_limits = ExecutionResources.for_limits(
        cpu=share.cpus or None, object_store_memory=share.object_store_bytes
    )
    source.context.enable_progress_bars = False
    source.context.custom_execution_callback_classes = [Paced]
    source.context.target_max_block_size = _chunk_bytes(order, stream.layout)
    # A task that waited for its reader would keep its CPU from other streams, of which validation
    # is one while training waits: so a task may leave all its blocks, and only new ones are held
    # back. The factor is for keys, whose bytes are not known here.
    chunks = _rows_per_task(order, stream.span) // order.chunk_rows
    source.context._max_num_blocks_in_streaming_gen_buffer = 4 * (chunks + 2)
    one_by_one: dict[str, Any] = {} if share.cpus else {"concurrency": 1}
    return source.map_batches(
        reading.read,  # pyright: ignore[reportArgumentType]  # its batches are numpy, its blocks arrow
        batch_size=None,
        batch_format="numpy",
        fn_kwargs={"stream": reading.Reference(ray.put(stream))},
        num_cpus=min(1.0, share.cpus),
        **one_by_one,
        **share.near(),
    )


class Paced(ExecutionCallback):
    """Rests the loop that schedules reading, which would turn without a pause.

    While blocks wait for their reader there is nothing to schedule, and the core it takes is one
    of those that train.
    """

    def __init__(self) -> None:
        self._done, self._rest_s = -1, _REST_S[0]

    def on_execution_step(self, executor: Any) -> None:
        """After each turn of the loop; one that brought nothing on is followed by a rest."""
        of_all = [op.metrics for op in executor._topology]
        done = sum(m.num_tasks_submitted + m.num_task_outputs_generated for m in of_all)
        done += sum(m.num_tasks_finished for m in of_all)
        first_s, longest_s = _REST_S
        if done != self._done:
            self._done, self._rest_s = done, first_s
            return
        time.sleep(self._rest_s)
        self._rest_s = min(2 * self._rest_s, longest_s)


def iterate(
    iterator: DataIterator | Dataset, stream: Stream, prefetch_chunks: int = 4
) -> Iterator[Fields]:
    """The batches of a stream's dataset, the same as `source.read_batches` gives, as their fields.

    Args:
        prefetch_chunks: blocks fetched ahead to this process.

    Raises:
        InputError: as the reading task raised it.
    """
    blocks = iterator.iter_batches(
        batch_size=None,  # pyright: ignore[reportArgumentType]  # ray documents None: whole blocks
        batch_format="pyarrow",
        prefetch_batches=prefetch_chunks,
    )
    try:
        yield from batches(_pieces(blocks, stream.pieces(), stream.layout), stream)
    except Exception as error:
        raise (input_error_in(error) or error) from None


def memory_bytes(order: Order, layout: Layout, world_size: int, prefetch_chunks: int = 4) -> int:
    """The most a rank's process holds of decoded rows: a chunk per open lane, and those ahead."""
    open_chunks = len(order.lines(0, world_size)) + 1
    return (open_chunks + prefetch_chunks) * _chunk_bytes(order, layout)


def in_flight_bytes(order: Order, layout: Layout, prefetch_chunks: int = 4) -> int:
    """The object store that a rank's stream needs to be read without waiting.

    With more, fast reading tasks would fill it, and every page stays with the processes that read
    them: their memory would grow with the log.
    """
    chunks = _CHUNKS_IN_FLIGHT + prefetch_chunks
    return max(_LEAST_IN_FLIGHT, chunks * _chunk_bytes(order, layout))


def row_bytes(layout: Layout) -> int:
    """Bytes of one decoded row."""
    floats = layout.num_bag_weights + len(layout.numeric_names) + 2 * len(layout.task_names) + 1
    return 4 * (layout.num_id_columns + floats) + 8 + 8 + _ORIGIN_BYTES


def _chunk_bytes(order: Order, layout: Layout) -> int:
    return order.chunk_rows * row_bytes(layout)


def _task_ranges(order: Order, span: Span) -> list[dict[str, int]]:
    """One item a task: an epoch and which of the rank's pieces of it the task reads.

    Small pieces share a task, so that a task reads about a chunk's worth of rows.
    """
    rows_per_task = _rows_per_task(order, span)
    items = []
    for line in order.cut_lines(span.rank, span.world_size, span.start_step, span.stop_step):
        if not len(line):
            continue
        task = (np.cumsum(line.num_rows) - 1) // rows_per_task
        starts = np.flatnonzero(np.diff(task, prepend=-1)).tolist()
        for first, last in zip(starts, [*starts[1:], len(line)], strict=True):
            items.append({"epoch": line.epoch, "first": first, "last": last})
    return items or [{"epoch": 0, "first": 0, "last": 0}]


def _rows_per_task(order: Order, span: Span) -> int:
    num_steps = span.stop_step - span.start_step
    rows = order.batch_rows(span.rank, span.world_size) * num_steps
    return max(order.chunk_rows, rows // _MOST_TASKS)


def _arrays(block: pa.Table, layout: Layout) -> Arrays:
    """A block's arrays as decoded, copied: a view would hold the object store's block."""
    arrays = {
        "ids": np.empty((block.num_rows, layout.num_id_columns), np.int32),
        "bag_weights": np.empty((block.num_rows, layout.num_bag_weights), np.float32),
        "numeric": np.empty((block.num_rows, len(layout.numeric_names)), np.float32),
    }
    for name in block.column_names:
        column = block.column(name).combine_chunks()
        if pa.types.is_fixed_size_list(column.type):
            flat = column.flatten().to_numpy()
            arrays[name] = flat.reshape(-1, column.type.list_size).copy()
        elif name.startswith("key:"):
            arrays[name] = _key_array(column)
        elif name != "piece":
            arrays[name] = column.to_numpy().copy()
    return arrays


def _key_array(column: pa.Array) -> np.ndarray:
    """As decode gives it: numpy's own type without nulls, else Python objects with None."""
    if column.null_count == 0:
        return column.to_numpy(zero_copy_only=False).copy()
    values = np.empty(len(column), object)
    values[:] = column.to_pylist()
    return values


def _pieces(
    blocks: Iterable[pa.Table], expected: Iterator[Piece], layout: Layout
) -> Iterator[tuple[Piece, Arrays]]:
    """Puts blocks together to the expected pieces, wherever Ray joined or split them."""
    kept: list[pa.Table] = []
    piece = next(expected, None)
    for block in blocks:
        for part in _runs(block):
            number = part.column("piece")[0].as_py()
            assert piece is not None and piece.number == number, f"piece {number} is out of order"
            kept.append(part)
            if sum(k.num_rows for k in kept) == piece.num_rows:
                yield piece, _arrays(pa.concat_tables(kept, promote_options="default"), layout)
                kept, piece = [], next(expected, None)
    assert piece is None and not kept, f"the dataset ended before {piece}"


def _runs(block: pa.Table) -> list[pa.Table]:
    """The block cut where the piece changes."""
    if not block.num_rows:
        return []
    numbers = block.column("piece").to_numpy()
    starts = np.flatnonzero(np.diff(numbers, prepend=numbers[0] - 1)).tolist()
    stops = [*starts[1:], len(numbers)]
    return [block.slice(i, j - i) for i, j in zip(starts, stops, strict=True)]
