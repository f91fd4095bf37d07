"""Files that the stages of `raymtl prepare` leave for one another. No Ray.

counts/BUCKET/SHARE.parquet: one share's counts; merged/BUCKET.parquet: a part's counts of all
shares, one row group a list; places/SHARE/BUCKET.parquet: a share's users, for a split by user.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from raymtl.data.vocabulary import COUNTS, buckets_of
from raymtl.storage import filesystem


def write_counts(url: str, share: int, counts: pa.Table, num_buckets: int) -> None:
    """Deals a share's counts to its parts."""
    fs, root = filesystem(url)
    buckets = buckets_of(counts, num_buckets)
    for bucket in np.unique(buckets):
        fs.create_dir(f"{root}/counts/{bucket}")
        mine = counts.filter(pa.array(buckets == bucket))
        pq.write_table(mine, f"{root}/counts/{bucket}/{share:08d}.parquet", filesystem=fs)


def read_counts(url: str, bucket: int) -> Iterator[tuple[int, pa.Table]]:
    """Each share's number and counts of a part, in the order of the shares."""
    for path, table in _tables(f"{url}/counts/{bucket}"):
        yield int(path.rsplit("/", 1)[-1].removesuffix(".parquet")), table


def write_places(url: str, share: int, bucket: int, places: pa.Table) -> None:
    """Writes what one part knows of a share's users."""
    fs, root = filesystem(url)
    fs.create_dir(f"{root}/places/{share}")
    pq.write_table(places, f"{root}/places/{share}/{bucket:08d}.parquet", filesystem=fs)


def read_places(url: str, share: int) -> pa.Table:
    """What all parts know of a share's users."""
    return pa.concat_tables(table for _, table in _tables(f"{url}/places/{share}"))


def _tables(url: str) -> Iterator[tuple[str, pa.Table]]:
    fs, root = filesystem(url)
    selector = pafs.FileSelector(root, allow_not_found=True)
    for path in sorted(info.path for info in fs.get_file_info(selector)):
        yield path, pq.ParquetFile(path, filesystem=fs).read()


def write_merged(url: str, bucket: int, lists: list[pa.Table]) -> None:
    """Writes a part's merged counts, one row group a list."""
    fs, root = filesystem(url)
    fs.create_dir(f"{root}/merged")
    with pq.ParquetWriter(f"{root}/merged/{bucket:08d}.parquet", COUNTS, filesystem=fs) as writer:
        for counts in lists:
            if counts.num_rows:
                writer.write_table(counts, row_group_size=counts.num_rows)


def read_merged(url: str, number: int) -> Iterator[pa.Table]:
    """One list's merged counts, part by part."""
    fs, root = filesystem(url)
    selector = pafs.FileSelector(f"{root}/merged")
    for path in sorted(info.path for info in fs.get_file_info(selector)):
        yield pq.read_table(path, filesystem=fs, filters=[("list", "=", number)])


def remove(url: str) -> None:
    """Removes a folder and all below it, if it is there."""
    fs, root = filesystem(url)
    if fs.get_file_info(root).type == pafs.FileType.Directory:
        fs.delete_dir(root)
