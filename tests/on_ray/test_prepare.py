"""`raymtl prepare` on small raw files, against slow and obvious references; and on KuaiRand."""

import collections
import json
import math
import statistics
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from helpers.raw_logs import CONFIG, write_raw
from helpers.shared import shared_data
from raymtl.batch import Layout
from raymtl.config import load, override, parse, parse_yaml
from raymtl.data.decode import decode, hash_rows
from raymtl.data.log import read_index
from raymtl.data.prepare import PrepareConfig, prepare
from raymtl.errors import InputError
from raymtl.preflight import indexed, schema_at
from raymtl.schema import LogSchema

CONFIGS = Path(__file__).parents[2] / "jobs" / "raymtl_jobs" / "configs"
SPLITS = ("train", "valid", "test")
pytestmark = pytest.mark.usefixtures("local_ray")


def config_of(folder: Path, *overrides: str) -> PrepareConfig:
    values = override(parse_yaml(CONFIG, "test"), [f"data_root={folder}", *overrides])
    return parse(PrepareConfig, values, "test")


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    folder = tmp_path_factory.mktemp("raw")
    return folder, write_raw(folder)


@pytest.fixture(scope="module")
def out(local_ray: None, raw: tuple[Path, list[dict]]) -> Path:
    folder = raw[0] / "out"
    prepare(config_of(raw[0]), str(folder))
    return folder


@pytest.fixture(scope="module")
def splits(raw: tuple[Path, list[dict]]) -> dict[str, list[dict]]:
    """The raw rows with their side columns, by split, as the config says."""
    rows = [joined(row, raw[0]) for row in raw[1]]
    where = {1: "train", 2: "train", 3: "train", 4: "valid", 5: "test", 6: "test", 7: "dropped"}
    found: dict[str, list[dict]] = {name: [] for name in (*SPLITS, "dropped")}
    for row in rows:
        found["train" if row["source"] == "old" else where[row["date"]]].append(row)
    return found


def joined(row: dict, folder: Path) -> dict:
    users = {r["user_id"]: r for r in pq.read_table(folder / "users.parquet").to_pylist()}
    items = {r["item"]: r for r in pq.read_table(folder / "items.parquet").to_pylist()}
    item = items.get(row["item"], {})
    return {
        **{"city": None, "level": None, "age": None, "click": None, "time_ms": None},
        **users.get(row["user"], {}),
        **row,
        "hour": row["hourmin"] // 100 if "hourmin" in row else None,
        "tags": item["tag"].split(",") if item.get("tag") else None,
        "seconds": item.get("seconds") or None,
    }


def log_rows(out: Path, split: str) -> list[dict]:
    tables = [pq.read_table(p) for p in sorted((out / split).glob("part-*.parquet"))]
    return pa.concat_tables(tables).to_pylist()


def vocabulary(out: Path, table: str) -> dict[Any, int]:
    rows = pq.read_table(out / "vocabularies" / f"{table}.parquet").to_pylist()
    return {row["value"]: row["count"] for row in rows}


def test_each_split_holds_its_rows_in_their_order(out: Path, splits: dict) -> None:
    for name in SPLITS:
        wanted = [(r["user"], r["item"], r["time_ms"]) for r in splits[name]]
        assert [(r["user"], r["item"], r["time_ms"]) for r in log_rows(out, name)] == wanted


@pytest.mark.parametrize(
    ("table", "least"),
    [("user", 2), ("item", 3), ("hour", 1), ("city", 1), ("level", 1), ("tags", 1)],
)
def test_a_vocabulary_counts_the_training_part(
    out: Path, splits: dict, table: str, least: int
) -> None:
    values = [row[table] for row in splits["train"] if row[table] is not None]
    values = [v for value in values for v in value] if table == "tags" else values
    counts = {v: n for v, n in collections.Counter(values).items() if n >= least}
    wanted = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    assert list(vocabulary(out, table).items()) == wanted


@pytest.mark.parametrize("name", ["user", "item", "hour", "city", "level"])
def test_ids_are_rows_of_the_vocabulary_unknown_is_0_and_null_stays_null(
    out: Path, splits: dict, name: str
) -> None:
    rows = {v: n + 1 for n, v in enumerate(vocabulary(out, name))}
    for split in SPLITS:
        wanted = [None if r[name] is None else rows.get(r[name], 0) for r in splits[split]]
        assert [r[f"f_{name}"] for r in log_rows(out, split)] == wanted
    made = [r[f"f_{name}"] for r in log_rows(out, "test")]
    assert name not in ("user", "item") or 0 in made, "the test part has values train has not"


def test_bags_are_split_and_their_values_are_rows(out: Path, splits: dict) -> None:
    rows = {v: n + 1 for n, v in enumerate(vocabulary(out, "tags"))}
    for split in SPLITS:
        wanted = [r["tags"] and [rows.get(t, 0) for t in r["tags"]] for r in splits[split]]
        assert [r["f_tags"] for r in log_rows(out, split)] == wanted


def test_hashed_ids_are_hashed_now(out: Path, splits: dict) -> None:
    wanted = hash_rows([str(r["item"]) for r in splits["test"]], 40).tolist()
    assert [r["f_item_hashed"] for r in log_rows(out, "test")] == wanted


def test_numbers_are_standardised_by_the_training_part(out: Path, splits: dict) -> None:
    known = [math.log1p(r["age"]) for r in splits["train"] if r["age"] is not None]
    mean, std = statistics.fmean(known), statistics.pstdev(known)
    for split in SPLITS:
        for made, row in zip(log_rows(out, split), splits[split], strict=True):
            if row["age"] is None:
                assert made["f_age"] is None
            else:
                assert made["f_age"] == pytest.approx(
                    (math.log1p(row["age"]) - mean) / std, abs=1e-5
                )


def test_buckets_are_quantiles_of_the_training_part(out: Path, splits: dict) -> None:
    known = sorted(r["seconds"] for r in splits["train"] if r["seconds"] is not None)
    borders = sorted({known[len(known) * i // 5] for i in range(1, 5)})
    for split in SPLITS:
        wanted = [
            0 if r["seconds"] is None else 1 + sum(b <= r["seconds"] for b in borders)
            for r in splits[split]
        ]
        assert [r["f_seconds"] for r in log_rows(out, split)] == wanted


def test_unobserved_labels_stay_null(out: Path, splits: dict) -> None:
    for split in SPLITS:
        for label in ("click", "like"):
            wanted = [row[label] for row in splits[split]]
            assert [row[label] for row in log_rows(out, split)] == wanted


def test_statistics_count_what_is_there(out: Path, splits: dict) -> None:
    found = json.loads((out / "statistics.json").read_text())
    assert found["dropped_rows"] == len(splits["dropped"]) > 0
    for name in SPLITS:
        rows, mine = splits[name], found["splits"][name]
        assert mine["rows"] == len(rows)
        assert mine["users"] == len({r["user"] for r in rows})
        for task in ("click", "like"):
            labels = [r[task] for r in rows]
            positives, nulls = labels.count(1), labels.count(None)
            assert mine["tasks"][task]["positives"] == positives
            assert mine["tasks"][task]["null"] == nulls
            assert mine["tasks"][task]["rate"] == pytest.approx(positives / (len(rows) - nulls))
        assert mine["features"]["city"]["null"] == sum(r["city"] is None for r in rows)
        unknown = sum(r["item"] not in vocabulary(out, "item") for r in rows)
        assert mine["features"]["item"]["unknown"] == unknown


def test_the_log_is_ready_for_training_and_its_row_groups_are_chunks(out: Path) -> None:
    transforms = yaml.safe_load((out / "transforms.yaml").read_text())
    for name in SPLITS:
        schema = parse(LogSchema, yaml.safe_load((out / name / "schema.yaml").read_text()), name)
        schema.require_ready()
        assert schema.transforms == transforms["digest"]
        index = read_index(str(out / name), schema)
        assert (out / name / "_index.parquet").exists()
        assert all(max(f.row_group_rows) <= 16 for f in index.files)
        for number in range(len(index.files)):
            table = pq.read_table(index.location(number))
            decoded = decode(table, schema, Layout.of(schema), name, keys=("user", "time_ms"))
            assert decoded["ids"].shape == (table.num_rows, 6 + 20 + 1)


def test_two_runs_write_the_same_bytes(raw: tuple, out: Path) -> None:
    prepare(config_of(raw[0]), str(raw[0] / "again"))
    files = [p.relative_to(out) for p in sorted(out.rglob("*")) if p.is_file()]
    assert len(files) >= 20
    different = [
        str(p) for p in files if (out / p).read_bytes() != (raw[0] / "again" / p).read_bytes()
    ]
    assert different == ["result.json"]


def test_an_existing_folder_is_kept_unless_overwrite_is_set(raw: tuple, out: Path) -> None:
    before = (out / "transforms.yaml").read_bytes()
    with pytest.raises(InputError, match="there already"):
        prepare(config_of(raw[0]), str(out))
    mine = raw[0] / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="not written by raymtl prepare"):
        prepare(config_of(raw[0], "overwrite=true"), str(mine))
    assert (mine / "thesis.txt").exists()
    assert (out / "transforms.yaml").read_bytes() == before
    prepare(
        config_of(raw[0], "overwrite=true", "vocabularies.min_count.item=1"), str(raw[0] / "again")
    )
    assert len(vocabulary(raw[0] / "again", "item")) > len(vocabulary(out, "item"))


def test_a_split_by_user_takes_each_users_last_rows_for_the_test(raw: tuple) -> None:
    folder, rows = raw
    split = "split={by: order, valid: 0.2, test: 0.3, per: user}"
    prepare(config_of(folder, split, "chunk_rows=2"), str(folder / "by_user"))
    wanted: dict[str, list] = {name: [] for name in SPLITS}
    totals, seen = collections.Counter(r["user"] for r in rows), collections.Counter()
    for row in rows:
        user = row["user"]
        train, valid = (math.ceil(totals[user] * x - 1e-9) for x in (0.5, 0.7))
        name = "train" if seen[user] < train else "valid" if seen[user] < valid else "test"
        wanted[name].append((user, row["item"]))
        seen[user] += 1
    for name in SPLITS:
        made = [(r["user"], r["item"]) for r in log_rows(folder / "by_user", name)]
        assert made == wanted[name]


def test_a_split_by_time_starts_each_part_at_its_border(raw: tuple) -> None:
    folder, rows = raw
    only_new = override(parse_yaml(CONFIG, "test"), [f"data_root={folder}"])
    only_new["sources"] = only_new["sources"][1:]
    borders = {"train_from": 2, "valid_from": 4, "test_from": 6}
    only_new["split"] = {"by": "time", "column": "date"} | borders
    prepare(parse(PrepareConfig, only_new, "test"), str(folder / "by_time"))
    dates = [r["date"] for r in rows if r["source"] == "new"]
    found = json.loads((folder / "by_time" / "statistics.json").read_text())["splits"]
    assert found["pretrain"]["rows"] == sum(d < 2 for d in dates) > 0
    assert found["train"]["rows"] == sum(2 <= d < 4 for d in dates) > 0
    assert found["valid"]["rows"] == sum(4 <= d < 6 for d in dates)
    assert found["test"]["rows"] == sum(d >= 6 for d in dates)


def test_rows_without_a_positive_label_are_kept_in_part(raw: tuple, out: Path) -> None:
    sampled = raw[0] / "sampled"
    prepare(config_of(raw[0], "sample={keep: 0.25}"), str(sampled))
    schema = schema_at(f"{sampled}/train/schema.yaml")
    assert schema.weight == "sample_weight"
    assert indexed(f"{sampled}/train", schema).num_rows == len(log_rows(sampled, "train"))
    whole = [{**row, "sample_weight": None} for row in log_rows(out, "train")]
    found = log_rows(sampled, "train")
    positive = [row for row in found if 1 in (row["click"], row["like"])]
    assert {row["sample_weight"] for row in positive} == {1.0}
    assert len(positive) == sum(1 in (row["click"], row["like"]) for row in whole)
    empty = [row for row in found if 1 not in (row["click"], row["like"])]
    assert {row["sample_weight"] for row in empty} == {4.0}
    assert 0.1 < len(empty) / (len(whole) - len(positive)) < 0.4
    assert all({**row, "sample_weight": None} in whole for row in found)
    assert len(log_rows(sampled, "valid")) == len(log_rows(out, "valid"))
    assert {row["sample_weight"] for row in log_rows(sampled, "valid")} == {1.0}


def change(path: Path, column: str, values: list | None) -> None:
    """Replaces a column of a file, or removes it."""
    table = pq.read_table(path)
    place = table.column_names.index(column)
    table = table.remove_column(place)
    if values is not None:
        table = table.append_column(column, pa.array(values[: table.num_rows]))
    pq.write_table(table, path)


def bad_label(folder: Path) -> None:
    change(folder / "new" / "b.parquet", "click", [0] * 20 + [2] + [1] * 400)


def duplicate_key(folder: Path) -> None:
    change(folder / "users.parquet", "user_id", [0, 1, 2, 2, *range(4, 40)])


def truncated(folder: Path) -> None:
    path = folder / "new" / "b.parquet"
    path.write_bytes(path.read_bytes()[:-100])


def damaged_pages(folder: Path) -> None:
    path = folder / "old.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[:4] + bytes(400) + whole[404:])


@pytest.mark.parametrize(
    ("damage", "overrides", "what"),
    [
        (bad_label, [], r"(?s)a label of task click.*click = 2 .*b\.parquet, row 20"),
        (duplicate_key, [], r"(?s)join users has a key more than once.*user_id = 2"),
        (truncated, [], r"(?s)not readable parquet.*b\.parquet"),
        (damaged_pages, [], r"(?s)a file cannot be read.*old\.parquet"),
        (
            None,
            ["split.valid=[{source: new, column: date, equals: 99}]"],
            "valid split has no rows",
        ),
        (None, ["split.test=[{source: new, column: date, equals: 4}]"], "belongs to two splits"),
        (None, ["join_limit_bytes=100"], "joined tables do not fit"),
        (None, ["keep=[nowhere]"], "column nowhere is missing"),
        (None, ["derive.hour.column=city"], "derive.hour does not fit"),
        (None, ["split.test=[{source: new, column: date, equals: may}]"], "with something else"),
        (None, ["schema.tables=[]"], "table item_hashed has no rows"),
        (lambda f: change(f / "new" / "a.parquet", "item", None), [], "column item is missing"),
        (lambda f: change(f / "new" / "a.parquet", "item", ["x"] * 500), [], "do not go together"),
        (lambda f: change(f / "users.parquet", "level", [0.5] * 40), [], "numbers that are no ids"),
        (lambda f: change(f / "users.parquet", "age", [math.inf] * 40), [], "age is not finite"),
    ],
)
def test_wrong_input_is_named_and_leaves_nothing(
    tmp_path: Path, damage: Any, overrides: list[str], what: str
) -> None:
    write_raw(tmp_path)
    if damage:
        damage(tmp_path)
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(InputError, match=what):
        prepare(config_of(tmp_path, *overrides), str(tmp_path / "out"))
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_a_folder_that_cannot_be_written_is_named(raw: tuple) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        prepare(config_of(raw[0]), "/proc/nowhere/out")


def test_kuairand_is_prepared_as_its_page_says(tmp_path: Path) -> None:
    folder = shared_data("kuairand_pure")
    config = load(PrepareConfig, CONFIGS / "kuairand_prepare.yaml", [f"data_root={folder}"])
    result = prepare(config, str(tmp_path / "out"))
    rows = {name: split["rows"] for name, split in result["splits"].items()}
    history, impressions = 812_731, {"train": 14_911 + 14_530 + 14_328, "valid": 13_972}
    assert rows == {"train": history + impressions["train"], "valid": 13_972, "test": 37_043}
    tasks = {
        name: split["tasks"]
        for name, split in json.loads((tmp_path / "out" / "statistics.json").read_text())[
            "splits"
        ].items()
    }
    assert tasks["train"]["click"]["null"] == history
    assert tasks["train"]["like"]["null"] == tasks["train"]["long_view"]["null"] == 0
    assert tasks["test"]["like"]["positives"] == 699
    clicks = sum(tasks[name]["click"]["positives"] for name in SPLITS)
    assert clicks / 94_784 == pytest.approx(0.43787, abs=1e-5)
