"""Writing the log: one share's rows, transformed, to a part file of each split. No Ray."""

from contextlib import ExitStack
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raymtl.data import values
from raymtl.data.drift import Distributions
from raymtl.data.encode import encode
from raymtl.data.fitted import log_column
from raymtl.data.prepare_config import SPLITS
from raymtl.data.raw import Origin, Share
from raymtl.data.rows import Recipe, stream
from raymtl.data.sample import sampled
from raymtl.data.split import Places
from raymtl.data.statistics import Tally
from raymtl.data.times import old_enough
from raymtl.data.vocabulary import look_up
from raymtl.errors import InputError
from raymtl.layout import PAD
from raymtl.schema import (
    BagFeature,
    CategoricalFeature,
    LogSchema,
    NumericFeature,
    training_only,
)
from raymtl.storage import filesystem


class Parts:
    """The part files one share writes: one a split, in row groups of chunk_rows."""

    def __init__(self, url: str, share: int, chunk_rows: int, stack: ExitStack):
        self._url, self._share, self._chunk_rows, self._stack = url, share, chunk_rows, stack
        self._writers: dict[str, pq.ParquetWriter] = {}
        self._held: dict[str, pa.Table] = {}

    def add(self, split: str, table: pa.Table) -> None:
        """Adds rows; whole row groups are written, the rest waits."""
        if split in self._held:
            table = pa.concat_tables([self._held[split], table])
        whole = table.num_rows - table.num_rows % self._chunk_rows
        self._write(split, table.slice(0, whole))
        self._held[split] = table.slice(whole).combine_chunks()

    def finish(self) -> None:
        """Writes the rows that wait."""
        for split, table in self._held.items():
            self._write(split, table)

    def _write(self, split: str, table: pa.Table) -> None:
        if not table.num_rows:
            return
        if split not in self._writers:
            fs, root = filesystem(f"{self._url}/{split}")
            fs.create_dir(root)
            path = f"{root}/part-{self._share:06d}.parquet"
            stream = self._stack.enter_context(fs.open_output_stream(path))
            self._writers[split] = self._stack.enter_context(pq.ParquetWriter(stream, table.schema))
        self._writers[split].write_table(table, row_group_size=self._chunk_rows)


def apply_share(
    share: Share,
    recipe: Recipe,
    fitted: LogSchema,
    url: str,
    memory: dict[str, dict[str, pa.Table]],
    places: Places | None,
) -> dict[str, Any]:
    """Transforms and writes one share.

    Args:
        url: folder that the splits' folders are made in.
        memory: "sides" by join, "vocabularies" by table.

    Returns:
        "tally" and "distributions" of the share, as plain values.
    """
    vocabularies = {
        k: t.column("value").combine_chunks() for k, t in memory["vocabularies"].items()
    }
    tally = Tally.of(fitted, recipe.config.split_names)
    distributions = Distributions()
    columns = {f.name: log_column(f.name) for f in fitted.features}
    with ExitStack() as stack:
        parts = Parts(url, share.number, recipe.config.chunk_rows, stack)
        for rows in stream(share, recipe, memory["sides"], places):
            made = transform(rows.table, recipe, fitted, vocabularies, rows.origin)
            for number, name in enumerate(SPLITS):
                chosen = rows.split_n == number
                mine = made.filter(pa.array(chosen))
                if mine.num_rows:
                    distributions.add(name, mine, fitted, columns)
                if recipe.config.sample is not None and mine.num_rows:
                    place_n = rows.origin.first_row + np.flatnonzero(chosen)
                    mine = sampled(mine, recipe.config.sample, fitted, name, place_n)
                if mine.num_rows:
                    tally.add(name, mine, fitted)
                    parts.add(name, mine)
        parts.finish()
    return {"tally": tally.to_dict(), "distributions": distributions.splits}


def transform(
    table: pa.Table,
    recipe: Recipe,
    fitted: LogSchema,
    vocabularies: dict[str, pa.Array],
    origin: Origin,
) -> pa.Table:
    """The log's columns: features as `f_NAME`, then labels and raw columns under their names."""
    columns = feature_columns(table, fitted, vocabularies, origin)
    for task in fitted.tasks:
        label = values.labels(table, task, origin)
        label = np.where(old_enough(table, task, fitted, origin.where), label, np.nan)
        kind = pa.int8() if task.kind == "binary" else pa.float32()
        columns[task.label] = pa.array(label, pa.float64(), from_pandas=True).cast(kind)
    for name in raw_names(recipe):
        columns.setdefault(name, table.column(name))
    return pa.table(columns)


def feature_columns(
    table: pa.Table, fitted: LogSchema, vocabularies: dict[str, pa.Array], origin: Origin
) -> dict[str, pa.Array | pa.ChunkedArray]:
    """The features of raw columns as the log has them, under `f_NAME`."""
    columns: dict[str, pa.Array | pa.ChunkedArray] = {}
    for f in fitted.features:
        if isinstance(f, NumericFeature):
            columns[log_column(f.name)] = _number(table, f, origin)
        else:
            raw = values.ids(table.column(f.source), f.name, origin.where)
            columns[log_column(f.name)] = _rows_of(raw, f, fitted, vocabularies, origin)
        if isinstance(f, BagFeature) and f.weights:
            weights = table.column(f.weights).cast(pa.list_(pa.float32()))
            columns[f"{log_column(f.name)}_weights"] = weights
    return columns


def serving_values(
    recipe: Recipe, fitted: LogSchema, vocabularies: dict[str, pa.Array]
) -> dict[str, int | float | None]:
    """What stands for each `training_only` feature at serving, in the log's own terms.

    Raises:
        InputError: a value has no row of its own in the feature's vocabulary.
    """
    found: dict[str, int | float | None] = {}
    origin = Origin("serving_value", "the schema's serving_value", 0, 0)
    for f in training_only(fitted.features):
        if f.serving_value is None:
            made = None
        elif isinstance(f, NumericFeature):
            made = _number(pa.table({f.source: [f.serving_value]}), f, origin)[0].as_py()
        else:
            text = f.table_name in recipe.text_tables
            raw = pa.array([str(f.serving_value) if text else f.serving_value])
            raw = values.ids(pa.chunked_array([raw]), f.name, origin.where)
            made = _rows_of(raw, f, fitted, vocabularies, origin)[0].as_py()
            if made == 0 and f.table_name in vocabularies:
                raise InputError(
                    f"the serving value of feature {f.name} is none that training knows",
                    f"serving_value = {f.serving_value!r}",
                    f"a value of column {f.source} in the training part, or null for none",
                    "mend serving_value",
                )
        found[f.name] = made
    return found


def raw_names(recipe: Recipe) -> list[str]:
    """Raw columns the log keeps: group, time, weights, and `keep`."""
    schema = recipe.config.log_schema
    names = [*recipe.config.keep, schema.group, schema.time, schema.weight]
    names += [t.weight for t in schema.tasks]
    return list(dict.fromkeys(n for n in names if n))


def _number(table: pa.Table, f: NumericFeature, origin: Origin) -> pa.Array:
    numbers = values.numbers(table.column(f.source), f, origin)
    missing = np.isnan(numbers)
    if f.boundaries is not None:
        rows = 1 + np.searchsorted(np.asarray(f.boundaries, np.float64), numbers, side="right")
        return pa.array(np.where(missing, 0, rows).astype(np.int32))
    if f.standardise:
        assert f.mean is not None and f.std is not None
        numbers = (numbers - f.mean) / f.std
    return pa.array(numbers.astype(np.float32), mask=missing)


def _rows_of(
    raw: pa.Array, f: Any, fitted: LogSchema, vocabularies: dict[str, pa.Array], origin: Origin
) -> pa.Array:
    """Row numbers, int32, in the shape of `raw`; null stays null."""
    if not isinstance(f, CategoricalFeature) and pa.types.is_list(raw.type):
        elements = _rows_of(raw.flatten(), f, fitted, vocabularies, origin)
        return values.with_elements(raw, elements)
    if f.table_name in vocabularies:
        return look_up(raw, vocabularies[f.table_name])
    rows = encode(raw, f, fitted, origin.where)
    return pa.array(rows.astype(np.int32), mask=rows == PAD)
