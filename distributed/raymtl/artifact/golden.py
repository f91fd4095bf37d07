"""Golden requests: generated from the schema alone, so that an artifact carries no user's data."""

from typing import Any

import numpy as np

from raymtl.artifact.forms import Form
from raymtl.schema import (
    BagFeature,
    CategoricalFeature,
    Feature,
    LogSchema,
    NumericFeature,
    is_spared,
)

NUM_ROWS = 8
UNKNOWN = {"text": "a value no vocabulary has", "integers": -(2**62)}
PRIORITY = {"index": 0, "vocabulary": 1, "hash": 2}
"""Of features that read one column, the first by this decides its values: all can read them."""


def golden_requests(form: Form, seed: int = 0) -> list[dict[str, Any]]:
    """Columns of a few requests, plain values: empty and overlong lists, nulls, unknown values.

    The last request is one row alone.
    """
    generator = np.random.default_rng(seed)
    columns: dict[str, list[Any]] = {}
    lengths = _lengths(form.schema)
    for f in sorted(form.schema.features, key=lambda f: _priority(f, form.schema)):
        if is_spared(f, labels=False):
            continue
        if f.source not in columns:
            columns[f.source] = _values(f, form, lengths, generator)
        if isinstance(f, BagFeature) and f.weights is not None:
            weights = [generator.normal(size=n).round(3).tolist() for n in lengths]
            columns.setdefault(f.weights, weights)
    single = {name: values[3:4] for name, values in columns.items()}
    return [columns, single]


def _priority(f: Feature, schema: LogSchema) -> tuple[int, int]:
    if isinstance(f, NumericFeature):
        return len(PRIORITY), 0
    rows = schema.table(f.table_name).num_rows if f.encoding == "index" else 0
    return PRIORITY[f.encoding], rows


def _lengths(schema: LogSchema) -> list[int]:
    """Of the rows' lists, the same for all columns: some are aligned."""
    longest = max((getattr(f, "max_length", 0) for f in schema.features), default=0)
    return [0, 1, 2, 3, longest // 2, longest, longest + 2, 0]


def _values(f: Feature, form: Form, lengths: list[int], generator: np.random.Generator) -> list:
    if isinstance(f, NumericFeature):
        return _with_null(_numbers(f, generator))
    if isinstance(f, CategoricalFeature):
        return _with_null(_ids(f, form, NUM_ROWS, generator))
    lists = [_ids(f, form, n, generator) for n in lengths]
    lists[6][1] = None
    return [*lists[:7], None] if f.kind == "bag" else lists


def _with_null(values: list[Any]) -> list[Any]:
    return [*values[:5], None, *values[6:]]


def _numbers(f: NumericFeature, generator: np.random.Generator) -> list[float]:
    if f.boundaries:
        picks = generator.choice(np.asarray(f.boundaries), NUM_ROWS)
        numbers = picks + generator.integers(-1, 2, NUM_ROWS)  # on a border, and beside it
        return (np.sign(numbers) * np.expm1(np.abs(numbers)) if f.log1p else numbers).tolist()
    middle, spread = (f.mean or 0.0, f.std or 1.0) if f.standardise and not f.log1p else (0.0, 1.0)
    return (middle + spread * generator.normal(size=NUM_ROWS)).round(4).tolist()


def _ids(f: Any, form: Form, count: int, generator: np.random.Generator) -> list[Any]:
    """Ids that are known, and one that is not where that may be."""
    if f.encoding == "index":
        return generator.integers(0, form.schema.table(f.table_name).num_rows, count).tolist()
    if f.encoding == "hash":
        return generator.integers(-(2**40), 2**40, count).tolist()
    vocabulary = form.vocabularies[f.table_name]
    kind = "integers" if str(vocabulary.type).startswith("int") else "text"
    picks = generator.integers(0, max(1, len(vocabulary)), count).tolist()
    known = [vocabulary[i].as_py() for i in picks] if len(vocabulary) else [UNKNOWN[kind]] * count
    return [UNKNOWN[kind], *known[1:]] if count > 1 else known
