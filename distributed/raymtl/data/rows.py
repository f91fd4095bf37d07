"""A reading task's rows as the schema sees them: read, joined, derived, split, checked. No Ray."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from raymtl.data.derive import derive
from raymtl.data.history import History, batch_rows_of
from raymtl.data.join import left_join
from raymtl.data.prepare_config import PrepareConfig
from raymtl.data.raw import Origin, RawFile, Share, read
from raymtl.data.split import Places, split_of


@dataclass(frozen=True)
class Recipe:
    """What every reading task needs to know; small, and the same for all of them."""

    config: PrepareConfig
    files: list[RawFile]
    types: pa.Schema
    """Columns read from the sources, with the types all files are cast to."""
    columns: pa.Schema
    """The same after joins and derived columns, and what is made of earlier rows."""
    text_tables: frozenset[str]
    """Tables of text; the others are of integers."""
    num_buckets: int
    """Parts that values are dealt to by hash, to be counted one part at a time."""
    num_parts: int
    """Parts that users and keys are dealt to, for lists and rates; 0 where there are none."""
    scratch: str
    """URL of a folder for what the stages leave for one another."""

    @property
    def num_rows(self) -> int:
        """Rows of all sources."""
        return sum(f.num_rows for f in self.files)


@dataclass(frozen=True)
class Rows:
    """Some rows of the log, before any fitted transform."""

    table: pa.Table
    origin: Origin
    split_n: np.ndarray
    """int8, index into SPLITS, -1 where no split takes the row."""


def stream(
    share: Share, recipe: Recipe, sides: dict[str, pa.Table], places: Places | None
) -> Iterator[Rows]:
    """A share's rows, a bounded number at once.

    Args:
        sides: each join's table, by the join's name.
        places: for a split by order per user: each row's place among its user's rows.
    """
    history = History.read(share, recipe.config, recipe.columns, recipe.scratch)
    batch_rows = batch_rows_of(recipe.config)
    for raw, origin in read(share, recipe.files, recipe.types, batch_rows):
        table = enrich(raw, recipe.config, sides, origin.where)
        table = history.add(table, origin.first_row - share.first_row)
        split_n = split_of(table, origin, recipe.config.split, recipe.num_rows, places)
        yield Rows(table, origin, split_n)


def enrich(
    table: pa.Table, config: PrepareConfig, sides: dict[str, pa.Table], where: str
) -> pa.Table:
    """Adds the joined and the derived columns."""
    for join in config.joins:
        table = left_join(table, join.column, sides[join.name], join.name)
    for name, derived in config.derive.items():
        table = derive(table, name, derived, where)
    return table
