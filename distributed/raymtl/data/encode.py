"""Raw values to row numbers: by index, by hash, by a written-out vocabulary."""

import hashlib
import threading

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymtl.errors import IdOutOfRange, InputError
from raymtl.layout import PAD
from raymtl.schema import IdFeature, LogSchema, Table


def column_of(table: pa.Table, name: str) -> pa.Array:
    """One column as one plain array: chunks joined, dictionaries written out."""
    return plain(table.column(name).combine_chunks())


def plain(values: pa.Array) -> pa.Array:
    """The array without dictionary encoding and string views."""
    if isinstance(values, pa.DictionaryArray):
        values = values.dictionary_decode()
    if pa.types.is_string_view(values.type):
        values = values.cast(pa.large_string())
    return values


def encode(values: pa.Array, feature: IdFeature, schema: LogSchema, where: str) -> np.ndarray:
    """Row numbers of raw values in the feature's table.

    Args:
        values: plain integers, booleans or text of any length n, nulls allowed.
        where: file and row group, for errors.

    Returns:
        int64 (n,), PAD where the value is null (or -1 with index encoding).

    Raises:
        IdOutOfRange: an index lies outside the table.
        InputError: the values are no ids.
    """
    table = schema.table(feature.table_name)
    if pa.types.is_null(values.type):
        return np.full(len(values), PAD, np.int64)
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.int64())
    is_integer = pa.types.is_integer(values.type)
    if not is_integer and (feature.encoding == "index" or not _is_text(values.type)):
        raise InputError(
            f"feature {feature.name} holds no ids",
            f"{values.type}   ({where})",
            "integers" if feature.encoding == "index" else "integers or text",
            "use kind: numeric for floats, encoding: hash for text, or mend the file",
        )
    if feature.encoding == "index":
        return _index(values, feature, table, where)
    if feature.encoding == "vocabulary":
        return _vocabulary(values, table)
    rows = np.full(len(values), PAD, np.int64)
    present = ~is_null(values)
    rows[present] = _to_rows(digests(values.drop_null()), table.num_rows)
    return rows


def hash_rows(values: list[str], rows: int) -> np.ndarray:
    """Rows of a hash table: first 8 bytes of BLAKE2b, little-endian, mod (rows - 1) + 1.

    Args:
        values: text; integers as their decimal string.
        rows: rows of the table, row 0 (out-of-vocabulary, never hit) included.

    Returns:
        int64 (len(values),), each in 1..rows-1.
    """
    return _to_rows(_digests_of([v.encode() for v in values]), rows)


def digests(values: pa.Array) -> np.ndarray:
    """First 8 bytes of BLAKE2b of each value's text, little-endian; integers in decimal.

    Args:
        values: integers or text without nulls.

    Returns:
        uint64 (n,).
    """
    if pa.types.is_integer(values.type) and not pa.types.is_uint64(values.type):
        return _MEMO.digests(values.cast(pa.int64()).to_numpy(zero_copy_only=False))
    unique = (values if _is_text(values.type) else values.cast(pa.string())).dictionary_encode()
    known = _digests_of([v.encode() for v in unique.dictionary.to_pylist()])
    return known[unique.indices.to_numpy(zero_copy_only=False)]


def is_null(values: pa.Array) -> np.ndarray:
    """Boolean (n,), True where the value is null."""
    return values.is_null().to_numpy(zero_copy_only=False)


def _is_text(t: pa.DataType) -> bool:
    return pa.types.is_string(t) or pa.types.is_large_string(t)


def _to_rows(digest: np.ndarray, rows: int) -> np.ndarray:
    return (digest % np.uint64(rows - 1)).astype(np.int64) + 1


def _digests_of(texts: list[bytes]) -> np.ndarray:
    blake2b = hashlib.blake2b
    joined = b"".join([blake2b(text).digest() for text in texts])
    return np.frombuffer(joined, "<u8")[::8].astype(np.uint64)


class _IntegerMemo:
    """Digests of recently seen integers, since one BLAKE2b costs about a microsecond.

    Direct-mapped and of fixed size, so that heads of power-law columns stay and memory does not
    grow. An empty slot holds key 0, which can only match in 0's own slot, filled at the start.
    """

    BITS = 19
    """2^19 slots of 16 bytes: 8 MiB a process, made at first use."""

    def __init__(self):
        self._lock = threading.Lock()
        self._keys = self._digests = None

    def digests(self, values: np.ndarray) -> np.ndarray:
        slots = (values.view(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(
            64 - self.BITS
        )
        slots = slots.astype(np.int64)
        with self._lock:  # a key and its digest are two writes
            if self._keys is None or self._digests is None:
                self._keys = np.zeros(1 << self.BITS, np.int64)
                self._digests = np.full(1 << self.BITS, _digests_of([b"0"])[0])
            found = self._digests[slots]
            missed = np.flatnonzero(self._keys[slots] != values)
            if len(missed):
                keys, at = values[missed], slots[missed]
                unique = pa.array(keys).dictionary_encode()
                known = _digests_of([b"%d" % v for v in unique.dictionary.to_pylist()])
                found[missed] = known[unique.indices.to_numpy()]
                self._keys[at] = keys
                won = self._keys[at] == keys  # of two keys with one slot, one is kept
                self._digests[at[won]] = found[missed[won]]
        return found


_MEMO = _IntegerMemo()


def _vocabulary(values: pa.Array, table: Table) -> np.ndarray:
    assert table.values is not None, f"table {table.name} has no values"
    texts = values if _is_text(values.type) else values.cast(pa.string())
    known = pc.SetLookupOptions(pa.array(table.values, texts.type))
    place = pc.call_function("index_in", [texts], known)
    rows = place.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64) + 1
    rows[is_null(values)] = PAD
    return rows


def _index(values: pa.Array, feature: IdFeature, table: Table, where: str) -> np.ndarray:
    rows = table.num_rows
    if pa.types.is_uint64(values.type):
        largest = pa.scalar(2**63 - 1, pa.uint64())
        keep_nulls = pc.ElementWiseAggregateOptions(skip_nulls=False)
        values = pc.call_function("min_element_wise", [values, largest], keep_nulls)
    ids = values.cast(pa.int64()).fill_null(PAD).to_numpy(zero_copy_only=False)
    wrong = np.flatnonzero((ids < PAD) | (ids >= rows))
    if len(wrong):
        raise out_of_range(feature.name, int(ids[wrong[0]]), table.name, rows, where)
    return ids


def out_of_range(feature: str, value: int, table: str, rows: int, where: str) -> IdOutOfRange:
    """The error of an id past its table."""
    return IdOutOfRange(
        f"feature {feature} holds an id outside its table",
        f"{value}   ({where})",
        f"0 to {rows - 1}, or -1 for none (table {table} has {rows} rows)",
        f"raise rows of table {table}, use encoding: hash, or mend the log",
    )
