"""How far a log's columns lie from those of the training part. No Ray; in bounded memory.

Of each feature: the share without a value, the share out of vocabulary, and the population
stability index over bins, sum (q - p) ln(q / p) with p the training shares and q the new ones
(Siddiqi, "Credit Risk Scorecards", 2006; above .25 is called a major shift there). Bins are fixed
beforehand, so that one pass over either log will do: an id's row, the most frequent ones alone and
the rest by doubling ranks (or, in tables without a vocabulary, by row mod 64); a number's leading
bits, put together to tenths of the training rows when two are compared.
"""

import json
import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymtl.data.carried import DISTRIBUTIONS
from raymtl.data.encode import column_of
from raymtl.data.log import LogIndex, read_chunk
from raymtl.data.order import Chunk
from raymtl.schema import Feature, LogSchema, looks_up
from raymtl.storage import Folder

TOP_VALUES = 50
"""Rows of a vocabulary that have a bin of their own."""
FEW_ROWS = 256
"""Tables of up to this many rows, without a vocabulary, have a bin for each row."""
HASH_BINS = 64
GROUPS = 10
"""Parts of a number's training rows that are compared."""
LEAST_SHARE = 1e-4
"""What an empty bin counts for, so that the index is finite; in short logs half a value."""
PSI_JUMP = 0.25
SHARE_JUMP = 0.05
"""A jump is warned of: an index above PSI_JUMP that chance does not explain, or a share of missing
or unknown values this much above that of training, and above what chance explains."""
CHANCE = 3.09
"""Deviations of the normal distribution that chance exceeds once in a thousand cases."""
MOST_ROWS = 1_000_000
"""Rows of a log that are looked at in evaluation, in row groups spread over it."""

Counts = dict[str, Any]
"""rows, null (of rows), values, unknown (of values), and bins: bin as text -> values in it."""


class Distributions:
    """Counts of every feature, for each split of a log; those of shares add up."""

    def __init__(self, splits: dict[str, dict[str, Counts]] | None = None):
        self.splits = splits or {}

    def add(self, split: str, table: pa.Table, schema: LogSchema, columns: dict[str, str]) -> None:
        """Counts rows of a prepared log.

        Args:
            columns: feature -> its column.
        """
        found = {f.name: _counted(table, f, columns[f.name], schema) for f in schema.features}
        self.merge({split: found})

    def merge(self, other: dict[str, dict[str, Counts]]) -> None:
        """Adds counts made elsewhere, as plain values."""
        for split, features in other.items():
            mine = self.splits.setdefault(split, {})
            for name, counts in features.items():
                mine[name] = _sum(mine[name], counts) if name in mine else counts


def _sum(one: Counts, other: Counts) -> Counts:
    bins = dict(one["bins"])
    for key, count in other["bins"].items():
        bins[key] = bins.get(key, 0) + count
    return {key: one[key] + other[key] for key in one if key != "bins"} | {"bins": bins}


def _counted(table: pa.Table, f: Feature, name: str, schema: LogSchema) -> Counts:
    column = column_of(table, name)
    missing = column.null_count
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        lengths = pc.call_function("list_value_length", [column]).drop_null()
        missing += int((lengths.to_numpy() == 0).sum())
        column = column.flatten()
    values = column.drop_null().to_numpy(zero_copy_only=False)
    if looks_up(f):  # rows that a longer vocabulary added are unknown to this one
        values = np.where(values < schema.table(f.table_name).num_rows, values, 0)  # type: ignore[union-attr]
    bin_n = _id_bins(values, f, schema) if looks_up(f) else _number_bins(values)
    found, counts = np.unique(bin_n, return_counts=True)
    return {
        "rows": table.num_rows,
        "null": missing,
        "values": len(values),
        "unknown": int((values == 0).sum()) if looks_up(f) else 0,
        "bins": {str(b): int(n) for b, n in zip(found.tolist(), counts.tolist(), strict=True)},
    }


def _id_bins(rows: np.ndarray, f: Feature, schema: LogSchema) -> np.ndarray:
    table = schema.table(f.table_name)  # type: ignore[union-attr]
    if table.vocabulary is None:
        return rows if table.num_rows <= FEW_ROWS else np.where(rows > 0, 1 + rows % HASH_BINS, 0)
    doublings = np.floor(np.log2(np.maximum(rows, 1) / TOP_VALUES)).astype(np.int64)
    return np.where(rows <= TOP_VALUES, rows, TOP_VALUES + 1 + doublings)


def _number_bins(values: np.ndarray) -> np.ndarray:
    """Sign, exponent and three bits of the mantissa: numbers in order, some ten percent apart."""
    bits = values.astype(np.float32).view(np.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)) >> 20


def psi(then: Counts, now: Counts, is_number: bool) -> tuple[float, float]:
    """The population stability index, and what chance alone exceeds once in a thousand cases.

    The second is (1/n + 1/m) times that quantile of chi-squared with bins - 1 degrees of freedom
    (Yurdakul and Naranjo, "Statistical Properties of the Population Stability Index", 2020), by
    Wilson's and Hilferty's approximation. Both are 0 where either has no values.
    """
    if not then["values"] or not now["values"]:
        return 0.0, 0.0
    bins = sorted({int(key) for key in (*then["bins"], *now["bins"])})
    p, q = (np.array([c["bins"].get(str(b), 0) for b in bins], float) for c in (then, now))
    p, q = p / p.sum(), q / q.sum()
    if is_number:
        before = np.cumsum(p) - p
        group = np.minimum((before * GROUPS + 1e-9).astype(np.int64), GROUPS - 1)
        p, q = (np.bincount(group, weights=shares) for shares in (p, q))
        used = (p > 0) | (q > 0)
        p, q = p[used], q[used]
    degrees = max(1, len(p) - 1)
    spread = 2 / (9 * degrees)
    chance = degrees * (1 - spread + CHANCE * math.sqrt(spread)) ** 3
    p, q = (
        np.maximum(shares, max(LEAST_SHARE, 0.5 / counts["values"]))
        for shares, counts in ((p, then), (q, now))
    )
    noise = chance * (1 / then["values"] + 1 / now["values"])
    return float(((q - p) * np.log(q / p)).sum()), noise


def compared(
    then: dict[str, Counts], now: dict[str, Counts], schema: LogSchema
) -> dict[str, dict[str, Any]]:
    """Feature -> shares beside training's, index, and what of them jumped.

    Returns:
        Of each feature that both know: "null", "train_null", "unknown", "train_unknown" (null for
        numbers), "psi" and "jumps", names of those that did.
    """
    found = {}
    for f in schema.features:
        if f.name not in then or f.name not in now:
            continue
        before, after = then[f.name], now[f.name]
        index, noise = psi(before, after, is_number=not looks_up(f))
        values: dict[str, Any] = {"null": _share(after, "null", "rows")}
        values["train_null"] = _share(before, "null", "rows")
        values["unknown"] = _share(after, "unknown", "values") if looks_up(f) else None
        values["train_unknown"] = _share(before, "unknown", "values") if looks_up(f) else None
        values["psi"] = round(index, 5)
        jumps = [
            name
            for name, whole in (("null", "rows"), ("unknown", "values"))
            if _rose(values[f"train_{name}"] or 0.0, values[name] or 0.0, after[whole])
        ]
        found[f.name] = values | {"jumps": jumps + ["psi"] * (index > max(PSI_JUMP, noise))}
    return found


def _rose(then: float, now: float, of: int) -> bool:
    """Whether a share of `of` values lies more above training's than SHARE_JUMP and chance."""
    chance = CHANCE * math.sqrt(then * (1 - then) / max(1, of))
    return now - then > max(SHARE_JUMP, chance)


def _share(counts: Counts, part: str, whole: str) -> float:
    return round(counts[part] / counts[whole], 6) if counts[whole] else 0.0


def of_log(index: LogIndex, schema: LogSchema, most_rows: int = MOST_ROWS) -> dict[str, Counts]:
    """Each feature's counts over a prepared log, at most about `most_rows` rows of it.

    Args:
        schema: of the model; rows past its tables count as out of vocabulary.
    """
    distributions = Distributions({"log": {}})
    columns = {f.name: f.source for f in schema.features}
    for chunk in _spread(index, most_rows):
        table = read_chunk(index, chunk, list(columns.values()))
        there = [f for f in schema.features if f.source in table.column_names]
        part = schema.model_copy(update={"features": there})
        distributions.add("log", table, part, columns)
    return distributions.splits["log"]


def _spread(index: LogIndex, most_rows: int) -> Iterator[Chunk]:
    """Whole row groups, every k-th one where all would be too many rows."""
    every, number = max(1, -(-index.num_rows // most_rows)), 0
    for file, found in enumerate(index.files):
        first = 0
        for group, rows in enumerate(found.row_group_rows):
            if rows and number % every == 0:
                yield Chunk(file, group, 0, rows, first)
            number, first = number + 1, first + rows


def read_distributions(folder: Folder) -> dict[str, Counts] | None:
    """The training part's counts that lie beside transforms; null where there are none."""
    if folder.size(DISTRIBUTIONS) is None:
        return None
    return json.loads(folder.read(DISTRIBUTIONS))["features"]


def dump_distributions(features: dict[str, Counts]) -> str:
    """What is written beside transforms."""
    return json.dumps({"split": "train", "features": features})


def warnings(drift: dict[str, dict[str, Any]], what: str) -> Iterable[str]:
    """A line for each feature that jumped.

    Args:
        what: the log or split, for a person.
    """
    words = {"null": "missing", "unknown": "out of vocabulary"}
    for name, values in drift.items():
        told = [
            f"{words[jump]} {values[jump]:.1%}, in training {values[f'train_{jump}']:.1%}"
            if jump in words
            else f"stability index {values['psi']:.3f}, above {PSI_JUMP}"
            for jump in values["jumps"]
        ]
        if told:
            yield f"warning: feature {name} of {what} has drifted: {'; '.join(told)}"
