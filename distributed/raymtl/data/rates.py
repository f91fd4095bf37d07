"""Prior rates: smoothed means of a key's rows in strictly earlier periods. No Ray.

A share adds up its rows by key and period (a "group") and deals the sums to parts by a hash of the
key. Each part cumulates its keys' sums over the periods and hands every share the rates of its
groups; the share knows the group of each row.
"""

# pyarrow makes its compute functions at import.
# pyright: reportAttributeAccessIssue=false

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymtl.data import values
from raymtl.data.history_config import Rate
from raymtl.data.ordinals import changes_of, firsts, ordinals
from raymtl.data.shuffle import dealt, parts_of, places_by, read_part, read_parts, write_part

Totals = list[list[float]]
"""Rows of: period, sum of the label, rows where it was observed; of one rate, all keys together."""

Keying = tuple[tuple[str, ...], str]
"""A rate's key columns and its period column."""

NO_GROUP = -1


def count(table: pa.Table, rates: list[Rate], url: str, share: int, num_parts: int) -> list[Totals]:
    """Adds up a share's rows by key and period, and leaves the sums with their keys' parts.

    Returns:
        Each rate's totals in this share; where it has no label, and so no prior, of the first and
        the last period only.
    """
    made: dict[Keying, Groups] = {}
    totals, sums, parts = [], [], []
    for number, rate in enumerate(rates):
        if rate.keying not in made:
            made[rate.keying] = Groups(table, *rate.keying)
        groups = made[rate.keying]
        if rate.label is None:
            ends = np.unique(groups.periods)[[0, -1]] if table.num_rows else groups.periods
            totals.append([[float(period), 0.0, 0.0] for period in ends])
            sums.append(groups.sums(number, np.ones(table.num_rows)))
        else:
            label = values.floats(table.column(rate.label))
            totals.append(_totals(groups.periods, label))
            sums.append(groups.sums(number, label))
        parts.append(groups.parts(num_parts))
    for part, mine in dealt(pa.concat_tables(sums), np.concatenate(parts)):
        write_part(f"{url}/sums/{part}", share, mine)
    columns = {str(n): groups.group for n, groups in enumerate(made.values())}
    write_part(f"{url}/groups", share, pa.table(columns))
    return totals


class Groups:
    """Rows of equal key and period."""

    def __init__(self, table: pa.Table, keys: tuple[str, ...], period: str):
        self.periods, _ = ordinals(table.column(period))
        code = _codes(pa.array(self.periods))
        known = np.ones(table.num_rows, bool)
        for name in keys:
            column = table.column(name).combine_chunks()
            known &= column.is_valid().to_numpy(zero_copy_only=False)
            code = _together(code, _codes(column))
        _, first, group = np.unique(code[known], return_index=True, return_inverse=True)
        self.group = np.full(table.num_rows, NO_GROUP, np.int32)
        """int32 (n,), each row's group, NO_GROUP where a key is null."""
        self.group[known] = group
        at = np.flatnonzero(known)[first]
        self._period = self.periods[at]
        self._keys = [table.column(name).combine_chunks().take(pa.array(at)) for name in keys]

    def sums(self, rate: int, label: np.ndarray) -> pa.Table:
        """Columns rate, group, key (as text), period; sum and number of labels not NaN."""
        seen = (self.group != NO_GROUP) & ~np.isnan(label)
        groups, size = self.group[seen], len(self._period)
        return pa.table(
            {
                "rate": np.full(size, rate, np.int32),
                "group": np.arange(size, dtype=np.int32),
                "key": _as_text(self._keys),
                "period": self._period,
                "sum": np.bincount(groups, label[seen], size).astype(np.float64),
                "observed": np.bincount(groups, minlength=size),
            }
        )

    def parts(self, num_parts: int) -> np.ndarray:
        """The part each group's key belongs to."""
        return parts_of(self._keys, num_parts)


def _codes(column: pa.Array) -> np.ndarray:
    """int64 (n,), equal where the values are; nulls have a code of their own."""
    encoded = column.dictionary_encode(null_encoding="encode")
    return encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)


def _together(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Codes of pairs, below the square of the rows."""
    wide = one * (int(other.max(initial=0)) + 1) + other
    return np.unique(wide, return_inverse=True)[1].astype(np.int64)


def _as_text(keys: list[pa.Array]) -> pa.Array:
    """Keys of several columns as one text; lengths in front keep a, bc and ab, c apart."""
    texts = [key.cast(pa.string()) for key in keys]
    if len(texts) == 1:
        return texts[0]
    parts = [x for text in texts for x in (pc.binary_length(text).cast(pa.string()), text)]
    return pc.binary_join_element_wise(*parts, ":")


def _totals(periods: np.ndarray, label: np.ndarray) -> Totals:
    known = ~np.isnan(label)
    found, at = np.unique(periods, return_inverse=True)
    sums = np.bincount(at[known], label[known], len(found))
    observed = np.bincount(at[known], minlength=len(found))
    return [list(row) for row in zip(found.tolist(), sums.tolist(), observed.tolist(), strict=True)]


def priors(totals: Iterable[Totals]) -> tuple[list[int], list[float | None]]:
    """The rate of all rows of strictly earlier periods.

    Args:
        totals: of one rate, of each share.

    Returns:
        The periods, rising; the rate before each of them, null where nothing was observed.
    """
    rows = [row for share in totals for row in share]
    periods = sorted({int(row[0]) for row in rows})
    at = {period: n for n, period in enumerate(periods)}
    sums = np.zeros((len(periods) + 1, 2))
    for period, label, observed in rows:
        sums[at[int(period)] + 1] += (label, observed)
    before = np.cumsum(sums, axis=0)[:-1]
    return periods, [s / n if n else None for s, n in before.tolist()]


def spread(
    url: str, part: int, rates: list[Rate], known: list[tuple[list[int], list[float | None]]]
) -> None:
    """Cumulates one part's sums over the periods and leaves the rates with the shares.

    Args:
        known: per rate what `priors` returned.
    """
    tables = list(read_parts(f"{url}/sums/{part}"))
    if not tables:
        return
    shares = np.repeat([share for share, _ in tables], [t.num_rows for _, t in tables])
    sums = pa.concat_tables(table for _, table in tables)
    made, whose = [], []
    for number, places in places_by(sums.column("rate").to_numpy()):
        made.append(_rates_of(sums.take(pa.array(places)), rates[number], *known[number]))
        whose.append(shares[places])
    for share, mine in dealt(pa.concat_tables(made), np.concatenate(whose)):
        write_part(f"{url}/rates/{share}", part, mine)


def _rates_of(
    sums: pa.Table, rate: Rate, periods: list[int], before: list[float | None]
) -> pa.Table:
    """Columns rate, group, value, count, of one rate's groups."""
    key = sums.column("key").combine_chunks().dictionary_encode().indices.to_numpy()
    period = sums.column("period").to_numpy()
    label, observed = earlier(
        key, period, sums.column("sum").to_numpy(), sums.column("observed").to_numpy()
    )
    if rate.label is None:
        value = count = np.log1p(observed)
    else:
        prior = np.array(before, np.float64)[np.searchsorted(periods, period)]
        value = smoothed(label, observed, prior, rate.smoothing)
        count = np.where(np.isnan(value), np.nan, np.log1p(observed))
    return pa.table(
        {"rate": sums.column("rate"), "group": sums.column("group"), "value": value, "count": count}
    )


def earlier(
    key: np.ndarray, period: np.ndarray, label: np.ndarray, observed: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Sums over the rows of the same key in strictly earlier periods.

    Args:
        key, period, label, observed: (n,); a key may have several rows of one period.

    Returns:
        float64 (n,), the labels' sum; int64 (n,), how many were observed.
    """
    sorting = np.lexsort((period, key))
    key, period = key[sorting], period[sorting]
    own, equals = firsts(changes_of(key)), firsts(changes_of(key, period))
    found = []
    for numbers in (label, observed):
        before = np.concatenate([[0], np.cumsum(numbers[sorting])])
        out = np.empty(len(key), before.dtype)
        out[sorting] = before[equals] - before[own]
        found.append(out)
    return found[0], found[1]


def smoothed(
    label: np.ndarray, observed: np.ndarray, prior: np.ndarray, smoothing: float
) -> np.ndarray:
    """(sum + smoothing * prior) / (observed + smoothing), NaN without a prior or any row."""
    weight = observed + smoothing
    return np.where(weight > 0, (label + smoothing * prior) / np.maximum(weight, 1e-300), np.nan)


class ShareRates:
    """A share's rates, to be taken some rows at a time."""

    def __init__(self, url: str, share: int, rates: list[Rate]):
        groups = read_part(f"{url}/groups", share)
        keyings = list(dict.fromkeys(rate.keying for rate in rates))
        self._columns: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        made = []
        for rate in rates:
            group = groups.column(keyings.index(rate.keying)).to_numpy()
            # The last stands for NO_GROUP.
            found = np.full((2, int(group.max(initial=NO_GROUP)) + 2), np.nan)
            made.append(found)
            for name, numbers in zip(rate.made, found, strict=False):
                self._columns[name] = (numbers, group)
        for _, table in read_parts(f"{url}/rates/{share}"):
            for number, places in places_by(table.column("rate").to_numpy()):
                mine = table.take(pa.array(places))
                at = mine.column("group").to_numpy()
                made[number][:, at] = [mine.column(c).to_numpy() for c in ("value", "count")]

    def take(self, first: int, num_rows: int) -> dict[str, pa.Array]:
        """The rates of successive rows, null where there is none.

        Args:
            first: row within the share.
        """
        return {
            name: pa.array(numbers[group[first : first + num_rows]], pa.float64(), from_pandas=True)
            for name, (numbers, group) in self._columns.items()
        }
