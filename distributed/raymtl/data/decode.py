"""A table of raw log rows to arrays: ids, numbers, labels, weights. Pure, vectorised."""

from typing import NoReturn

import numpy as np
import pyarrow as pa

from raymtl.data import lists
from raymtl.data.encode import column_of, digests, encode, hash_rows, is_null, out_of_range
from raymtl.data.times import old_enough
from raymtl.errors import InputError
from raymtl.layout import PAD, IdColumns, Layout
from raymtl.schema import (
    BagFeature,
    CategoricalFeature,
    LogSchema,
    NumericFeature,
    Rule,
    SequenceFeature,
    Task,
    is_spared,
)

__all__ = ["decode", "hash_rows", "outcomes"]


def decode(
    table: pa.Table,
    schema: LogSchema,
    layout: Layout,
    where: str,
    keys: tuple[str, ...] = (),
    labels: bool = True,
) -> dict[str, np.ndarray]:
    """Turns raw columns into the arrays a batch is cut from.

    Args:
        table: n rows with the schema's columns and the keys; other columns are not looked at.
        layout: `Layout.of(schema)`.
        where: file and row group, for errors; row numbers in errors count from this table's first.
        keys: columns carried along as they are.
        labels: False where labels and weights are not needed (predict); they may then be missing,
            and so may `training_only` features, whose serving values are put in afterwards.

    Returns:
        "ids" int32 (n, C), PAD where empty; "bag_weights" float32 (n, layout.num_bag_weights);
        "numeric" float32 (n, N), finite; "labels" float32 (n, T), NaN where unobserved;
        "weights" float32 (n,); "task_weights" float32 (n, T), 0 where unobserved; "group" int64
        (n,), -1 where null; and "key:NAME" (n,) for each key.

    Raises:
        IdOutOfRange: an index-encoded id lies outside its table.
        InputError: a value is not what its column must hold.
    """
    out = _features(table, schema, layout, where, labels) | outcomes(table, schema, where, labels)
    for name in keys:
        _require_column(table, name, None, "row keys", where)
    return out | {f"key:{name}": _key(column_of(table, name)) for name in keys}


def outcomes(
    table: pa.Table, schema: LogSchema, where: str, labels: bool = True
) -> dict[str, np.ndarray]:
    """The part of `decode` that metrics need: "labels", "weights", "task_weights" and "group"."""
    labels_nT, task_weights_nT = _labels(table, schema, where, labels)
    weights = np.ones(table.num_rows, np.float32)
    if labels and schema.weight:
        weights = _weights(table, schema.weight, np.ones(table.num_rows, bool), where)
    out = {"labels": labels_nT, "weights": weights, "task_weights": task_weights_nT}
    return out | {"group": _group(table, schema.group)}


def _features(
    table: pa.Table, schema: LogSchema, layout: Layout, where: str, labels: bool
) -> dict[str, np.ndarray]:
    n = table.num_rows
    ids = np.full((n, layout.num_id_columns), PAD, np.int32)
    bag_weights = np.zeros((n, layout.num_bag_weights), np.float32)
    numeric = np.zeros((n, len(layout.numeric_names)), np.float32)
    columns = {c.feature: c for c in layout.id_columns}
    for f in schema.features:
        if f.source not in table.column_names and f.default is None and is_spared(f, labels):
            continue
        if isinstance(f, NumericFeature) and not f.bucketed:
            at = layout.numeric_names.index(f.name)
            numeric[:, at], missing = _number(table, f, where)
            if f.missing_indicator:
                numeric[:, at + 1] = missing
            continue
        _require_column(table, f.source, f.default, f"feature {f.name}", where)
        c = columns[f.name]
        match f:
            case NumericFeature():
                ids[:, c.start] = _bucket(table, f, schema, where)
            case CategoricalFeature():
                ids[:, c.start] = encode(_raw(table, f), f, schema, where)
            case SequenceFeature():
                ids[:, c.start : c.stop] = lists.sequence(table, f, schema, where)
            case BagFeature():
                ids[:, c.start : c.stop], weights = lists.bag(table, f, schema, where)
                _place_weights(bag_weights, c, weights)
    return {"ids": ids, "bag_weights": bag_weights, "numeric": numeric}


def _place_weights(bag_weights: np.ndarray, c: IdColumns, weights: np.ndarray | None) -> None:
    if weights is not None:
        assert c.weight_start is not None
        bag_weights[:, c.weight_start : c.weight_start + c.width] = weights


def _require_column(
    table: pa.Table, column: str, default: float | str | None, user: str, where: str
) -> None:
    if column not in table.column_names and default is None:
        raise InputError(
            f"column {column} is missing",
            f"{', '.join(table.column_names[:12])}   ({where})",
            f"a column {column} for {user}",
            "mend the schema (column, default), or the file",
        )


def _raw(table: pa.Table, f: CategoricalFeature | NumericFeature) -> pa.Array:
    if f.source in table.column_names:
        return column_of(table, f.source)
    return pa.repeat(f.default, table.num_rows)


def _floats(values: pa.Array) -> np.ndarray:
    """float64 (n,), NaN where null."""
    return values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)


def _transformed(table: pa.Table, f: NumericFeature, where: str) -> np.ndarray:
    """float64 (n,) after log1p, NaN where missing (null or NaN)."""
    _require_column(table, f.source, f.default, f"feature {f.name}", where)
    raw = _floats(_raw(table, f))
    if np.isinf(raw).any():
        _refuse(f"feature {f.name} is not finite", f.source, raw, np.isinf(raw), where)
    return np.sign(raw) * np.log1p(np.abs(raw)) if f.log1p else raw


def _number(table: pa.Table, f: NumericFeature, where: str) -> tuple[np.ndarray, np.ndarray]:
    """float32 (n,) values with missing ones filled, and bool (n,), True where missing."""
    values = _transformed(table, f, where)
    if f.standardise:
        assert f.mean is not None and f.std is not None, f"feature {f.name} is not fitted"
        values = (values - f.mean) / f.std
    missing = np.isnan(values)
    with np.errstate(over="ignore"):
        filled = np.where(missing, f.fill, values).astype(np.float32)
    if np.isinf(filled).any():
        what = f"feature {f.name} is too large for float32"
        _refuse(what, f.source, values, np.isinf(filled), where)
    return filled, missing


def _bucket(table: pa.Table, f: NumericFeature, schema: LogSchema, where: str) -> np.ndarray:
    """int64 (n,): 1 + number of borders <= value, 0 where missing."""
    assert f.boundaries is not None, f"feature {f.name} is not fitted"
    values = _transformed(table, f, where)
    rows = 1 + np.searchsorted(np.asarray(f.boundaries, np.float64), values, side="right")
    rows[np.isnan(values)] = 0
    declared = schema.table(f.table_name).num_rows
    if len(rows) and rows.max() >= declared:
        raise out_of_range(f.name, int(rows.max()), f.table_name, declared, where)
    return rows


def _labels(
    table: pa.Table, schema: LogSchema, where: str, wanted: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Labels and task weights, float32 (n, T) each."""
    shape = (table.num_rows, len(schema.tasks))
    labels, weights = np.full(shape, np.nan, np.float32), np.zeros(shape, np.float32)
    for t, task in enumerate(schema.tasks) if wanted else ():
        labels[:, t] = _label(table, task, schema, where)
        observed = ~np.isnan(labels[:, t])
        weights[:, t] = observed
        if task.weight:
            weights[:, t] = _weights(table, task.weight, observed, where)
    return labels, weights


def _label(table: pa.Table, task: Task, schema: LogSchema, where: str) -> np.ndarray:
    """float32 (n,), NaN where null or where the task's rule does not hold."""
    _require_column(table, task.label, None, f"task {task.name}", where)
    raw = column_of(table, task.label)
    values, observed = _floats(raw), ~is_null(raw)
    if task.observed_if:
        observed &= _holds(table, task.observed_if, where)
        observed &= old_enough(table, task, schema, where)
    with np.errstate(over="ignore"):
        label = np.where(observed, values, np.nan).astype(np.float32)
    good = (label == 0) | (label == 1) if task.kind == "binary" else np.isfinite(label)
    wrong = observed & ~good
    if wrong.any():
        wanted = "0, 1 or null" if task.kind == "binary" else "a finite number or null"
        what = f"a label of task {task.name} is not {wanted}"
        _refuse(what, task.label, values, wrong, where, f"{wanted} (null: unobserved)")
    return label


def _holds(table: pa.Table, rule: Rule, where: str) -> np.ndarray:
    """Boolean (n,), False where the rule's column is null or NaN; ages are not looked at."""
    if rule.column is None:
        return np.ones(table.num_rows, bool)
    _require_column(table, rule.column, None, "a task's observed_if", where)
    return rule.holds(_floats(column_of(table, rule.column)))


def _weights(table: pa.Table, column: str, needed: np.ndarray, where: str) -> np.ndarray:
    """float32 (n,), 0 where not needed; finite and not negative where needed."""
    _require_column(table, column, None, "weights", where)
    raw = _floats(column_of(table, column))
    with np.errstate(over="ignore"):
        values = np.where(needed, raw, 0).astype(np.float32)
    wrong = ~(np.isfinite(values) & (values >= 0))
    if wrong.any():
        what = f"a weight in column {column} is null, negative or not finite"
        _refuse(what, column, raw, wrong, where, "a finite number of at least 0")
    return values


def _group(table: pa.Table, column: str | None) -> np.ndarray:
    """int64 (n,): integers as themselves, text by BLAKE2b, -1 where null or no such column."""
    groups = np.full(table.num_rows, -1, np.int64)
    if column is None or column not in table.column_names:
        return groups
    values = column_of(table, column)
    present = ~is_null(values)
    known = values.drop_null()
    if pa.types.is_boolean(known.type):
        known = known.cast(pa.int64())
    if pa.types.is_integer(known.type):
        groups[present] = known.to_numpy(zero_copy_only=False).astype(np.int64)
    elif len(known):
        groups[present] = digests(known).view(np.int64)
    return groups


def _key(values: pa.Array) -> np.ndarray:
    """A column as it is: numpy's own type without nulls, else Python objects with None."""
    if values.null_count == 0:
        return values.to_numpy(zero_copy_only=False)
    out = np.empty(len(values), object)
    out[:] = values.to_pylist()
    return out


def _refuse(
    what: str,
    column: str,
    values: np.ndarray,
    wrong: np.ndarray,
    where: str,
    wanted: str = "a finite number or null",
) -> NoReturn:
    row = int(np.flatnonzero(wrong)[0])
    more = f", and {wrong.sum() - 1} more rows" if wrong.sum() > 1 else ""
    raise InputError(
        what,
        f"{column} = {values[row]:g}   ({where}, row {row} of it{more})",
        wanted,
        "mend the log, or the schema",
    )
