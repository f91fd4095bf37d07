"""Labels that are known only from an age on: rows checked by hand."""

import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from raymtl import alone
from raymtl.analysis.cells import read_outcomes
from raymtl.config import TrainConfig, dump, parse
from raymtl.data.decode import decode
from raymtl.data.stream import Span, Stream
from raymtl.errors import InputError
from raymtl.layout import Layout
from raymtl.preflight import indexed
from raymtl.run import choose
from raymtl.schema import LogSchema
from raymtl.source import order_of, read_batches

DAY_MS = 86_400_000
WEEK = {"min_age_days": 7}


def schema_of(rule: dict, **values) -> LogSchema:
    base = {
        "features": [{"kind": "categorical", "name": "item", "encoding": "index"}],
        "tables": [{"name": "item", "rows": 5}],
        "tasks": [
            {"name": "click", "label": "click"},
            {"name": "buy", "label": "buy", "observed_if": rule},
        ],
        "time": "at",
    }
    return parse(LogSchema, base | values, "a test")


def labels_of(schema: LogSchema, at: pa.Array, click: list[int]) -> list[float]:
    n = len(at)
    table = pa.table({"item": [1] * n, "click": click, "buy": [1.0] * n, "at": at})
    made = decode(table, schema, Layout.of(schema), "part-0.parquet")
    assert not np.isnan(made["labels"][:, 0]).any(), "the task without the rule is whole"
    return made["labels"][:, 1].tolist()


def test_a_purchase_is_unobserved_until_it_is_seven_days_old() -> None:
    days = [0, 12.9, 13, 13.1, 20]
    schema = schema_of(WEEK, time_unit="ms", as_of=20 * DAY_MS)
    found = labels_of(schema, pa.array([int(d * DAY_MS) for d in days]), [1] * 5)
    np.testing.assert_equal(found, [1, 1, 1, np.nan, np.nan])


def test_age_and_column_must_both_hold_and_a_row_without_time_is_unobserved() -> None:
    rule = WEEK | {"column": "click", "equals": 1}
    schema = schema_of(rule, as_of="2022-04-30")
    at = pa.array([datetime.date(2022, 4, n) for n in (20, 20, 28)] + [None])
    found = labels_of(schema, at, [1, 0, 1, 1])
    np.testing.assert_equal(found, [1, np.nan, np.nan, np.nan])


@pytest.mark.parametrize(
    "unit, at",
    [
        ("date", pa.array([20220420, 20220424])),
        (None, pa.array(["2022-04-20", "2022-04-24 00:00:00"])),
        (None, pa.array([datetime.datetime(2022, 4, n) for n in (20, 24)], pa.timestamp("ns"))),
        (
            None,
            pa.array([datetime.datetime(2022, 4, n) for n in (20, 24)], pa.timestamp("s", "UTC")),
        ),
        ("s", pa.array([18_737 * 86_400 + n * 4 * 86_400 + 365 * 86_400 for n in (0, 1)])),
    ],
)
def test_times_are_read_as_they_are_written(unit: str | None, at: pa.Array) -> None:
    as_of = 20220430 if unit == "date" else 19_112 * 86_400 if unit == "s" else "2022-04-30"
    schema = schema_of(WEEK, time_unit=unit, as_of=as_of)
    np.testing.assert_equal(labels_of(schema, at, [1, 1]), [1, np.nan])


def test_a_time_that_cannot_be_read_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"(?s)column at.*time_unit = None"):
        labels_of(schema_of(WEEK, as_of=9), pa.array([1, 2]), [1, 1])
    with pytest.raises(InputError, match="as_of = null"):
        labels_of(schema_of(WEEK, time_unit="s"), pa.array([1, 2]), [1, 1])
    with pytest.raises(InputError, match="a rule has no column"):
        schema_of({"equals": 1})
    with pytest.raises(InputError, match="rows have no time"):
        schema_of(WEEK, time=None)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> str:
    """40 days of 10 rows; a purchase is 1 in the first half of each day. as_of is not given."""
    folder = tmp_path_factory.mktemp("aged")
    n = np.arange(400)
    table = pa.table(
        {
            "item": n % 4 + 1,
            "click": (n % 2).astype(np.int8),
            "buy": (n % 10 < 5).astype(np.int8),
            "at": n // 10 * DAY_MS,
        }
    )
    pq.write_table(table, folder / "part-0.parquet", row_group_size=90)
    (folder / "schema.yaml").write_text(dump(schema_of(WEEK, time_unit="ms")))
    return str(folder)


def test_training_and_evaluation_leave_young_rows_out(log: str) -> None:
    schema = schema_of(WEEK, time_unit="ms")
    index = indexed(log, schema)
    assert index.newest == 39 * DAY_MS
    old = 33 * 10  # days 0 to 32 are seven days old on day 39
    outcomes = read_outcomes(index, schema)
    assert np.isfinite(outcomes.labels_NT[:, 1]).sum() == old
    assert (outcomes.weight_NT[old:, 1] == 0).all() and (outcomes.weight_NT[:old, 1] == 1).all()
    values = {"train": log, "num_lanes": 2, "chunk_rows": 100}
    model = {"name": "shared_bottom", "bottom_hidden_units": [4], "tower_hidden_units": []}
    config = parse(
        TrainConfig,
        {
            "data": values | {"valid": log},
            "model": model,
            "train": {"global_batch_size": 100},
            "storage": f"{log}/../runs",
        },
        "a test",
    )
    order = order_of(config, index)
    batches = list(read_batches(Stream(index, schema, order, Span(0, 1, 0, order.steps_per_epoch))))
    assert int(torch.cat([b.mask_BT for b in batches])[:, 1].sum()) == old
    result = alone.train(config)
    metrics = result["state"]["best_metrics"]
    assert (metrics["buy/rows"], metrics["click/rows"]) == (old, 400)
    assert metrics["buy/positives"] == old // 2
    assert choose(result["run"]).step == 4


def test_the_newest_time_must_be_told_by_the_files(tmp_path: Path, log: str) -> None:
    table = pq.read_table(f"{log}/part-0.parquet")
    pq.write_table(table, tmp_path / "part-0.parquet", write_statistics=False)
    with pytest.raises(InputError, match=r"(?s)newest time of the log is not known.*set as_of"):
        indexed(str(tmp_path), schema_of(WEEK, time_unit="ms"))
    assert indexed(str(tmp_path), schema_of(WEEK, time_unit="ms", as_of=1)).newest is None
