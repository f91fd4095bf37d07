"""Peak memory of every process of `raymtl prepare` on a generated log and on one ten times longer.

    python benchmarks/prepare_memory.py [--rows 1000000] [--times 10]

Prints one table and writes prepare_memory.json. The raw log is one file with one row group, the
worst case for a reader. A peak is the kernel's VmHWM, shared pages of the object store included.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from peaks import peaks_of, print_table

CONFIG = """
sources: [{name: log, url: log.parquet}]
joins: [{name: users, url: users.parquet, column: user}]
derive: {hour: {column: hourmin, divide: 100}, tags: {column: tag, split: ","}}
sequences:
  user: user
  order: {log: time}
  lists:
    - {name: clicked, item: item, where: {column: click, equals: 1}, length: 30}
    - {name: clicked_tag, like: clicked, item: tag}
    - {name: shown, item: item, length: 50}
rates:
  - {name: user_rate, key: user, label: click, period: day, count: true}
  - {name: item_rate, key: item, label: like, period: day}
  - {name: pair_rate, key: [user, tag], label: click, period: day}
split: {by: order, valid: 0.05, test: 0.05, per: user}
keep: [user, item]
schema:
  group: user
  tasks: [{name: click, label: click}, {name: like, label: like}]
  features:
    - {name: user, kind: categorical, encoding: vocabulary}
    - {name: item, kind: categorical, encoding: vocabulary}
    - {name: hour, kind: categorical, encoding: vocabulary}
    - {name: tags, kind: bag, encoding: vocabulary}
    - {name: city, kind: categorical, encoding: vocabulary}
    - {name: age, kind: numeric, standardise: true}
    - {name: price, kind: numeric, buckets: 50}
    - {name: clicked, kind: sequence, encoding: vocabulary, table: item, max_length: 30}
    - {name: clicked_tag, kind: sequence, encoding: vocabulary, max_length: 30}
    - {name: shown, kind: sequence, encoding: vocabulary, table: item, max_length: 50}
    - {name: user_rate, kind: numeric, standardise: true, missing_indicator: true}
    - {name: item_rate, kind: numeric, standardise: true, missing_indicator: true}
    - {name: pair_rate, kind: numeric, standardise: true, missing_indicator: true}
"""
RUN = """
import sys, ray
ray.init(num_cpus=2, include_dashboard=False, object_store_memory=300_000_000,
         logging_level="warning", log_to_driver=False)
from raymtl.config import load
from raymtl.data.prepare import PrepareConfig, prepare
prepare(load(PrepareConfig, sys.argv[1], [f"data_root={sys.argv[2]}"]), sys.argv[3])
"""
NUM_USERS, NUM_ITEMS = 100_000, 50_000


def write_raw(folder: Path, rows: int) -> None:
    """Writes log.parquet (one row group) and users.parquet."""
    rng = np.random.default_rng(7)
    tags = pa.array([f"{a},{b}" for a in range(20) for b in range(20)])
    users = np.minimum(rng.zipf(1.2, rows), 2**40) % NUM_USERS
    unobserved = rng.random(rows) < 0.5
    log = pa.table(
        {
            "user": users,
            "item": np.minimum(rng.zipf(1.1, rows), 2**40) % NUM_ITEMS,
            "hourmin": rng.integers(0, 24, rows) * 100 + rng.integers(0, 60, rows),
            "tag": tags.take(pa.array(rng.integers(0, 400, rows))),
            "price": rng.lognormal(3, 1, rows),
            "click": rng.integers(0, 2, rows).astype(np.int8),
            "time": np.arange(rows) // 3,
            "day": np.arange(rows) * 10 // rows,
            "like": pa.array((rng.random(rows) < 0.02).astype(np.int8), mask=unobserved),
        }
    )
    pq.write_table(log, folder / "log.parquet", row_group_size=rows)
    cities = pa.array([f"city {n}" for n in range(300)])
    side = {
        "user": np.arange(NUM_USERS),
        "city": cities.take(pa.array(rng.integers(0, 300, NUM_USERS))),
        "age": rng.integers(10, 90, NUM_USERS),
    }
    pq.write_table(pa.table(side), folder / "users.parquet")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--times", type=int, default=10)
    args = parser.parse_args()
    found = {}
    for rows in (args.rows, args.rows * args.times):
        with tempfile.TemporaryDirectory() as folder:
            write_raw(Path(folder), rows)
            Path(folder, "prepare.yaml").write_text(CONFIG)
            command = [sys.executable, "-c", RUN, "prepare.yaml", ".", "out"]
            found[rows] = peaks_of(command, Path(folder))
    print_table(found)
    result = {str(rows): {"bytes": peaks, "seconds": s} for rows, (peaks, s) in found.items()}
    Path("prepare_memory.json").write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
