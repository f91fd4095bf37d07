"""Small raw files for `raymtl prepare`, with the rows they hold as plain dicts."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

NUM_OLD, NUM_NEW = 150, 400
CONFIG = """
sources:
  - {name: old, url: old.parquet, rename: {uid: user},
     constants: {click: null, hourmin: null, date: null, time_ms: null}}
  - {name: new, url: new}
joins:
  - {name: users, url: users.parquet, column: user, key: user_id}
  - {name: items, url: items.parquet, column: item, columns: [tag, seconds], prefix: item_}
derive:
  hour: {column: hourmin, divide: 100}
  tags: {column: item_tag, split: ","}
  seconds: {column: item_seconds, null_if: 0}
outcomes: [played]
vocabularies: {min_count: {item: 3, user: 2}}
split:
  by: source
  train: [{source: old}, {source: new, column: date, at_most: 3}]
  valid: [{source: new, column: date, equals: 4}]
  test: [{source: new, column: date, at_least: 5, at_most: 6}]
keep: [user, item, time_ms]
chunk_rows: 16
schema:
  group: user
  time: time_ms
  tasks:
    - {name: click, label: click}
    - {name: like, label: like}
  features:
    - {name: user, kind: categorical, encoding: vocabulary}
    - {name: item, kind: categorical, encoding: vocabulary}
    - {name: hour, kind: categorical, encoding: vocabulary}
    - {name: city, kind: categorical, encoding: vocabulary}
    - {name: level, kind: categorical, encoding: vocabulary}
    - {name: tags, kind: bag, encoding: vocabulary}
    - {name: item_hashed, column: item, kind: categorical, encoding: hash}
    - {name: age, kind: numeric, log1p: true, standardise: true, missing_indicator: true}
    - {name: seconds, kind: numeric, buckets: 5}
  tables: [{name: item_hashed, rows: 40}]
"""


def write_raw(folder: Path) -> list[dict]:
    """Writes the sources and side tables of CONFIG; returns the sources' rows in order."""
    rng = np.random.default_rng(11)
    old = [
        {"uid": int(rng.integers(0, 30)), "item": int(rng.integers(0, 40)), "like": int(n % 7 == 0)}
        for n in range(NUM_OLD)
    ]
    new = [
        {
            "user": int(rng.integers(0, 45)),
            "item": int(min(rng.zipf(1.5), 60)),
            "click": int(rng.random() < 0.4),
            "like": int(rng.random() < 0.1) if n % 5 else None,
            "date": 1 + n * 7 // NUM_NEW,
            "hourmin": int(rng.integers(0, 24)) * 100 + 59,
            "time_ms": 1_000_000 + n,
            "played": n,
        }
        for n in range(NUM_NEW)
    ]
    kinds = {"uid": pa.int32(), "item": pa.int32(), "like": pa.int8()}
    pq.write_table(table(old, kinds), folder / "old.parquet", row_group_size=NUM_OLD)
    (folder / "new").mkdir()
    kinds = {"click": pa.int8(), "like": pa.int8(), "date": pa.int32()}
    pq.write_table(table(new[:130], kinds), folder / "new" / "a.parquet", row_group_size=50)
    pq.write_table(table(new[130:], kinds), folder / "new" / "b.parquet", row_group_size=7)
    pq.write_table(users(), folder / "users.parquet")
    pq.write_table(items(), folder / "items.parquet")
    return [{**row, "user": row["uid"], "source": "old"} for row in old] + [
        {**row, "source": "new"} for row in new
    ]


def table(rows: list[dict], kinds: dict[str, pa.DataType]) -> pa.Table:
    """Rows as a table; columns not in `kinds` are int64."""
    names = list(rows[0])
    return pa.table({n: pa.array([r[n] for r in rows], kinds.get(n, pa.int64())) for n in names})


def users() -> pa.Table:
    """Users 0 to 39 only: later ones have no match."""
    n = range(40)
    return pa.table(
        {
            "user_id": pa.array(n, pa.int64()),
            "city": pa.array([f"city {i % 6}" for i in n], pa.large_string()),
            "level": pa.array([None if i % 9 == 0 else float(i % 4) for i in n]),
            "age": pa.array([None if i % 8 == 0 else 10 + i for i in n], pa.int64()),
        }
    )


def items() -> pa.Table:
    """Items 0 to 49 only; item 5 has no tag, every eighth lasts 0 seconds, which means unknown."""
    n = range(50)
    return pa.table(
        {
            "item": pa.array(n, pa.int64()),
            "tag": [None if i == 5 else f"{i % 3},{i % 11}" for i in n],
            "seconds": pa.array([0.0 if i % 8 == 0 else 1.5 * i for i in n]),
            "unused": pa.array(n),
        }
    )
