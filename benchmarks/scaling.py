"""One and two rank processes, a core and a thread each, on in-memory batches.

    python benchmarks/scaling.py [--config small|shipped] [--precision bf16] [--compiled]
        [--wire bf16]

As training does it: the next batch's rows are asked for beside a step. Weak: 4,096 rows a rank;
strong: 4,096 in all. Also the bytes that rank 0 sends in a step, counted in `collectives`, beside
the formula of docs/operations.md.
The sizes cannot share a process group, so they take turns as groups: `--turns` of each, and one
rank has another core at each turn, for cores differ. Prints a table and writes
results/scaling-CONFIG.json.
"""

import argparse
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

import torch
from interleaved import seconds_of, with_malloc_settings, written
from ranks import on_ranks
from rich.console import Console
from rich.table import Table
from step import BATCH, CONFIGS, config_of, random_batch, schema_of

from raymtl import collectives
from raymtl.ahead import Ahead
from raymtl.analysis.plan import exchange
from raymtl.analysis.rates import StepPoint
from raymtl.learner import Learner


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", choices=CONFIGS, default="small")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--wire", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    with_malloc_settings(1)
    found: dict[str, list[dict[str, Any]]] = {}
    for turn in range(arguments.turns):
        for world_size, rows in ((1, BATCH), (2, BATCH), (2, BATCH // 2)):
            how = arguments.config, arguments.precision, arguments.compiled, arguments.wire
            sizes = arguments.rows, rows, arguments.rounds
            ranks = on_ranks(measured, world_size, how, *sizes, first_core=turn)
            found.setdefault(f"{world_size} x {rows}", []).append(ranks[0])
    seconds = {name: median(f["seconds"] for f in turns) for name, turns in found.items()}
    one, weak, strong = seconds.values()
    table = Table("ranks x rows", "ms", "rows/s", "x one rank", "MB sent", "formula")
    for name, s in seconds.items():
        world_size, rows = (int(n) for n in name.split(" x "))
        per_s, last = world_size * rows / s, found[name][-1]
        sent = [f"{last[key] / 1e6:.3f}" for key in ("sent_bytes", "formula_bytes")]
        table.add_row(name, f"{s * 1e3:.1f}", f"{per_s:,.0f}", f"{per_s * one / BATCH:.2f}", *sent)
    Console().print(table)
    ratios = {"weak": 2 * one / weak, "strong": one / strong}
    written(arguments.out, f"scaling-{arguments.config}", {"ratios": ratios, "turns": found})


def measured(how: tuple, table_rows: int, rows: int, rounds: int) -> dict[str, float]:
    """Collective. Median seconds of a step of `config_of(*how)`, and the bytes out of this rank."""
    config = config_of(*how)
    learner = Learner(config, schema_of(table_rows), torch.device("cpu"))
    first = 100 * collectives.rank()
    batches = [random_batch(table_rows, first + n).head(rows) for n in range(8)]
    sums = collectives.sum_(learner.local_sums(batches[0]))
    sent = _bytes_of(lambda: learner.step(batches[0], sums, 0, 10_000))
    counted = learner.tables.distinct(learner.tables.lookup(batches[0].ids_BC, learner.layout))
    num_dense = sum(p.numel() for p in learner.model.parameters())
    point = StepPoint(rows, 1, 0.0, tuple(counted), 0)
    world_size = collectives.world_size()
    formula, _ = exchange(point, num_dense, world_size, learner.config.embedding)
    with Ahead(learner, cycle(batches), timeout_s=600) as ahead:
        ahead.begin()

        def step() -> None:
            found = ahead.take()
            ahead.begin()
            learner.step(found.batch, found.sums, 0, 10_000, found.asked)

        # The same number of calls on every rank, whatever their clocks say.
        seconds = seconds_of({"step": step}, rounds, repeats=10)["step"]
    return {"seconds": seconds, "sent_bytes": sent, "formula_bytes": formula}


def _bytes_of(step: Any) -> float:
    """Collective. What one step sends to other ranks; an all-reduce counts as a ring's."""
    sent, exchange_, sum_ = 0.0, collectives.begin_exchange, collectives.sum_
    rank, world_size = collectives.rank(), collectives.world_size()

    def counted_exchange(send: torch.Tensor, sizes: list[int], *rest: Any, **named: Any) -> Any:
        nonlocal sent
        row_bytes = send.nbytes / max(1, len(send))
        sent += row_bytes * sum(n for r, n in enumerate(sizes) if r != rank)
        return exchange_(send, sizes, *rest, **named)

    def counted_sum(tensor: torch.Tensor, *rest: Any) -> torch.Tensor:
        nonlocal sent
        sent += 2 * tensor.nbytes * (world_size - 1) / world_size
        return sum_(tensor, *rest)

    collectives.begin_exchange, collectives.sum_ = counted_exchange, counted_sum
    try:
        step()
    finally:
        collectives.begin_exchange, collectives.sum_ = exchange_, sum_
    return sent


if __name__ == "__main__":
    main()
