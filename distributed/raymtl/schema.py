"""LogSchema: what a log's columns mean, and the check of parquet files against it."""

from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from raymtl.config import Section
from raymtl.errors import InputError

Encoding = Literal["index", "hash", "vocabulary"]
"""How raw values become row numbers: they are row numbers; BLAKE2b mod rows; a vocabulary."""


class _Feature(Section):
    name: str
    column: str | None = None
    """Column of the log; null means the feature's name."""

    @property
    def source(self) -> str:
        """The column this feature is read from."""
        return self.column or self.name


class _IdFeature(_Feature):
    table: str | None = None
    """Table whose rows it looks up; null means one of its own. Features may share a table."""
    encoding: Encoding = "hash"
    """`vocabulary` needs `values` of its table, or `raymtl prepare`, which makes it `index`."""
    default: int | str | None = None
    """Raw value used where the whole column is missing; null makes a missing column an error."""

    @property
    def table_name(self) -> str:
        """The table this feature looks up."""
        return self.table or self.name


class CategoricalFeature(_IdFeature):
    """One id per impression; null is PAD (no row, a zero vector)."""

    kind: Literal["categorical"]


class BagFeature(_IdFeature):
    """A list of ids without order, pooled to one vector."""

    kind: Literal["bag"]
    max_length: PositiveInt = 20
    """Ids kept per impression: the first ones."""
    weights: str | None = None
    """List column of float weights, one per id; null weighs all ids 1."""
    pooling: Literal["sum", "mean"] = "mean"
    """`mean` divides by the sum of the weights' absolute values (their count when unweighted)."""


class SequenceFeature(_IdFeature):
    """A list of ids in time order, oldest first."""

    kind: Literal["sequence"]
    max_length: PositiveInt = 50
    """S, ids kept per impression: the last ones."""
    aligned_with: str | None = None
    """Another sequence that has the same length in every row (item and action, say)."""
    pooling: Literal["mean", "sum", "none"] = "mean"
    """`none` passes the sequence whole to the model."""


class NumericFeature(_Feature):
    """A number. Order of the steps: log1p, then standardise, or buckets instead."""

    kind: Literal["numeric"]
    log1p: bool = False
    """sign(x) * log(1 + |x|), so that negative values pass."""
    standardise: bool = False
    """(x - mean) / std; needs `mean` and `std`: `raymtl prepare` fits them on the training part."""
    mean: float | None = None
    std: float | None = Field(default=None, gt=0)
    buckets: int | None = Field(default=None, ge=2)
    """Quantile buckets; the feature becomes an id of table `name`. Needs `boundaries`, which
    `raymtl prepare` fits."""
    boundaries: list[float] | None = None
    """Ascending inner borders; value v is row 1 + number of borders <= v; null is row 0."""
    missing_indicator: bool = False
    """Adds a column that is 1 where the value is null; the value itself is then `fill`."""
    fill: float = 0.0
    """Value of a null, after the transforms."""
    default: float | None = None
    """Raw value used where the whole column is missing; null makes a missing column an error."""

    @property
    def bucketed(self) -> bool:
        """Whether it is looked up in a table instead of being read as a number."""
        return self.buckets is not None or self.boundaries is not None

    @property
    def table_name(self) -> str:
        """The table of a bucketed number."""
        return self.name


Feature = Annotated[
    CategoricalFeature | BagFeature | SequenceFeature | NumericFeature,
    Field(discriminator="kind"),
]
IdFeature = CategoricalFeature | BagFeature | SequenceFeature


class Table(Section):
    """Rows that one or more features look up. Row 0 is out-of-vocabulary and is trained."""

    name: str
    rows: int | None = Field(default=None, ge=2, lt=2**31)
    """Row 0 included. Filled by `raymtl prepare` for vocabularies and by `values`."""
    task_specific: bool = True
    """False keeps one view of each row for all tasks even in models with task-specific tables."""
    values: list[str] | None = None
    """A small vocabulary written out: value i is row i + 1, all else row 0."""
    vocabulary: str | None = None
    """File of the vocabulary beside the log, written by `raymtl prepare`."""

    @model_validator(mode="after")
    def _rows_hold_the_values(self) -> "Table":
        if self.values is not None and self.rows is not None and self.rows <= len(self.values):
            raise InputError(
                f"table {self.name} is smaller than its vocabulary",
                f"rows = {self.rows}, {len(self.values)} values",
                f"at least {len(self.values) + 1}",
                "leave rows out; it follows from values",
            )
        return self

    @property
    def num_rows(self) -> int:
        """Rows of the table; asserts that they are known."""
        if self.values is not None and self.rows is None:
            return len(self.values) + 1
        assert self.rows is not None, f"table {self.name} has no rows yet"
        return self.rows


class Rule(Section):
    """A condition on a column; all parts given must hold. A null value fulfils none of them."""

    column: str
    equals: float | None = None
    at_least: float | None = None
    at_most: float | None = None

    def holds(self, values: np.ndarray) -> np.ndarray:
        """Boolean (n,), False where a value is NaN (a null)."""
        held = ~np.isnan(values)
        if self.equals is not None:
            held &= values == self.equals
        if self.at_least is not None:
            held &= values >= self.at_least
        if self.at_most is not None:
            held &= values <= self.at_most
        return held


class Task(Section):
    """One label to predict."""

    name: str
    label: str
    """Label column; null there means unobserved: loss and metrics skip the row."""
    kind: Literal["binary", "regression"] = "binary"
    loss_weight: NonNegativeFloat = 1.0
    weight: str | None = None
    """Column that weighs this task's loss per row."""
    observed_if: Rule | None = None
    """Where the rule does not hold, the label is unobserved."""
    given: str | None = None
    """Task that must be positive for this one to be (click before purchase); read by models that
    chain tasks (ESMM, AITM)."""


class LogSchema(Section):
    """Features, tables and tasks of a log, and its group, time and weight columns."""

    features: list[Feature]
    tables: list[Table] = []
    tasks: list[Task]
    group: str | None = None
    """Column of the user, for GAUC."""
    time: str | None = None
    """Column of the impression's time."""
    weight: str | None = None
    """Column that weighs the row in every task; null weighs all rows 1."""
    transforms: str | None = None
    """Digest of the transforms `raymtl prepare` applied to this log; null for a raw log."""
    extends: list[str] = []
    """Digests of earlier transforms that these extend: ids of theirs are the same rows here."""

    @model_validator(mode="after")
    def _names_fit(self) -> "LogSchema":
        _refuse_doubles("feature", [f.name for f in self.features])
        _refuse_doubles("table", [t.name for t in self.tables])
        _refuse_doubles("task", [t.name for t in self.tasks])
        _refuse_empty("features", self.features)
        _refuse_empty("tasks", self.tasks)
        tasks = {t.name for t in self.tasks}
        for task in self.tasks:
            if task.given is not None and (task.given not in tasks or task.given == task.name):
                raise InputError(
                    f"task {task.name} is given a task that is not there",
                    f"given = {task.given}",
                    f"another task: {', '.join(sorted(tasks - {task.name}))}",
                    "name one of them, or remove `given`",
                )
        sequences = {f.name: f for f in self.features if f.kind == "sequence"}
        for f in sequences.values():
            other = sequences.get(f.aligned_with) if f.aligned_with else f
            if other is None or other.max_length != f.max_length:
                raise InputError(
                    f"sequence {f.name} is aligned with something that does not fit",
                    f"aligned_with = {f.aligned_with}",
                    "another sequence feature of the same max_length",
                    "name it, or remove aligned_with",
                )
        return self

    @property
    def table_names(self) -> list[str]:
        """Tables the features use, in the features' order, each once."""
        used = (f.table_name for f in self.features if looks_up(f))
        return list(dict.fromkeys(used))

    def table(self, name: str) -> Table:
        """The named table, with the rows that follow from a bucketed number where undeclared."""
        for table in self.tables:
            if table.name == name:
                return table
        for f in self.features:
            if isinstance(f, NumericFeature) and f.name == name and f.boundaries is not None:
                return Table(name=name, rows=len(f.boundaries) + 2)
        return Table(name=name)

    def require_ready(self) -> None:
        """Raises InputError unless training could read a log with this schema as it is."""
        for name in self.table_names:
            table = self.table(name)
            if table.rows is None and table.values is None:
                raise InputError(
                    f"table {name} has no rows",
                    "tables: " + (", ".join(t.name for t in self.tables) or "none declared"),
                    "a row count for every table the features use",
                    f"add `- {{name: {name}, rows: 100000}}` under tables, or run raymtl prepare",
                )
        for f in self.features:
            _require_fitted(f, self)

    def columns(self) -> list[str]:
        """Every column training reads, in a fixed order, each once."""
        names: list[str | None] = []
        for f in self.features:
            names.append(f.source)
            if isinstance(f, BagFeature):
                names.append(f.weights)
        return list(dict.fromkeys([*(n for n in names if n), *self.outcome_columns()]))

    def outcome_columns(self) -> list[str]:
        """The columns of labels, weights and the group, each once."""
        names: list[str | None] = []
        for task in self.tasks:
            names += [task.label, task.weight, task.observed_if and task.observed_if.column]
        names += [self.group, self.weight]
        return list(dict.fromkeys(n for n in names if n))

    def check(self, arrow: pa.Schema, source: str, labels: bool = True) -> None:
        """Checks one file's columns and types.

        Integer widening and all-null columns pass; a missing column only with a declared default.

        Args:
            arrow: the file's columns.
            source: what messages call the file.
            labels: whether labels, weights and the group must be there; predict needs none.

        Raises:
            InputError: naming `source`, the column, its type and the types wanted.
        """
        for f in self.features:
            if f.source not in arrow.names and f.default is not None:
                continue
            _check_column(arrow, f.source, _wanted(f), source, f"feature {f.name}")
            if isinstance(f, BagFeature) and f.weights:
                _check_column(arrow, f.weights, "list of numbers", source, f"feature {f.name}")
        if not labels:
            return
        for task in self.tasks:
            _check_column(arrow, task.label, "number", source, f"task {task.name}")
            if task.weight:
                _check_column(arrow, task.weight, "number", source, f"task {task.name}")
            if task.observed_if:
                _check_column(arrow, task.observed_if.column, "number", source, f"task {task.name}")
        if self.group:
            _check_column(arrow, self.group, "id", source, "group")
        if self.weight:
            _check_column(arrow, self.weight, "number", source, "weight")


def looks_up(feature: Feature) -> bool:
    """Whether a feature reads rows of a table."""
    return not isinstance(feature, NumericFeature) or feature.bucketed


def _require_fitted(f: Feature, schema: LogSchema) -> None:
    if isinstance(f, NumericFeature):
        missing = (f.standardise and (f.mean is None or f.std is None)) or (
            f.buckets is not None and f.boundaries is None
        )
    else:
        missing = f.encoding == "vocabulary" and schema.table(f.table_name).values is None
    if missing:
        raise InputError(
            f"feature {f.name} is not fitted",
            "no mean and std" if isinstance(f, NumericFeature) else "no vocabulary",
            "a prepared log, or the values in the schema",
            "run raymtl prepare, or use encoding: hash, or write the values into the schema",
        )


def _refuse_doubles(what: str, names: list[str]) -> None:
    doubles = sorted({n for n in names if names.count(n) > 1})
    if doubles:
        raise InputError(
            f"two {what}s have one name", ", ".join(doubles), "each name once", "rename one"
        )


def _refuse_empty(what: str, items: list) -> None:
    if not items:
        raise InputError(f"the schema has no {what}", "an empty list", "at least one", "add one")


def _wanted(f: Feature) -> str:
    if isinstance(f, NumericFeature):
        return "number"
    scalar = "integer" if f.encoding == "index" else "id"
    return scalar if isinstance(f, CategoricalFeature) else f"list of {scalar}s"


def _is_number(t: pa.DataType) -> bool:
    kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal)
    return any(kind(t) for kind in kinds)


def _is_text(t: pa.DataType) -> bool:
    return pa.types.is_string(t) or pa.types.is_large_string(t) or pa.types.is_string_view(t)


def fits(t: pa.DataType, wanted: str) -> bool:
    """Whether an arrow type is one of: number, integer, id, or `list of` these."""
    if pa.types.is_null(t):
        return True
    if pa.types.is_dictionary(t):
        return fits(t.value_type, wanted)
    if wanted.startswith("list of "):
        is_list = pa.types.is_list(t) or pa.types.is_large_list(t) or pa.types.is_fixed_size_list(t)
        return is_list and fits(t.value_type, wanted.removeprefix("list of ").removesuffix("s"))
    if wanted == "number":
        return _is_number(t)
    if wanted == "integer":
        return pa.types.is_integer(t)
    return pa.types.is_integer(t) or _is_text(t) or pa.types.is_boolean(t)


def _check_column(arrow: pa.Schema, column: str, wanted: str, source: str, user: str) -> None:
    if column not in arrow.names:
        raise InputError(
            f"column {column} is missing",
            f"{source} has {', '.join(arrow.names[:12])}{' …' if len(arrow.names) > 12 else ''}",
            f"a column {column} ({wanted}) for {user}",
            "mend the schema, or the file",
        )
    got = arrow.field(column).type
    if not fits(got, wanted):
        raise InputError(
            f"column {column} has the wrong type",
            f"{got}   ({source})",
            f"{wanted}, for {user}",
            "mend the schema (kind, encoding), or the file",
        )
