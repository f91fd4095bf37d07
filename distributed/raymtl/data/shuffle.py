"""Rows dealt to parts by a hash, and what the parts made handed back to the shares. No Ray.

Each share writes one file for each part, FOLDER/PART/SHARE.parquet, and each part reads its folder;
and the other way round. So no process holds more than a share's or a part's rows.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from raymtl.data.encode import digests
from raymtl.storage import filesystem

NULL_HASH = np.uint64(0x9E3779B97F4A7C15)


def parts_of(columns: list[pa.Array], num_parts: int) -> np.ndarray:
    """The part each row belongs to, int64 (n,); equal values share a part, whatever their width."""
    out = np.zeros(len(columns[0]), np.uint64)
    for column in columns if num_parts > 1 else ():
        out = _mixed(out * np.uint64(31) + _hashes(column))
    return (out % np.uint64(num_parts)).astype(np.int64)


def _hashes(column: pa.Array) -> np.ndarray:
    if pa.types.is_integer(column.type):
        return column.cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False).view(np.uint64)
    encoded = column.cast(pa.string()).dictionary_encode()
    known = np.append(digests(encoded.dictionary), NULL_HASH)
    return known[encoded.indices.fill_null(len(known) - 1).to_numpy(zero_copy_only=False)]


def _mixed(x: np.ndarray) -> np.ndarray:
    """splitmix64."""
    x = x + NULL_HASH
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def places_by(numbers: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Each number that occurs and where it does, rising; int64 places."""
    order = np.argsort(numbers, kind="stable")
    starts = np.flatnonzero(np.diff(numbers[order], prepend=-1))
    for start, stop in zip(starts, np.append(starts, len(order))[1:], strict=True):
        yield int(numbers[order[start]]), order[start:stop]


def dealt(table: pa.Table, numbers: np.ndarray) -> Iterator[tuple[int, pa.Table]]:
    """The rows of each number of at least 0, in their order."""
    for number, places in places_by(numbers):
        yield number, table.take(pa.array(places))


def write_part(folder: str, number: int, table: pa.Table) -> None:
    """Writes FOLDER/NUMBER.parquet."""
    fs, root = filesystem(folder)
    fs.create_dir(root)
    pq.write_table(table, f"{root}/{number:08d}.parquet", filesystem=fs)


def read_part(folder: str, number: int) -> pa.Table:
    """Reads FOLDER/NUMBER.parquet."""
    fs, root = filesystem(folder)
    return pq.ParquetFile(f"{root}/{number:08d}.parquet", filesystem=fs).read()


def read_together(folder: str) -> pa.Table | None:
    """All files of a folder as one table in one piece; null where there is none.

    The pieces are let go of, which a list of tables would hold on to.
    """
    tables = [table for _, table in read_parts(folder)]
    return pa.concat_tables(tables).combine_chunks() if tables else None


def read_parts(folder: str) -> Iterator[tuple[int, pa.Table]]:
    """Number and table of each file of a folder, in order; nothing where there is no folder."""
    fs, root = filesystem(folder)
    selector = pafs.FileSelector(root, allow_not_found=True)
    for path in sorted(info.path for info in fs.get_file_info(selector)):
        number = int(path.rsplit("/", 1)[-1].removesuffix(".parquet"))
        yield number, pq.ParquetFile(path, filesystem=fs).read()
