"""How long training waits for a checkpoint: its share of the time at one a minute.

    python benchmarks/checkpoint.py [--rows 1000000 4000000] [--rounds 5]

Trains `small` of step.py on in-memory batches with the trainer's own saver. A save is the snapshot
that training waits for, and the write beside it. Steps are timed while nothing is written and while
a save is under way, in turns: what the writing thread takes from them counts as waiting too. Prints
a table and writes results/checkpoint.json; issue: at most 5 % at one checkpoint a minute.
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from interleaved import with_malloc_settings, written
from rich.console import Console
from rich.table import Table
from step import config_of, random_batch, schema_of

from raymtl.learner import Learner
from raymtl.metrics import TrainingHistograms
from raymtl.run import Run
from raymtl.saving import Saver

MINUTE_S = 60.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 4_000_000])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    with_malloc_settings(arguments.threads)
    torch.set_num_threads(arguments.threads)
    found = {rows: measured(rows, arguments.rounds) for rows in arguments.rows}
    table = Table("rows", "MB", "snapshot ms", "write s", "step ms", "beside a write", "% waited")
    for rows, f in found.items():
        ms = [f"{f[name] * 1e3:.1f}" for name in ("snapshot_s", "step_s", "step_beside_s")]
        share = f"{100 * f['share']:.2f}"
        size = f"{f['bytes'] / 1e6:,.0f}"
        table.add_row(f"{rows:,}", size, ms[0], f"{f['write_s']:.2f}", *ms[1:], share)
    Console().print(table)
    written(arguments.out, "checkpoint", found)


def measured(rows: int, rounds: int) -> dict[str, float]:
    config, schema = config_of("small", "fp32"), schema_of(rows)
    learner = Learner(config, schema, torch.device("cpu"))
    window = TrainingHistograms(learner.layout.task_names, learner.kinds, 4096)
    batches = [random_batch(rows, seed) for seed in range(8)]
    sizes: list[float] = []
    times: dict[str, list[float]] = {name: [] for name in ("snapshot", "write", "step", "beside")}
    with tempfile.TemporaryDirectory() as folder:
        saver = Saver(Run(f"{folder}/run"), learner, "no log")
        for turn in range(rounds + 1):
            alone = [_step(learner, batches[i % 8]) for i in range(20)]
            start = time.perf_counter()
            saver.start(turn, {}, window, None)
            snapshot = time.perf_counter() - start
            beside = []
            while not saver.written:
                beside.append(_step(learner, batches[len(beside) % 8]))
            write = time.perf_counter() - start - snapshot
            saver.complete(lambda: None)
            if turn:
                files = Path(folder, "run", "checkpoints", f"step-{turn:08}").iterdir()
                sizes.append(sum(f.stat().st_size for f in files))
                times["snapshot"].append(snapshot)
                times["write"].append(write)
                times["step"] += alone
                times["beside"].append(sum(beside) / max(1, len(beside)))
    middle = {name: median(values) for name, values in times.items()}
    slowed = max(0.0, 1 - middle["step"] / middle["beside"]) * middle["write"]
    return {
        "bytes": median(sizes),
        "snapshot_s": middle["snapshot"],
        "write_s": middle["write"],
        "step_s": middle["step"],
        "step_beside_s": middle["beside"],
        "share": (middle["snapshot"] + slowed) / MINUTE_S,
    }


def _step(learner: Learner, batch: object) -> float:
    start = time.perf_counter()
    float(learner.step(batch, learner.local_sums(batch), 0, 10_000).loss)  # pyright: ignore
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
