"""What earlier rows tell about a row, lists and rates together: columns and checks. No Ray."""

import pyarrow as pa

from raymtl.data.history_config import made_columns
from raymtl.data.ordinals import is_ordered
from raymtl.data.prepare_config import PrepareConfig
from raymtl.data.rates import ShareRates
from raymtl.data.raw import BATCH_ROWS, Share
from raymtl.data.sequences import ShareLists, read_lists
from raymtl.errors import InputError
from raymtl.schema import fits

CELLS_PER_PART = 1_000_000
"""Rows, times lists or rates, that are dealt to one part: bounds a building process's memory."""
MAX_PARTS = 1024
BATCH_ITEMS = 2_000_000
"""Most items of all lists of the rows read at once: 20,000 rows with lists of 100 in all."""


def lists_url(scratch: str) -> str:
    """Folder of the lists' files."""
    return f"{scratch}/sequences"


def rates_url(scratch: str) -> str:
    """Folder of the rates' files."""
    return f"{scratch}/rates"


def num_parts(config: PrepareConfig, num_rows: int) -> int:
    """Parts that users and keys are dealt to; 0 where nothing is made of earlier rows."""
    if not made_columns(config.sequences, config.rates):
        return 0
    wide = max(len(config.sequences.lists) if config.sequences else 0, len(config.rates))
    return min(MAX_PARTS, -(-num_rows * wide // CELLS_PER_PART))


def batch_rows_of(config: PrepareConfig) -> int:
    """Rows to read at once: fewer the longer the lists that are added to each."""
    if config.sequences is None:
        return BATCH_ROWS
    return max(1, min(BATCH_ROWS, BATCH_ITEMS // config.sequences.num_items))


class History:
    """A share's lists and rates, to be added to its rows some at a time."""

    def __init__(self, lists: ShareLists | None, rates: ShareRates | None):
        self._makers = [maker for maker in (lists, rates) if maker]

    @classmethod
    def read(
        cls, share: Share, config: PrepareConfig, columns: pa.Schema, scratch: str
    ) -> "History":
        """Reads what the parts left for a share.

        Args:
            columns: with the types of the columns made.
        """
        lists = rates = None
        if config.sequences:
            about = (share.number, share.num_rows, config.sequences, columns)
            lists = read_lists(lists_url(scratch), *about)
        if config.rates:
            rates = ShareRates(rates_url(scratch), share.number, config.rates)
        return cls(lists, rates)

    def add(self, table: pa.Table, first: int) -> pa.Table:
        """The rows with their lists and rates.

        Args:
            first: the first row's place within the share.
        """
        for maker in self._makers:
            for name, column in maker.take(first, table.num_rows).items():
                table = table.append_column(name, column)
        return table


def with_made(columns: pa.Schema, config: PrepareConfig, where: str) -> pa.Schema:
    """The columns with those made of earlier rows.

    Raises:
        InputError: a column they are made of is missing or has a type that does not do.
    """
    for what, column, wanted in _needs(config):
        if column not in columns.names:
            raise InputError(
                f"{what} needs a column that is not there",
                f"{column}; {where} have {', '.join(columns.names)}",
                "a column of the sources, the joins, or derived",
                "mend the name",
            )
        if not _does(columns.field(column).type, wanted):
            raise InputError(
                f"{what} cannot use column {column}",
                f"{columns.field(column).type}   ({where})",
                wanted,
                "name another column, or derive one",
            )
    made: list[tuple[str, pa.DataType]] = []
    for item in config.sequences.lists if config.sequences else []:
        made.append((item.name, pa.list_(columns.field(item.item).type)))
    made += [(name, pa.float64()) for rate in config.rates for name in rate.made]
    return pa.schema([*columns, *(pa.field(*pair) for pair in made)])


ONE = "one id or number a row, no list"
ORDERED = "numbers, dates or times"
NUMBER = "number"
ID = "id"


def _needs(config: PrepareConfig) -> list[tuple[str, str, str]]:
    """Who reads which column, and what it must hold."""
    needs: list[tuple[str, str, str]] = []
    if config.sequences:
        needs.append(("sequences.user", config.sequences.user, ID))
        for source, column in config.sequences.order.items():
            needs.append((f"sequences.order of {source}", column, ORDERED))
        for item in config.sequences.lists:
            needs.append((f"list {item.name}", item.item, ONE))
            if item.where and item.where.column:
                needs.append((f"list {item.name}", item.where.column, NUMBER))
    for rate in config.rates:
        needs += [(f"rate {rate.name}", key, ONE) for key in rate.keys]
        if rate.label is not None:
            needs += [(f"rate {rate.name}", rate.label, NUMBER)]
        needs += [(f"rate {rate.name}", rate.period, ORDERED)]
    return needs


def _does(t: pa.DataType, wanted: str) -> bool:
    if wanted == ONE:
        return not pa.types.is_nested(t)
    return is_ordered(t) if wanted == ORDERED else fits(t, wanted)
