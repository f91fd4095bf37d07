"""The index of a log: what it finds, what it refuses, what it notices."""

import gc
import json
import os
import pickle
import weakref
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from helpers.parquet import SCHEMA, table_of, write_log
from raymtl.data import read
from raymtl.data.files import read_metadata
from raymtl.data.log import LogIndex, changed_files, read_chunk, read_index
from raymtl.data.order import Chunk
from raymtl.errors import InputError, UnreadableChunk
from raymtl.storage import filesystem


def test_an_index_lists_files_by_path_with_their_row_groups(tmp_path: Path) -> None:
    write_log(tmp_path / "b", [50], 40)
    write_log(tmp_path / "a", [10, 90], 40)
    (tmp_path / "_notes.parquet").write_text("no parquet")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "x.parquet").write_text("no parquet")
    (tmp_path / "schema.yaml").write_text("")
    index = read_index(str(tmp_path), SCHEMA)
    assert [f.path for f in index.files] == [
        "a/part-000.parquet",
        "a/part-001.parquet",
        "b/part-000.parquet",
    ]
    assert [f.row_group_rows for f in index.files] == [(10,), (40, 40, 10), (40, 10)]
    assert index.num_rows == 150
    assert index.files[0].size_bytes == os.path.getsize(tmp_path / "a/part-000.parquet")


def test_a_log_may_be_one_file(tmp_path: Path) -> None:
    url = write_log(tmp_path, [30]) + "/part-000.parquet"
    index = read_index(url, SCHEMA)
    assert index.num_rows == 30
    assert index.location(0) == url
    assert read_chunk(index, Chunk(0, 0, 0, 30, 0), ["item"]).num_rows == 30


def test_a_relative_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_log(tmp_path / "log", [3])
    monkeypatch.chdir(tmp_path)
    assert read_index("log").url == str(tmp_path / "log")


@pytest.mark.parametrize("rewrite", ["values", "rows"])
def test_a_rewritten_file_changes_the_digest_and_is_named(tmp_path: Path, rewrite: str) -> None:
    url = write_log(tmp_path, [20, 20])
    old = read_index(url)
    table = table_of(500, 20) if rewrite == "values" else table_of(20, 21)
    pq.write_table(table, tmp_path / "part-001.parquet")
    new = read_index(url)
    assert old.digest != new.digest
    assert [line.split(":")[0] for line in changed_files(old, new)] == ["part-001.parquet"]


def test_added_and_removed_files_are_named(tmp_path: Path) -> None:
    url = write_log(tmp_path, [20, 20])
    old = read_index(url)
    (tmp_path / "part-000.parquet").rename(tmp_path / "part-002.parquet")
    assert changed_files(old, read_index(url)) == [
        "part-000.parquet: removed",
        "part-002.parquet: added",
    ]


def test_an_unchanged_log_has_no_changes_even_after_a_move(tmp_path: Path) -> None:
    old = read_index(write_log(tmp_path / "old", [20, 20]))
    (tmp_path / "old").rename(tmp_path / "new")
    new = read_index(str(tmp_path / "new"))
    assert changed_files(old, new) == []
    assert old.digest == new.digest


def test_an_index_goes_through_json(tmp_path: Path) -> None:
    index = read_index(write_log(tmp_path, [20, 50]))
    again = LogIndex.from_dict(json.loads(json.dumps(index.to_dict())))
    assert again.digest == index.digest
    assert [f.row_group_rows for f in again.files] == [f.row_group_rows for f in index.files]
    assert changed_files(again, index) == []


def test_a_saved_index_is_used_instead_of_the_footers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = read_index(write_log(tmp_path, [20, 50]))
    index.save()
    monkeypatch.setattr("raymtl.data.log._read_footers", None)
    again = read_index(str(tmp_path), SCHEMA)
    assert again == index
    assert again.schemas == index.schemas


def test_a_saved_index_of_other_files_is_not_used(tmp_path: Path) -> None:
    read_index(write_log(tmp_path, [20, 50])).save()
    pq.write_table(table_of(0, 33), tmp_path / "part-001.parquet")
    assert read_index(str(tmp_path)).num_rows == 53
    pq.write_table(table_of(0, 10), tmp_path / "part-002.parquet")
    assert read_index(str(tmp_path)).num_rows == 63


def test_a_file_that_is_newer_than_the_saved_index_is_read_again(tmp_path: Path) -> None:
    index = read_index(write_log(tmp_path, [20]))
    index.save()
    path = tmp_path / "part-000.parquet"
    damaged = bytearray(path.read_bytes())
    damaged[-9] ^= 1
    path.write_bytes(damaged)
    later = (tmp_path / "_index.parquet").stat().st_mtime_ns + 1_000_000
    os.utime(path, ns=(later, later))
    try:
        assert read_index(str(tmp_path)).digest != index.digest
    except InputError as error:
        assert "part-000.parquet" in error.got


@pytest.mark.parametrize("damage", [b"", b"PAR1", b"no parquet at all", b"PAR1" * 20])
def test_a_damaged_index_file_is_not_used(tmp_path: Path, damage: bytes) -> None:
    url = write_log(tmp_path, [20])
    (tmp_path / "_index.parquet").write_bytes(damage)
    assert read_index(url).num_rows == 20


def test_a_missing_path_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such path"):
        read_index(str(tmp_path / "none"))


def test_a_folder_without_parquet_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("a,b")
    with pytest.raises(InputError, match="no parquet"):
        read_index(str(tmp_path))


def test_a_log_without_rows_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the log is empty"):
        read_index(write_log(tmp_path, [0, 0]), SCHEMA)


@pytest.mark.parametrize("keep", [0, 3, 11, 200, -1])
def test_a_truncated_file_is_an_error_that_names_it(tmp_path: Path, keep: int) -> None:
    url = write_log(tmp_path, [20, 20])
    path = tmp_path / "part-001.parquet"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match="not readable parquet") as caught:
        read_index(url)
    assert "part-001.parquet" in caught.value.got


def test_a_file_that_is_no_parquet_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_text("item,click\n" * 100)
    with pytest.raises(InputError, match="does not end as parquet does"):
        read_index(str(tmp_path))


def test_a_wide_footer_is_read_whole(tmp_path: Path) -> None:
    table = pa.table({f"column number {i}": [1] for i in range(2000)})
    pq.write_table(table, tmp_path / "x.parquet")
    assert read_index(str(tmp_path)).schemas[0].names == table.column_names


def test_every_files_columns_are_checked(tmp_path: Path) -> None:
    url = write_log(tmp_path, [20, 20])
    pq.write_table(table_of(0, 5).drop_columns(["click"]), tmp_path / "part-009.parquet")
    with pytest.raises(InputError, match="column click is missing") as caught:
        read_index(url, SCHEMA)
    assert "part-009.parquet" in caught.value.got


def test_an_unknown_scheme_is_an_error() -> None:
    with pytest.raises(InputError, match="no filesystem can open"):
        filesystem("nosuch://bucket/log")


def test_an_fsspec_filesystem_is_read(tmp_path: Path) -> None:
    write_log(tmp_path, [25])
    memory = fsspec.filesystem("memory")
    memory.pipe("/fsspec-log/a.parquet", (tmp_path / "part-000.parquet").read_bytes())
    index = read_index("memory://fsspec-log", SCHEMA)
    assert index.num_rows == 25
    assert read_chunk(index, Chunk(0, 0, 0, 25, 0), ["item"]).column("item").to_pylist() == list(
        range(25)
    )
    index.save()
    assert read_index("memory://fsspec-log") == index


def test_a_file_url_is_a_local_path(tmp_path: Path) -> None:
    fs, path = filesystem(f"file://{tmp_path}/log/")
    assert isinstance(fs, pafs.LocalFileSystem)
    assert path == f"{tmp_path}/log"


def test_a_chunk_is_the_wanted_columns_of_its_rows(tmp_path: Path) -> None:
    index = read_index(write_log(tmp_path, [10, 100], 60))
    table = read_chunk(index, Chunk(1, 0, 20, 30, 20), ["item", "tags", "absent"])
    assert table.column_names == ["item", "tags"]
    assert table.column("item").to_pylist() == list(range(30, 60))
    whole = read_chunk(index, Chunk(1, 1, 0, 40, 60), ["item"])
    assert whole.column("item").to_pylist() == list(range(70, 110))


def test_a_file_rewritten_after_indexing_is_an_error_when_read(tmp_path: Path) -> None:
    index = read_index(write_log(tmp_path, [20]))
    pq.write_table(table_of(7, 20), tmp_path / "part-000.parquet")
    with pytest.raises(InputError, match="rewritten since it was indexed") as caught:
        read_chunk(index, Chunk(0, 0, 0, 20, 0), ["item"])
    assert "part-000.parquet, row group 0" in caught.value.got


def test_a_corrupt_page_is_an_error_that_names_file_and_row_group(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(table_of(0, 200), path, row_group_size=100, write_page_checksum=True)
    index = read_index(str(tmp_path))
    column = pq.read_metadata(path).row_group(1).column(0)
    damaged = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    damaged[start + 40 : start + 60] = bytes(20)
    path.write_bytes(damaged)
    assert read_chunk(index, Chunk(0, 0, 0, 100, 0), ["item"]).num_rows == 100
    with pytest.raises(InputError, match="a chunk of the log cannot be read") as caught:
        read_chunk(index, Chunk(0, 1, 0, 100, 100), ["item"])
    assert "a.parquet, row group 1" in caught.value.got


def test_a_vanished_file_is_an_error_when_read(tmp_path: Path) -> None:
    index = read_index(write_log(tmp_path, [20]))
    (tmp_path / "part-000.parquet").unlink()
    with pytest.raises(InputError, match="cannot be read"):
        read_chunk(index, Chunk(0, 0, 0, 20, 0), ["item"])


def test_storage_that_does_not_answer_is_told_from_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = read_index(write_log(tmp_path, [20]))

    def away(*_: object) -> None:
        raise OSError("connection refused")

    monkeypatch.setattr("raymtl.data.read.read_metadata", away)
    monkeypatch.setattr("raymtl.storage.PAUSES_S", (0.0,))
    read._metadata.cache_clear()
    with pytest.raises(InputError, match="the storage of a log does not answer") as caught:
        read_chunk(index, Chunk(0, 0, 0, 20, 0), ["item"])
    assert not isinstance(caught.value, UnreadableChunk)
    assert "connection refused" in caught.value.got


def test_footers_do_not_wait_for_python_to_look_for_cycles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[weakref.ref] = []

    def noted(*given: Any) -> tuple[pq.FileMetaData, str]:
        metadata, digest = read_metadata(*given)
        kept.append(weakref.ref(metadata))
        return metadata, digest

    monkeypatch.setattr("raymtl.data.files.read_metadata", noted)
    monkeypatch.setattr("raymtl.data.read.read_metadata", noted)
    read._metadata.cache_clear()
    gc.disable()
    try:
        index = read_index(write_log(tmp_path, [20]), SCHEMA)
        read_chunk(index, Chunk(0, 0, 0, 20, 0), ["item"])
        read._metadata.cache_clear()
        assert len(kept) == 2 and [ref() for ref in kept] == [None, None]
    finally:
        gc.enable()


def test_an_error_crosses_processes_without_what_ray_data_adds_to_it() -> None:
    error = UnreadableChunk("a", "b", "c", "d")
    error.args = ("a\nFailed to apply UDF transform after 1/1 attempts", *error.args[1:])
    arrived = pickle.loads(pickle.dumps(error))
    assert type(arrived) is UnreadableChunk and str(arrived) == str(error)
    assert "attempts" not in str(arrived)


def partitioned(folder: Path) -> str:
    for i, date in enumerate(["2022-04-24", "2022-04-25", "2022-04-30", "2022-05-01"]):
        write_log(folder / f"date={date}" / f"hour={i}", [10])
    return str(folder)


def test_hive_keys_become_columns(tmp_path: Path) -> None:
    index = read_index(partitioned(tmp_path))
    table = read_chunk(index, Chunk(2, 0, 0, 10, 0), ["hour", "item", "date"])
    assert table.column("date").to_pylist() == ["2022-04-30"] * 10
    assert table.column("hour").to_pylist() == [2] * 10
    assert table.schema.field("hour").type == pa.int64()
    assert read_chunk(index, Chunk(2, 0, 0, 10, 0), ["item"]).column_names == ["item"]


def test_hive_keys_are_checked_as_columns(tmp_path: Path) -> None:
    url = partitioned(tmp_path)
    schema = SCHEMA.model_copy(update={"group": "date"})
    assert read_index(url, schema).num_rows == 40
    with pytest.raises(InputError, match="column day is missing"):
        read_index(url, SCHEMA.model_copy(update={"group": "day"}))
    with pytest.raises(InputError, match="column date has the wrong type"):
        read_index(url, SCHEMA.model_copy(update={"weight": "date"}))


def test_a_range_of_partitions_is_inclusive(tmp_path: Path) -> None:
    url = partitioned(tmp_path)
    index = read_index(url, partitions={"date": ("2022-04-25", "2022-04-30")})
    assert [f.partitions["date"] for f in index.files] == ["2022-04-25", "2022-04-30"]
    with pytest.raises(InputError, match="no partition lies in the range"):
        read_index(url, partitions={"date": ("2023-01-01", "2023-01-02")})
    with pytest.raises(InputError, match="not partitioned by day"):
        read_index(url, partitions={"day": ("1", "2")})
