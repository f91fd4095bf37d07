"""Reading one chunk of a log: only its columns, only its rows."""

from functools import lru_cache
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from raymtl.data.files import read_metadata
from raymtl.errors import InputError, UnreadableChunk, one_line
from raymtl.storage import filesystem, persistently

if TYPE_CHECKING:
    from raymtl.data.log import LogIndex
    from raymtl.data.order import Chunk


def where(index: "LogIndex", chunk: "Chunk") -> str:
    """What messages call a chunk."""
    return f"{index.name(chunk.file)}, row group {chunk.row_group}, rows from {chunk.start}"


def read_chunk(index: "LogIndex", chunk: "Chunk", columns: list[str]) -> pa.Table:
    """Reads a chunk's rows in the file's order.

    Args:
        columns: those the file lacks are left out, Hive keys of its folders are filled in.

    Raises:
        UnreadableChunk: these rows are damaged.
        InputError: the file cannot be reached, or is not the one that was indexed.
    """
    try:
        table = _read(index, chunk, columns)
    except (OSError, pa.ArrowException):
        table = _once_more(index, chunk, columns)
    file = index.files[chunk.file]
    for key, value in file.partitions.items():
        if key in columns and key not in table.column_names:
            kind = index.partition_types[key]
            cell = pa.scalar(value).cast(kind) if value is not None else pa.scalar(None, kind)
            table = table.append_column(key, pa.repeat(cell, chunk.num_rows))
    return table


def _read(index: "LogIndex", chunk: "Chunk", columns: list[str]) -> pa.Table:
    file, location = index.files[chunk.file], index.location(chunk.file)
    fs, _ = filesystem(index.url)
    metadata = _metadata(index.url, location, file.digest)
    rows = file.row_group_rows[chunk.row_group]
    names = [n for n in columns if n in index.schemas[file.schema].names]
    with fs.open_input_file(location) as source:
        parquet = pq.ParquetFile(source, metadata=metadata, page_checksum_verification=True)
        whole = chunk.start == 0 and chunk.num_rows == rows
        return (_row_group if whole else _part)(parquet, chunk, names)


def _once_more(index: "LogIndex", chunk: "Chunk", columns: list[str]) -> pa.Table:
    """Tries again when the file's footer can be read, which tells damage from storage away."""
    location, digest = index.location(chunk.file), index.files[chunk.file].digest
    try:
        _metadata.cache_clear()
        persistently(lambda: _metadata(index.url, location, digest))
    except FileNotFoundError as error:
        raise InputError(*_parts(where(index, chunk), error)) from None
    except OSError as error:
        raise InputError(
            "the storage of a log does not answer",
            f"{where(index, chunk)}: {one_line(error)}",
            "the file, as before",
            "look after the storage, then go on with the run: raymtl train --resume RUN",
        ) from None
    except pa.ArrowException as error:
        raise InputError(*_parts(where(index, chunk), error)) from None
    try:
        return _read(index, chunk, columns)
    except (OSError, pa.ArrowException) as error:
        raise UnreadableChunk(*_parts(where(index, chunk), error)) from None


def _row_group(parquet: pq.ParquetFile, chunk: "Chunk", names: list[str]) -> pa.Table:
    return parquet.read_row_group(chunk.row_group, columns=names, use_threads=False)


def _part(parquet: pq.ParquetFile, chunk: "Chunk", names: list[str]) -> pa.Table:
    """Part of a large row group, decoded batch by batch so that memory follows the chunk."""
    kept, at, stop = [], 0, chunk.start + chunk.num_rows
    for batch in parquet.iter_batches(
        chunk.num_rows, row_groups=[chunk.row_group], columns=names, use_threads=False
    ):
        first, last = max(chunk.start - at, 0), min(stop - at, batch.num_rows)
        if first < last:
            kept.append(batch.slice(first, last - first))
        at += batch.num_rows
        if at >= stop:
            break
    return pa.Table.from_batches(kept)


@lru_cache(maxsize=8)
def _metadata(url: str, location: str, digest: str) -> pq.FileMetaData:
    """A file's footer, kept because each of its chunks needs it."""
    metadata, found = read_metadata(filesystem(url)[0], location)
    if found != digest:
        raise pa.ArrowInvalid("the file was rewritten since it was indexed")
    return metadata


def _parts(place: str, error: Exception) -> tuple[str, str, str, str]:
    return (
        "a chunk of the log cannot be read",
        f"{place}: {one_line(error)}",
        "the file as it was when it was indexed",
        "write the file again, or remove it and start a new run; data.on_unreadable=skip in a new "
        "run trains without damaged row groups",
    )
