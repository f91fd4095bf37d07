"""How fast a step's matrix products run, beside the same products alone.

    python benchmarks/products.py [--config shipped|small] [--precision bf16] [--threads 2]

The products of step.py's training step, found by torch's profiler with their shapes; then each
shape alone, on tensors of its own, as often as the step has it. Rates are operations over seconds.
Steps and lone products take turns. Prints a table and writes results/products-CONFIG.json. Issue:
60 % of the rate alone.
"""

import argparse
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from interleaved import seconds_of, with_malloc_settings, written
from rich.console import Console
from rich.table import Table
from step import BATCH, CONFIGS, config_of, random_batch, schema_of
from torch.profiler import ProfilerActivity, profile

from raymtl.learner import Learner

Shape = tuple[int, int, int, int]
"""(G, M, K, N) of G products (M, K) x (K, N)."""
STEPS = 3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", choices=CONFIGS, default="shipped")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    with_malloc_settings(arguments.threads)
    torch.set_num_threads(arguments.threads)
    step = _step(arguments.config, arguments.precision, arguments.rows)
    for _ in range(2):
        step()
    dtype = torch.bfloat16 if arguments.precision == "bf16" else torch.float32
    inside, alone, whole, shapes = [], [], [], Counter[Shape]()
    for _ in range(arguments.rounds):
        seconds, shapes = _products(step)
        inside.append(seconds)
        alone.append(sum(_alone(shape, dtype) * count for shape, count in shapes.items()))
        whole.append(seconds_of({"step": step}, 1, repeats=STEPS)["step"])
    operations = sum(2 * g * m * k * n * c for (g, m, k, n), c in shapes.items())
    table = Table("what", "ms", "10^9 operations/s", title=f"{len(shapes)} shapes, batch {BATCH}")
    found = {"alone": median(alone), "in the step": median(inside), "whole step": median(whole)}
    for name, s in found.items():
        table.add_row(name, f"{s * 1e3:.1f}", f"{operations / s / 1e9:,.0f}")
    Console().print(table)
    result = {"operations": operations, "seconds": found}
    written(arguments.out, f"products-{arguments.config}", result)


def _step(config: str, precision: str, rows: int) -> Callable[[], object]:
    learner = Learner(config_of(config, precision), schema_of(rows), torch.device("cpu"))
    batch = random_batch(rows, 0)
    return lambda: float(learner.step(batch, learner.local_sums(batch), 0, 10_000).loss)


def _products(step: Callable[[], object]) -> tuple[float, Counter[Shape]]:
    """Seconds that a step spends in products, and their shapes."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled:
        for _ in range(STEPS):
            step()
    events: Any = profiled.key_averages(group_by_input_shape=True)
    products = [e for e in events if e.key == "aten::bmm"]
    shapes: Counter[Shape] = Counter()
    for event in products:
        (groups, m, k), (_, _, n) = event.input_shapes[:2]
        shapes[groups, m, k, n] += event.count // STEPS
    return sum(e.self_cpu_time_total for e in products) / 1e6 / STEPS, shapes


def _alone(shape: Shape, dtype: torch.dtype) -> float:
    groups, m, k, n = shape
    left, right = torch.randn(groups, m, k).to(dtype), torch.randn(groups, k, n).to(dtype)
    return seconds_of({"product": lambda: torch.bmm(left, right)}, 3, repeats=3)["product"]


if __name__ == "__main__":
    main()
