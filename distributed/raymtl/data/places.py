"""A split by order within each user: how many rows of a user lie before a share. No Ray.

Users are counted per share, and each part (by hash of the user) adds the shares up in their order.
"""

# pyarrow makes its compute functions at import.
# pyright: reportAttributeAccessIssue=false

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymtl.data import scratch
from raymtl.data.prepare_config import OrderSplit
from raymtl.data.raw import Share, read
from raymtl.data.rows import Recipe, enrich
from raymtl.data.split import Places
from raymtl.data.vocabulary import Counter


def wanted(recipe: Recipe) -> bool:
    """Whether the split needs users' places."""
    return isinstance(recipe.config.split, OrderSplit) and recipe.config.split.per is not None


def count_users(share: Share, recipe: Recipe, sides: dict[str, pa.Table]) -> None:
    """Counts a share's rows of each user."""
    assert isinstance(recipe.config.split, OrderSplit) and recipe.config.split.per
    counter = Counter()
    for raw, origin in read(share, recipe.files, recipe.types):
        table = enrich(raw, recipe.config, sides, origin.where)
        counter.add_values(0, _users(table.column(recipe.config.split.per).combine_chunks()))
    scratch.write_counts(f"{recipe.scratch}/users", share.number, counter.sum(), recipe.num_buckets)


def place_users(bucket: int, recipe: Recipe) -> None:
    """Adds up one part's users over the shares, and tells each share what lies before it."""
    url, counter = f"{recipe.scratch}/users", Counter()
    for _, counts in scratch.read_counts(url, bucket):
        counter.add_counts(counts)
    users = _values(counter.sum())
    totals = counter.sum().column("count").to_numpy()
    before = np.zeros(len(users), np.int64)
    for share, counts in scratch.read_counts(url, bucket):
        mine = _values(counts)
        at = pc.index_in(mine, value_set=users).to_numpy()
        table = pa.table({"user": mine, "before": before[at], "total": totals[at]})
        scratch.write_places(url, share, bucket, table)
        before[at] += counts.column("count").to_numpy()


def read_places(share: Share, recipe: Recipe) -> Places | None:
    """The places of a share's users, where the split needs them."""
    if not wanted(recipe):
        return None
    table = scratch.read_places(f"{recipe.scratch}/users", share.number)
    before, totals = (table.column(name).to_numpy().copy() for name in ("before", "total"))
    return Places(table.column("user").combine_chunks(), before, totals)


def _users(column: pa.Array) -> pa.Array:
    return column if pa.types.is_string(column.type) else column.cast(pa.int64())


def _values(counts: pa.Table) -> pa.Array:
    """The counted users: text where there is any, else integers."""
    integers = counts.column("integer").combine_chunks()
    return counts.column("text").combine_chunks() if integers.null_count else integers
