"""A small prepared log of every kind of feature, made without Ray, and its raw columns."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from raymtl.config import dump
from raymtl.data.apply import feature_columns
from raymtl.data.fitted import digest_of, file_digest, result_schema, vocabulary_path
from raymtl.data.raw import Origin
from raymtl.schema import LogSchema
from raymtl.storage import filesystem

CITIES = ["Bern", "Graz", "Köln", "Łódź", "北京"]
ITEMS = [7, -3, 2**40, 12, 55, 10**12]
TAGS = ["", "a", "b c", "d"]
VOCABULARIES = {"city": pa.array(CITIES), "item": pa.array(ITEMS), "tags": pa.array(TAGS)}
_BAG = {"kind": "bag", "max_length": 3}
_LIST = {"kind": "sequence", "max_length": 4, "pooling": "none"}
_PRICE = {"kind": "numeric", "column": "price", "log1p": True}
_SHOWN = {"training_only": True}
FEATURES: list[dict[str, Any]] = [
    {"kind": "categorical", "name": "city", "encoding": "vocabulary"},
    {"kind": "categorical", "name": "item", "column": "item_id", "encoding": "vocabulary"},
    {"kind": "categorical", "name": "device", "encoding": "hash", "default": "phone"},
    {"kind": "categorical", "name": "user", "encoding": "hash"},
    {"kind": "categorical", "name": "slot", "encoding": "index"},
    {"name": "tags", "encoding": "vocabulary", **_BAG},
    {"name": "topics", "encoding": "hash", "weights": "topic_share", **_BAG},
    {"name": "seen", "encoding": "vocabulary", "table": "item", **_LIST},
    {"name": "seen_action", "encoding": "index", "aligned_with": "seen", **_LIST},
    {"name": "price", "standardise": True, "mean": 2.0, "std": 0.7, "missing_indicator": True}
    | _PRICE,
    {"kind": "numeric", "name": "age", "fill": -1.5},
    {"kind": "categorical", "name": "place", "encoding": "index"} | _SHOWN | {"serving_value": 2},
    {"kind": "numeric", "name": "rank", "log1p": True, "missing_indicator": True, **_SHOWN}
    | {"serving_value": 1.0},
    {"name": "price_range", "boundaries": [0.5, 1.5, 3.0]} | _PRICE,
]
_FITTED = [
    {"name": name, "rows": len(values) + 1, "vocabulary": vocabulary_path(name)}
    for name, values in VOCABULARIES.items()
]
TABLES = [
    *_FITTED,
    {"name": "device", "rows": 50, "task_specific": False},
    {"name": "user", "rows": 100},
    {"name": "slot", "rows": 6},
    {"name": "topics", "rows": 30},
    {"name": "seen_action", "rows": 4},
    {"name": "place", "rows": 5},
]
SERVING = {"place": 2, "rank": math.log1p(1.0)}
"""The serving values in the log's own terms."""
TASKS = [
    {"name": "click", "label": "clicked"},
    {"name": "stay", "label": "s", "kind": "regression"},
    {"name": "like", "label": "liked", "given": "click"},
]


def prepared_log(folder: Path | str, rows: int = 300) -> pa.Table:
    """Writes folder/log/train and folder/log/test with transforms and vocabularies beside them.

    Returns:
        The raw columns of the rows, in their order; train and test hold the same.
    """
    schema = LogSchema.model_validate(
        {"features": FEATURES, "tables": TABLES, "tasks": TASKS, "time": "at"}
    )
    raw = pa.table(raw_columns(rows))
    home = Path(folder, "log")
    fs, _ = filesystem(str(home))
    (home / "vocabularies").mkdir(parents=True)
    digests = {}
    for name, values in VOCABULARIES.items():
        path = vocabulary_path(name)
        pq.write_table(pa.table({"value": values}), home / path)
        digests[path] = file_digest(fs, str(home / path))
    values = {"schema": schema.model_dump(mode="json"), "vocabularies": digests}
    values["digest"] = digest_of(values)
    (home / "transforms.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    made = feature_columns(raw, schema, VOCABULARIES, Origin("raw", "raw", 0, 0))
    made |= {name: raw.column(name) for name in ("clicked", "liked", "s", "at")}
    for split in ("train", "test"):
        (home / split).mkdir()
        pq.write_table(pa.table(made), home / split / "part-0.parquet", row_group_size=100)
        text = dump(result_schema(schema, [values["digest"]], SERVING))
        (home / split / "schema.yaml").write_text(text, encoding="utf-8")
    return raw


def raw_columns(rows: int, seed: int = 0) -> dict[str, pa.Array]:
    """Raw values with nulls, unknown ones, empty lists, and lists longer than is kept."""
    g = np.random.default_rng(seed)

    def some(values: list[Any]) -> list[Any]:
        return [None if g.random() < 0.1 else values[i] for i in g.integers(0, len(values), rows)]

    def lists(values: list[Any], lengths: np.ndarray) -> list[list[Any]]:
        return [[values[i] for i in g.integers(0, len(values), n)] for n in lengths]

    tagged, seen = g.integers(0, 6, rows), g.integers(0, 7, rows)
    price = [None if g.random() < 0.1 else float(x) for x in g.exponential(10, rows).round(3)]
    return {
        "city": pa.array(some([*CITIES, "Atlantis"])),
        "item_id": pa.array(some([*ITEMS, 99])),
        "device": pa.array(some(["phone", "tablet", ""])),
        "user": pa.array(some(list(range(-5, 40)))),
        "slot": pa.array(some([-1, 0, 3, 5])),
        "tags": pa.array(lists([*TAGS, "unknown", None], g.integers(0, 6, rows))),
        "topics": pa.array(lists([1, 2, 3, None], tagged)),
        "topic_share": pa.array(lists([0.5, -1.0, 2.0], tagged), pa.list_(pa.float64())),
        "seen": pa.array(lists([*ITEMS, 1, None], seen)),
        "seen_action": pa.array(lists([0, 1, 2, 3], seen), pa.list_(pa.int64())),
        "price": pa.array(price),
        "place": pa.array(some([0, 1, 3, 4])),
        "rank": pa.array(some([0.0, 2.5, 9.0])),
        "age": pa.array(some([1, 20, 33])),
        "clicked": pa.array(g.integers(0, 2, rows)),
        "liked": pa.array(g.integers(0, 2, rows)),
        "s": pa.array(g.normal(size=rows)),
        "at": pa.array(np.arange(rows) + 1000),
    }
