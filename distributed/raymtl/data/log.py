"""A log as an index: its files, their row groups and rows, and a digest that shows a change."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raymtl.data.files import (
    Footer,
    FoundFile,
    find_files,
    partitions_of,
    read_footer,
    require_sum,
)
from raymtl.data.read import read_chunk
from raymtl.errors import InputError, input_error_in
from raymtl.schema import LogSchema, Time
from raymtl.storage import absolute, filesystem

__all__ = ["LogFile", "LogIndex", "changed_files", "read_chunk", "read_index"]

INDEX_NAME = "_index.parquet"
LOG_ROW = "log_row"
"""Row key that no log need have: the row's number in the log, files in the order of their paths."""
_THREADED_FILES = 64
"""Up to this many footers are read by threads here; above, by Ray tasks where Ray is running."""


@dataclass(frozen=True)
class LogFile:
    """One parquet file of a log."""

    path: str
    """Relative to the log's folder; the bare name of a log that is one file."""
    num_rows: int
    row_group_rows: tuple[int, ...]
    size_bytes: int
    digest: str
    """Hash of the footer's bytes and the size."""
    schema: int = 0
    """Place in LogIndex.schemas."""

    @property
    def partitions(self) -> dict[str, str | None]:
        """Hive keys of the folders it lies in."""
        return partitions_of(self.path)


@dataclass(frozen=True)
class LogIndex:
    """The files of a log in the order of their paths."""

    url: str
    files: tuple[LogFile, ...]
    schemas: tuple[pa.Schema, ...] = field(default=(), compare=False, repr=False)
    """The different column sets among the files."""
    is_file: bool = False
    """Whether `url` is the log's only file rather than its folder."""
    newest: Time | None = field(default=None, compare=False)
    """The latest time, where a schema's rules ask for the age of rows; see `as_of`."""

    @cached_property
    def num_rows(self) -> int:
        """Rows of the whole log."""
        return sum(f.num_rows for f in self.files)

    @cached_property
    def first_rows(self) -> tuple[int, ...]:
        """The number, within the log, of each file's first row."""
        return tuple(accumulate((f.num_rows for f in self.files[:-1]), initial=0))

    @cached_property
    def digest(self) -> str:
        """Changes when a file of the log is added, removed, renamed or rewritten."""
        digest = hashlib.blake2b(digest_size=16)
        for f in self.files:
            digest.update(f"{f.path}\0{f.digest}\n".encode())
        return digest.hexdigest()

    @cached_property
    def partition_types(self) -> dict[str, pa.DataType]:
        """Type of each Hive key: int64 where every value is a plain integer, else string."""
        values: dict[str, list[str]] = {}
        for f in self.files:
            for key, value in f.partitions.items():
                values.setdefault(key, []).extend([] if value is None else [value])
        return {
            k: pa.int64() if all(map(_is_integer, v)) else pa.string() for k, v in values.items()
        }

    def location(self, number: int) -> str:
        """The path of a file on the log's filesystem."""
        root = filesystem(self.url)[1]
        return root if self.is_file else f"{root.rstrip('/')}/{self.files[number].path}"

    def name(self, number: int) -> str:
        """What messages call a file: its URL."""
        return self.url if self.is_file else f"{self.url.rstrip('/')}/{self.files[number].path}"

    def save(self) -> None:
        """Writes `_index.parquet` into the log's folder, so that no footer need be read again."""
        assert not self.is_file, "a log that is one file has no folder to keep an index in"
        fs, root = filesystem(self.url)
        texts = [s.serialize().to_pybytes() for s in self.schemas]
        table = pa.table(
            {
                "path": [f.path for f in self.files],
                "num_rows": [f.num_rows for f in self.files],
                "row_group_rows": pa.array(
                    [f.row_group_rows for f in self.files], pa.list_(pa.int64())
                ),
                "size_bytes": [f.size_bytes for f in self.files],
                "digest": [f.digest for f in self.files],
                "schema": pa.array([texts[f.schema] for f in self.files], pa.binary()),
            }
        )
        pq.write_table(table, f"{root}/{INDEX_NAME}", filesystem=fs)

    def as_of(self, schema: LogSchema) -> LogSchema:
        """The schema to read with: ages are counted to the log's newest time unless it says."""
        if not schema.has_ages or schema.as_of is not None:
            return schema
        return schema.model_copy(update={"as_of": self.newest})

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the column sets."""
        rows = [[f.path, f.num_rows, f.size_bytes, f.digest] for f in self.files]
        groups = [list(f.row_group_rows) for f in self.files]
        return {"url": self.url, "is_file": self.is_file, "files": rows, "row_groups": groups}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "LogIndex":
        """The index that `to_dict` gave; enough to compare and to order, not to check columns.

        Raises:
            ValueError, TypeError, KeyError: the values are not what `to_dict` gives.
        """
        files = []
        for found, groups in zip(values["files"], values["row_groups"], strict=True):
            path, num_rows, size, digest = found
            require_sum(num_rows, tuple(groups))
            if not (isinstance(path, str) and isinstance(digest, str) and type(size) is int):
                raise ValueError(f"a file described as {found}")
            files.append(LogFile(path, num_rows, tuple(groups), size, digest))
        if not isinstance(values["url"], str):
            raise ValueError(f"a log at {values['url']}")
        return cls(values["url"], tuple(files), is_file=bool(values["is_file"]))


def read_index(
    url: str,
    schema: LogSchema | None = None,
    partitions: dict[str, tuple[str, str]] | None = None,
    labels: bool = True,
) -> LogIndex:
    """Indexes the log under a URL, from `_index.parquet` where that still fits, else from footers.

    Args:
        schema: checked against every file's columns; null checks none.
        partitions: Hive key -> first and last value to keep, compared as text, both inclusive.
        labels: whether label columns must be there.

    Raises:
        InputError: no such path, no parquet, a file that cannot be read, no rows, a column that is
            missing or has the wrong type, or partitions that are not there.
    """
    url = absolute(url)
    found, is_file = find_files(url)
    index = None if is_file else _stored_index(url, found)
    if index is None:
        index = _index_of(url, found, _read_footers(url, found), is_file)
    for key, (first, last) in (partitions or {}).items():
        index = _keep(index, key, first, last)
    if index.num_rows == 0:
        raise InputError(
            "the log is empty",
            f"{url}: {len(index.files)} files with 0 rows",
            "at least one row",
            "check the path and what wrote the log",
        )
    if schema is not None:
        _check_columns(index, schema, labels)
    return index


def changed_files(old: LogIndex, new: LogIndex) -> list[str]:
    """Names what differs between two indexes of a log, one line a file; empty where nothing does.

    The URL may differ: a log that moved as it is has not changed.
    """
    before, after = ({f.path: f for f in index.files} for index in (old, new))
    lines = [f"{path}: removed" for path in before.keys() - after.keys()]
    lines += [f"{path}: added" for path in after.keys() - before.keys()]
    for path in before.keys() & after.keys():
        a, b = before[path], after[path]
        if a.digest != b.digest:
            rows, sizes = f"{a.num_rows} -> {b.num_rows} rows", f"{a.size_bytes} -> {b.size_bytes}"
            lines.append(f"{path}: rewritten ({rows}, {sizes} bytes)")
    return sorted(lines)


def _index_of(url: str, found: list[FoundFile], footers: list[Footer], is_file: bool) -> LogIndex:
    schemas: dict[bytes, int] = {}
    kept: list[pa.Schema] = []
    files = []
    for file, footer in zip(found, footers, strict=True):
        text = footer.schema.serialize().to_pybytes()
        if text not in schemas:
            schemas[text] = len(kept)
            kept.append(footer.schema)
        files.append(
            LogFile(
                file.path,
                footer.num_rows,
                footer.row_group_rows,
                file.size_bytes,
                footer.digest,
                schemas[text],
            )
        )
    return LogIndex(url, tuple(files), tuple(kept), is_file)


def _stored_index(url: str, found: list[FoundFile]) -> LogIndex | None:
    """The stored index, unless it is missing, damaged or older than a file, or a size differs."""
    fs, root = filesystem(url)
    try:
        info = fs.get_file_info(f"{root}/{INDEX_NAME}")
        rows = pq.read_table(f"{root}/{INDEX_NAME}", filesystem=fs).to_pylist()
        footers = [
            Footer(
                row["num_rows"],
                tuple(row["row_group_rows"]),
                row["digest"],
                pa.ipc.read_schema(pa.py_buffer(row["schema"])),
            )
            for row in rows
        ]
        sizes = [(row["path"], row["size_bytes"]) for row in rows]
        for footer in footers:
            require_sum(footer.num_rows, footer.row_group_rows)
            if not isinstance(footer.digest, str):
                return None
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError):
        return None
    newest = max(f.modified_ns or 0 for f in found)
    if sizes != [(f.path, f.size_bytes) for f in found] or newest > (info.mtime_ns or newest):
        return None
    return _index_of(url, found, footers, is_file=False)


def _read_footers(url: str, found: list[FoundFile]) -> list[Footer]:
    if len(found) > _THREADED_FILES and _ray_is_running():
        return _read_footers_on_ray(url, found)
    with ThreadPoolExecutor(16) as pool:
        parts = [found[i : i + 8] for i in range(0, len(found), 8)]
        return [f for part in pool.map(lambda p: _footers(url, p), parts) for f in part]


def _footers(url: str, found: list[FoundFile]) -> list[Footer]:
    fs, _ = filesystem(url)
    return [read_footer(fs, f.location, f"{f.path} of {url}") for f in found]


def _ray_is_running() -> bool:
    import ray

    return ray.is_initialized()


def _read_footers_on_ray(url: str, found: list[FoundFile]) -> list[Footer]:
    import ray
    from ray.exceptions import RayTaskError

    read = ray.remote(num_cpus=0.5)(_footers)
    parts = [found[i : i + 64] for i in range(0, len(found), 64)]
    try:
        return [f for part in ray.get([read.remote(url, p) for p in parts]) for f in part]
    except RayTaskError as error:
        raise (input_error_in(error) or error) from None


def _keep(index: LogIndex, key: str, first: str, last: str) -> LogIndex:
    if key not in index.partition_types:
        raise InputError(
            f"the log is not partitioned by {key}",
            f"{index.url}: {', '.join(index.partition_types) or 'no partitions'}",
            f"folders named {key}=...",
            "name a key that the folders have",
        )
    values = [f.partitions.get(key) for f in index.files]
    inside = [v is not None and first <= v <= last for v in values]
    if not any(inside):
        there = sorted({v for v in values if v is not None})
        raise InputError(
            "no partition lies in the range",
            f"{key} from {first} to {last}; {index.url} has {there[0]} to {there[-1]}"
            if there
            else f"{key} from {first} to {last}; {index.url} has nulls only",
            "a range that holds a partition",
            "widen the range",
        )
    return replace(
        index, files=tuple(f for f, kept in zip(index.files, inside, strict=True) if kept)
    )


def _check_columns(index: LogIndex, schema: LogSchema, labels: bool) -> None:
    """Files with the same columns and Hive keys are checked once, under the first one's name."""
    done = set()
    for number, file in enumerate(index.files):
        kind = (file.schema, *file.partitions)
        if kind in done:
            continue
        done.add(kind)
        columns = index.schemas[file.schema]
        for key in file.partitions:
            if key not in columns.names:
                columns = columns.append(pa.field(key, index.partition_types[key]))
        schema.check(columns, index.name(number), labels)


def _is_integer(text: str) -> bool:
    digits = text.removeprefix("-")
    return digits.isdecimal() and digits.isascii() and str(int(text)) == text
