"""Drafted schemas fit their logs, and say what they doubt."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.logs import small_log
from helpers.shared import shared_data
from raymtl.batch import Layout
from raymtl.config import parse, parse_yaml
from raymtl.data.decode import decode
from raymtl.data.draft import draft_schema, draft_yaml
from raymtl.data.draft_features import hash_rows_for
from raymtl.data.log import read_index
from raymtl.errors import InputError
from raymtl.schema import LogSchema

ROWS = 4000
RNG = np.random.default_rng(0)


def write(tmp_path, files: int = 1, **columns) -> str:
    """A log with a label `click` and a user column beside the given columns."""
    whole = pa.table(
        {
            "user_id": RNG.integers(0, 50, ROWS),
            "click": pa.array(RNG.integers(0, 2, ROWS), pa.int8()),
            **columns,
        }
    )
    each = ROWS // files
    for i in range(files):
        pq.write_table(whole.slice(i * each, each), tmp_path / f"{i}.parquet", row_group_size=500)
    return str(tmp_path)


def decodes(url: str, schema: LogSchema) -> dict[str, np.ndarray]:
    """Checks the schema on the log and decodes all of it."""
    schema.require_ready()
    read_index(url, schema)
    return decode(pq.read_table(url, ignore_prefixes=["schema"]), schema, Layout.of(schema), url)


def feature(schema: LogSchema, name: str) -> Any:
    return next(f for f in schema.features if f.name == name)


def kinds(schema: LogSchema) -> dict[str, str]:
    return {f.name: f.kind for f in schema.features}


def test_a_generated_log_is_read_as_it_was_meant(tmp_path):
    small_log(tmp_path)
    url = str(tmp_path / "train")
    schema, _ = draft_schema(url)
    decodes(url, schema)
    assert [t.name for t in schema.tasks] == ["click", "like", "share"]
    assert (schema.group, schema.time, schema.weight) == ("user", "time", "weight")
    categorical = ["user", "item", "segment", "category", "hour", "device"]
    assert kinds(schema) == {
        **dict.fromkeys(categorical, "categorical"),
        **{"duration_s": "numeric", "tags": "bag"},
        **{"history": "sequence", "history_action": "sequence"},
    }
    assert feature(schema, "tags").weights == "tag_weights"
    assert feature(schema, "history").table == "item"
    assert feature(schema, "history_action").aligned_with == "history"
    assert feature(schema, "duration_s").missing_indicator


def test_the_yaml_reads_back_as_the_drafted_schema_with_doubts_beside_their_columns(tmp_path):
    url = write(tmp_path, play_time_ms=RNG.integers(0, 900, ROWS), is_rand=np.zeros(ROWS, int))
    schema, doubts = draft_schema(url)
    text = draft_yaml(url)
    assert parse(LogSchema, parse_yaml(text, "draft"), "draft") == schema
    assert text.count("# DOUBT: ") == len(doubts) == 2
    assert "# DOUBT: play_time_ms: left out: by its name an outcome" in text
    assert "# DOUBT: is_rand: left out: always 0" in text
    assert list(kinds(schema)) == ["user_id"]


def test_a_doubt_stands_on_the_line_before_its_task(tmp_path):
    lines = draft_yaml(write(tmp_path, is_like=RNG.integers(0, 2, ROWS))).splitlines()
    at = next(i for i, line in enumerate(lines) if "name: is_like" in line)
    assert "# DOUBT: taken as a label by its name" in lines[at - 1]


def test_heavy_tailed_numbers_take_log1p_and_are_standardised(tmp_path):
    price, height = np.exp(RNG.normal(3, 2, ROWS)), RNG.normal(170, 9, ROWS)
    url = write(tmp_path, price=price, height=pa.array(height, mask=height > 190))
    schema, _ = draft_schema(url)
    out = decodes(url, schema)
    assert feature(schema, "price").log1p and not feature(schema, "height").log1p
    assert not feature(schema, "price").missing_indicator
    np.testing.assert_allclose(out["numeric"][:, :2].mean(axis=0), 0, atol=0.02)
    np.testing.assert_allclose(out["numeric"][:, 0].std(), 1, atol=0.02)


def test_hash_tables_have_room_for_values_the_sample_did_not_hold(tmp_path):
    item = RNG.integers(0, 3000, ROWS)
    url = write(tmp_path, item_id=np.sort(item), shop=item)
    schema, doubts = draft_schema(url, sample_rows=800)
    for name in ("item_id", "shop"):  # sorted, and in no order
        assert len(np.unique(item)) * 2 < schema.table(name).num_rows <= 32_768
    assert any(doubt.startswith("item_id: ") and "estimate" in doubt for doubt in doubts)


def test_hash_tables_are_powers_of_two_with_few_collisions():
    assert [hash_rows_for(n) for n in (1, 3, 50, 1000, 10**5)] == [64, 256, 4096, 4096, 2**19]
    assert hash_rows_for(10**9) == 2**24


def test_a_column_that_decides_a_label_is_left_out(tmp_path):
    click = RNG.integers(0, 2, ROWS)
    outcome = np.where(click, "bought", "left")
    url = write(tmp_path, label_buy=click, status=outcome, city=RNG.integers(0, 9, ROWS))
    schema, doubts = draft_schema(url)
    assert list(kinds(schema)) == ["user_id", "city"]
    assert any("status" in doubt and "decides label_buy" in doubt for doubt in doubts)


def test_columns_that_training_cannot_read_are_left_out_with_a_doubt(tmp_path):
    columns = {
        "row_key": [f"r{i}" for i in range(ROWS)],
        "nested": [[[1]]] * ROWS,
        "empty": pa.nulls(ROWS),
        "nan": np.full(ROWS, np.nan),
        "date": ["2022-04-25"] * (ROWS // 2) + ["2022-04-26"] * (ROWS // 2),
        "vector": [[0.5, 0.25]] * ROWS,
    }
    url = write(tmp_path, time=RNG.integers(10**12, 10**13, ROWS), **columns)
    schema, doubts = draft_schema(url)
    decodes(url, schema)
    assert list(kinds(schema)) == ["user_id"] and schema.time == "time"
    for name in columns:
        assert any(doubt.startswith(f"{name}: left out") for doubt in doubts), name


def test_a_column_some_files_lack_is_left_out(tmp_path):
    url = write(tmp_path, files=2, city=RNG.integers(0, 9, ROWS))
    last = tmp_path / "1.parquet"
    pq.write_table(pq.read_table(last).drop_columns("city"), last)
    schema, doubts = draft_schema(url)
    read_index(url, schema)
    assert list(kinds(schema)) == ["user_id"]
    assert any(doubt.startswith("city: left out: some files") for doubt in doubts)


def test_labels_may_be_named(tmp_path):
    url = write(tmp_path, stars=RNG.integers(1, 6, ROWS))
    schema, _ = draft_schema(url, labels=["stars", "click"])
    assert {t.name: t.kind for t in schema.tasks} == {"stars": "regression", "click": "binary"}
    with pytest.raises(InputError, match="column rating"):
        draft_schema(url, labels=["rating"])


def test_a_log_without_labels_or_features_is_refused(tmp_path):
    pq.write_table(pa.table({"user_id": [1, 2, 3]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="no label to draft a task from"):
        draft_schema(str(tmp_path))
    pq.write_table(pa.table({"click": [1, 0, 1]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="no column to draft a feature from"):
        draft_schema(str(tmp_path))


def test_the_draft_for_kuairand_keeps_outcomes_out_and_finds_the_tasks():
    url = str(shared_data("kuairand_pure/impressions_0425_0430.parquet"))
    schema, _ = draft_schema(url)
    decodes(url, schema)
    assert list(kinds(schema)) == ["user_id", "video_id", "hourmin", "duration_ms", "tab"]
    assert {"is_click", "is_like", "long_view"} <= {t.name for t in schema.tasks}
    assert (schema.group, schema.time) == ("user_id", "time_ms")
    history = str(shared_data("kuairand_pure/history_to_0424.parquet"))
    schema, _ = draft_schema(history)  # sorted by user: a sample sees few of the 26,466
    assert 2 * 26_466 < schema.table("user_id").num_rows <= 2**18


def test_the_draft_for_census_leaves_out_what_the_labels_were_made_from():
    url = str(shared_data("census_income_kdd/official_test_half.parquet"))
    schema, _ = draft_schema(url)
    decodes(url, schema)
    assert len(schema.tasks) == 3 and len(schema.features) == 38
    assert not {"income", "marital_stat", "education"} & set(kinds(schema))
