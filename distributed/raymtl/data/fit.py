"""Fitting on the training part: counts, moments and quantiles of shares, merged. No Ray."""

# pyarrow makes its compute functions at import.
# pyright: reportAttributeAccessIssue=false

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymtl.data import scratch, values
from raymtl.data.prepare_config import FITTED_ON, SPLITS, PrepareConfig
from raymtl.data.raw import Share
from raymtl.data.rows import Recipe, Rows, stream
from raymtl.data.sample import uniform
from raymtl.data.split import Places
from raymtl.data.times import later, newest
from raymtl.data.vocabulary import COUNTS, Counter, frequent
from raymtl.schema import NumericFeature


@dataclass
class Moments:
    """Count, mean and sum of squared distances from it; merged by Chan's formula."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, numbers: np.ndarray) -> "Moments":
        """Of the values that are not NaN."""
        known = numbers[~np.isnan(numbers)]
        if not len(known):
            return cls()
        mean = float(known.mean())
        return cls(len(known), mean, float(((known - mean) ** 2).sum()))

    def add(self, other: "Moments") -> None:
        """Merges another one's values into this one."""
        count = self.count + other.count
        if not other.count:
            return
        step = other.mean - self.mean
        self.squares += other.squares + step * step * self.count * other.count / count
        self.mean += step * other.count / count
        self.count = count

    @property
    def std(self) -> float:
        """Population standard deviation; 1 where all values are equal."""
        return (self.squares / self.count) ** 0.5 or 1.0 if self.count else 1.0


def lists_of(config: PrepareConfig) -> list[tuple[str, str]]:
    """What is counted: (vocabulary, table), (quantiles, feature), (users, split), in order."""
    features = config.log_schema.features
    quantiles = [f.name for f in features if _wants_borders(f)]
    users = config.split_names if config.log_schema.group else []
    return (
        [("vocabulary", name) for name in config.fitted_tables()]
        + [("quantiles", name) for name in quantiles]
        + [("users", name) for name in users]
    )


def _wants_borders(f: Any) -> bool:
    return isinstance(f, NumericFeature) and f.buckets is not None and f.boundaries is None


def fit_share(
    share: Share, recipe: Recipe, sides: dict[str, pa.Table], places: Places | None
) -> dict[str, Any]:
    """Reads one share, checks its labels and weights, and counts.

    Leaves the counts in the scratch folder, by part.

    Returns:
        "moments": feature -> [count, mean, squares] over training rows; "rows": split -> rows,
        "dropped" those of no split; "newest": the latest time, where ages of rows are asked for.
    """
    counter = Counter()
    moments: dict[str, Moments] = {}
    rows = np.zeros(len(SPLITS) + 1, np.int64)
    schema, latest = recipe.config.log_schema, None
    for part in stream(share, recipe, sides, places):
        _check(part, recipe.config)
        if schema.has_ages and schema.time:
            latest = later(latest, newest(part.table.column(schema.time)))
        rows += np.bincount(part.split_n + 1, minlength=len(rows))
        _count(part, recipe, counter)
        for f in recipe.config.log_schema.features:
            if isinstance(f, NumericFeature) and f.standardise and f.mean is None:
                numbers = values.numbers(part.table.column(f.source), f, part.origin)
                mine = Moments.of(numbers[_fitted_on(part)])
                moments.setdefault(f.name, Moments()).add(mine)
    scratch.write_counts(recipe.scratch, share.number, counter.sum(), recipe.num_buckets)
    return {
        "moments": {k: [m.count, m.mean, m.squares] for k, m in moments.items()},
        "rows": dict(zip(("dropped", *SPLITS), rows.tolist(), strict=True)),
        "newest": latest,
    }


def _check(part: Rows, config: PrepareConfig) -> None:
    schema, everywhere = config.log_schema, np.ones(part.table.num_rows, bool)
    if schema.weight:
        values.check_weights(part.table, schema.weight, everywhere, part.origin)
    for task in schema.tasks:
        observed = ~np.isnan(values.labels(part.table, task, part.origin))
        if task.weight:
            values.check_weights(part.table, task.weight, observed, part.origin)


def _count(part: Rows, recipe: Recipe, counter: Counter) -> None:
    config, train = recipe.config, _fitted_on(part)
    numbers = {what: n for n, what in enumerate(lists_of(config))}
    training = part.table.filter(pa.array(train))
    for f in config.log_schema.features:
        if _wants_borders(f):
            assert isinstance(f, NumericFeature)
            known = values.numbers(part.table.column(f.source), f, part.origin)
            known = known[train & _sampled(part, recipe)]
            bits = known[~np.isnan(known)].view(np.int64)
            counter.add_values(numbers["quantiles", f.name], pa.array(bits))
    for table in config.fitted_tables():
        for name in config.counted_columns(table):
            found = values.ids(training.column(name), name, part.origin.where)
            if pa.types.is_list(found.type):
                found = found.flatten()
            counter.add_values(numbers["vocabulary", table], found)
    if config.log_schema.group:
        users = part.table.column(config.log_schema.group).combine_chunks()
        for number, name in enumerate(SPLITS):
            if ("users", name) in numbers:
                mine = users.filter(pa.array(part.split_n == number))
                counter.add_values(numbers["users", name], mine)


def _fitted_on(part: Rows) -> np.ndarray:
    """Boolean (n,): rows that transforms are fitted on."""
    return np.isin(part.split_n, [SPLITS.index(name) for name in FITTED_ON])


def _sampled(part: Rows, recipe: Recipe) -> np.ndarray:
    """Boolean (n,): rows that borders are taken from, by a hash of the row's place."""
    share = recipe.config.sample_rows / recipe.num_rows
    if share >= 1:
        return np.ones(part.table.num_rows, bool)
    return uniform(part.origin.first_row + np.arange(part.table.num_rows)) < share


def merge_bucket(bucket: int, recipe: Recipe) -> dict[str, Any]:
    """Adds up one part's counts of all shares and keeps the frequent values, in scratch.

    Returns:
        "users": split -> distinct users in this part; "distinct": table -> distinct values before
        the rare ones went.
    """
    counter = Counter()
    for _, counts in scratch.read_counts(recipe.scratch, bucket):
        counter.add_counts(counts)
    merged = counter.sum()
    kept, users, distinct = [], {}, {}
    for number, (what, name) in enumerate(lists_of(recipe.config)):
        mine = merged.filter(pc.equal(merged.column("list"), number))
        if what == "users":
            users[name] = mine.num_rows
            continue
        if what == "vocabulary":
            distinct[name] = mine.num_rows
            mine = frequent(mine, recipe.config.min_count(name))
        kept.append(mine)
    scratch.write_merged(recipe.scratch, bucket, kept)
    return {"users": users, "distinct": distinct}


def quantile_borders(counts: Iterable[pa.Table], buckets: int) -> list[float]:
    """Inner borders of `buckets` parts of about equal weight, rising; equal borders once.

    Args:
        counts: of float64 values, as their bits; each value in one of them only.

    Returns:
        At most buckets - 1 of the n values, border i being the one of rank floor(i n / buckets);
        none where there are no values.
    """
    table = pa.concat_tables([COUNTS.empty_table(), *counts])
    if not table.num_rows:
        return []
    numbers = table.column("integer").to_numpy().view(np.float64)
    order = np.argsort(numbers)
    below = np.cumsum(table.column("count").to_numpy()[order])
    wanted = np.arange(1, buckets) / buckets * below[-1]
    # The value of rank r is the first whose rows, with those of all smaller ones, exceed r.
    at = np.searchsorted(below, np.floor(wanted), side="right")
    return np.unique(numbers[order][at]).tolist()
