"""List columns to id columns: bags and behaviour sequences."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymtl.data.encode import column_of, encode, is_null, plain
from raymtl.errors import InputError
from raymtl.layout import PAD
from raymtl.schema import BagFeature, LogSchema, SequenceFeature


class Lists:
    """A list column taken apart: `values` of all rows in one array, and the row of each.

    Attributes:
        values: plain array of all elements, row after row; a null list has none.
        owner: int64 (len(values),), row that each element belongs to.
        lengths: int64 (n,), elements per row.
    """

    def __init__(self, values: pa.Array, lengths: np.ndarray):
        self.values, self.lengths = values, lengths
        self.owner = np.repeat(np.arange(len(lengths)), lengths)

    @classmethod
    def of(cls, table: pa.Table, name: str) -> "Lists":
        """Takes a column apart: list, large_list or fixed_size_list, sliced or chunked."""
        column = column_of(table, name)
        if pa.types.is_null(column.type):
            return cls(pa.nulls(0), np.zeros(len(column), np.int64))
        lengths = (
            pc.call_function("list_value_length", [column])
            .fill_null(0)
            .to_numpy(zero_copy_only=False)
        )
        return cls(plain(column.flatten()), lengths.astype(np.int64))

    def keep(self, chosen: np.ndarray) -> "Lists":
        """Only the chosen elements; bool (len(values),)."""
        if chosen.all():
            return self
        lengths = np.bincount(self.owner[chosen], minlength=len(self.lengths))
        return Lists(self.values.filter(pa.array(chosen)), lengths)

    def places(self) -> np.ndarray:
        """int64 (len(values),), each element's place within its own list."""
        starts = np.cumsum(self.lengths) - self.lengths
        return np.arange(len(self.owner)) - starts[self.owner]


def bag(
    table: pa.Table, f: BagFeature, schema: LogSchema, where: str
) -> tuple[np.ndarray, np.ndarray | None]:
    """A bag's first `max_length` ids and, if weighted, their weights. Null ids are dropped.

    Returns:
        int64 (n, max_length) ids, PAD after the last; float32 weights of the same shape, 0 where
        there is no id, or null for an unweighted bag.

    Raises:
        InputError: weights and ids differ in length, or a weight is not finite.
    """
    lists = _read(table, f, schema)
    present = _present(lists.values, f) & ~is_null(lists.values)
    ids = lists.keep(present)
    places = ids.places()
    chosen = places < f.max_length
    kept = ids.keep(chosen)
    at = (ids.owner[chosen], places[chosen])
    out = np.full((table.num_rows, f.max_length), PAD, np.int64)
    out[at] = encode(kept.values, f, schema, where)
    if f.weights is None:
        return out, None
    weights = np.zeros((table.num_rows, f.max_length), np.float32)
    weights[at] = _weights(table, f, lists, where)[present][chosen]
    _refuse_infinite(weights, f, where)
    return out, weights


def sequence(table: pa.Table, f: SequenceFeature, schema: LogSchema, where: str) -> np.ndarray:
    """A sequence's last `max_length` ids at the front, oldest first; a null id is row 0.

    Returns:
        int64 (n, max_length), PAD after the last.

    Raises:
        InputError: the sequence it is aligned with differs in length in some row.
    """
    lists = _read(table, f, schema)
    ids = lists.keep(_present(lists.values, f))
    if f.aligned_with:
        _check_aligned(table, f, ids.lengths, schema, where)
    places = ids.places() - np.maximum(ids.lengths - f.max_length, 0)[ids.owner]
    chosen = places >= 0
    rows = encode(ids.keep(chosen).values, f, schema, where)
    out = np.full((table.num_rows, f.max_length), PAD, np.int64)
    out[ids.owner[chosen], places[chosen]] = np.maximum(rows, 0)
    return out


def _read(table: pa.Table, f: BagFeature | SequenceFeature, schema: LogSchema) -> Lists:
    """The column's lists; of a missing column, lists of its default as long as its partner's."""
    if f.source in table.column_names:
        return Lists.of(table, f.source)
    assert f.default is not None, f"feature {f.name} has neither a column nor a default"
    partner = _partner_column(table, f, schema)
    lengths = Lists.of(table, partner).lengths if partner else np.ones(table.num_rows, np.int64)
    return Lists(pa.repeat(f.default, int(lengths.sum())), lengths)


def _partner_column(
    table: pa.Table, f: BagFeature | SequenceFeature, schema: LogSchema
) -> str | None:
    if isinstance(f, BagFeature):
        return f.weights
    names = {f.name: f.source for f in schema.features}
    pairs = [(g.name, g.aligned_with) for g in schema.features if g.kind == "sequence"]
    partners = [b if a == f.name else a for a, b in pairs if b and f.name in (a, b)]
    return next((names[p] for p in partners if names[p] in table.column_names), None)


def _present(values: pa.Array, f: BagFeature | SequenceFeature) -> np.ndarray:
    """False where an index-encoded element is -1, the padding of a list padded in advance."""
    if f.encoding != "index" or not pa.types.is_signed_integer(values.type):
        return np.ones(len(values), bool)
    return values.fill_null(0).to_numpy(zero_copy_only=False) != PAD


def _weights(table: pa.Table, f: BagFeature, ids: Lists, where: str) -> np.ndarray:
    assert f.weights is not None
    weights = Lists.of(table, f.weights)
    _check_lengths(f.name, ids.lengths, f"weights {f.weights}", weights.lengths, where)
    return weights.values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)


def _refuse_infinite(weights: np.ndarray, f: BagFeature, where: str) -> None:
    wrong = np.argwhere(~np.isfinite(weights))
    if len(wrong):
        row, place = wrong[0].tolist()
        raise InputError(
            f"a weight of bag {f.name} is not finite",
            f"column {f.weights}: {weights[row, place]} (or null)   ({where}, row {row} of it)",
            "a finite weight for each id that is not null",
            "mend the log",
        )


def _check_aligned(
    table: pa.Table, f: SequenceFeature, lengths: np.ndarray, schema: LogSchema, where: str
) -> None:
    other = next(g for g in schema.features if g.name == f.aligned_with)
    assert isinstance(other, SequenceFeature)
    lists = _read(table, other, schema)
    others = lists.keep(_present(lists.values, other)).lengths
    _check_lengths(f.name, lengths, other.name, others, where)


def _check_lengths(
    name: str, lengths: np.ndarray, other: str, others: np.ndarray, where: str
) -> None:
    wrong = np.flatnonzero(lengths != others)
    if len(wrong):
        row = int(wrong[0])
        raise InputError(
            f"lists of {name} and {other} differ in length",
            f"{lengths[row]} and {others[row]}   ({where}, row {row} of it)",
            "equal lengths in every row",
            "mend the log, or use a column that is aligned",
        )
