"""Ali-CCP's text files to parquet: the join, the lists, and what is refused."""

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from helpers import public_raw as raw
from raymtl.data.convert import aliccp, text
from raymtl.data.convert.forms import convert
from raymtl.data.convert.plan import Options
from raymtl.errors import InputError

USERS = 8


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    raw.write_aliccp(tmp_path / "raw", users=USERS)
    return tmp_path / "raw"


def converted(folder: Path, max_values: int = 20) -> Path:
    out = folder.parent / "out"
    convert("aliccp", str(folder), str(out), Options(max_values), overwrite=out.exists())
    return out


def rows_of(out: Path, split: str = "train") -> dict[int, dict]:
    """Rows by sample, in no order."""
    return {r["sample_id"]: r for r in pq.read_table(out / f"{split}.parquet").to_pylist()}


def refusal(folder: Path) -> InputError:
    """The error, after which nothing may be left."""
    with pytest.raises(InputError) as caught:
        converted(folder)
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]
    return caught.value


def test_a_sample_gets_its_own_and_its_users_features(folder: Path) -> None:
    row = rows_of(converted(folder))[10]  # user 2
    assert row == {
        **{"sample_id": 10, "click": 1, "conversion": 1, "fold": row["fold"]},
        **{"f101": 1002, "f121": 3_438_660, "f109_14": [4_000_000, 4_000_001, 4_000_002]},
        **{"f109_14_weight": [0.5, 1.0, 1.5], "f205": 4_186_232, "f206": 8_316_801},
        **{"f210": [9_052_218, 9_064_563], "f210_weight": [1.0, 1.0]},
        **{"f508": [9_355_039], "f508_weight": [2.5]},
        **dict.fromkeys(
            [
                *("f122", "f124", "f125", "f126", "f127", "f128", "f129", "f207", "f216", "f301"),
                *("f110_14", "f110_14_weight", "f127_14", "f127_14_weight", "f150_14"),
                *("f150_14_weight", "f509", "f509_weight", "f702", "f702_weight"),
                *("f853", "f853_weight"),
            ]
        ),
    }


def test_every_sample_is_there_once_but_those_converted_without_a_click(folder: Path) -> None:
    out = converted(folder)
    for split in ("train", "test"):
        rows = rows_of(out, split)
        assert sorted(rows) == [n for n in range(1, 61) if n != 7]
        assert pq.read_metadata(out / f"{split}.parquet").num_rows == 59
        assert all(row["f101"] == 1000 + n % USERS for n, row in rows.items())
    left_out = json.loads((out / "result.json").read_text())["left_out"]
    assert left_out["train.parquet"] == {"samples with a conversion but no click": 1}


def test_the_join_is_the_same_in_one_part_as_in_many_and_over_small_blocks(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = rows_of(converted(folder))
    monkeypatch.setattr(aliccp, "PART_BYTES", 64)
    monkeypatch.setattr(aliccp, "JOIN_BYTES", 1)
    monkeypatch.setattr(text, "BLOCK_BYTES", 512)
    monkeypatch.setattr("raymtl.data.convert.deal.HELD_BYTES", 2000)
    assert rows_of(converted(folder)) == whole


def test_within_a_part_samples_keep_their_order(folder: Path) -> None:
    samples = pq.read_table(converted(folder) / "train.parquet")["sample_id"].to_pylist()
    assert samples == [n for n in range(1, 61) if n != 7]


def test_a_list_keeps_its_largest_values_in_their_order(folder: Path) -> None:
    out = converted(folder, max_values=2)
    row = rows_of(out)[15]  # user 7 has 8 categories, the last ones with the largest values
    assert row["f109_14"] == [4_000_006, 4_000_007]
    assert row["f109_14_weight"] == [3.5, 4.0]
    beyond = sum(max(0, u + 1 - 2) for u in range(USERS))
    left_out = json.loads((out / "result.json").read_text())["left_out"]["test.parquet"]
    assert left_out["features beyond the most that are kept of a list"] == beyond
    assert len(rows_of(converted(folder, max_values=0))[15]["f109_14"]) == 8


def test_of_equal_values_a_list_keeps_the_first(folder: Path) -> None:
    triples = [("210", 100 + n, 1.0) for n in range(4)]
    raw.lines(
        folder / "sample_skeleton_train.csv", [raw.sample(1, 0, 0, raw.index_of(0), *triples)]
    )
    assert rows_of(converted(folder, max_values=3))[1]["f210"] == [100, 101, 102]


def test_a_single_field_that_is_there_twice_keeps_its_last_and_is_counted(folder: Path) -> None:
    triples = [("205", 1, 1.0), ("205", 2, 1.0), ("206", 3, 1.0)]
    raw.lines(
        folder / "sample_skeleton_train.csv", [raw.sample(1, 0, 0, raw.index_of(0), *triples)]
    )
    out = converted(folder)
    assert rows_of(out)[1]["f205"] == 2
    left_out = json.loads((out / "result.json").read_text())["left_out"]["train.parquet"]
    assert left_out == {"features of a field with one a row, before its last": 1}


def test_fields_of_the_other_file_or_of_none_are_left_out_and_counted(folder: Path) -> None:
    triples = [("205", 1, 1.0), ("101", 2, 1.0), ("999", 3, 1.0)]
    raw.lines(
        folder / "sample_skeleton_train.csv", [raw.sample(1, 0, 0, raw.index_of(0), *triples)]
    )
    out = converted(folder)
    assert rows_of(out)[1]["f101"] == 1000
    left_out = json.loads((out / "result.json").read_text())["left_out"]["train.parquet"]
    assert left_out == {"features of fields that this file should not have": 2}


def test_an_index_that_is_there_twice_keeps_its_last_row_and_is_counted(folder: Path) -> None:
    common = folder / "common_features_train.csv"
    twice = raw.common(raw.index_of(0), ("101", 77, 1.0))
    raw.lines(common, [*common.read_text().splitlines(), twice])
    out = converted(folder)
    assert rows_of(out)[8]["f101"] == 77
    left_out = json.loads((out / "result.json").read_text())["left_out"]["train.parquet"]
    assert left_out["rows of the common file before the last of its index"] == 1


def test_a_fold_is_a_fixed_tenth_of_the_samples() -> None:
    folds = aliccp.folds(np.arange(100_000))
    assert np.abs(np.bincount(folds, minlength=10) - 10_000).max() < 300
    assert folds[:5].tolist() == aliccp.folds(np.arange(5)).tolist()
    assert (folds.min(), folds.max()) == (0, 9)


def test_a_sample_without_features_has_none(folder: Path) -> None:
    raw.lines(folder / "sample_skeleton_train.csv", [f"1,0,0,{raw.index_of(0)},0,"])
    row = rows_of(converted(folder))[1]
    assert row["f205"] is None and row["f210"] is None and row["f101"] == 1000


def test_gzip_and_windows_line_ends_change_nothing(folder: Path) -> None:
    plain = rows_of(converted(folder))
    common = folder / "common_features_train.csv"
    (folder / f"{common.name}.gz").write_bytes(gzip.compress(common.read_bytes()))
    common.unlink()
    samples = folder / "sample_skeleton_train.csv"
    samples.write_bytes(samples.read_bytes().replace(b"\n", b"\r\n"))
    assert rows_of(converted(folder)) == plain


def test_a_train_split_alone_is_enough_but_half_a_split_is_not(folder: Path) -> None:
    (folder / "common_features_test.csv").unlink()
    assert "no common_features_test.csv" in refusal(folder).got
    (folder / "sample_skeleton_test.csv").unlink()
    assert not (converted(folder) / "test.parquet").exists()


def break_line(folder: Path, name: str, old: str, new: str) -> InputError:
    """The error after a change in the file's fifth line."""
    content = (folder / name).read_text().splitlines()
    assert old in content[4]
    content[4] = content[4].replace(old, new, 1)
    raw.lines(folder / name, content)
    return refusal(folder)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("sample_skeleton_train.csv", "\x02", "\x03"),
        ("sample_skeleton_train.csv", "\x02", ":"),
        ("sample_skeleton_train.csv", "\x01", " "),
        ("common_features_train.csv", "\x031.0", ""),
        ("sample_skeleton_train.csv", "4186227", "4186x27"),
        ("sample_skeleton_train.csv", "\x032.5", "\x03inf"),
        ("common_features_train.csv", "\x031.0", "\x03one"),
    ],
)
def test_a_list_with_other_separators_or_no_numbers_is_named_by_its_line(
    folder: Path, name: str, old: str, new: str
) -> None:
    error = break_line(folder, name, old, new)
    assert error.what == "a value of column features does not fit"
    assert f"({folder}/{name}, line 5)" in error.got
    assert "\\x02" in error.wanted


def test_a_list_cut_after_a_whole_feature_is_named(folder: Path) -> None:
    error = break_line(folder, "sample_skeleton_test.csv", "\x01508\x029355039\x032.5", "")
    assert error.what == "a line has another number of features than it says"
    assert error.got.startswith("4 features, num = 5")


@pytest.mark.parametrize(
    ("old", "new", "column"),
    [("5,1,0,", "5,2,0,", "click"), ("5,1,0,", "x,1,0,", "sample_id"), (",5,205", ",,205", "num")],
)
def test_a_head_that_does_not_fit_is_named(folder: Path, old: str, new: str, column: str) -> None:
    error = break_line(folder, "sample_skeleton_train.csv", old, new)
    assert error.what == f"a value of column {column} does not fit"
    assert "line 5" in error.got


def test_half_a_last_line_is_named(folder: Path) -> None:
    samples = folder / "sample_skeleton_train.csv"
    content = samples.read_text()
    samples.write_text(content[: content.rfind(",205")])
    assert "sample_skeleton_train.csv, line 60: 5 fields" in refusal(folder).got


def test_a_sample_whose_index_is_not_in_the_common_file_is_named(folder: Path) -> None:
    common = folder / "common_features_train.csv"
    raw.lines(common, common.read_text().splitlines()[:-1])
    error = refusal(folder)
    assert error.what == "a sample has no common features"
    assert f"has index {raw.index_of(7)}" in error.got


@pytest.mark.parametrize("name", ["sample_skeleton_train.csv", "common_features_train.csv"])
def test_an_empty_file_is_named(folder: Path, name: str) -> None:
    (folder / name).write_text("")
    assert name in refusal(folder).got


def test_a_line_longer_than_a_block_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "BLOCK_BYTES", 64)
    assert "a line is longer than 64 bytes" in refusal(folder).got
