"""Whether reading keeps up: `raymtl train` on one worker beside the bare in-memory step loop.

    python benchmarks/ingest.py [--config small|shipped] [--precision fp32] [--rounds 5]

The same STEM-Net of step.py's sizes, batch size and number of step threads on both sides (`small`
one, which leaves a core to reading, `shipped` two); runs take turns. The bare loop trains in this
process on the log's first batches, read beforehand. Also rows/s of reading alone: the batches of
one rank, taken from the process that feeds it. Prints a table with the share of time that training
waited for data, and writes results/ingest-CONFIG.json. Issue: 90 % of the bare loop, waiting under
3 %.
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
from step import CONFIGS, config_of

from raymtl.cluster import session
from raymtl.config import LaunchSection, TrainConfig, parse
from raymtl.data import ingest
from raymtl.data.feed import feed
from raymtl.data.stream import Span, Stream
from raymtl.learner import Learner
from raymtl.preflight import Job, check
from raymtl.source import LogSource, order_of

NUM_BATCHES, STEPS = 16, 48


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", choices=CONFIGS, default="small")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    threads = 1 if arguments.config == "small" else 2
    with_malloc_settings(threads)
    torch.set_num_threads(threads)
    found: dict[str, list[float]] = {"bare": [], "train": [], "waiting": [], "reading": []}
    with tempfile.TemporaryDirectory() as folder:
        synth(Path(folder), arguments.rows)
        values = stem(Path(folder), 64, 1, threads_per_worker=threads)
        values["model"] = config_of(arguments.config, arguments.precision).model.model_dump()
        values["train"] |= {"precision": arguments.precision, "num_epochs": arguments.epochs}
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
    table.add_row("reading alone", f"{middle['reading']:,.0f}", "", "")
    Console().print(table)
    written(arguments.out, f"ingest-{arguments.config}", found)


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
    """Rows a second that a rank can be fed, the first batch left out."""
    order = order_of(job.config, job.train)
    stream = Stream(job.train, job.schema, order, Span(0, 1, 0, 4 * order.steps_per_epoch))
    with session(LaunchSection(num_workers=1)):
        share = ingest.Share(object_store_bytes=ingest.in_flight_bytes(order, stream.layout))
        batches = feed(stream, share)
        next(batches)
        start = time.perf_counter()
        rows = sum(len(fields["row_B"]) for fields in batches)
        return rows / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
