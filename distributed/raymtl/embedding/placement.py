"""Where a row lies: pure arithmetic, nothing as large as a table.

Row = k * P + bucket. Buckets go to ranks in contiguous ranges, and whoever holds a range of
buckets keeps a table's rows in (bucket, k) order. A row's place in that order over all P buckets
is its position; a rank's first row of a table has position `bucket_start(rows, P, lo)`.
"""

import torch
from torch import Tensor


def bucket_range(rank: int, world_size: int, num_buckets: int) -> tuple[int, int]:
    """The buckets [lo, hi) that a rank owns."""
    return rank * num_buckets // world_size, (rank + 1) * num_buckets // world_size


def bucket_start(rows: int, num_buckets: int, bucket: int) -> int:
    """Rows of a table that lie in buckets before `bucket` (0 to P): its first row's position."""
    quotient, remainder = divmod(rows, num_buckets)
    return bucket * quotient + min(bucket, remainder)


def rows_in_range(rows: int, num_buckets: int, lo: int, hi: int) -> int:
    """Rows of a table of `rows` rows that lie in buckets [lo, hi)."""
    return bucket_start(rows, num_buckets, hi) - bucket_start(rows, num_buckets, lo)


def position(rows: Tensor | int, num_buckets: int, row_n: Tensor) -> Tensor:
    """Places of rows in the (bucket, k) order of their whole table.

    Args:
        rows: rows of the table, or a tensor that broadcasts against `row_n`.
        row_n: int64 rows within the table, none negative.
    """
    total = torch.as_tensor(rows, device=row_n.device)
    bucket, k = bucket_and_k(row_n, num_buckets)
    before = bucket * (total // num_buckets) + torch.minimum(bucket, total % num_buckets)
    return before + k


def bucket_and_k(row_n: Tensor, num_buckets: int) -> tuple[Tensor, Tensor]:
    """Row = k * P + bucket; by bits where P is a power of two, which is many times quicker."""
    if num_buckets & (num_buckets - 1) == 0:
        return row_n & (num_buckets - 1), row_n >> (num_buckets.bit_length() - 1)
    return row_n % num_buckets, row_n // num_buckets


def row_at(rows: int, num_buckets: int, position_n: Tensor) -> Tensor:
    """The rows at given positions; the inverse of `position`."""
    quotient, remainder = divmod(rows, num_buckets)
    longer = remainder * (quotient + 1)
    short = max(quotient, 1)
    past = position_n - longer
    bucket = torch.where(past < 0, position_n // (quotient + 1), remainder + past // short)
    k = torch.where(past < 0, position_n % (quotient + 1), past % short)
    return k * num_buckets + bucket
