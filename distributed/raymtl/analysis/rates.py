"""What a plan must know of a machine and a config, measured by running a few steps.

Everything runs in processes of their own, with the environment that training workers get, and is
kept in a file: a second plan of the same config on the same machine measures nothing.
"""

import hashlib
import json
import math
import multiprocessing
import os
import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch

from raymtl import collectives
from raymtl.batch import Batch
from raymtl.cluster import LOCAL_ENVIRONMENT, WORKER_ENVIRONMENT, environment
from raymtl.config import TrainConfig, parse
from raymtl.data.stream import Span, Stream
from raymtl.errors import InputError
from raymtl.learner import Learner
from raymtl.preflight import Job, check
from raymtl.schema import LogSchema
from raymtl.source import LogSource, order_of

MOST_TABLE_ROWS = 1_000_000
"""Rows of a table in measurements; more rows than caches hold cost no more."""
_STEPS, _WARM_UP, _BATCHES, _PIECES, _LANES = 9, 3, 4, 9, 8
_SMALL, _LARGE = 2**14, 2**23
"""Bytes exchanged to learn the latency and the rate of the network."""


@dataclass(frozen=True)
class StepPoint:
    """A step of some rows on one rank with some threads."""

    rows: int
    threads: int
    seconds: float
    distinct: tuple[tuple[int, int, int], ...]
    """As `ShardedTables.distinct` of one batch."""
    working_bytes: int
    """Memory that steps took at their peak, beyond weights and states."""


@dataclass(frozen=True)
class Pair:
    """A step of two ranks, processes of this machine."""

    rows: int
    """Of each."""
    threads: int
    """Of each."""
    seconds: float


@dataclass(frozen=True)
class Rates:
    """What was measured."""

    cores: int
    memory_bytes: int
    base_bytes: int
    """A process that has loaded raymtl, torch and Ray, and holds nothing."""
    num_dense: int
    """Parameters of the model."""
    steps: tuple[StepPoint, ...]
    read_s_per_row: float
    """Seconds of one core to read and decode an impression."""
    latency_s: float
    """Of an exchange between two ranks, however small."""
    bytes_per_s: float
    """Of an exchange, out of one rank."""
    pair: Pair | None
    """Null for runs that cannot have two workers."""


def rates(
    config: TrainConfig,
    points: Sequence[tuple[int, int]],
    pair_threads: int | None,
    fresh: bool = False,
) -> Rates:
    """Measures, or recalls what was measured.

    Args:
        points: rows on a rank and threads of the steps to be timed.
        pair_threads: threads of each of two ranks whose steps are timed; null for none.
        fresh: measure anew.
    """
    job = check(config)
    path = _cache_path(job, points, pair_threads)
    if path.exists() and not fresh:
        return _rates_of(json.loads(path.read_text(encoding="utf-8")))
    with environment(LOCAL_ENVIRONMENT | WORKER_ENVIRONMENT), tempfile.TemporaryDirectory() as at:
        context, values = multiprocessing.get_context("spawn"), config.model_dump(mode="json")
        with context.Pool(1) as pool:
            found = pool.apply(_measured, (values, tuple(points)))
        with context.Pool(2) as pool:
            jobs = [(rank, f"{at}/meeting", values, pair_threads) for rank in range(2)]
            latency_s, bytes_per_s, pair = pool.starmap(_together, jobs, chunksize=1)[0]
    found |= {"latency_s": latency_s, "bytes_per_s": bytes_per_s, "pair": pair and asdict(pair)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found), encoding="utf-8")
    return _rates_of(found)


def _rates_of(values: dict[str, Any]) -> Rates:
    steps = tuple(
        StepPoint(**s | {"distinct": tuple(map(tuple, s["distinct"]))}) for s in values["steps"]
    )
    pair = values["pair"] and Pair(**values["pair"])
    return Rates(**values | {"steps": steps, "pair": pair})


def _cache_path(job: Job, points: Sequence[tuple[int, int]], pair_threads: int | None) -> Path:
    """A file for each machine, config and log."""
    sections = {"data", "model", "embedding", "optimizer", "train", "balancing", "seed"}
    key = {
        "machine": [platform.node(), os.cpu_count(), torch.__version__],
        "config": job.config.model_dump(mode="json", include=sections),
        "schema": job.schema.model_dump(mode="json"),
        "log": job.train.digest,
        "points": sorted(points),
        "pair": pair_threads,
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home, "raymtl", f"rates-{digest[:20]}.json")


def _measured(values: dict[str, Any], points: tuple[tuple[int, int], ...]) -> dict[str, Any]:
    """In a process of its own: memory, reading and steps."""
    import raymtl.launch  # noqa: F401  # what a worker has loaded

    job = check(parse(TrainConfig, values, "the config"))
    base = _status_bytes("VmRSS")
    read_s = _read_seconds(job)
    learner = Learner(job.config, _capped(job.schema), torch.device("cpu"))
    batches = _batches(job, learner)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM counts from here
    built = _status_bytes("VmRSS")
    steps = [_step_point(learner, batches, *point, built) for point in sorted(points)]
    return {
        "cores": os.cpu_count() or 1,
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "base_bytes": base,
        "num_dense": sum(p.numel() for p in learner.model.parameters()),
        "steps": [asdict(step) for step in steps],
        "read_s_per_row": read_s,
    }


def _capped(schema: LogSchema) -> LogSchema:
    """The schema with tables that any machine holds."""
    tables = [
        table.model_copy(update={"rows": min(table.num_rows, MOST_TABLE_ROWS)})
        for table in (schema.table(name) for name in schema.table_names)
    ]
    return schema.model_copy(update={"tables": tables})


def _read_seconds(job: Job) -> float:
    """Of one core for a row, median of some pieces."""
    order = order_of(job.config, job.train)
    stream = Stream(job.train, job.schema, order, Span(0, 1, 0, order.steps_per_epoch))
    found = []
    for piece in islice(stream.pieces(), _PIECES):
        start = time.perf_counter()
        stream.read(piece)
        found.append((time.perf_counter() - start) / piece.num_rows)
    return median(found)


def _batches(job: Job, learner: Learner) -> list[Batch]:
    """This rank's first whole batches, dealt over few lanes: few chunks are read for them."""
    config, num_lanes = job.config, job.config.data.num_lanes
    few = num_lanes if num_lanes % 2 else math.gcd(num_lanes, _LANES)
    data = config.data.model_copy(update={"num_lanes": few})
    source = LogSource(config.model_copy(update={"data": data}), job.schema, job.train, None)
    batches = list(source.train(0, min(_BATCHES, source.steps_per_epoch)))
    rows = {spec.name: spec.rows for spec in learner.tables.specs}
    rows_C = [rows[c.table] for c in learner.layout.id_columns for _ in range(c.width)]
    for batch in batches:
        folded_BC = batch.ids_BC % torch.tensor(rows_C, dtype=batch.ids_BC.dtype)
        batch.ids_BC = torch.where(batch.ids_BC < 0, batch.ids_BC, folded_BC)
    return batches


def _step_point(
    learner: Learner, batches: list[Batch], rows: int, threads: int, built_bytes: int
) -> StepPoint:
    torch.set_num_threads(threads)
    if learner.config.train.compile:
        torch.compiler.reset()  # what is compiled keeps its number of threads
    parts = [batch.head(rows) for batch in batches]
    seconds = _step_seconds(learner, parts)
    found = learner.tables.lookup(parts[0].ids_BC, learner.layout)
    return StepPoint(
        rows,
        threads,
        seconds,
        tuple(learner.tables.distinct(found)),
        max(0, _status_bytes("VmHWM") - built_bytes),
    )


def _step_seconds(learner: Learner, batches: list[Batch]) -> float:
    """Collective. Median of some steps."""
    times = []
    for number in range(_WARM_UP + _STEPS):
        batch = batches[number % len(batches)]
        start = time.perf_counter()
        sums = collectives.sum_(learner.local_sums(batch))
        float(learner.step(batch, sums, 0, 1).loss)
        times.append(time.perf_counter() - start)
    return median(times[_WARM_UP:])


def _together(
    rank: int, meeting: str, values: dict[str, Any], threads: int | None
) -> tuple[float, float, Pair | None]:
    """Collective. Latency of an exchange, bytes a second out of a rank, and a step of both."""
    torch.set_num_threads(1)
    with collectives.joined(rank, 2, meeting):
        small, large = (_exchange_seconds(size) for size in (_SMALL, _LARGE))
        pair = None if threads is None else _pair(values, threads)
    return small, (_LARGE - _SMALL) / max(large - small, 1e-9), pair


def _pair(values: dict[str, Any], threads: int) -> Pair:
    """Collective. A batch of the config shared out over both ranks."""
    job = check(parse(TrainConfig, values, "the config"))
    torch.set_num_threads(threads)
    learner = Learner(job.config, _capped(job.schema), torch.device("cpu"))
    batches = _batches(job, learner)
    return Pair(len(batches[0]), threads, _step_seconds(learner, batches))


def _exchange_seconds(size_bytes: int) -> float:
    """Collective. Median of exchanges in which a rank sends so many bytes to the other."""
    send, times = torch.zeros(2, size_bytes // 4), []
    for _ in range(_WARM_UP + _STEPS):
        collectives.barrier()
        start = time.perf_counter()
        collectives.exchange(send, [1, 1], [1, 1])
        times.append(time.perf_counter() - start)
    return median(times[_WARM_UP:])


def _status_bytes(name: str) -> int:
    """A line of /proc/self/status.

    Raises:
        InputError: this system has none.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError as error:
        raise InputError(
            "a plan cannot measure memory here",
            str(error),
            "Linux, whose /proc says how much a process holds",
            "run `raymtl plan` on a machine like those that will train",
        ) from None
    line = next(line for line in status.splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024
