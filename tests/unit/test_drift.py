"""Drift beside training: shares, the stability index, and what is called a jump."""

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raymtl.data.drift import (
    MOST_ROWS,
    Distributions,
    compared,
    dump_distributions,
    of_log,
    psi,
    read_distributions,
    warnings,
)
from raymtl.data.log import read_index
from raymtl.schema import LogSchema
from raymtl.storage import Folder
from raymtl_jobs.output import show_drift

SCHEMA = LogSchema.model_validate(
    {
        "features": [
            {"kind": "categorical", "name": "item", "encoding": "index"},
            {"kind": "bag", "name": "tags", "encoding": "index"},
            {"kind": "numeric", "name": "price"},
        ],
        "tables": [
            {"name": "item", "rows": 5001, "vocabulary": "../vocabularies/item.parquet"},
            {"name": "tags", "rows": 5000},
        ],
        "tasks": [{"name": "click", "label": "click"}],
    }
)
COLUMNS = {f.name: f.name for f in SCHEMA.features}


def rows(n: int, seed: int, **changes: pa.Array) -> pa.Table:
    rng = np.random.default_rng(seed)
    lists = [rng.integers(0, 5000, rng.integers(0, 4)).tolist() for _ in range(n)]
    price = rng.lognormal(0, 1, n)
    columns = {
        "item": pa.array(np.minimum(rng.zipf(1.3, n), 5000), mask=rng.random(n) < 0.02),
        "tags": pa.array(lists, pa.list_(pa.int32())),
        "price": pa.array(price.astype(np.float32), mask=rng.random(n) < 0.1),
    }
    return pa.table(columns | changes)


def counted(*tables: pa.Table) -> dict:
    found = Distributions()
    for table in tables:
        found.add("log", table, SCHEMA, COLUMNS)
    return found.splits["log"]


def values(**bins: int) -> dict:
    counts = {key[1:]: count for key, count in bins.items()}
    total = sum(counts.values())
    return {"rows": total, "null": 0, "values": total, "unknown": 0, "bins": counts}


def test_the_index_is_that_of_its_formula() -> None:
    then, now = values(b1=5000, b2=5000), values(b1=7500, b2=2500)
    wanted = 0.25 * math.log(1.5) - 0.25 * math.log(0.5)
    assert psi(then, now, is_number=False)[0] == pytest.approx(wanted)
    assert psi(then, then, is_number=False)[0] == 0
    gone = psi(then, values(b1=10_000), is_number=False)[0]
    assert gone == pytest.approx(0.5 * math.log(2) + (1e-4 - 0.5) * math.log(2e-4), rel=1e-3)


def test_chance_is_the_999th_thousandth_of_chi_squared() -> None:
    then = {**values(b1=500), "bins": {str(b): 50 for b in range(10)}}
    _, noise = psi(then, then, is_number=False)
    assert noise == pytest.approx(27.877 * 2 / 500, rel=0.01), "9 degrees of freedom: 27.877"


def test_numbers_are_compared_in_tenths_of_the_training_rows() -> None:
    rng = np.random.default_rng(3)
    numbers = pa.array(rng.normal(0, 1, 20_000).astype(np.float32))
    shifted = pa.array((rng.normal(0, 1, 20_000) + 1).astype(np.float32))
    then = counted(rows(20_000, 1, price=numbers))["price"]
    now = counted(rows(20_000, 2, price=shifted))["price"]
    # With equal tenths and a shift by one deviation the index of normal numbers is 0.92.
    assert psi(then, now, is_number=True)[0] == pytest.approx(0.92, abs=0.08)
    assert len(then["bins"]) < 500


def test_parts_add_up_to_the_whole() -> None:
    table = rows(3000, 4)
    whole, parts = counted(table), counted(*(table.slice(n, 700) for n in range(0, 3000, 700)))
    assert whole == parts
    item = table["item"].drop_null().to_numpy()
    assert whole["item"]["bins"]["1"] == (item == 1).sum()
    assert whole["item"]["bins"]["51"] == ((item > 50) & (item < 100)).sum()
    assert whole["item"]["null"] == 3000 - len(item)
    empty = sum(len(tags) == 0 for tags in table["tags"].to_pylist())
    assert whole["tags"]["null"] == empty
    assert len(whole["tags"]["bins"]) <= 65


def test_the_same_source_is_quiet_even_in_a_small_log() -> None:
    then = counted(rows(20_000, 5))
    for n in (60, 5000):
        found = compared(then, counted(rows(n, 6)), SCHEMA)
        assert [f for f, v in found.items() if v["jumps"]] == [], n
        assert list(warnings(found, "a log")) == []


def test_jumps_are_named_with_what_they_were_in_training() -> None:
    n = 5000
    changed = rows(
        n,
        8,
        item=pa.array(np.where(np.arange(n) % 10 < 3, 0, 7)),
        price=pa.array(np.ones(n, np.float32), mask=np.arange(n) % 2 == 0),
    )
    found = compared(counted(rows(20_000, 7)), counted(changed), SCHEMA)
    assert found["item"]["unknown"] == pytest.approx(0.3)
    assert found["item"]["train_unknown"] == 0 and found["price"]["unknown"] is None
    assert found["item"]["jumps"] == ["unknown", "psi"]
    assert found["price"]["jumps"] == ["null", "psi"]
    assert found["price"]["null"] == pytest.approx(0.5)
    assert found["tags"]["jumps"] == []
    lines = list(warnings(found, "day 2"))
    assert (
        "feature item of day 2 has drifted: out of vocabulary 30.0%, in training 0.0%" in lines[0]
    )
    assert len(lines) == 2


def test_a_log_is_looked_at_in_row_groups_spread_over_it(tmp_path: Path) -> None:
    table = rows(4000, 9)
    pq.write_table(table, tmp_path / "part-0.parquet", row_group_size=100)
    index = read_index(str(tmp_path))
    assert MOST_ROWS > 4000 and of_log(index, SCHEMA) == counted(table)
    some = of_log(index, SCHEMA, most_rows=1000)
    picked = [table.slice(n, 100) for n in range(0, 4000, 400)]
    assert some == counted(*picked)
    (tmp_path / "distributions.json").write_text(dump_distributions(some))
    assert read_distributions(Folder(str(tmp_path))) == some
    assert read_distributions(Folder(str(tmp_path / "none"))) is None


def test_evaluate_shows_shares_beside_training_and_warns(capsys: pytest.CaptureFixture) -> None:
    now = counted(rows(4000, 12, item=pa.array(np.where(np.arange(4000) % 4 == 0, 0, 7))))
    show_drift(compared(counted(rows(4000, 11)), now, SCHEMA), "day 2")
    shown = capsys.readouterr()
    line = next(line for line in shown.out.splitlines() if "item" in line)
    assert "25.00%" in line and "0.00%" in line
    assert "feature item of day 2 has drifted" in shown.err
    show_drift(None, "day 2")
    assert "was not made by `raymtl prepare`" in capsys.readouterr().err
