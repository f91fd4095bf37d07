"""A rank's batches from a process beside it, where Ray Data's blocks are put together.

In the training process Ray Data's loop, its threads and the cutting of blocks would take Python's
lock, which every operation of a training step needs.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError, RayTaskError

from raymtl.data.ingest import Share, dataset, iterate
from raymtl.data.lanes import Fields
from raymtl.data.reading import step_back
from raymtl.data.stream import Stream
from raymtl.errors import input_error_in, one_line

BATCHES_AHEAD = 2
"""Batches that wait in the object store for their rank."""


def feed(
    stream: Stream,
    share: Share,
    prefetch_chunks: int = 4,
    warn: Callable[[str], None] = warnings.warn,
    timeout_s: float | None = None,
) -> Iterator[Fields]:
    """What `ingest.iterate` gives, from a process of its own, which ends with this iterator.

    Where that process dies, another goes on with the batch that is owed, unless it gave none. One
    that hangs ends with the process that asked it: that one is to fail, and a run to go on anew.

    Args:
        warn: told of such a death.
        timeout_s: the longest that one batch may take; null: any time.

    Raises:
        InputError: as the reading task raised it.
        RayError: the process died before its first batch.
        TimeoutError: a batch took too long.
    """
    span = stream.span
    step = begun = span.start_step
    while step < span.stop_step:
        owed = replace(stream, span=replace(span, start_step=step))
        try:
            for fields in _given(owed, share, prefetch_chunks, timeout_s):
                step = fields["step"] + 1
                yield fields
        except RayTaskError as error:
            raise (input_error_in(error) or error) from None
        except RayError as error:
            if step == begun:
                raise
            warn(
                f"the process that feeds rank {span.rank} died, another goes on from step {step}: "
                f"{one_line(error)}"
            )
            begun = step


def _given(
    stream: Stream, share: Share, prefetch_chunks: int, timeout_s: float | None
) -> Iterator[Fields]:
    """The batches of one process."""
    options: dict[str, Any] = {
        "name": f"feed of rank {stream.span.rank}",
        "num_cpus": 0,
        "max_retries": 0,
        "num_returns": "streaming",
        "_generator_backpressure_num_objects": BATCHES_AHEAD,
    }
    work = ray.remote(_feeding).options(**options, **share.near())
    given: Any = work.remote(stream, share, prefetch_chunks)
    step = stream.span.start_step
    try:
        while ray.wait([given], timeout=timeout_s)[0]:
            if (ref := next(given, None)) is None:
                return
            fields = _own(ray.get(ref))
            step = fields["step"] + 1
            yield fields
        raise TimeoutError(
            f"the process that feeds rank {stream.span.rank} gave no batch of step {step} for "
            f"{timeout_s:.0f} s: it hangs, or storage is slow, then raise failure.hang_timeout_s"
        )
    except GeneratorExit:
        # After its last batch the process ends its work by itself, and may do other work then.
        if step < stream.span.stop_step and ray.is_initialized():
            ray.cancel(given, force=True)
        raise


def _feeding(stream: Stream, share: Share, prefetch_chunks: int) -> Iterator[Fields]:
    step_back()
    yield from iterate(dataset(stream, share), stream, prefetch_chunks)


def _own(value: Any) -> Any:
    """With arrays of this process: a view would hold the object store's."""
    if isinstance(value, dict):
        return {name: _own(inner) for name, inner in value.items()}
    return value.copy() if isinstance(value, np.ndarray) else value
