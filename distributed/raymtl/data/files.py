"""Where a log's parquet files lie, on any filesystem, and what their footers say."""

import hashlib
from dataclasses import dataclass
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from raymtl.errors import InputError, one_line
from raymtl.storage import filesystem

_TAIL_BYTES = 64 * 1024
_MAGIC = b"PAR1"
NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
"""What Hive and Spark call the folder of a null key."""


@dataclass(frozen=True)
class FoundFile:
    """A parquet file of a log, not yet opened."""

    path: str
    """Relative to the log's folder; the bare name of a log that is one file."""
    location: str
    """Path on the log's filesystem."""
    size_bytes: int
    modified_ns: int | None


@dataclass(frozen=True)
class Footer:
    """What a parquet file says about itself."""

    num_rows: int
    row_group_rows: tuple[int, ...]
    digest: str
    """Hash of the footer's bytes and the file's size: changes whenever the file is rewritten."""
    schema: pa.Schema


def find_files(url: str) -> tuple[list[FoundFile], bool]:
    """Lists a log's parquet files by path, and whether the URL is itself one file.

    Names that start with `_` or `.`, folders included, are no part of a log.

    Raises:
        InputError: there is no such path, or no parquet below it.
    """
    fs, root = filesystem(url)
    try:
        info = fs.get_file_info(root)
        if info.type == pafs.FileType.File:
            name = root.rsplit("/", 1)[-1]
            return [FoundFile(name, root, info.size or 0, info.mtime_ns)], True
        selector = pafs.FileSelector(root, recursive=True, allow_not_found=True)
        infos = [] if info.type == pafs.FileType.NotFound else fs.get_file_info(selector)
    except (OSError, pa.ArrowException) as error:
        raise _no_log(url, one_line(error)) from None
    if info.type == pafs.FileType.NotFound:
        raise _no_log(url, "no such path")
    prefix = root.rstrip("/") + "/"
    found = [
        FoundFile(i.path.removeprefix(prefix), i.path, i.size or 0, i.mtime_ns)
        for i in infos
        if i.type == pafs.FileType.File and _belongs(i.path.removeprefix(prefix))
    ]
    if not found:
        raise _no_log(url, f"no parquet files among {len(infos)} entries")
    return sorted(found, key=lambda f: f.path), False


def _belongs(path: str) -> bool:
    hidden = any(part.startswith(("_", ".")) for part in path.split("/"))
    return not hidden and path.endswith((".parquet", ".parq", ".pq"))


def _no_log(url: str, got: str) -> InputError:
    return InputError(
        "there is no log",
        f"{url}: {got}",
        "a parquet file, or a folder that holds some",
        "check the path (data.train, data.valid), or run raymtl prepare",
    )


def read_footer(fs: pafs.FileSystem, location: str, name: str) -> Footer:
    """Reads the footer of one parquet file, without its data.

    Args:
        name: what errors call the file.

    Raises:
        InputError: the file is no parquet, is truncated, or cannot be read.
    """
    try:
        metadata, digest = read_metadata(fs, location)
        schema = arrow_schema(metadata).remove_metadata()
        groups = tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
        require_sum(metadata.num_rows, groups)
    except (OSError, pa.ArrowException, ValueError) as error:
        raise _unreadable(name, error) from None
    return Footer(metadata.num_rows, groups, digest, schema)


def require_sum(num_rows: object, groups: tuple[object, ...]) -> None:
    """Raises ValueError unless the row groups' rows are counts that add up to the file's."""
    counts = [n for n in (num_rows, *groups) if type(n) is int and n >= 0]
    if len(counts) != 1 + len(groups) or counts[0] != sum(counts[1:]):
        raise ValueError(f"{num_rows} rows in row groups of {groups[:5]}")


def read_metadata(fs: pafs.FileSystem, location: str) -> tuple[pq.FileMetaData, str]:
    """A parquet file's metadata and the digest of its footer.

    Raises:
        OSError: the storage does not give the file.
        pa.ArrowException: what it gives is no parquet.
    """
    with fs.open_input_file(location) as file:
        size = file.size()
        tail = file.read_at(min(size, _TAIL_BYTES), max(0, size - _TAIL_BYTES))
        if size < 12 or tail[-4:] != _MAGIC:
            raise pa.ArrowInvalid("it does not end as parquet does")
        length = int.from_bytes(tail[-8:-4], "little") + 8
        if length > size - 4:
            raise pa.ArrowInvalid("its footer is longer than the file")
        if length > len(tail):
            tail = file.read_at(length, size - length)
    footer = tail[-length:]
    digest = hashlib.blake2b(footer + size.to_bytes(8, "little"), digest_size=16).hexdigest()
    # A footer is complete in itself: with the magic before it, it reads as a file without data.
    try:
        return pq.read_metadata(pa.BufferReader(_MAGIC + footer)), digest
    except OSError as error:
        raise pa.ArrowInvalid(str(error)) from None


def arrow_schema(metadata: pq.FileMetaData) -> pa.Schema:
    """A file's columns.

    `metadata.schema` makes a cycle: footers would stay until Python looks for such, hundreds of
    megabytes of them where files have many row groups.
    """
    return pq.ParquetSchema(metadata).to_arrow_schema()


def _unreadable(name: str, error: Exception) -> InputError:
    return InputError(
        "a file of the log is not readable parquet",
        f"{name}: {one_line(error)}",
        "a complete parquet file",
        "write it again, or move it out of the log's folder",
    )


def partitions_of(path: str) -> dict[str, str | None]:
    """Hive keys in a relative path: `date=2022-04-25/x.parquet` gives date, 2022-04-25."""
    pairs = (part.split("=", 1) for part in path.split("/")[:-1] if "=" in part)
    return {key: None if value == NULL_PARTITION else unquote(value) for key, value in pairs}
