"""Behaviour sequences: a user's last items strictly before each row. No Ray.

A share deals its rows, as events, to parts by a hash of the user. Each part sorts its users' events
and tells every share what its rows' lists are made of; the share puts them together batch by batch.
A list is a run of successive events of one user, so a part only hands back what a list has beyond
the one before it ("fresh"), and how many items the list holds.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from raymtl.data import values
from raymtl.data.history_config import Sequences
from raymtl.data.ordinals import changes_of, firsts, ordinals, ranges
from raymtl.data.raw import Origin
from raymtl.data.shuffle import dealt, parts_of, places_by, read_together, write_part
from raymtl.errors import InputError


def events_of(table: pa.Table, origin: Origin, source: int, wanted: Sequences) -> pa.Table:
    """What the lists need of some rows: row, user, source, order, items, and which lists take it.

    Args:
        source: place of the rows' source in the config.

    Raises:
        InputError: a row has a user but no value to order it by.
    """
    by = wanted.order[origin.source]
    order, known = ordinals(table.column(by))
    user = table.column(wanted.user).combine_chunks()
    has_user = user.is_valid().to_numpy(zero_copy_only=False)
    wrong = np.flatnonzero(has_user & ~known)
    if len(wrong):
        raise InputError(
            "a row has no place among its user's rows",
            f"{by} = null   ({origin.row(wrong[0])}; {len(wrong)} such rows near it)",
            "a value in every row of the source",
            "name another column in sequences.order, or mend the file",
        )
    columns: dict[str, object] = {
        "row": origin.first_row + np.arange(table.num_rows),
        "user": user if pa.types.is_string(user.type) else user.cast(pa.int64()),
        "source": np.full(table.num_rows, source, np.int16),
        "order": order,
    }
    columns |= {f"item {name}": table.column(name) for name in wanted.items}
    for number, window in enumerate(wanted.windows):
        if window.where:
            columns[f"taken {number}"] = values.holds(table, window.where)
    return pa.table(columns).filter(pa.array(has_user))


def deal(events: pa.Table, url: str, share: int, num_parts: int) -> None:
    """Leaves a share's events with their users' parts."""
    parts = parts_of([events.column("user").combine_chunks()], num_parts)
    for part, mine in dealt(events, parts):
        write_part(f"{url}/events/{part}", share, mine)


def build(url: str, part: int, first_rows: list[int], wanted: Sequences) -> None:
    """Builds one part's lists and leaves them with the shares.

    Args:
        first_rows: row within all sources of each share's first row.
    """
    events = read_together(f"{url}/events/{part}")
    if events is None:
        return
    rows, made = lists_of(events, wanted)
    del events
    shares = np.searchsorted(first_rows, rows, side="right") - 1
    for share, places in places_by(shares):
        columns: dict[str, object] = {"row": rows[places] - first_rows[share]}
        for number in range(len(wanted.windows)):
            columns[f"length {number}"] = made.lengths(number, places)
        for item in wanted.lists:
            columns[f"fresh {item.name}"] = made.fresh(item.name, places)
        write_part(f"{url}/lists/{share}", part, pa.table(columns))


@dataclass(frozen=True)
class Runs:
    """Lists as runs of successive events of one kind; rows in the order of users and events.

    Starts and stops never fall from one row to the next.
    """

    starts: list[np.ndarray]
    """Per window, int64 (n,), first of the list's events among those the window takes."""
    stops: list[np.ndarray]
    """The one after the last."""
    items: dict[str, pa.Array]
    """Per list, the items of all events its window takes."""
    windows: dict[str, int]
    """List -> its window."""

    def lengths(self, window: int, places: np.ndarray) -> np.ndarray:
        """Items of some rows' lists, int64."""
        return self.stops[window][places] - self.starts[window][places]

    def fresh(self, name: str, places: np.ndarray) -> pa.Array:
        """Of each list the items that the list before it, of these rows, does not hold.

        Args:
            places: rising.
        """
        window = self.windows[name]
        stops = self.stops[window][places]
        starts = np.maximum(self.starts[window][places], np.concatenate([[0], stops[:-1]]))
        return _lists(self.items[name], starts, stops - starts)


def lists_of(events: pa.Table, wanted: Sequences) -> tuple[np.ndarray, Runs]:
    """Sorts events and finds every row's lists: strictly before, so without its equals in order.

    Returns:
        int64 (n,), rows within all sources in the order of the `Runs`; the runs.
    """
    user = events.column("user").combine_chunks().dictionary_encode().indices.to_numpy()
    source, order = events.column("source").to_numpy(), events.column("order").to_numpy()
    sorting = np.lexsort((order, source, user))
    user, source, order = user[sorting], source[sorting], order[sorting]
    own = firsts(changes_of(user))
    equals = firsts(changes_of(user, source, order))
    starts, stops, taken = [], [], []
    for number, window in enumerate(wanted.windows):
        takes = np.ones(len(sorting), bool)
        if window.where:
            column = events.column(f"taken {number}").combine_chunks()
            takes = column.to_numpy(zero_copy_only=False)[sorting]
        before = np.concatenate([[0], np.cumsum(takes)])
        stops.append(before[equals])
        starts.append(np.maximum(before[own], before[equals] - window.most))
        taken.append(sorting[takes])
    windows = {item.name: wanted.window_of(item) for item in wanted.lists}
    items = {
        item.name: events.column(f"item {item.item}")
        .combine_chunks()
        .take(pa.array(taken[windows[item.name]]))
        for item in wanted.lists
    }
    return events.column("row").to_numpy()[sorting], Runs(starts, stops, items, windows)


class ShareLists:
    """A share's lists, to be put together some rows at a time."""

    def __init__(self, known: pa.Table | None, num_rows: int, wanted: Sequences, types: pa.Schema):
        columns = [f"fresh {item.name}" for item in wanted.lists]
        self._names = [item.name for item in wanted.lists]
        self._windows = [wanted.window_of(item) for item in wanted.lists]
        empty = {"row": pa.int64(), **{f"length {n}": pa.int64() for n in set(self._windows)}}
        fields = [*empty.items(), *((c, types.field(c[6:]).type) for c in columns)]
        together = pa.schema(fields).empty_table() if known is None else known
        row = together.column("row").to_numpy()
        self._has_user = np.zeros(num_rows, bool)
        self._has_user[row] = True
        self._items = [together.column(c).combine_chunks().flatten() for c in columns]
        self._starts = np.zeros((max(self._windows) + 1, num_rows), np.int64)
        self._lengths = np.zeros_like(self._starts)
        for window, column in zip(self._windows, columns, strict=True):
            fresh = together.column(column).combine_chunks().value_lengths().to_numpy()
            lengths = together.column(f"length {window}").to_numpy()
            self._lengths[window, row] = lengths
            self._starts[window, row] = np.cumsum(fresh) - lengths

    def take(self, first: int, num_rows: int) -> dict[str, pa.Array]:
        """The lists of successive rows, null where there is no user.

        Args:
            first: row within the share.
        """
        rows = slice(first, first + num_rows)
        missing = pa.array(~self._has_user[rows])
        return {
            name: _lists(items, self._starts[window, rows], self._lengths[window, rows], missing)
            for name, items, window in zip(self._names, self._items, self._windows, strict=True)
        }


def read_lists(
    url: str, share: int, num_rows: int, wanted: Sequences, types: pa.Schema
) -> ShareLists:
    """What all parts know of a share's lists.

    Args:
        types: of the list columns.
    """
    return ShareLists(read_together(f"{url}/lists/{share}"), num_rows, wanted, types)


def _lists(
    items: pa.Array, starts: np.ndarray, lengths: np.ndarray, missing: pa.Array | None = None
) -> pa.Array:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    found = items.take(pa.array(ranges(starts, lengths)))
    return pa.ListArray.from_arrays(pa.array(offsets), found, mask=missing)
