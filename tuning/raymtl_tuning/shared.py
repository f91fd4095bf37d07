"""The decoded log in Ray's object store: decoded once, read by every trial of a node in place."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayTaskError

from raymtl.batch import Batch, Layout
from raymtl.data.decoded import DecodedLog, Part, decode_part, parts
from raymtl.data.ingest import row_bytes
from raymtl.data.log import LogIndex
from raymtl.data.stream import Arrays, Stream
from raymtl.errors import input_error_in
from raymtl.preflight import Job
from raymtl.progress import Show
from raymtl.schema import LogSchema
from raymtl.source import Read, read_batches

SHARE = 0.5
"""Most of a node's object store that decoded logs may take; the rest is for Ray Tune and others."""
PART_BYTES = 64 * 2**20
"""Decoded rows of one object."""


@dataclass(frozen=True)
class SharedLog:
    """One log's parts, and where they lie in the object store."""

    digest: str
    schema: LogSchema
    parts: tuple[Part, ...]
    refs: tuple[ray.ObjectRef, ...]


def share(jobs: Sequence[Job], show: Show) -> list[SharedLog]:
    """Decodes the logs of some jobs, each once, where the object store holds them.

    Args:
        show: told of what is shared, or why it is not.

    Returns:
        A log each; none where they are too large for every node's store.

    Raises:
        InputError: a row cannot be decoded.
    """
    logs: dict[str, tuple[LogIndex, LogSchema]] = {}
    for job in jobs:
        for index in filter(None, (job.train, job.valid)):
            logs[index.digest] = (index, job.schema)
    size = sum(index.num_rows * row_bytes(Layout.of(schema)) for index, schema in logs.values())
    room = SHARE * min(_stores())
    if size > room:
        show(
            f"each trial reads the log from its files: decoded it takes {size / 2**30:.1f} GiB, "
            f"and {room / 2**30:.1f} GiB is half of the smallest object store "
            "(base.launch.object_store_bytes sets it)"
        )
        return []
    shared = [_share(index, schema) for index, schema in logs.values()]
    _wait([ref for log in shared for ref in log.refs])
    show(f"decoded {len(logs)} logs into the object store: {size / 2**20:,.0f} MiB")
    return shared


def _stores() -> list[float]:
    """Bytes of each node's object store."""
    nodes: list[dict[str, Any]] = [node for node in ray.nodes() if node["Alive"]]
    return [node["Resources"].get("object_store_memory", 0.0) for node in nodes]


def _share(index: LogIndex, schema: LogSchema) -> SharedLog:
    cut = parts(index, max(1, PART_BYTES // row_bytes(Layout.of(schema))))
    given = ray.put((index, schema))
    refs = tuple(_decoded.remote(given, part) for part in cut)
    return SharedLog(index.digest, schema, tuple(cut), refs)


@ray.remote(num_cpus=1)
def _decoded(given: tuple[LogIndex, LogSchema], part: Part) -> Arrays:
    return decode_part(*given, part)


def _wait(refs: Sequence[ray.ObjectRef]) -> None:
    """Waits for all, and raises what decoding one of them raised."""
    waiting = list(refs)
    while waiting:
        done, waiting = ray.wait(waiting, num_returns=1, fetch_local=False)
        try:
            ray.get(done)
        except RayTaskError as error:
            raise (input_error_in(error) or error) from None


def reader(logs: Sequence[SharedLog]) -> Read:
    """Reads the shared logs in place, and any other from its files."""
    held: Mapping[str, DecodedLog] = {log.digest: _held(log) for log in logs}

    def read(stream: Stream) -> Iterator[Batch]:
        log = held.get(stream.index.digest)
        return log.read(stream) if log and log.holds(stream) else read_batches(stream)

    return read


def _held(log: SharedLog) -> DecodedLog:
    kept: dict[int, Arrays] = {}

    def arrays(number: int) -> Arrays:
        if number not in kept:
            kept[number] = ray.get(log.refs[number])
        return kept[number]

    return DecodedLog(log.digest, log.schema, log.parts, arrays)
