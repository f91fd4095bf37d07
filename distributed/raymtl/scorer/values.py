"""Plain values of a request: their types checked, ids and numbers made of them."""

import hashlib
import itertools
import math
from typing import Any

import numpy as np
from torch import Tensor

from raymtl.scorer.errors import refuse, refuse_value, require
from raymtl.scorer.features import Feature

INT64 = range(-(2**63), 2**63)


class Vocabulary:
    """Known values of a table: value i is row i + 1, all others row 0."""

    def __init__(self, name: str, stored: dict[str, Tensor]):
        self.is_text = f"{name}/text" in stored
        if self.is_text:
            content = stored[f"{name}/text"].numpy().tobytes()
            ends = stored[f"{name}/ends"].tolist()
            texts = [content[a:b].decode() for a, b in itertools.pairwise([0, *ends])]
            self._rows = {text: row for row, text in enumerate(texts, 1)}
            self._num = len(texts)
        else:
            values = stored[f"{name}/integers"].numpy()
            require(values.dtype == np.int64 and values.ndim == 1, "a vocabulary of no integers")
            self._num = len(values)
            self._order = np.argsort(values, kind="stable")
            self._sorted = values[self._order]

    def __len__(self) -> int:
        return self._num

    def rows(self, values: list[Any]) -> list[int] | np.ndarray:
        """Row of each value; text or integers, as the vocabulary's."""
        if self.is_text:
            return [self._rows.get(v, 0) for v in values]
        if not len(self._sorted):
            return np.zeros(len(values), np.int64)
        wanted = np.array(values, np.int64)
        place = np.searchsorted(self._sorted, wanted).clip(max=len(self._sorted) - 1)
        return np.where(self._sorted[place] == wanted, self._order[place] + 1, 0)


def listed(values: Any, column: str) -> list[Any]:
    """A column as a list of Python values."""
    if isinstance(values, np.ndarray) and values.ndim >= 1 and values.dtype.kind in "biufUO":
        return values.tolist()
    if not isinstance(values, list | tuple):
        wanted = "a list or an array with a value for each row"
        refuse_value(column, values, wanted)
    return list(values)


def joined(lists: list[Any], column: str) -> tuple[list[Any], np.ndarray]:
    """All elements, row after row, and how many each row has; None is an empty list."""
    lists = [listed(v, column) if type(v) is not list and v is not None else v for v in lists]
    lengths = np.array([0 if v is None else len(v) for v in lists], np.int64)
    return list(itertools.chain.from_iterable(v for v in lists if v is not None)), lengths


def _plain(values: list[Any]) -> tuple[list[Any], set[type]]:
    """Values without numpy's scalars, and the types there are."""
    types = set(map(type, values))
    if any(issubclass(t, np.generic) for t in types):
        values = [v.item() if isinstance(v, np.generic) else v for v in values]
        types = set(map(type, values))
    return values, types


def floats_of(values: list[Any], column: str) -> np.ndarray:
    """float64, NaN where None."""
    values, types = _plain(values)
    for wrong in types - {int, float, bool, type(None)}:
        refuse_value(column, next(v for v in values if type(v) is wrong), "numbers or None")
    try:
        return np.array(values, np.float64)
    except OverflowError:
        refuse_value(column, max(values, key=lambda v: abs(v or 0)), "numbers of 64 bits")


def ids_of(
    values: list[Any], f: Feature, wanted: str, whole_floats: bool
) -> tuple[str, list[Any], np.ndarray]:
    """What kind of ids there are, those that are not None, and where None is."""
    values, types = _plain(values)
    if whole_floats and float in types:  # as a table with nulls in an integer column has them
        values = [_whole(v, f.column) for v in values]
        types = set(map(type, values))
    kinds = types - {type(None)}
    kind = "text" if kinds == {str} else "integers"
    for wrong in kinds - ({str} if kinds == {str} and f.encoding != "index" else {int, bool}):
        refuse_value(f.column, next(v for v in values if type(v) is wrong), wanted)
    null = np.array([v is None for v in values], bool)
    known = [v for v in values if v is not None] if type(None) in types else values
    if kind == "integers" and known and not (min(known) in INT64 and max(known) in INT64):
        unsigned = min(known) >= 0 and max(known) < 2**64 and not whole_floats
        if not (unsigned and f.encoding == "hash"):
            refuse_value(f.column, max(known, key=abs), f"{wanted}, of 64 bits")
    return kind, known, null


def _whole(value: Any, column: str) -> Any:
    if type(value) is not float or math.isnan(value):
        return None if type(value) is float else value
    if not value.is_integer():
        refuse_value(column, value, "whole numbers")
    return int(value)


def hashed(value: int | str, num_rows: int) -> int:
    """First 8 bytes of BLAKE2b of the text, little-endian, mod (rows - 1), plus 1."""
    text = value if isinstance(value, str) else str(int(value))
    try:
        digest = hashlib.blake2b(text.encode()).digest()
    except UnicodeEncodeError:
        refuse("an id is no text", repr(value)[:60], "text that UTF-8 can hold")
    return int.from_bytes(digest[:8], "little") % (num_rows - 1) + 1


def transformed(numbers: np.ndarray, f: Feature) -> np.ndarray:
    return np.sign(numbers) * np.log1p(np.abs(numbers)) if f.log1p else numbers


def number(numbers: np.ndarray, f: Feature) -> tuple[np.ndarray, np.ndarray]:
    """float32 values with missing ones filled, and bool where missing."""
    values = transformed(numbers, f)
    if f.mean is not None and f.std is not None:
        values = (values - f.mean) / f.std
    missing = np.isnan(values)
    with np.errstate(over="ignore"):
        filled = np.where(missing, f.fill, values).astype(np.float32)
    if np.isinf(filled).any():
        refuse_value(f.column, numbers[np.isinf(filled)][0], "numbers that float32 can hold")
    return filled, missing


def places_of(owner: np.ndarray, num_rows: int) -> np.ndarray:
    """Place of each element within its own row; owners ascend."""
    lengths = np.bincount(owner, minlength=num_rows)
    return np.arange(len(owner)) - (np.cumsum(lengths) - lengths)[owner]
