"""Ray Data's own cost with many ranks: 64 rank datasets with trivial reads, all read at once.

    python benchmarks/lanes.py [--ranks 64] [--rows-per-rank 20000]

Each rank's ordered dataset is made as training makes it, over a log of one id and one label, and
all are iterated from threads of this process, so that reading itself costs next to nothing. Prints
seconds to the first batch and rows/s, of one dataset and of all, and writes results/lanes.json.
"""

import argparse
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from interleaved import written
from rich.console import Console
from rich.table import Table

from raymtl.cluster import session
from raymtl.config import LaunchSection
from raymtl.data import ingest
from raymtl.data.log import read_index
from raymtl.data.order import Order
from raymtl.data.stream import Span, Stream
from raymtl.schema import LogSchema

SCHEMA = {
    "features": [{"name": "item", "kind": "categorical", "encoding": "index"}],
    "tables": [{"name": "item", "rows": 1000}],
    "tasks": [{"name": "click", "label": "click"}],
}
BATCH_OF_RANK, CHUNK_ROWS = 512, 4096


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=64)
    parser.add_argument("--rows-per-rank", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as folder, session(LaunchSection(num_workers=1)):
        for ranks in (1, arguments.ranks):
            rows = ranks * arguments.rows_per_rank
            log = _log(f"{folder}/{ranks}", rows)
            times = [_read(log, ranks) for _ in range(arguments.rounds)]
            first, whole = (median(t) for t in zip(*times, strict=True))
            found[ranks] = {"first_batch_s": first, "seconds": whole, "rows": rows}
    table = Table("datasets", "first batch s", "all s", "rows/s")
    for ranks, f in found.items():
        rate = f"{f['rows'] / f['seconds']:,.0f}"
        table.add_row(str(ranks), f"{f['first_batch_s']:.1f}", f"{f['seconds']:.1f}", rate)
    Console().print(table)
    written(arguments.out, "lanes", found)


def _log(folder: str, rows: int) -> str:
    path = Path(folder)
    path.mkdir()
    rng = np.random.default_rng(0)
    columns = {"item": rng.integers(0, 1000, rows, np.int32), "click": rng.integers(0, 2, rows)}
    pq.write_table(pa.table(columns), path / "part.parquet", row_group_size=CHUNK_ROWS)
    (path / "schema.yaml").write_text(yaml.safe_dump(SCHEMA))
    return folder


def _read(log: str, ranks: int) -> tuple[float, float]:
    """Seconds until every rank had its first batch, and its last."""
    schema = LogSchema.model_validate(SCHEMA)
    order = Order(read_index(log, schema), 0, ranks, CHUNK_ROWS, BATCH_OF_RANK, shuffled=True)
    start = time.perf_counter()

    def of_rank(rank: int) -> float:
        stream = Stream(order.index, schema, order, Span(rank, ranks, 0, order.steps_per_epoch))
        share = ingest.Share(
            cpus=1.0, object_store_bytes=ingest.in_flight_bytes(order, stream.layout)
        )
        batches = ingest.iterate(ingest.dataset(stream, share), stream)
        next(batches)
        first = time.perf_counter() - start
        for _ in batches:
            pass
        return first

    with ThreadPoolExecutor(ranks) as pool:
        first = max(pool.map(of_rank, range(ranks)))
    return first, time.perf_counter() - start


if __name__ == "__main__":
    main()
