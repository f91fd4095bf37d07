"""What a run will hold in memory and storage, computed before it starts."""

import ray

from raymtl.data.ingest import memory_bytes
from raymtl.embedding.tables import TableSpec, table_specs
from raymtl.errors import InputError
from raymtl.models import registry
from raymtl.preflight import Job
from raymtl.source import order_of

FLOATS_OF_STATE = {
    "rowwise_adagrad": lambda spec: spec.views,
    "lazy_adam": lambda spec: 2 * spec.width_floats + spec.views,
    "dense_adam": lambda spec: 2 * spec.width_floats,
}
"""Optimizer floats beside each row, by row optimizer."""


def lines(job: Job) -> list[str]:
    """Sizes for a person, and a check that the data stream fits the memory of the cluster.

    Raises:
        InputError: the open lanes and prefetched chunks alone would fill the memory.
    """
    config, layout = job.config, registry.layout(job.config.model, job.schema)
    specs = table_specs(job.schema, registry.shape(config.model, layout, config.embedding.width))
    rows, state = table_bytes(specs, config.optimizer.rows.name)
    copies = config.checkpoint.keep_last + config.checkpoint.keep_best
    order, num_workers = order_of(config, job.train), config.launch.fewest_workers
    stream = memory_bytes(order, layout, num_workers, config.data.prefetch_chunks)
    _require_memory(stream, num_workers)
    return [
        f"tables: {sum(s.rows for s in specs):,} rows, {_size(rows)} and {_size(state)} of "
        f"optimizer state over {num_workers} workers",
        f"checkpoints: {_size(rows + state)} each besides the dense part, at most {copies} kept "
        f"and one being written: {_size((rows + state) * (copies + 1))}",
        f"data: at most {_size(stream)} of open lanes and prefetched chunks beside each worker",
    ]


def table_bytes(specs: tuple[TableSpec, ...], row_optimizer: str) -> tuple[int, int]:
    """Bytes of all table rows, and of the optimizer state beside them."""
    rows = sum(4 * s.rows * s.width_floats for s in specs)
    state = sum(4 * s.rows * FLOATS_OF_STATE[row_optimizer](s) for s in specs)
    return rows, state


def _require_memory(stream_bytes: int, num_workers: int) -> None:
    total = ray.cluster_resources().get("memory")
    if total is not None and stream_bytes * num_workers > total:
        raise InputError(
            "the open lanes do not fit the cluster's memory",
            f"{_size(stream_bytes)} for each of {num_workers} workers",
            f"less than {_size(int(total))} in all",
            "lower data.num_lanes, data.chunk_rows or data.prefetch_chunks",
        )


def _size(num_bytes: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.3g} TB"
