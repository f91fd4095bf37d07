"""Latency of an exported artifact's scorer at 1, 100 and 1,000 rows a request.

    python benchmarks/score.py [--users 200000] [--items 100000] [--threads 1]

Writes a generated log with an id, bag, sequence and numeric features, trains the shipped configs
`stem` and `shared_bottom` on it for two steps (latency does not depend on the weights), exports
them, and scores requests of plain Python lists, from the first column's check to the last task's
array. Requests of all sizes take turns. Prints a table and writes results/score.json.
"""

import argparse
import json
import tempfile
import time
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from interleaved import with_malloc_settings
from rich.console import Console
from rich.table import Table

from raymtl import alone
from raymtl.artifact.export import export
from raymtl.config import TrainConfig
from raymtl.data.synthetic import SynthConfig, write_log
from raymtl.scorer import Scorer
from raymtl_jobs import names

MODELS = ("stem", "shared_bottom")
SIZES = (1, 100, 1000)
WARM_UP = 20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", type=int, default=200_000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--calls", type=int, default=1000, help="calls at each size")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    with_malloc_settings(arguments.threads)
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        log = SynthConfig(rows=40_000, num_users=arguments.users, num_items=arguments.items)
        write_log(log, folder)
        results = {name: _measured(name, folder, arguments.calls) for name in MODELS}
    Console().print(_table(results))
    arguments.out.mkdir(parents=True, exist_ok=True)
    written = arguments.out / "score.json"
    settings = {k: v for k, v in vars(arguments).items() if k != "out"}
    written.write_text(json.dumps({"settings": settings, "models": results}, indent=1) + "\n")
    print(f"written to {written}")


def _measured(name: str, folder: str, calls: int) -> dict[str, Any]:
    """Milliseconds of `Scorer.score` by rows a request, and what loading took."""
    overrides = [f"data.train={folder}/train", f"storage={folder}/runs", "train.max_steps=2"]
    run = alone.train(names.load(TrainConfig, name, overrides, "train"))["run"]
    result = export(run, f"{folder}/{name}")
    start = time.perf_counter()
    scorer = Scorer(result["out"])
    load_s = time.perf_counter() - start
    requests = {size: cycle(_requests(scorer, folder, size)) for size in SIZES}
    times: dict[int, list[float]] = {size: [] for size in SIZES}
    for number in range(calls + WARM_UP):
        for size in SIZES:
            request = next(requests[size])
            start = time.perf_counter()
            scorer.score(request)
            if number >= WARM_UP:
                times[size].append((time.perf_counter() - start) * 1000)
    found = {
        str(size): {"median_ms": float(np.median(t)), "p99_ms": float(np.percentile(t, 99))}
        for size, t in times.items()
    }
    return {"latency": found, "load_s": load_s, "size_bytes": result["size_bytes"]}


def _requests(scorer: Scorer, folder: str, size: int) -> list[dict[str, list[Any]]]:
    """Rows of the test part, cut to requests."""
    rows = pq.read_table(sorted(Path(folder, "test").glob("part-*.parquet")))
    columns = {name: rows[name].to_pylist() for name in scorer.columns()}
    starts = range(0, min(rows.num_rows - size + 1, 200 * size), size)
    return [{name: values[a : a + size] for name, values in columns.items()} for a in starts]


def _table(results: dict[str, Any]) -> Table:
    table = Table(
        "rows a request", *(f"{name}, {what}" for name in MODELS for what in ("median", "p99"))
    )
    for size in SIZES:
        cells = [
            f"{results[name]['latency'][str(size)][what]:.2f} ms"
            for name in MODELS
            for what in ("median_ms", "p99_ms")
        ]
        table.add_row(f"{size:,}", *cells)
    return table


if __name__ == "__main__":
    main()
