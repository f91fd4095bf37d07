"""Schemas of a prepared log: the raw one with what was fitted, and the plain one of the result."""

import hashlib
import json
from typing import Any

import pyarrow.fs as pafs

from raymtl.data.fit import Moments
from raymtl.errors import InputError
from raymtl.schema import (
    BagFeature,
    CategoricalFeature,
    Feature,
    LogSchema,
    NumericFeature,
    Table,
    looks_up,
)


def fitted_schema(
    schema: LogSchema,
    rows: dict[str, int],
    moments: dict[str, Moments],
    borders: dict[str, list[float]],
) -> LogSchema:
    """The raw schema with means, deviations, borders and the tables' rows filled in.

    Raises:
        InputError: a number to be standardised or bucketed has no value in the training part.
    """
    features = []
    for f in schema.features:
        if f.name in moments or f.name in borders:
            known = moments[f.name].count if f.name in moments else len(borders[f.name])
            if not known:
                raise InputError(
                    f"feature {f.name} has no value to fit on",
                    f"{f.source} is null in every row of the training part",
                    "values in the training part",
                    "remove the feature, or mend the joins or the split",
                )
        if f.name in moments:
            f = _with(f, mean=moments[f.name].mean, std=moments[f.name].std)
        if f.name in borders:
            f = _with(f, boundaries=borders[f.name])
        features.append(f)
    schema = schema.model_copy(update={"features": features})
    tables = []
    for name in schema.table_names:
        table = schema.table(name)
        if name in rows:
            changes = {"rows": max(2, rows[name] + 1), "vocabulary": vocabulary_path(name)}
            table = table.model_copy(update={**changes, "values": None})
        tables.append(table)
    return schema.model_copy(update={"tables": tables})


def _with(f: Feature, **changes: Any) -> Feature:
    return f.model_copy(update=changes)


def vocabulary_path(table: str) -> str:
    """A vocabulary's file, below the prepared log's folder."""
    return f"vocabularies/{table}.parquet"


def log_column(feature: str) -> str:
    """Column of the prepared log that holds a feature; raw columns keep their own names."""
    return f"f_{feature}"


def result_schema(
    fitted: LogSchema, lineage: list[str], serving: dict[str, int | float | None]
) -> LogSchema:
    """What the prepared log is read with: ids as they are, numbers as they are.

    Args:
        lineage: digest of the transforms, then of those they extend.
        serving: feature -> its serving value in the log's own terms.
    """
    features: list[Feature] = []
    for f in fitted.features:
        column = log_column(f.name)
        if isinstance(f, NumericFeature) and looks_up(f):
            row = serving.get(f.name)
            features.append(
                CategoricalFeature(
                    kind="categorical",
                    name=f.name,
                    column=column,
                    encoding="index",
                    training_only=f.training_only,
                    serving_value=None if row is None else int(row),
                )
            )
        elif isinstance(f, NumericFeature):
            features.append(
                NumericFeature(
                    kind="numeric",
                    name=f.name,
                    column=column,
                    missing_indicator=f.missing_indicator,
                    fill=f.fill,
                    training_only=f.training_only,
                    serving_value=serving.get(f.name),
                )
            )
        else:
            changes: dict[str, Any] = {"column": column, "encoding": "index", "default": None}
            if f.name in serving:
                changes["serving_value"] = serving[f.name]
            if isinstance(f, BagFeature) and f.weights:
                changes["weights"] = f"{column}_weights"
            features.append(_with(f, **changes))
    tables = [_result_table(fitted, name) for name in fitted.table_names]
    tasks = [t.model_copy(update={"observed_if": None}) for t in fitted.tasks]
    update = {"features": features, "tables": tables, "tasks": tasks}
    update |= {"transforms": lineage[0], "extends": lineage[1:], "as_of": None}
    return LogSchema.model_validate(fitted.model_copy(update=update).model_dump())


def _result_table(fitted: LogSchema, name: str) -> Table:
    table = fitted.table(name)
    path = None if table.vocabulary is None else f"../{table.vocabulary}"
    return Table(name=name, rows=table.num_rows, task_specific=table.task_specific, vocabulary=path)


def digest_of(values: dict[str, Any]) -> str:
    """Digest of plain values, whatever the order of their keys."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def file_digest(fs: pafs.FileSystem, path: str) -> str:
    """Digest of a file's bytes, read piece by piece."""
    digest = hashlib.blake2b(digest_size=16)
    with fs.open_input_stream(path) as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
