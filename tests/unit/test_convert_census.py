"""Census-Income (KDD) to parquet: labels, text, and what is refused; its configs."""

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers import public_raw as raw
from helpers.shared import shared_data
from raymtl.data.convert import census
from raymtl.data.convert.forms import convert
from raymtl.data.convert.plan import Options
from raymtl.data.prepare_config import PrepareConfig
from raymtl.errors import InputError
from raymtl_jobs import names

CONFIGS = ("census_prepare", "census_raw_prepare")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    raw.write_census(tmp_path / "raw")
    return tmp_path / "raw"


def converted(folder: Path) -> Path:
    out = folder.parent / "out"
    convert("census", str(folder), str(out), Options(), overwrite=out.exists())
    return out


def refusal(folder: Path) -> InputError:
    """The error, after which nothing may be left."""
    with pytest.raises(InputError) as caught:
        converted(folder)
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]
    return caught.value


def test_both_halves_have_their_rows_numbers_and_labels(folder: Path) -> None:
    out = converted(folder)
    train = pq.read_table(out / "train.parquet")
    assert train["row"].to_pylist() == list(range(40))
    assert train["label_income_gt_50k"].to_pylist() == [int(n % 4 == 0) for n in range(40)]
    assert train["label_never_married"].to_pylist() == [n % 2 for n in range(40)]
    assert train["label_some_college_or_more"].to_pylist() == [int(n % 3 > 0) for n in range(40)]
    assert pq.read_table(out / "test.parquet")["capital_gains"].to_pylist() == list(range(40, 60))


def test_white_space_around_values_goes_and_na_is_a_value(folder: Path) -> None:
    row = pq.read_table(converted(folder) / "train.parquet").slice(1, 1).to_pylist()[0]
    assert (row["age"], row["class_worker"], row["income"]) == (21, "Private", "- 50000.")
    assert (row["hisp_origin"], row["mig_chg_msa"], row["instance_weight"]) == ("NA", "?", 1001.38)


def test_names_and_types_are_those_of_the_parquet_half() -> None:
    half = pq.read_schema(shared_data("census_income_kdd/official_test_half.parquet"))
    assert half.names == [n for n in census.SCHEMA.names if n != "row"]
    for field in half:
        kind = pa.string() if pa.types.is_large_string(field.type) else field.type
        assert census.SCHEMA.field(field.name).type == kind


def test_labels_agree_with_the_parquet_half(tmp_path: Path) -> None:
    half = pq.read_table(shared_data("census_income_kdd/official_test_half.parquet")).slice(0, 3000)
    rows = half.select(list(census.NAMES)).to_pylist()
    (tmp_path / "raw").mkdir()
    text = [", ".join("NA" if v is None else str(v) for v in row.values()) for row in rows]
    raw.lines(tmp_path / "raw" / "census-income.test", text)
    made = pq.read_table(converted(tmp_path / "raw") / "test.parquet")
    for name in census.LABELS:
        assert made[name].to_pylist() == half[name].to_pylist()
    assert made["det_hh_fam_stat"].to_pylist() == half["det_hh_fam_stat"].to_pylist()
    assert made["instance_weight"].to_pylist() == half["instance_weight"].to_pylist()


def test_gzip_windows_line_ends_and_a_byte_order_mark_change_nothing(folder: Path) -> None:
    plain = pq.read_table(converted(folder) / "train.parquet")
    train = folder / "census-income.data"
    text = b"\xef\xbb\xbf" + train.read_bytes().replace(b"\n", b"\r\n")
    (folder / "census-income.data.gz").write_bytes(gzip.compress(text))
    train.unlink()
    assert pq.read_table(converted(folder) / "train.parquet").equals(plain)


def test_one_half_is_enough(folder: Path) -> None:
    (folder / "census-income.data").unlink()
    out = converted(folder)
    assert not (out / "train.parquet").exists() and (out / "test.parquet").exists()


def test_a_file_packed_and_unpacked_is_refused(folder: Path) -> None:
    (folder / "census-income.data.gz").write_bytes(b"")
    assert refusal(folder).what == "a raw file is there twice"


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        (", 95, ", ", ", "a line has the wrong number of fields"),
        (", 95, ", ", 95, 0, ", "a line has the wrong number of fields"),
        ("24, Private", "x, Private", "a value of column age does not fit"),
        ("1004.38", "much", "a value of column instance_weight does not fit"),
        ("Other service", "", "a value of column major_occ_code does not fit"),
        ("50000+.", "50000+", "a value of column income does not fit"),
    ],
)
def test_a_line_that_does_not_fit_is_named(folder: Path, old: str, new: str, what: str) -> None:
    train = folder / "census-income.data"
    content = train.read_text().splitlines()
    assert old in content[4]
    content[4] = content[4].replace(old, new)
    raw.lines(train, content)
    error = refusal(folder)
    assert error.what == what
    assert f"{train}, line 5" in error.got


def test_an_empty_file_and_an_empty_folder_are_named(folder: Path) -> None:
    (folder / "census-income.test").write_text("")
    assert "census-income.test" in refusal(folder).got
    for file in folder.iterdir():
        file.unlink()
    assert "no files" in refusal(folder).got


def test_the_two_prepare_configs_differ_in_their_sources_and_split_only() -> None:
    half, whole = (names.load(PrepareConfig, n, [], "prepare") for n in CONFIGS)
    own = {"data_root", "sources", "split"}
    assert half.model_dump(exclude=own) == whole.model_dump(exclude=own)


def test_the_configs_read_all_columns_but_what_the_labels_are_made_of() -> None:
    config = names.load(PrepareConfig, CONFIGS[0], [], "prepare")
    features = {f.source for f in config.log_schema.features}
    assert set(census.NAMES) - features == {
        "income",
        "marital_stat",
        "education",
        "instance_weight",
    }
    assert features <= set(census.NAMES)
