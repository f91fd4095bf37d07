"""Bad input is refused in four parts before anything is written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from helpers.logs import small_log
from helpers.training import small_config
from raymtl.config import TrainConfig, parse
from raymtl.errors import InputError
from raymtl.launch import train


@pytest.fixture
def log(tmp_path: Path) -> Path:
    small_log(tmp_path, rows=1500)
    for index in tmp_path.glob("*/_index.parquet"):
        index.unlink()
    return tmp_path


def first_part(log: Path) -> Path:
    return min((log / "train").glob("*.parquet"))


def edit_part(log: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    part = first_part(log)
    pq.write_table(change(pq.read_table(part)), part)


def set_column(name: str, make: Callable[[Any], Any]) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        return table.set_column(table.column_names.index(name), name, make(table[name]))

    return change


def edit_schema(log: Path, change: Callable[[dict], None]) -> None:
    path = log / "train" / "schema.yaml"
    values = yaml.safe_load(path.read_text())
    change(values)
    path.write_text(yaml.safe_dump(values))


def label_of(log: Path) -> str:
    return yaml.safe_load((log / "train" / "schema.yaml").read_text())["tasks"][0]["label"]


def added(column: pa.ChunkedArray, number: int) -> pa.Array:
    return pa.array([None if v is None else v + number for v in column.to_pylist()], column.type)


def truncate(log: Path) -> None:
    content = first_part(log).read_bytes()
    first_part(log).write_bytes(content[: len(content) // 2])


def no_rows(log: Path) -> None:
    for part in (log / "train").glob("*.parquet"):
        pq.write_table(pq.read_table(part).slice(0, 0), part)


def no_validation_rows(log: Path) -> None:
    for part in (log / "valid").glob("*.parquet"):
        pq.write_table(pq.read_table(part).slice(0, 0), part)


def label_of_two(log: Path) -> None:
    edit_part(log, set_column(label_of(log), lambda c: added(c, 1)))


def a_column_is_text(log: Path) -> None:
    edit_part(log, set_column(label_of(log), lambda c: c.cast(pa.string())))


def an_id_is_too_large(log: Path) -> None:
    edit_part(log, set_column("user", lambda c: added(c, 10**6)))


BAD_LOGS = {
    "missing column": (lambda log: edit_part(log, lambda t: t.drop_columns(["user"])), "user"),
    "wrong type": (a_column_is_text, "wrong type"),
    "label outside": (label_of_two, "outside {0, 1}"),
    "empty log": (no_rows, "empty"),
    "truncated": (truncate, "part-"),
    "id out of range": (an_id_is_too_large, "not a row of its table"),
    "no validation rows": (no_validation_rows, "empty"),
    "no schema": (lambda log: (log / "train" / "schema.yaml").unlink(), "raymtl schema"),
    "schema key": (lambda log: edit_schema(log, lambda v: v.update(taskz=[])), "tasks"),
    "no tasks": (lambda log: edit_schema(log, lambda v: v.update(tasks=[])), "tasks"),
}


@pytest.mark.parametrize("name", BAD_LOGS)
def test_a_bad_log_is_refused_before_anything_is_written(log: Path, name: str) -> None:
    spoil, expected = BAD_LOGS[name]
    spoil(log)
    with pytest.raises(InputError) as caught:
        train(parse(TrainConfig, small_config(str(log)), "a test"))
    text = str(caught.value)
    assert expected in text
    assert all(part in text for part in ("\n  got:    ", "\n  wanted: ", "\n  do:     "))
    assert not (log / "runs").exists()


BAD_CONFIGS = {
    "unknown key": ("train.num_epoch=2", "did you mean num_epochs?"),
    "unknown model key": ("model.num_shared_expert=2", "did you mean num_shared_experts?"),
    "unknown model": ("model.name=stam", "did you mean stem?"),
    "more workers than lanes": ("launch.num_workers=9", "more workers than lanes"),
    "batch and lanes": ("train.global_batch_size=100", "divide over the lanes"),
    "metric": ("validation.metric=acu", "did you mean auc?"),
    "type": ("train.num_epochs=many", "train.num_epochs"),
    "no log": ("data.train=/nowhere/at/all", "/nowhere/at/all"),
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_a_bad_config_is_refused_before_anything_is_written(log: Path, name: str) -> None:
    change, expected = BAD_CONFIGS[name]
    with pytest.raises(InputError) as caught:
        train(parse(TrainConfig, small_config(str(log), change), "a test"))
    assert expected in str(caught.value)
    assert not (log / "runs").exists()


def test_storage_that_cannot_be_written_is_refused(log: Path) -> None:
    (log / "file").write_text("not a folder")
    config = parse(TrainConfig, small_config(str(log), f"storage={log}/file/runs"), "a test")
    with pytest.raises(InputError, match="not writable"):
        train(config)
