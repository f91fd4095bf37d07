"""One training step in memory: ours beside plain PyTorch that trains whole tables.

    python benchmarks/step.py [--config shipped|small] [--rows 1000000 4000000] [--threads 2]
    python benchmarks/step.py --rows 1000000 40000000 --contenders "raymtl bf16"

Contenders take turns in one process, with the same threads and malloc settings: raymtl's step at
W = 1 (where collectives are the identity, so it is the local one as well) in fp32 and bf16, plain
and with `train.compile`, and `dense_stem.py` in both. Rows are those of all eight tables together;
ids follow Zipf's law. The reference is left out where its tables, gradients and Adam's state would
not fit --memory. Prints a table and the process's peak, and writes results/step-CONFIG.json.
"""

import argparse
import json
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from dense_stem import DenseStem, DenseTraining
from interleaved import seconds_of, with_malloc_settings
from rich.console import Console
from rich.table import Table

from raymtl.batch import Batch
from raymtl.config import TrainConfig, parse
from raymtl.learner import Learner
from raymtl.schema import LogSchema

CONFIGS = {
    "shipped": {"num_shared": 8, "expert": [512, 512, 512], "gate": [128, 64], "tower": [128, 64]},
    "small": {"num_shared": 1, "expert": [64, 64], "gate": [32], "tower": [32]},
}
CONTENDERS = ["raymtl fp32", "raymtl bf16", "raymtl fp32 compiled", "raymtl bf16 compiled"]
CONTENDERS += ["dense fp32", "dense bf16"]
BATCH, WIDTH, NUM_FIELDS, TASKS, NUM_BATCHES = 4096, 16, 8, ("finish", "like"), 16
ZIPF = 1.1
"""Exponent of the ids' popularity."""
BYTES_OF_DENSE_ROW = (len(TASKS) + 1) * WIDTH * 4 * 5.5
"""Of the reference, by its authors' step: values, Adam's two states, gradients and temporaries."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", choices=CONFIGS, default="small")
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000, 4_000_000])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    parser.add_argument("--memory", type=float, default=16e9, help="bytes the reference may take")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    with_malloc_settings(arguments.threads)
    torch.set_num_threads(arguments.threads)
    results = {}
    for rows in arguments.rows:
        fits = rows * BYTES_OF_DENSE_ROW * 2 <= arguments.memory
        chosen = [n for n in arguments.contenders if fits or not n.startswith("dense")]
        batches = [random_batch(rows, seed) for seed in range(NUM_BATCHES)]
        contenders = {n: _contender(n, arguments.config, rows, batches) for n in chosen}
        results[rows] = seconds_of(contenders, arguments.rounds)
        del contenders
    Console().print(_table(arguments.config, results))
    arguments.out.mkdir(parents=True, exist_ok=True)
    written = arguments.out / f"step-{arguments.config}.json"
    settings = {"threads": arguments.threads, "batch": BATCH, "zipf": ZIPF}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"peak of this process: {peak / 1e9:.1f} GB")
    result = {"settings": settings, "seconds": results, "peak_bytes": peak}
    written.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {written}")


def _contender(name: str, config: str, rows: int, batches: list[Batch]) -> Callable[[], object]:
    kind, precision, *compiled = name.split()
    if kind == "raymtl":
        chosen = config_of(config, precision, bool(compiled))
        learner = Learner(chosen, schema_of(rows), torch.device("cpu"))
        return _turns(batches, lambda batch: _step(learner, batch))
    sizes = CONFIGS[config]
    widths = sizes["expert"], sizes["gate"], sizes["tower"]
    model = DenseStem(table_rows(rows), WIDTH, len(TASKS), (1, sizes["num_shared"]), *widths)
    dense = DenseTraining(model, precision == "bf16")
    return _turns(batches, lambda batch: dense.step(batch.ids_BC.long(), batch.labels_BT))


def _turns(batches: list[Batch], step: Callable[[Batch], object]) -> Callable[[], object]:
    """A call that takes the batches one after the other."""
    place = 0

    def call() -> object:
        nonlocal place
        place = (place + 1) % len(batches)
        return step(batches[place])

    return call


def _step(learner: Learner, batch: Batch) -> float:
    return float(learner.step(batch, learner.local_sums(batch), 0, 10_000).loss)


def table_rows(rows: int) -> list[int]:
    """Rows of each table."""
    return [rows // NUM_FIELDS] * NUM_FIELDS


def schema_of(rows: int) -> LogSchema:
    """Fields by index, a table each, two binary tasks."""
    sizes = enumerate(table_rows(rows))
    return LogSchema.model_validate(
        {
            "features": [
                {"name": f"f{n}", "kind": "categorical", "encoding": "index"}
                for n in range(NUM_FIELDS)
            ],
            "tables": [{"name": f"f{n}", "rows": size} for n, size in sizes],
            "tasks": [{"name": task, "label": task} for task in TASKS],
        }
    )


def config_of(name: str, precision: str, compiled: bool = False, wire: str = "fp32") -> TrainConfig:
    """STEM-Net of a named size, row-wise Adagrad with L2 on touched rows."""
    sizes = CONFIGS[name]
    values = {
        "data": {"train": "in memory"},
        "model": {
            "name": "stem",
            "num_specific_experts": 1,
            "num_shared_experts": sizes["num_shared"],
            "expert_hidden_units": sizes["expert"],
            "gate_hidden_units": sizes["gate"],
            "tower_hidden_units": sizes["tower"],
        },
        "embedding": {"width": WIDTH, "wire_precision": wire},
        "optimizer": {"rows": {"l2": 1e-6}},
        "train": {"precision": precision, "compile": compiled, "global_batch_size": BATCH},
    }
    return parse(TrainConfig, values, "the benchmark")


def random_batch(rows: int, seed: int) -> Batch:
    """Zipf ids, labels by chance."""
    rng = np.random.default_rng(seed)
    columns = [(rng.zipf(ZIPF, BATCH) - 1) % size for size in table_rows(rows)]
    labels = rng.random((BATCH, len(TASKS))) < 0.3
    return batch_of(np.stack(columns, axis=1), labels)


def batch_of(ids_BF: np.ndarray, labels_BT: np.ndarray) -> Batch:
    """All labels observed, all weights 1."""
    num_rows, ones = len(ids_BF), torch.ones(labels_BT.shape)
    return Batch(
        step=0,
        ids_BC=torch.from_numpy(ids_BF.astype(np.int64)),
        bag_weights=torch.empty(num_rows, 0),
        numeric_BN=torch.empty(num_rows, 0),
        labels_BT=torch.from_numpy(labels_BT.astype(np.float32)),
        mask_BT=ones.bool(),
        weight_B=torch.ones(num_rows),
        weight_BT=ones,
        group_B=torch.full((num_rows,), -1),
        file_B=np.zeros(num_rows, np.int32),
        row_B=np.arange(num_rows),
    )


def _table(name: str, results: dict[int, dict[str, float]]) -> Table:
    """Milliseconds, rows/s and how many times the dense references' speed."""
    table = Table("rows", "contender", "ms", "rows/s", "x dense fp32", "x dense bf16", title=name)
    for rows, seconds in results.items():
        for contender, s in seconds.items():
            ratios = [
                f"{seconds[other] / s:.2f}" if other in seconds else ""
                for other in ("dense fp32", "dense bf16")
            ]
            table.add_row(f"{rows:,}", contender, f"{s * 1e3:.1f}", f"{BATCH / s:,.0f}", *ratios)
    return table


if __name__ == "__main__":
    main()
