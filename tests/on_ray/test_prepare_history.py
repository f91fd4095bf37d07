"""`raymtl prepare` with lists and rates of earlier rows, through Ray, against slow references."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.history_logs import (
    LISTS,
    RATES,
    Row,
    assert_lists_are_those_before,
    assert_rates_are_those_before,
    config_of,
    random_log,
    rate_before,
    write_log,
)
from raymtl.batch import Layout
from raymtl.config import parse, parse_yaml
from raymtl.data.decode import decode
from raymtl.data.prepare import PrepareConfig, prepare
from raymtl.errors import InputError
from raymtl.schema import LogSchema

pytestmark = pytest.mark.usefixtures("local_ray")

IDS = [
    {"name": "item", "kind": "categorical"},
    {"name": "shop", "kind": "categorical"},
    {"name": "viewed", "kind": "sequence", "table": "item"},
    {"name": "viewed_shop", "kind": "sequence", "table": "shop", "aligned_with": "viewed"},
    {"name": "shown_view", "kind": "sequence", "pooling": "none"},
]
NUMBERS = [
    {"name": "user_rate", "kind": "numeric", "standardise": True, "missing_indicator": True},
    {"name": "user_rate_count", "kind": "numeric"},
]
SCHEMA = {
    "features": [{**f, "encoding": "vocabulary"} for f in IDS] + NUMBERS,
    "tasks": [{"name": "view", "label": "view"}],
}
SPLIT = {
    "by": "source",
    "train": [{"source": "old"}, {"source": "new", "column": "day", "at_most": 0}],
    "valid": [{"source": "new", "column": "day", "equals": 1}],
    "test": [{"source": "new", "column": "day", "at_least": 2}],
}
MADE = [item["name"] for item in LISTS] + [rate["name"] for rate in RATES]
MADE += ["user_rate_count", "pair_rate_count"]


def config(folder: Path) -> PrepareConfig:
    keep = ["user", "item", "shop", "like", "place", "time", "day", *MADE]
    return config_of(folder, schema=SCHEMA, split=SPLIT, keep=keep, chunk_rows=2)


@pytest.fixture(scope="module")
def log(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Row]]:
    folder = tmp_path_factory.mktemp("history")
    rows = random_log(5, 60, 120)
    rows[60:] = sorted(rows[60:], key=lambda row: row["day"])
    write_log(folder, rows)
    prepare(config(folder), str(folder / "out"))
    return folder, rows


def rows_of(folder: Path) -> list[Row]:
    """The log's rows, splits one after the other."""
    parts = [p for s in ("train", "valid", "test") for p in sorted((folder / s).glob("part-*"))]
    return pa.concat_tables(pq.read_table(p) for p in parts).to_pylist()


def vocabulary(folder: Path, table: str) -> dict[Any, int]:
    values = pq.read_table(folder / "vocabularies" / f"{table}.parquet").column("value")
    return {value: n + 1 for n, value in enumerate(values.to_pylist())}


def test_the_log_keeps_its_order_and_holds_what_came_before_each_row(log: tuple) -> None:
    folder, rows = log
    found = rows_of(folder / "out")
    names = ("user", "item", "shop", "view", "like", "place", "time", "day")
    assert [[row[n] for n in names] for row in found] == [[row[n] for n in names] for row in rows]
    assert_lists_are_those_before(found, rows)
    assert_rates_are_those_before(found, rows)


def test_features_read_lists_and_rates_as_they_read_raw_columns(log: tuple) -> None:
    folder, rows = log
    found, items = rows_of(folder / "out"), vocabulary(folder / "out", "item")
    for row in found:
        wanted = None if row["viewed"] is None else [v and items.get(v, 0) for v in row["viewed"]]
        assert row["f_viewed"] == wanted
    known = [rate_before(rows, row, RATES[0])[0] for row in rows if row["day"] in (None, -1, 0)]
    known = [value for value in known if value is not None]
    mean = sum(known) / len(known)
    std = (sum((value - mean) ** 2 for value in known) / len(known)) ** 0.5
    for row in found:
        if row["user_rate"] is not None:
            assert row["f_user_rate"] == pytest.approx((row["user_rate"] - mean) / std, abs=1e-5)


def test_training_can_read_the_log(log: tuple) -> None:
    out = log[0] / "out" / "valid"
    schema = parse(LogSchema, parse_yaml((out / "schema.yaml").read_text(), "test"), "test")
    schema.require_ready()
    layout = Layout.of(schema)
    assert [c.feature for c in layout.sequences] == ["shown_view"]
    for path in sorted(out.glob("part-*")):
        table = pq.read_table(path)
        ids = decode(table, schema, layout, "valid")["ids"]
        lengths = [len(viewed or ()) for viewed in table.column("viewed").to_pylist()]
        assert ((ids[:, 2:52] >= 0).sum(axis=1) == lengths).all()


def test_a_vocabulary_is_counted_by_rows_however_often_lists_repeat_them(log: tuple) -> None:
    folder, rows = log
    table = pq.read_table(folder / "out" / "vocabularies" / "shop.parquet").to_pylist()
    train = [row["shop"] for row in rows if row["day"] in (None, -1, 0)]
    assert {v["value"]: v["count"] for v in table} == {s: train.count(s) for s in {*train} - {None}}
    assert json.loads((folder / "out" / "statistics.json").read_text())["dropped_rows"] == 0


def test_a_row_that_cannot_be_ordered_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    rows = random_log(5, 20, 20)
    rows[25] |= {"time": None, "user": 1}
    write_log(tmp_path, rows)
    with pytest.raises(InputError, match=r"(?s)no place among.*new\.parquet, row 5"):
        prepare(config(tmp_path), str(tmp_path / "out"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new.parquet", "old.parquet"]
