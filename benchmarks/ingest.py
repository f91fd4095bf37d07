"""Whether reading keeps up: `raymtl train` on one worker beside the bare in-memory step loop.

    python benchmarks/ingest.py [--rows 400000] [--rounds 5]

The same STEM-Net and batch size, one step thread on both sides; runs take turns. The bare loop
trains in this process on the log's first batches, read beforehand. Also rows/s of Ray Data alone:
one rank's stream iterated without training. Prints a table with the share of time that training
waited for data, and writes results/ingest.json. Issue: 90 % of the bare loop, waiting under 3 %.
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
from runs import stem, synth, trained

from raymtl.cluster import session
from raymtl.config import LaunchSection, TrainConfig, parse
from raymtl.data import ingest
from raymtl.data.stream import Span, Stream
from raymtl.learner import Learner
from raymtl.preflight import Job, check
from raymtl.source import LogSource, order_of

NUM_BATCHES, STEPS = 16, 48


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    with_malloc_settings(1)
    torch.set_num_threads(1)
    found: dict[str, list[float]] = {"bare": [], "train": [], "waiting": [], "reading": []}
    with tempfile.TemporaryDirectory() as folder:
        synth(Path(folder), arguments.rows)
        values = stem(Path(folder), arguments.width, 1, threads_per_worker=1)
        job = check(parse(TrainConfig, values, "the benchmark"))
        for _ in range(arguments.rounds):
            found["bare"].append(_bare(job))
            run = trained(Path(folder), values)
            found["train"].append(run["rows_per_s"])
            found["waiting"].append(run["waiting"])
            found["reading"].append(_reading(job))
    middle = {name: median(values) for name, values in found.items()}
    table = Table("what", "rows/s", "of the bare loop", "waiting for data")
    table.add_row("bare step loop", f"{middle['bare']:,.0f}", "1.00", "")
    share = f"{middle['train'] / middle['bare']:.2f}"
    table.add_row("raymtl train", f"{middle['train']:,.0f}", share, f"{middle['waiting']:.1%}")
    table.add_row("Ray Data alone", f"{middle['reading']:,.0f}", "", "")
    Console().print(table)
    written(arguments.out, "ingest", found)


def _bare(job: Job) -> float:
    """Rows a second of steps on batches in memory."""
    learner = Learner(job.config, job.schema, torch.device("cpu"))
    batches = list(LogSource(job.config, job.schema, job.train, None).train(0, NUM_BATCHES))
    for batch in batches[:3]:
        learner.step(batch, learner.local_sums(batch), 0, STEPS)
    start = time.perf_counter()
    for number in range(STEPS):
        batch = batches[number % NUM_BATCHES]
        learner.step(batch, learner.local_sums(batch), number, STEPS)
    return STEPS * job.config.train.global_batch_size / (time.perf_counter() - start)


def _reading(job: Job) -> float:
    """Rows a second of a rank's stream through Ray Data, the first batch left out."""
    order = order_of(job.config, job.train)
    stream = Stream(job.train, job.schema, order, Span(0, 1, 0, 4 * order.steps_per_epoch))
    with session(LaunchSection(num_workers=1)):
        share = ingest.Share(object_store_bytes=ingest.in_flight_bytes(order, stream.layout))
        batches = ingest.iterate(ingest.dataset(stream, share), stream)
        next(batches)
        start = time.perf_counter()
        rows = sum(len(batch) for batch in batches)
        return rows / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
