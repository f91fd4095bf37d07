"""Small logs for lists and rates, what `prepare` makes of them without Ray, and slow references."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raymtl.config import parse
from raymtl.data.checks import make_recipe
from raymtl.data.history_stages import build_part, deal_share, merge_totals
from raymtl.data.prepare_config import PrepareConfig
from raymtl.data.raw import cut
from raymtl.data.rows import stream

Row = dict[str, Any]

LISTS = [
    {"name": "viewed", "item": "item", "where": {"column": "view", "equals": 1}, "length": 3},
    {"name": "viewed_shop", "like": "viewed", "item": "shop"},
    {"name": "shown", "item": "item", "length": 4},
    {"name": "shown_view", "like": "shown", "item": "view"},
]
RATES = [
    {"name": "user_rate", "key": "user", "label": "view", "period": "day", "count": True},
    {"name": "item_rate", "key": "item", "label": "view", "period": "day", "smoothing": 2.5},
    {"name": "pair_rate", "key": ["user", "shop"], "label": "like", "period": "day", "count": True},
    {"name": "bare_rate", "key": "item", "label": "like", "period": "day", "smoothing": 0},
]
KINDS = {
    "user": pa.int32(),
    "item": pa.int32(),
    "shop": pa.string(),
    "view": pa.int8(),
    "like": pa.int8(),
    "place": pa.int32(),
    "time": pa.int64(),
    "day": pa.int32(),
}
"""Sources are `old`, ordered by place and without days, and `new`, ordered by time."""


def config_values(folder: Path, **changes: Any) -> dict[str, Any]:
    """A config over the files of `write_log`, as plain values."""
    values = {
        "data_root": str(folder),
        "sources": [{"name": "old", "url": "old.parquet"}, {"name": "new", "url": "new.parquet"}],
        "outcomes": ["like"],
        "sequences": {"user": "user", "order": {"old": "place", "new": "time"}, "lists": LISTS},
        "rates": RATES,
        "split": {"by": "source", "train": [{"source": "old"}], "valid": [{"source": "new"}]},
        "schema": {
            "features": [{"name": "item", "kind": "categorical", "encoding": "vocabulary"}],
            "tasks": [{"name": "view", "label": "view"}],
        },
    }
    return values | changes


def config_of(folder: Path, **changes: Any) -> PrepareConfig:
    """The same, checked."""
    return parse(PrepareConfig, config_values(folder, **changes), "test")


def random_log(seed: int, olds: int, news: int) -> list[Row]:
    """Rows of both sources: few keys, times and days, so that many are equal; many nulls."""
    rng = np.random.default_rng(seed)

    def draw(values: Any) -> Any:
        return values[rng.integers(len(values))]

    rows = []
    for n in range(olds + news):
        row = {
            "source": "old" if n < olds else "new",
            "user": draw([0, 1, 11, None]),
            "item": draw([10, 11, 12, 13, None]),
            "shop": draw(["1", "11", ":", None]),
            "view": draw([0, 1, 1, None]),
            "like": draw([0, 0, 1, None]),
        }
        own = {"time": draw(range(9)), "day": draw(range(-1, 3))}
        own = {"place": draw(range(-3, 4))} if n < olds else own
        rows.append({"place": None, "time": None, "day": None, **row, **own})
    return rows


def write_log(folder: Path, rows: list[Row]) -> None:
    """Writes the rows of both sources in their order, in row groups of 5."""
    for source in ("old", "new"):
        mine = [row for row in rows if row["source"] == source]
        columns = {n: pa.array([row.get(n) for row in mine], kind) for n, kind in KINDS.items()}
        pq.write_table(pa.table(columns), folder / f"{source}.parquet", row_group_size=5)


def made(config: PrepareConfig, share_rows: int = 7, num_parts: int = 3) -> list[Row]:
    """The rows that the fitting and writing stages would read, lists and rates among them."""
    scratch = f"{config.data_root}/scratch"
    recipe = replace(make_recipe(config, {}, scratch), num_parts=num_parts)
    shares = cut(recipe.files, share_rows)
    answers = [deal_share(share, recipe, {}) for share in shares]
    priors = merge_totals(answers, config)
    for part in range(num_parts):
        build_part(part, recipe, [share.first_row for share in shares], priors)
    return [
        row
        for share in shares
        for rows in stream(share, recipe, {}, None)
        for row in rows.table.to_pylist()
    ]


def list_before(rows: list[Row], row: Row, item: Row, strictly: bool = True) -> list | None:
    """One list of one row, by looking at every other row.

    Args:
        item: of LISTS, with its own `where` and `length`.
        strictly: False also takes the row itself and those equal to it in order: the leak.
    """

    def place(other: Row) -> tuple[bool, int]:
        is_new = other["source"] == "new"
        return is_new, other["time"] if is_new else other["place"]

    def is_earlier(other: Row) -> bool:
        return place(other) < place(row) or (not strictly and place(other) == place(row))

    if row["user"] is None:
        return None
    column, wanted = item["where"].values() if "where" in item else (None, None)
    taken = [
        other
        for other in rows
        if other["user"] == row["user"]
        and is_earlier(other)
        and (column is None or other[column] == wanted)
    ]
    return [other[item["item"]] for other in sorted(taken, key=place)][-item["length"] :]


def rate_before(
    rows: list[Row], row: Row, rate: Row, strictly: bool = True
) -> tuple[float | None, float | None]:
    """One rate of one row and its count, by looking at every other row."""
    keys = [rate["key"]] if isinstance(rate["key"], str) else rate["key"]

    def day(other: Row) -> float:
        return -math.inf if other["day"] is None else other["day"]

    label, smoothing = rate["label"], rate.get("smoothing", 20)
    earlier = [
        other
        for other in rows
        if other[label] is not None
        and (day(other) < day(row) or (not strictly and day(other) == day(row)))
    ]
    mine = [o[label] for o in earlier if all(o[key] == row[key] for key in keys)]
    if not earlier or any(row[key] is None for key in keys) or len(mine) + smoothing == 0:
        return None, None
    prior = sum(o[label] for o in earlier) / len(earlier)
    value = (sum(mine) + smoothing * prior) / (len(mine) + smoothing)
    return value, math.log1p(len(mine))


def whole(item: Row) -> Row:
    """A list of LISTS with the `where` and `length` of the one it is like."""
    other = next((o for o in LISTS if o["name"] == item.get("like")), {})
    return {**{k: v for k, v in other.items() if k in ("where", "length")}, **item}


def assert_lists_are_those_before(found: list[Row], rows: list[Row]) -> None:
    """Compares every list of every row with its reference."""
    for number, row in enumerate(rows):
        for item in map(whole, LISTS):
            wanted = list_before(rows, row, item)
            assert found[number][item["name"]] == wanted, f"{item['name']} of row {number}"


def assert_rates_are_those_before(found: list[Row], rows: list[Row]) -> None:
    """Compares every rate of every row with its reference."""
    for number, row in enumerate(rows):
        for rate in RATES:
            wanted = rate_before(rows, row, rate)
            names = [rate["name"], f"{rate['name']}_count"][: 2 if "count" in rate else 1]
            for name, value in zip(names, wanted, strict=False):
                got = found[number][name]
                assert (got is None) == (value is None), f"{name} of row {number}: {got}, {value}"
                if got is not None and value is not None:
                    assert math.isclose(got, value, rel_tol=1e-9), f"{name}, {number}"
