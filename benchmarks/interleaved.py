"""Timing several contenders in one run: rounds that take turns, medians, one malloc setting."""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "67108864",
    "THP_MEM_ALLOC_ENABLE": "1",
}
"""Keeps memory once it was got from the system, and asks for huge pages; read at a process's start.
Both sides of every comparison have it."""


def with_malloc_settings(threads: int) -> None:
    """Starts this program anew where it lacks the settings or the number of threads."""
    wanted = MALLOC | {"OMP_NUM_THREADS": str(threads)}
    if any(os.environ.get(key) != value for key, value in wanted.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | wanted)


def seconds_of(
    contenders: Mapping[str, Callable[[], object]],
    rounds: int,
    least_s: float = 1.0,
    repeats: int | None = None,
) -> dict[str, float]:
    """Median seconds of one call of each contender.

    Args:
        contenders: what is timed; each is called once beforehand.
        rounds: turns that each gets.
        least_s: a turn repeats its call until this time has gone by.
        repeats: calls of a turn instead; contenders on several ranks must say it.
    """
    counts = {}
    for name, call in contenders.items():
        call()
        once = _timed(call, 1)
        counts[name] = repeats or max(1, round(least_s / once))
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            found[name].append(_timed(call, counts[name]))
    return {name: statistics.median(times) for name, times in found.items()}


def _timed(call: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def written(folder: Path, name: str, result: object) -> None:
    """Writes a benchmark's result as JSON and says where."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"written to {path}")
