"""What a run will need and how fast it will be on W workers; the formulas of docs/operations.md.

All of it is arithmetic on a checked job and on measured `Rates`; nothing is started here.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from raymtl.analysis.rates import Rates, StepPoint
from raymtl.data.ingest import in_flight_bytes, memory_bytes, row_bytes
from raymtl.embedding.tables import table_specs
from raymtl.footprint import table_bytes
from raymtl.models import registry
from raymtl.preflight import Job
from raymtl.source import order_of

STATES_OF_DENSE = {"adam": 2, "adamw": 2, "sgd": 0}
"""Copies of the dense parameters that their optimizer keeps."""
RAY_WORKER_BYTES = 60e6
"""What being a Ray worker adds to a process that has loaded raymtl: an estimate."""
FEED_BYTES = 210e6
"""A process that feeds a rank, without what it holds: an estimate."""
READ_FACTOR = 2.0
"""Core seconds to bring a row through Ray Data for each to read and decode it: an estimate."""
RAY_CORES = 0.2
"""Of each machine's cores, what Ray's own processes take: an estimate."""
EXCHANGES_PER_GROUP, EXCHANGES_PER_STEP = 4, 2
"""Sizes, ids, rows and gradients of each width; the status word and the dense gradients."""
MOST_LANES, USUAL_LANES = 1024, 32


@dataclass(frozen=True)
class Nodes:
    """Machines that train, all alike."""

    count: int
    cores: int
    memory_bytes: int | None
    """Of one; null where nobody said."""
    bytes_per_s: float | None = None
    """Network between them; null: the rate measured between processes of this machine."""

    def workers_on_one(self, num_workers: int) -> int:
        """Workers on the fullest machine."""
        return math.ceil(num_workers / self.count)


@dataclass(frozen=True)
class Prediction:
    """A run on W workers. Bytes are those of the worker that holds most and what feeds it."""

    num_workers: int
    threads: int
    tables_bytes: int
    optimizer_bytes: int
    dense_bytes: int
    snapshot_bytes: int
    ingest_bytes: int
    working_bytes: int
    process_bytes: int
    exchanged_bytes: int
    """Out of one rank in a step."""
    compute_s: float
    exchange_s: float
    read_s: float
    """Seconds of one core to bring one row to a step."""
    step_s: float
    rows_per_s: float
    limit: str
    fits: bool | None
    """Null where the machines' memory is not known."""

    @property
    def memory_bytes(self) -> int:
        """A worker at its peak, while it saves."""
        parts = (self.tables_bytes, self.optimizer_bytes, self.dense_bytes, self.snapshot_bytes)
        return sum(parts) + self.ingest_bytes + self.working_bytes + self.process_bytes

    def to_dict(self) -> dict[str, Any]:
        """Plain values, the sum of memory among them."""
        return asdict(self) | {"memory_bytes": self.memory_bytes}


def worlds(job: Job, nodes: Nodes) -> list[int]:
    """Numbers of workers that are predicted: powers of two, the config's fewest and most."""
    most = min(job.config.data.num_lanes, max(1, nodes.count * nodes.cores))
    powers = [2**n for n in range(most.bit_length()) if 2**n <= most]
    launch = job.config.launch
    return sorted({*powers, launch.fewest_workers, launch.most_workers})


def points(job: Job, nodes: Nodes, cores: int) -> list[tuple[int, int]]:
    """Rows and threads of the steps to measure on a machine of so many cores."""
    batch = job.config.train.global_batch_size
    fewest = max(1, batch // max(worlds(job, nodes)), batch // 8)
    one, most = (job.config.launch.threads_per_worker or n for n in (1, cores))
    return sorted({(batch, one), (fewest, one), (batch, most)})


def pair_threads(job: Job, nodes: Nodes, cores: int) -> int | None:
    """Threads of each of two ranks to measure; null where there can be but one."""
    if max(worlds(job, nodes)) == 1:
        return None
    return job.config.launch.threads_per_worker or max(1, cores // 2)


def predictions(job: Job, rates: Rates, nodes: Nodes) -> list[Prediction]:
    """One for each of `worlds`."""
    return [predicted(job, rates, nodes, num_workers) for num_workers in worlds(job, nodes)]


def predicted(job: Job, rates: Rates, nodes: Nodes, num_workers: int) -> Prediction:
    """A run on some workers."""
    config, per_node = job.config, nodes.workers_on_one(num_workers)
    threads = config.launch.threads_per_worker or max(1, nodes.cores // per_node)
    batch = config.train.global_batch_size
    point = step_at(rates.steps, math.ceil(batch / num_workers), threads)
    crowding = max(1.0, per_node * threads / nodes.cores)
    exchanged, exchanges = exchange(point, rates.num_dense, num_workers, config.embedding)
    network = nodes.bytes_per_s if nodes.bytes_per_s and nodes.count > 1 else rates.bytes_per_s
    exchange_s = exchanged / network + exchanges * rates.latency_s
    read_s = READ_FACTOR * rates.read_s_per_row
    handling_s = exchanged * handling(rates, config.embedding)
    compute_s = (point.seconds + handling_s) * crowding
    alone_s = compute_s + exchange_s
    # Training, reading and Ray share the cores: what all need is the least a step can take.
    rows_on_node = batch * per_node / num_workers
    busy_s = per_node * (threads * point.seconds + handling_s) + rows_on_node * read_s
    shared_s = busy_s / (nodes.cores - RAY_CORES)
    step_s = max(alone_s, shared_s)
    memory = _memory(job, rates, num_workers, point)
    total, room = sum(memory.values()), nodes.memory_bytes
    fits = None if room is None else total * per_node <= room
    parts = {
        "compute": compute_s,
        "exchange": exchange_s,
        "reading": max(0.0, step_s - alone_s),
    }
    limit = max(parts, key=parts.__getitem__) if fits is not False else "memory"
    return Prediction(
        num_workers=num_workers,
        threads=threads,
        **memory,
        exchanged_bytes=exchanged,
        compute_s=compute_s,
        exchange_s=exchange_s,
        read_s=read_s,
        step_s=step_s,
        rows_per_s=batch / step_s,
        limit=limit,
        fits=fits,
    )


def step_at(steps: Sequence[StepPoint], rows: int, threads: int) -> StepPoint:
    """A step of other sizes than were measured: linear in the rows, Amdahl's law in the threads."""
    of_one = sorted(
        (s for s in steps if s.threads == min(s.threads for s in steps)), key=lambda s: s.rows
    )
    few, many = of_one[0], of_one[-1]
    at = (rows - few.rows) / (many.rows - few.rows) if many.rows > few.rows else 0.0
    on_all = max(steps, key=lambda s: s.threads)
    parallel = 0.0
    if on_all.threads > many.threads:
        # T(n) = T(1) (1 - p + p / n)
        part = 1 - many.threads / on_all.threads
        parallel = min(1.0, max(0.0, (1 - on_all.seconds / many.seconds) / part))
    n = max(1.0, threads / many.threads)
    seconds = _between(few.seconds, many.seconds, at) * (1 - parallel + parallel / n)
    distinct = tuple(
        (width, round(_between(a, b, at)), round(_between(c, d, at)))
        for (width, a, c), (_, b, d) in zip(few.distinct, many.distinct, strict=True)
    )
    working = _between(few.working_bytes, max(many.working_bytes, on_all.working_bytes), at)
    return StepPoint(rows, threads, seconds, distinct, round(working))


def _between(few: float, many: float, at: float) -> float:
    return max(0.0, few + at * (many - few))


def exchange(point: StepPoint, num_dense: int, world_size: int, embedding: Any) -> tuple[int, int]:
    """Bytes out of one rank in a step, and the number of exchanges."""
    if world_size == 1:
        return 0, 0
    others = (world_size - 1) / world_size
    value_bytes = 2 if embedding.wire_precision == "bf16" else 4
    total = 2 * others * 4 * num_dense  # a ring's all-reduce
    for width, split, copied in point.distinct:
        total += others * split * (8 + 2 * value_bytes * width)
        total += (world_size - 1) * copied * (8 + value_bytes * width)
    return round(total), EXCHANGES_PER_STEP + EXCHANGES_PER_GROUP * len(point.distinct)


def handling(rates: Rates, embedding: Any) -> float:
    """Seconds a rank works for each byte it sends: what a step of two ranks takes beyond its parts.

    Rows are gathered for others and put together, gradients summed again, ranks wait for another.
    """
    if rates.pair is None:
        return 0.0
    pair = rates.pair
    point = step_at(rates.steps, pair.rows, pair.threads)
    sent, exchanges = exchange(point, rates.num_dense, 2, embedding)
    crowding = max(1.0, 2 * pair.threads / rates.cores)
    parts = point.seconds + sent / rates.bytes_per_s + exchanges * rates.latency_s
    return max(0.0, pair.seconds / crowding - parts) / sent


def _memory(job: Job, rates: Rates, num_workers: int, point: StepPoint) -> dict[str, int]:
    config, layout = job.config, registry.layout(job.config.model, job.schema)
    specs = table_specs(job.schema, registry.shape(config.model, layout, config.embedding.width))
    copied = tuple(s for s in specs if s.rows <= config.embedding.replicate_rows)
    split = tuple(s for s in specs if s.rows > config.embedding.replicate_rows)
    name = config.optimizer.rows.name
    own = [math.ceil(n / num_workers) for n in table_bytes(split, name)]
    values, states = (a + b for a, b in zip(own, table_bytes(copied, name), strict=True))
    kept = 4 * rates.num_dense * (1 + STATES_OF_DENSE[config.optimizer.dense.name])
    order, prefetch = order_of(config, job.train), config.data.prefetch_chunks
    chunk_bytes = memory_bytes(order, layout, num_workers, prefetch)
    # A pass ends before the next begins: short logs have no more rows to hold than their own.
    pass_bytes = row_bytes(layout) * job.train.num_rows / num_workers
    opened = min(chunk_bytes, math.ceil(pass_bytes))
    return {
        "tables_bytes": values,
        "optimizer_bytes": states,
        "dense_bytes": kept + 4 * rates.num_dense,
        "snapshot_bytes": values + states + kept,
        "ingest_bytes": opened + 2 * min(in_flight_bytes(order, layout, prefetch), opened),
        "working_bytes": point.working_bytes,
        "process_bytes": round(rates.base_bytes + RAY_WORKER_BYTES + FEED_BYTES),
    }


def fewest_workers(found: Sequence[Prediction]) -> int | None:
    """The smallest W whose workers fit their machines; null where none does."""
    return next((p.num_workers for p in found if p.fits is not False), None)


def lanes(job: Job, most_workers: int) -> int:
    """Lanes to choose: as many as the most workers, at least the usual, that divide the batch."""
    batch, wanted = job.config.train.global_batch_size, max(most_workers, USUAL_LANES)
    dividing = [n for n in range(1, MOST_LANES + 1) if batch % n == 0]
    even = [n for n in dividing if n >= wanted and n % most_workers == 0]
    return even[0] if even else dividing[-1]
