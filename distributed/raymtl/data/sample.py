"""Keeps a share of the rows without a positive label, weighing for those left out. No Ray."""

import numpy as np
import pyarrow as pa

from raymtl.data.prepare_config import Sample
from raymtl.schema import LogSchema


def sampled(
    table: pa.Table, sample: Sample, schema: LogSchema, split: str, place_n: np.ndarray
) -> pa.Table:
    """A split's rows that are kept, with their weights in the column `sample.weight`.

    Args:
        table: finished rows of the log.
        place_n: int64, each row's number among those of all sources.
    """
    weights = np.ones(table.num_rows)
    if schema.weight is not None:
        weights = table.column(schema.weight).to_numpy().astype(np.float64)
    kept = np.ones(table.num_rows, bool)
    if split in sample.splits:
        empty = ~_positive(table, schema)
        kept = ~empty | (uniform(place_n) < sample.keep)
        weights = np.where(empty, weights / sample.keep, weights)
    if sample.weight in table.column_names:
        table = table.drop_columns(sample.weight)
    return table.append_column(sample.weight, pa.array(weights)).filter(pa.array(kept))


def _positive(table: pa.Table, schema: LogSchema) -> np.ndarray:
    """Boolean (n,): rows with a positive label of a binary task, or a value of another kind."""
    found = np.zeros(table.num_rows, bool)
    for task in schema.tasks:
        labels = table.column(task.label).to_numpy(zero_copy_only=False).astype(np.float64)
        found |= labels == 1 if task.kind == "binary" else ~np.isnan(labels)
    return found


def uniform(places: np.ndarray) -> np.ndarray:
    """float64 (n,) in [0, 1), a hash of each number (splitmix64)."""
    x = (places.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x ^ (x >> np.uint64(31))).astype(np.float64) / 2.0**64
