"""Files that went bad on their disk."""

from pathlib import Path

import pyarrow.parquet as pq


def spoil_row_group(part: Path, group: int) -> int:
    """Overwrites a row group's first column; the footer, and so the index, stays as it was.

    Returns:
        The rows that can no longer be read.
    """
    found = pq.read_metadata(part).row_group(group)
    column = found.column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    content = bytearray(part.read_bytes())
    content[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    part.write_bytes(bytes(content))
    return found.num_rows
