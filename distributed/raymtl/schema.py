"""LogSchema: what a log's columns mean, and the check of parquet files against it."""

import datetime
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, NonNegativeFloat, field_validator, model_validator

from raymtl.config import Section
from raymtl.errors import InputError
from raymtl.features import (
    BagFeature,
    CategoricalFeature,
    Feature,
    IdFeature,
    NumericFeature,
    SequenceFeature,
    is_spared,
    looks_up,
    training_only,
)

__all__ = [
    "BagFeature",
    "CategoricalFeature",
    "Feature",
    "IdFeature",
    "LogSchema",
    "NumericFeature",
    "Rule",
    "SequenceFeature",
    "Table",
    "Task",
    "Time",
    "fits",
    "is_spared",
    "looks_up",
    "training_only",
]

Time = int | float | str
"""A time as a schema writes it: a number of the column's unit, or ISO 8601 text."""


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

    column: str | None = None
    """Null where the row's age alone decides."""
    equals: float | None = None
    at_least: float | None = None
    at_most: float | None = None
    min_age_days: NonNegativeFloat | None = None
    """Days from the row's `time` to `as_of` before its label is taken for known (a purchase may
    come until a week after)."""

    @model_validator(mode="after")
    def _is_whole(self) -> "Rule":
        limits = [self.equals, self.at_least, self.at_most]
        if self.column is None and (
            self.min_age_days is None or any(x is not None for x in limits)
        ):
            raise InputError(
                "a rule has no column",
                f"equals / at_least / at_most = {limits}, min_age_days = {self.min_age_days}",
                "a column and its limits, min_age_days, or both",
                "add the column, or min_age_days",
            )
        return self

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
    time_unit: Literal["s", "ms", "us", "ns", "date"] | None = None
    """What a time that is a number counts since 1970, `date` meaning 20220425; rules with
    `min_age_days` need it."""
    as_of: Time | None = None
    """When the labels were read, as the time column would have it (or ISO text): the age of a row
    is counted to here. Null: the newest time of the log, of all sources in `prepare`."""
    weight: str | None = None
    """Column that weighs the row in every task; null weighs all rows 1."""
    transforms: str | None = None
    """Digest of the transforms `raymtl prepare` applied to this log; null for a raw log."""
    extends: list[str] = []
    """Digests of earlier transforms that these extend: ids of theirs are the same rows here."""

    @field_validator("as_of", mode="before")
    @classmethod
    def _times_as_text(cls, value: object) -> object:
        """YAML reads 2022-04-25 as a date."""
        return value.isoformat() if isinstance(value, datetime.date) else value

    @model_validator(mode="after")
    def _ages_can_be_told(self) -> "LogSchema":
        if self.has_ages and self.time is None:
            raise InputError(
                "a rule asks for a row's age, and rows have no time",
                "min_age_days, and time = null",
                "the column of the impression's time",
                "set time in the schema",
            )
        return self

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
    def has_ages(self) -> bool:
        """Whether some label is known only from an age on."""
        return any(t.observed_if and t.observed_if.min_age_days is not None for t in self.tasks)

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
        names += [self.group, self.weight, self.time if self.has_ages else None]
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
            if f.source not in arrow.names and (f.default is not None or is_spared(f, labels)):
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
            rule = task.observed_if
            if rule and rule.column:
                _check_column(arrow, rule.column, "number", source, f"task {task.name}")
            if rule and rule.min_age_days is not None and self.time:
                _check_column(arrow, self.time, "time", source, f"task {task.name}")
        if self.group:
            _check_column(arrow, self.group, "id", source, "group")
        if self.weight:
            _check_column(arrow, self.weight, "number", source, "weight")


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
    """Whether an arrow type is one of: number, integer, id, time, or `list of` these."""
    if pa.types.is_null(t):
        return True
    if pa.types.is_dictionary(t):
        return fits(t.value_type, wanted)
    if wanted.startswith("list of "):
        is_list = pa.types.is_list(t) or pa.types.is_large_list(t) or pa.types.is_fixed_size_list(t)
        return is_list and fits(t.value_type, wanted.removeprefix("list of ").removesuffix("s"))
    if wanted == "number":
        return _is_number(t)
    if wanted == "time":
        return _is_number(t) or _is_text(t) or pa.types.is_temporal(t)
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
