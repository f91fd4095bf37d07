"""What `raymtl convert` writes is prepared by the shipped configs."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from helpers import public_raw as raw
from raymtl.data.convert.forms import convert
from raymtl.data.convert.plan import Options
from raymtl.data.prepare import PrepareConfig, prepare
from raymtl_jobs import names

pytestmark = pytest.mark.timeout(300)
HALVES = [
    "split.valid=[{source: test, column: row, at_most: 9}]",
    "split.test=[{source: test, column: row, at_least: 10}]",
]


def prepared(form: str, name: str, folder: Path, overrides: list[str]) -> dict[str, int]:
    """Converts the form's small files, prepares them, and returns the rows of each split."""
    convert(form, str(folder / "raw"), str(folder / "parquet"), Options())
    changes = [f"data_root={folder}/parquet", *overrides]
    result = prepare(names.load(PrepareConfig, name, changes, "prepare"), str(folder / "log"))
    return {split: values["rows"] for split, values in result["splits"].items()}


def test_kuairand_is_split_by_its_days(local_ray: None, tmp_path: Path) -> None:
    raw.write_kuairand(tmp_path / "raw")
    rows = prepared("kuairand", "kuairand_raw_prepare", tmp_path, ["vocabularies.min_count={}"])
    assert rows == {"train": 90, "valid": 5, "test": 10}


def test_ali_ccps_lists_become_weighted_bags(local_ray: None, tmp_path: Path) -> None:
    raw.write_aliccp(tmp_path / "raw")
    every = ["vocabularies.default_min_count=1"]
    rows = prepared("aliccp", "aliccp_prepare", tmp_path, every)
    assert rows == {"train": 53, "valid": 6, "test": 59}
    (file,) = (tmp_path / "log" / "train").glob("part*.parquet")
    row = next(r for r in pq.read_table(file).to_pylist() if r["sample_id"] == 10)
    assert row["f_f109_14"] == [1, 2, 3]
    assert row["f_f109_14_weights"] == [0.5, 1.0, 1.5]


def test_census_validates_and_tests_on_halves(local_ray: None, tmp_path: Path) -> None:
    raw.write_census(tmp_path / "raw")
    rows = prepared("census", "census_raw_prepare", tmp_path, HALVES)
    assert rows == {"train": 40, "valid": 10, "test": 10}
