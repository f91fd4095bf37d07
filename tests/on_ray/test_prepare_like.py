"""A second day: transforms taken over or extended, runs that start from the day before."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from helpers.raw_logs import CONFIG, write_raw
from helpers.training import weights_of
from raymtl import alone
from raymtl.config import TrainConfig, override, parse, parse_yaml
from raymtl.data.prepare import prepare
from raymtl.data.prepare_config import PrepareConfig
from raymtl.errors import InputError
from raymtl.preflight import check_run, describe, schema_at
from raymtl.run import choose
from raymtl.schema import CategoricalFeature

pytestmark = pytest.mark.usefixtures("local_ray")
SECOND_DAY = [
    "sources=[{name: days, url: new}]",
    "split.train=[{source: days, column: date, equals: 5}]",
    "split.valid=[{source: days, column: date, equals: 6}]",
    "split.test=[{source: days, column: date, equals: 7}]",
    "vocabularies={}",
]
CITIES = [f"city {n}" for n in range(6)]
MORE = [
    {"name": "town", "column": "city", "kind": "categorical", "encoding": "vocabulary"},
    {"name": "slot", "column": "hourmin", "kind": "categorical", "encoding": "vocabulary"}
    | {"training_only": True, "serving_value": 1259},
]
"""Features with a vocabulary that is written out, and one that is known in training only."""
AGE = {"min_age_days": 100 / 86_400}
"""The rows of `new` are a second apart, so that the last 100 are too young for a click."""
TINY = {"name": "shared_bottom", "bottom_hidden_units": [4], "tower_hidden_units": [2]}


def config_of(folder: Path, *overrides: str, cities: list[str] = CITIES) -> PrepareConfig:
    values = override(parse_yaml(CONFIG, "test"), [f"data_root={folder}"])
    schema = values["schema"]
    schema["features"] += MORE
    schema["tables"] += [{"name": "town", "values": cities}]
    schema["tasks"][0]["observed_if"] = AGE
    schema["time_unit"] = "s"
    values = override(values, list(overrides))
    return parse(PrepareConfig, values, "test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Path:
    """Raw files, `first` prepared of days 1 to 6, and `same` and `more` after it.

    `same` takes its transforms from a checkpoint that was copied away, `more` from the log.
    """
    made = tmp_path_factory.mktemp("days")
    write_raw(made)
    prepare(config_of(made), str(made / "first"))
    checkpoint = choose(train(made, "first", "name=first"), "last").folder.path
    alone_ = shutil.copytree(checkpoint, made / "copied")
    prepare(config_of(made, *SECOND_DAY), str(made / "same"), like=str(alone_))
    grown = config_of(made, *SECOND_DAY, cities=[*CITIES, "city 6"])
    prepare(grown, str(made / "more"), like=str(made / "first" / "train"), extend=True)
    return made


def values_of(folder: Path, log: str, table: str) -> list:
    path = folder / log / "vocabularies" / f"{table}.parquet"
    return pq.read_table(path)["value"].to_pylist()


def rows_of(folder: Path, log: str, split: str) -> list[dict]:
    files = sorted((folder / log / split).glob("part-*.parquet"))
    return pq.read_table(files).to_pylist()


def test_transforms_taken_over_are_the_same_to_the_byte(folder: Path) -> None:
    for name in ("user", "item", "hour", "city", "level", "tags"):
        path = f"vocabularies/{name}.parquet"
        assert (folder / "same" / path).read_bytes() == (folder / "first" / path).read_bytes()
    first, same = (schema_at(str(folder / log / "train/schema.yaml")) for log in ("first", "same"))
    assert same == first
    texts = [(folder / log / "transforms.yaml").read_text() for log in ("first", "same")]
    assert texts[0] == texts[1]


def test_a_row_comes_out_as_it_did_in_the_first_log(folder: Path) -> None:
    first = {row["time_ms"]: row for row in rows_of(folder, "first", "test")}  # days 5 and 6
    second = rows_of(folder, "same", "train") + rows_of(folder, "same", "valid")
    assert len(second) == len(first) > 50
    for row in second:
        assert row == first[row["time_ms"]]


@pytest.mark.parametrize("table", ["user", "item"])
def test_extending_appends_and_changes_no_old_row(folder: Path, table: str) -> None:
    old, new = values_of(folder, "first", table), values_of(folder, "more", table)
    assert new[: len(old)] == old
    seen = {row[table] for row in rows_of(folder, "more", "train")}
    assert set(new) == set(old) | seen
    assert len(new) == len(set(new)) > len(old)
    rows = {value: n + 1 for n, value in enumerate(new)}
    for row in rows_of(folder, "more", "train"):
        assert row[f"f_{table}"] == rows[row[table]]


def test_all_else_is_as_before_when_vocabularies_grow(folder: Path) -> None:
    more = {row["time_ms"]: row for row in rows_of(folder, "more", "train")}
    for row in rows_of(folder, "same", "train"):
        for name in ("f_age", "f_seconds", "f_item_hashed", "f_hour"):
            assert more[row["time_ms"]][name] == row[name]


def test_extensions_name_what_they_extend(folder: Path) -> None:
    second = config_of(folder, *SECOND_DAY, cities=[*CITIES, "city 6"])
    prepare(second, str(folder / "third"), like=str(folder / "more"), extend=True)
    logs = ("first", "more", "third")
    found = [schema_at(str(folder / log / "train/schema.yaml")) for log in logs]
    digests = [schema.transforms for schema in found]
    assert found[1].extends == [digests[0]]
    assert found[2].extends == [digests[1], digests[0]]
    assert len(set(digests)) == 3


@pytest.mark.parametrize(
    "change, named",
    [
        ("derive.hour.divide=10", "derive.hour.divide = 10"),
        ("derive.seconds.null_if=1", "derive.seconds.null_if = 1"),
        ("schema.tasks=[{name: like, label: like}]", "schema.tasks.click = none"),
        (
            "schema.tables=[{name: item_hashed, rows: 41}, {name: town, values: [a]}]",
            "schema.tables.item_hashed.rows = 41",
        ),
    ],
)
def test_another_config_is_refused_by_name(folder: Path, change: str, named: str) -> None:
    with pytest.raises(InputError, match="does not make the log") as caught:
        made = config_of(folder, *SECOND_DAY, change)
        prepare(made, str(folder / "refused"), like=str(folder / "first"))
    assert named in str(caught.value)
    assert not (folder / "refused").exists()


@pytest.mark.parametrize("extend", [False, True])
def test_values_written_out_in_another_way_are_refused(folder: Path, extend: bool) -> None:
    changed = [CITIES[1], CITIES[0], *CITIES[2:]]
    with pytest.raises(
        InputError, match=r"(?s)values of table town.*values\[0\] = city 1"
    ) as caught:
        made = config_of(folder, *SECOND_DAY, cities=changed)
        prepare(made, str(folder / "refused"), like=str(folder / "first"), extend=extend)
    assert "city 0, as in" in str(caught.value)
    longer = config_of(folder, *SECOND_DAY, cities=[*CITIES, "city 6"])
    if not extend:
        with pytest.raises(InputError, match=r"values\[6\] = city 6"):
            prepare(longer, str(folder / "refused"), like=str(folder / "first"))


def test_values_written_out_go_on_behind_the_old_ones(folder: Path) -> None:
    assert values_of(folder, "first", "town") == CITIES
    assert values_of(folder, "more", "town") == [*CITIES, "city 6"]


def test_a_click_is_unobserved_until_it_is_old_enough(folder: Path) -> None:
    for log, split in (("first", "test"), ("same", "train")):
        for row in rows_of(folder, log, split):
            young = row["time_ms"] > 1_000_399 - 100
            assert (row["click"] is None) == young, row["time_ms"]
    schema = schema_at(str(folder / "first/train/schema.yaml"))
    assert schema.tasks[0].observed_if is None and schema.as_of is None, "it is in the labels now"


def test_a_serving_value_becomes_the_row_of_its_value(folder: Path) -> None:
    schema = schema_at(str(folder / "first/train/schema.yaml"))
    slot = next(f for f in schema.features if f.name == "slot")
    assert isinstance(slot, CategoricalFeature) and slot.training_only
    assert values_of(folder, "first", "slot").index(1259) + 1 == slot.serving_value


def test_drift_stands_beside_training(folder: Path) -> None:
    drift = json.loads((folder / "same" / "statistics.json").read_text())["drift"]
    assert set(drift) == {"train", "valid", "test"}
    rows = rows_of(folder, "same", "train")
    unknown = sum(row["f_item"] == 0 for row in rows) / len(rows)
    assert drift["train"]["item"]["unknown"] == pytest.approx(unknown, abs=1e-6)
    train = rows_of(folder, "first", "train")
    missing = sum(row["f_age"] is None for row in train) / len(train)
    assert drift["train"]["age"]["train_null"] == pytest.approx(missing, abs=1e-6)
    assert drift["train"]["hour"]["train_null"] > 0.3 > drift["train"]["hour"]["null"] == 0


def test_transforms_that_are_missing_or_damaged_are_refused(folder: Path, tmp_path: Path) -> None:
    second, refused = config_of(folder, *SECOND_DAY), str(tmp_path / "refused")
    with pytest.raises(InputError, match="there are no transforms"):
        prepare(second, refused, like=str(tmp_path / "nothing"))
    copy = Path(shutil.copytree(folder / "first", tmp_path / "copy"))
    path = copy / "vocabularies/item.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match="not the one that was fitted"):
        prepare(second, refused, like=str(copy))
    text = (copy / "transforms.yaml").read_text()
    outside = text.replace("vocabularies/item.parquet", "../../item.parquet")
    wrong = [f"{text}\n{line}" for line in ("joins: 3", "extends: [4]", "vocabularies: []")]
    for damaged in ("[1, 2", "digest: 3", "digest: a", outside, *wrong):
        (copy / "transforms.yaml").write_text(damaged)
        with pytest.raises(InputError):
            prepare(second, refused, like=str(copy))
    assert not (tmp_path / "refused").exists()


def values_to_train(folder: Path, log: str) -> dict:
    return {
        "storage": str(folder / "runs"),
        "data": {"train": str(folder / log / "train"), "valid": str(folder / log / "valid")},
        "model": TINY,
        "embedding": {"width": 4, "replicate_rows": 8, "num_buckets": 4},
        "train": {"global_batch_size": 32},
    }


def train(folder: Path, log: str, *overrides: str) -> str:
    values = override(values_to_train(folder, log), list(overrides))
    return alone.train(parse(TrainConfig, values, "test"))["run"]


def test_a_run_starts_from_the_day_before_and_its_tables_grow(folder: Path) -> None:
    still = ["optimizer.dense.lr=1e-20", "optimizer.rows.lr=1e-20"]
    first = train(folder, "first", "name=day-1")
    second = train(folder, "more", "name=second", f"init_from={first}", *still)
    fresh = train(folder, "more", "name=fresh", *still)
    before, after, drawn = (weights_of(choose(run, "last")) for run in (first, second, fresh))
    grown = 0
    for table in ("user", "item", "hour", "city", "level", "tags"):
        old = len(values_of(folder, "first", table)) + 1
        rows = [in_order(found[f"{table}/values"]) for found in (before, after, drawn)]
        assert len(rows[0]) == old
        torch.testing.assert_close(rows[1][:old], rows[0], rtol=0, atol=1e-12)
        torch.testing.assert_close(rows[1][old:], rows[2][old:], rtol=0, atol=1e-12)
        grown += len(rows[1]) - old
    assert grown > 3


def test_what_is_new_is_said_and_the_way_back_is_refused(folder: Path) -> None:
    first = train(folder, "first", "name=to_grow")
    values = values_to_train(folder, "more") | {"name": "said", "init_from": first}
    job, _ = check_run(parse(TrainConfig, values, "test"), resume=False)
    assert "table user has" in describe(job) and "new rows behind" in describe(job)
    more = train(folder, "more", "name=grown", f"init_from={first}")
    back = values_to_train(folder, "first") | {"name": "back", "init_from": more}
    with pytest.raises(InputError, match=r"schema\.transforms"):
        check_run(parse(TrainConfig, back, "test"), resume=False)


def in_order(saved: torch.Tensor, buckets: int = 4) -> torch.Tensor:
    """Rows 0, 1, ... of a table that was saved in (bucket, k) order."""
    places = torch.arange(len(saved))
    by_bucket = torch.cat([places[places % buckets == b] for b in range(buckets)])
    return saved[torch.argsort(by_bucket)]
