"""Lookup and row-wise Adagrad update of large tables, beside TorchRec's CPU path where it is there.

    python benchmarks/tables.py [--world-sizes 1 2] [--rounds 7]

20 features, a table of a million rows each, three views of 16 floats; Zipf ids, 4,096 rows a rank.
A call looks up a batch, takes the gradient of its pooled rows as given and updates the tables. At
W = 1 TorchRec is fbgemm's own operator, at W = 2 its row-wise sharding; both with 20 tables of
width 48, which hold as much but share one accumulator a row, and with 60 tables of width 16. Ranks
have a core and a thread each. Prints a table and writes results/tables.json. TorchRec is no
dependency; install it by hand in an environment of its own (docs/log.md has the commands).
"""

import argparse
import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from interleaved import with_malloc_settings, written
from ranks import on_ranks
from rich.console import Console
from rich.table import Table
from step import batch_of
from torch import Tensor

from raymtl import collectives
from raymtl.batch import Batch, InputShape, Layout
from raymtl.config import EmbeddingSection, RowOptimizerSection
from raymtl.embedding import optimizers
from raymtl.embedding.fields import assemble
from raymtl.embedding.sharded import ShardedTables
from raymtl.embedding.tables import table_specs
from raymtl.schema import LogSchema

FEATURES, VIEWS, WIDTH, BATCH, NUM_BATCHES, LR = 20, 3, 16, 4096, 8, 0.02
ZIPF = 1.1
"""Exponent of the ids' popularity."""
Calls = dict[str, Callable[[], object]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--world-sizes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    with_malloc_settings(1)
    found = {}
    for world_size in arguments.world_sizes:
        per_rank = on_ranks(
            measured, world_size, arguments.rows, arguments.rounds, arguments.repeats
        )
        found[world_size] = {name: max(r[name] for r in per_rank) for name in per_rank[0]}
    Console().print(_table(found))
    written(arguments.out, "tables", {"rows": arguments.rows, "seconds": found})


def measured(rows: int, rounds: int, repeats: int) -> dict[str, float]:
    """Collective. Median seconds of a call of each contender, which take turns."""
    calls = {"raymtl": _ours(rows)}
    if importlib.util.find_spec("torchrec") and importlib.util.find_spec("fbgemm_gpu"):
        from torchrec_tables import torchrec_call

        for tables, width in ((FEATURES, VIEWS * WIDTH), (FEATURES * VIEWS, WIDTH)):
            made = torchrec_call(rows, tables, width, LR, _batches(rows), _gradient())
            calls[f"torchrec {tables} x {width}"] = made
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            collectives.barrier()
            start = time.perf_counter()
            for _ in range(repeats):
                call()
            collectives.barrier()
            if turn:
                times[name].append((time.perf_counter() - start) / repeats)
    return {name: median(seconds) for name, seconds in times.items()}


def _batches(rows: int) -> list[Tensor]:
    rng = np.random.default_rng(collectives.rank())
    shape = (BATCH, FEATURES)
    return [torch.from_numpy((rng.zipf(ZIPF, shape) - 1) % rows) for _ in range(NUM_BATCHES)]


def _gradient() -> Tensor:
    """Of the pooled rows, as they lie in memory: (B, F * V * D), ours read as (V, B, F, D)."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(BATCH, FEATURES * VIEWS * WIDTH, generator=generator) / BATCH


def _ours(rows: int) -> Callable[[], object]:
    schema = _schema(rows)
    layout = Layout.of(schema)
    specs = table_specs(schema, InputShape.of(layout, WIDTH, task_specific=True))
    tables = ShardedTables(specs, EmbeddingSection(width=WIDTH, init_std=0), seed=0)
    optimizer = optimizers.build(RowOptimizerSection(lr=LR), tables)
    batches = [_batch(ids) for ids in _batches(rows)]
    gradient = _gradient().view(VIEWS, BATCH, FEATURES, WIDTH).transpose(0, 1)
    turn = iter(range(10**9))

    def call() -> None:
        batch = batches[next(turn) % len(batches)]
        found = tables.lookup(batch.ids_BC, layout)
        assemble(found, batch, layout, VIEWS, WIDTH).views_BVFD.backward(gradient)
        optimizer.step(tables.collect(found), scale=1.0, factor=1.0)

    return call


def _batch(ids: Tensor) -> Batch:
    batch = batch_of(ids.numpy(), torch.zeros(BATCH, VIEWS - 1).numpy())
    batch.ids_BC = batch.ids_BC.to(torch.int32)  # as decoded
    return batch


def _schema(rows: int) -> LogSchema:
    names = [f"f{n}" for n in range(FEATURES)]
    return LogSchema.model_validate(
        {
            "features": [{"name": n, "kind": "categorical", "encoding": "index"} for n in names],
            "tables": [{"name": n, "rows": rows} for n in names],
            "tasks": [{"name": f"t{n}", "label": f"t{n}"} for n in range(VIEWS - 1)],
        }
    )


def _table(found: dict[int, dict[str, float]]) -> Table:
    table = Table("ranks", "contender", "ms", "x raymtl's time", title="lookup and update")
    for world_size, seconds in found.items():
        for name, s in seconds.items():
            ratio = f"{s / seconds['raymtl']:.2f}"
            table.add_row(str(world_size), name, f"{s * 1e3:.2f}", ratio)
    return table


if __name__ == "__main__":
    main()
