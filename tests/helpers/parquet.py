"""Tiny parquet logs whose every value tells which row it belongs to."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raymtl.schema import BagFeature, CategoricalFeature, LogSchema, NumericFeature, Table, Task

NUM_ITEMS = 5000

SCHEMA = LogSchema(
    features=[
        CategoricalFeature(kind="categorical", name="item", encoding="index"),
        CategoricalFeature(kind="categorical", name="city", encoding="hash", default="nowhere"),
        BagFeature(
            kind="bag", name="tags", encoding="index", table="item", max_length=3, weights="shares"
        ),
        NumericFeature(kind="numeric", name="price", missing_indicator=True),
    ],
    tables=[Table(name="item", rows=NUM_ITEMS), Table(name="city", rows=50)],
    tasks=[Task(name="click", label="click"), Task(name="like", label="like")],
    group="user",
    weight="importance",
)
"""Row n of a log: item n, price n, key row-n, click n mod 2, like null where n mod 3 is 0."""


def table_of(first: int, num_rows: int) -> pa.Table:
    """Rows `first` to `first + num_rows` of the log."""
    n = np.arange(first, first + num_rows)
    return pa.table(
        {
            "item": pa.array(n % NUM_ITEMS, pa.int32()),
            "city": [f"city {i % 7}" for i in n],
            "tags": pa.array([list(range(i % 3)) for i in n], pa.list_(pa.int64())),
            "shares": pa.array([[0.5] * (i % 3) for i in n], pa.list_(pa.float32())),
            "price": pa.array([None if i % 5 == 0 else float(i) for i in n]),
            "click": pa.array(n % 2, pa.int8()),
            "like": pa.array([None if i % 3 == 0 else i % 2 for i in n], pa.int8()),
            "user": [f"user {i % 11}" for i in n],
            "importance": pa.array(1 + n % 4, pa.float32()),
            "key": [f"row-{i}" for i in n],
            "maybe": pa.array([None if i % 10 == 0 else int(i) for i in n], pa.int64()),
        }
    )


def write_log(folder: Path, rows: list[int], group_rows: int = 40) -> str:
    """Writes one file for each number of rows, in order of their names; returns the URL."""
    folder.mkdir(parents=True, exist_ok=True)
    first = 0
    for i, num_rows in enumerate(rows):
        path = folder / f"part-{i:03d}.parquet"
        pq.write_table(table_of(first, num_rows), path, row_group_size=group_rows)
        first += num_rows
    return str(folder)


def write_bad_log(folder: Path) -> str:
    """a.parquet of 200 rows, 50 a row group; row 150, the first of the last, has a click of 3."""
    table = table_of(0, 200)
    clicks = table.column("click").to_pylist()
    clicks[150] = 3
    table = table.set_column(table.column_names.index("click"), "click", [clicks])
    pq.write_table(table, folder / "a.parquet", row_group_size=50)
    return str(folder)
