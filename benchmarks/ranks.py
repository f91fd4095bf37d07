"""A function on processes that form one gloo group, a core and a thread each, for benchmarks."""

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist


def on_ranks(
    function: Callable[..., Any], world_size: int, *arguments: Any, first_core: int = 0
) -> list[Any]:
    """What an importable function returns on each rank, in rank order.

    Rank r runs on core `first_core` + r alone (modulo their number) with one torch thread.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, context.Pool(world_size) as pool:
        meeting = f"file://{folder}/meeting"
        jobs = [
            (function, r, world_size, meeting, first_core, arguments) for r in range(world_size)
        ]
        return pool.map(_run, jobs, chunksize=1)


def _run(job: tuple) -> Any:
    function, rank, world_size, meeting, first_core, arguments = job
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[(first_core + rank) % len(cores)]})
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world_size)
    try:
        return function(*arguments)
    finally:
        dist.destroy_process_group()
