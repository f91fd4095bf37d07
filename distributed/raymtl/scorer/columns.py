"""The columns of a request, read as `raymtl` decodes its own logs."""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from raymtl.scorer.embedding import PAD
from raymtl.scorer.errors import refuse, refuse_value, require
from raymtl.scorer.features import Feature, Sizes, features_of
from raymtl.scorer.values import (
    Vocabulary,
    floats_of,
    hashed,
    ids_of,
    joined,
    listed,
    number,
    places_of,
    transformed,
)


class Form:
    """How the columns of a request become ids and numbers."""

    def __init__(self, name: str, features: list[dict], sizes: Sizes, stored: dict[str, Tensor]):
        self.name, self.sizes = name, sizes
        self.features = features_of(features, sizes.columns, sizes.numeric)
        self.vocabularies = {
            f.table: Vocabulary(f"{name}/{f.table}", stored)
            for f in self.features.values()
            if f.encoding == "vocabulary"
        }
        for f in self.features.values():
            fits = f.boundaries is None or len(f.boundaries) + 1 < sizes.rows[f.table]
            require(fits, f"more borders than table {f.table} has rows")
        for table, vocabulary in self.vocabularies.items():
            require(len(vocabulary) < sizes.rows[table], f"a vocabulary larger than table {table}")

    def described(self) -> dict[str, str]:
        """Column -> what it must hold."""
        found = {}
        for f in self.features.values():
            if f.is_constant:
                continue
            kind = "numbers" if f.is_number else self._ids_wanted(f)
            left_out = "; may be left out" if f.default is not None else ""
            found[f.column] = ("lists of " if f.is_list else "") + kind + left_out
            if f.weights:
                found[f.weights] = f"lists of numbers, one for each of {f.column}"
        return found

    def read(self, columns: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Columns as int64 ids (n, C), float32 bag weights (n, K) and float32 numbers (n, N)."""
        request = Request(columns, self)
        n = request.num_rows
        places = {c.feature: c for c in self.sizes.columns}
        ids = np.full((n, self.sizes.num_ids), PAD, np.int64)
        weights = np.zeros((n, self.sizes.num_weights), np.float32)
        numeric = np.zeros((n, len(self.sizes.numeric)), np.float32)
        for column, row in self.sizes.constant_ids:
            ids[:, column] = row
        for column, value in self.sizes.constant_numbers:
            numeric[:, column] = value
        for name, f in self.features.items():
            if f.is_constant:
                continue
            if f.numeric_names:
                at = self.sizes.numeric.index(name)
                numeric[:, at], missing = number(request.numbers(f), f)
                if f.missing_indicator:
                    numeric[:, at + 1] = missing
                continue
            c = places[name]
            part = slice(c.start, c.start + c.width)
            if f.is_number:
                ids[:, c.start] = self._bucket(request.numbers(f), f)
            elif f.kind == "categorical":
                ids[:, c.start] = self.rows_of(request.values(f), f)[0]
            elif f.kind == "sequence":
                ids[:, part] = self._sequence(request, f)
            else:
                ids[:, part], made = self._bag(request, f)
                if made is not None and c.weight_start is not None:
                    weights[:, c.weight_start : c.weight_start + c.width] = made
        return ids, weights, numeric

    def rows_of(self, values: list[Any], f: Feature) -> tuple[np.ndarray, np.ndarray]:
        """Rows of plain ids, int64, PAD where there is none, and bool where the value is None."""
        kind, known, null = ids_of(values, f, self._ids_wanted(f), self.name == "raw")
        rows = np.full(len(values), PAD, np.int64)
        num_rows = self.sizes.rows[f.table]
        if f.encoding == "index":
            wrong = [v for v in known if not PAD <= v < num_rows]
            if wrong:
                wanted = f"0 to {num_rows - 1}, or -1 or None for no id"
                refuse(f"{f.column} holds an id outside its table", str(wrong[0])[:60], wanted)
            rows[~null] = known
        elif f.encoding == "hash":
            rows[~null] = [hashed(v, num_rows) for v in known]
        else:
            vocabulary = self.vocabularies[f.table]
            if kind == "text" and not vocabulary.is_text:
                refuse_value(f.column, known[0], "integers, as in its vocabulary")
            if kind == "integers" and vocabulary.is_text:
                if self.name == "raw" and known:
                    refuse_value(f.column, known[0], "text, as in its vocabulary")
                known = [str(int(v)) for v in known]
            rows[~null] = vocabulary.rows(known)
        return rows, null

    def _ids_wanted(self, f: Feature) -> str:
        if f.encoding == "index":
            return f"integers from 0 to {self.sizes.rows[f.table] - 1}, -1 or None for no id"
        if f.encoding == "vocabulary" and self.name == "raw":
            return "text" if self.vocabularies[f.table].is_text else "integers"
        return "integers or text"

    def _bucket(self, numbers: np.ndarray, f: Feature) -> np.ndarray:
        """1 + number of borders <= value; 0 where missing."""
        values = transformed(numbers, f)
        rows = 1 + np.searchsorted(np.asarray(f.boundaries, np.float64), values, side="right")
        return np.where(np.isnan(values), 0, rows)

    def _bag(self, request: "Request", f: Feature) -> tuple[np.ndarray, np.ndarray | None]:
        """A bag's first ids, None dropped, and their weights where it has some."""
        values, lengths = request.lists(f)
        rows, _ = self.rows_of(values, f)
        present = rows != PAD
        owner = np.repeat(np.arange(len(lengths)), lengths)[present]
        places = places_of(owner, len(lengths))
        chosen = places < f.max_length
        at = (owner[chosen], places[chosen])
        out = np.full((len(lengths), f.max_length), PAD, np.int64)
        out[at] = rows[present][chosen]
        if f.weights is None:
            return out, None
        given, others = request.column_lists(f.weights)
        _same_lengths(f.column, lengths, f.weights, others)
        weights = np.zeros(out.shape, np.float32)
        with np.errstate(over="ignore"):
            weights[at] = floats_of(given, f.weights)[present][chosen]
        wrong = np.argwhere(~np.isfinite(weights))
        if len(wrong):
            wanted = "a finite weight for each id that is not None"
            refuse(f"a weight in {f.weights} is not finite", f"row {wrong[0][0]}", wanted)
        return out, weights

    def _sequence(self, request: "Request", f: Feature) -> np.ndarray:
        """A sequence's last ids at the front, oldest first; None is row 0."""
        rows, owner, lengths = self._events(request, f)
        if f.aligned_with:
            other = self.features[f.aligned_with]
            others = self._events(request, other)[2]
            _same_lengths(f.column, lengths, other.column, others)
        places = places_of(owner, len(lengths)) - np.maximum(lengths - f.max_length, 0)[owner]
        chosen = places >= 0
        out = np.full((len(lengths), f.max_length), PAD, np.int64)
        out[owner[chosen], places[chosen]] = np.maximum(rows[chosen], 0)
        return out

    def _events(self, request: "Request", f: Feature) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows of a sequence's ids, the request's row of each, and how many each row has.

        In the log -1 is the padding of a list padded in advance; before prepare it is an id's lack.
        """
        values, lengths = request.lists(f)
        rows, null = self.rows_of(values, f)
        owner = np.repeat(np.arange(len(lengths)), lengths)
        kept = (rows != PAD) | null | (self.name == "raw")
        return rows[kept], owner[kept], np.bincount(owner[kept], minlength=len(lengths))


class Request:
    """The columns of a request as lists of plain values, all of one length."""

    def __init__(self, columns: Mapping[str, Any], form: Form):
        if not isinstance(columns, Mapping):
            refuse("a request is no mapping", type(columns).__name__, "column -> values")
        self.features, wanted = form.features, form.described()
        unread = {f.column for f in self.features.values() if f.is_constant}
        for name in columns:
            if not isinstance(name, str) or name not in wanted.keys() | unread:
                refuse(
                    "a request has a column the model does not read",
                    repr(name)[:60],
                    f"of {', '.join(wanted)}",
                    "leave it out, or mend its name",
                )
        self.columns = {k: listed(v, k) for k, v in columns.items() if k in wanted}
        lengths = {name: len(values) for name, values in self.columns.items()}
        if not lengths or len(set(lengths.values())) > 1:
            refuse(
                "the columns of a request are not of one length",
                ", ".join(f"{k}: {n}" for k, n in itertools.islice(lengths.items(), 12)) or "none",
                "one value a row in each column",
            )
        self.num_rows = next(iter(lengths.values()))

    def values(self, f: Feature) -> list[Any]:
        """A scalar feature's column."""
        if f.column in self.columns:
            return self.columns[f.column]
        if f.default is None:
            wanted = "each column the model reads; see Scorer.columns()"
            refuse("a request lacks a column", f.column, wanted, "add it, None where unknown")
        return [f.default] * self.num_rows

    def numbers(self, f: Feature) -> np.ndarray:
        """A numeric feature's column, float64, NaN where missing; nothing infinite."""
        numbers = floats_of(self.values(f), f.column)
        if np.isinf(numbers).any():
            refuse_value(f.column, np.inf, "finite numbers, None where missing")
        return numbers

    def lists(self, f: Feature) -> tuple[list[Any], np.ndarray]:
        """All elements of a list column, and how many each row has."""
        if f.column in self.columns or f.default is None:
            return joined(self.values(f), f.column)
        lengths = np.ones(self.num_rows, np.int64)
        for column in _partners(f, self.features):
            if column in self.columns:
                lengths = self.column_lists(column)[1]
                break
        return [f.default] * int(lengths.sum()), lengths

    def column_lists(self, column: str) -> tuple[list[Any], np.ndarray]:
        """As `lists`, of a column that must be there."""
        if column not in self.columns:
            wanted = "each column the model reads; see Scorer.columns()"
            refuse("a request lacks a column", column, wanted, "add it")
        return joined(self.columns[column], column)


def _partners(f: Feature, features: dict[str, Feature]) -> list[str]:
    """Columns whose lists are as long as this feature's."""
    if f.kind == "bag":
        return [f.weights] if f.weights else []
    others = [g for g in features.values() if g.aligned_with == f.name]
    if f.aligned_with:
        others.append(features[f.aligned_with])
    return [g.column for g in others]


def _same_lengths(name: str, lengths: np.ndarray, other: str, others: np.ndarray) -> None:
    wrong = np.flatnonzero(lengths != others)
    if len(wrong):
        row = int(wrong[0])
        got = f"{lengths[row]} and {others[row]} in row {row}"
        refuse(f"lists of {name} and {other} differ in length", got, "equal lengths in every row")
