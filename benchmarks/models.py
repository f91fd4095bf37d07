"""Rows a second of every registered model on in-memory batches, with its own defaults.

    python benchmarks/models.py [--rows 1000000] [--threads 2] [--rounds 5] [--models stem mmoe]

The batches and tables of step.py; models that need what these have not (a chain of tasks,
sequences) are named and left out. With --compiled every model runs by `train.compile` too: what
`gains_compiled` rests on. Contenders take turns. Prints a table and writes results/models.json.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from interleaved import seconds_of, with_malloc_settings, written
from rich.console import Console
from rich.table import Table
from step import BATCH, config_of, random_batch, schema_of

from raymtl.config import TrainConfig, override, parse
from raymtl.errors import InputError
from raymtl.learner import Learner
from raymtl.models import registry


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--least-s", type=float, default=0.5)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--models", nargs="+", default=registry.names())
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    with_malloc_settings(arguments.threads)
    torch.set_num_threads(arguments.threads)
    contenders, left_out = {}, {}
    for name in arguments.models:
        try:
            contenders[name] = _steps(name, arguments.rows, arguments.precision, False)
            if arguments.compiled:
                made = _steps(name, arguments.rows, arguments.precision, True)
                contenders[f"{name} compiled"] = made
        except InputError as error:
            left_out[name] = error.what
    # Of one process; models share the code of their forward.
    torch._dynamo.config.recompile_limit = 100
    seconds = seconds_of(contenders, arguments.rounds, arguments.least_s)
    table = Table(
        "model", "ms", "rows/s", title=f"batch {BATCH}, {arguments.rows:,} rows of tables"
    )
    for name, s in sorted(seconds.items(), key=lambda item: item[1]):
        table.add_row(name, f"{s * 1e3:.1f}", f"{BATCH / s:,.0f}")
    Console().print(table)
    for name, why in left_out.items():
        print(f"left out: {name}: {why}")
    result = {"threads": arguments.threads, "seconds": seconds, "left_out": left_out}
    written(arguments.out, "models", result)


def _steps(name: str, rows: int, precision: str, compiled: bool) -> Callable[[], object]:
    base = config_of("small", precision, compiled).model_dump(mode="json") | {
        "model": {"name": name}
    }
    config = parse(TrainConfig, override(base, []), "the benchmark")
    registry.require_fit(config.model, schema_of(rows), config.embedding.width)
    learner = Learner(config, schema_of(rows), torch.device("cpu"))
    batches = [random_batch(rows, seed) for seed in range(4)]
    turn = 0

    def step() -> None:
        nonlocal turn
        batch, turn = batches[turn % len(batches)], turn + 1
        float(learner.step(batch, learner.local_sums(batch), turn, 10**6).loss)

    return step


if __name__ == "__main__":
    main()
