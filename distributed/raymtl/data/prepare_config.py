"""PrepareConfig: what raw parquet becomes which training log. Read by `config.load`."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, PositiveInt, model_validator

from raymtl.config import Section
from raymtl.data.history_config import (
    Rate,
    Sequences,
    check_history,
    made_columns,
    read_columns,
)
from raymtl.errors import InputError
from raymtl.schema import LogSchema, NumericFeature

SPLITS = ("train", "valid", "test", "pretrain")
FITTED_ON = ("train", "pretrain")
"""Splits whose rows make vocabularies, moments and borders."""
Value = int | float | str


class Source(Section):
    name: str
    """Named by a split `by: source` and in errors."""
    url: str | list[str]
    """Parquet files or folders of them, on any filesystem; relative ones start at data_root. Their
    rows are taken in this order: files by name, rows as they stand."""
    rename: dict[str, str] = {}
    """Column of the files -> name used everywhere else in this config."""
    constants: dict[str, Value | None] = {}
    """Columns these files do not have and the one value they hold; null for `unobserved`."""


class Join(Section):
    name: str
    url: str | list[str]
    """Parquet of a side table that fits in memory: one row per key."""
    column: str
    """Column of the log that is looked up. Rows without a match get nulls."""
    key: str | None = None
    """The side table's column it is looked up in; null means the same name."""
    columns: list[str] | None = None
    """Columns taken; null takes all."""
    prefix: str = ""
    """Put before the names of the taken columns."""


class Derived(Section):
    column: str
    """Column it is made from. Steps in order: null_if, then one of divide, at_most, split,
    days_since."""
    null_if: Value | None = None
    """This value means missing."""
    divide: PositiveInt | None = None
    """Division rounded down to an integer: hourmin 1359 by 100 is hour 13."""
    at_most: Value | None = None
    """Larger values become this one: days from the first test day on become one period."""
    split: str | None = Field(default=None, min_length=1)
    """Cuts text at this separator into a list, for a bag."""
    days_since: str | None = None
    """Whole days from that column's date to this one's (dates, time stamps, YYYY-MM-DD as text or
    integer YYYYMMDD)."""

    @model_validator(mode="after")
    def _one_step(self) -> "Derived":
        steps = [self.divide, self.at_most, self.split, self.days_since]
        given = sum(step is not None for step in steps)
        if given > 1 or (given == 0 and self.null_if is None):
            raise InputError(
                f"the column derived from {self.column} has {given} steps",
                ", ".join(k for k, v in self if v is not None and k != "column") or "none",
                "one of divide, at_most, split, days_since and, or alone, null_if",
                "derive another column for the other step",
            )
        return self


class Part(Section):
    """Rows of one source, all of them or those whose column lies in a range."""

    source: str
    column: str | None = None
    equals: Value | None = None
    at_least: Value | None = None
    at_most: Value | None = None

    @model_validator(mode="after")
    def _condition_is_whole(self) -> "Part":
        limits = [self.equals, self.at_least, self.at_most]
        if (self.column is None) != all(limit is None for limit in limits):
            raise InputError(
                f"a part of source {self.source} has half a condition",
                f"column = {self.column}, equals / at_least / at_most = {limits}",
                "a column and a limit, or neither",
                "add the one that is missing",
            )
        return self


class SourceSplit(Section):
    by: Literal["source"]
    train: list[Part]
    """A row belongs to the split that has a part it fulfils; to two splits: an error; to none: the
    row is dropped and counted."""
    valid: list[Part] = []
    test: list[Part] = []
    pretrain: list[Part] = []
    """Older rows, a log of their own for a first training that others start from (`init_from`)."""

    @property
    def parts(self) -> list[Part]:
        """Those of all splits."""
        return [part for name in SPLITS for part in getattr(self, name)]


class TimeSplit(Section):
    by: Literal["time"]
    column: str
    """Any comparable column: a date, a time stamp, an integer YYYYMMDD. No nulls."""
    valid_from: Value
    """First value of the validation part; all before is train."""
    test_from: Value | None = None
    """First value of the test part; null makes none."""
    train_from: Value | None = None
    """First value of the training part, all before being the pretrain part; null makes none."""


class OrderSplit(Section):
    by: Literal["order"]
    valid: float = Field(0.1, gt=0, lt=1)
    """Share of the rows, after the training part."""
    test: float = Field(0.1, ge=0, lt=1)
    """Share of the rows at the end."""
    per: str | None = None
    """Column (the user) whose every value's rows are split for themselves; null splits the log as
    a whole. The training part is rounded up, so each user has a row there."""

    @model_validator(mode="after")
    def _something_is_left(self) -> "OrderSplit":
        if self.valid + self.test >= 1:
            raise InputError(
                "the split leaves no training rows",
                f"split.valid + split.test = {self.valid + self.test:g}",
                "less than 1 together",
                "lower one of them",
            )
        return self


Split = Annotated[SourceSplit | TimeSplit | OrderSplit, Field(discriminator="by")]


class Sample(Section):
    """Keeps a share of the rows in which nothing happened, each standing for those left out."""

    keep: float = Field(gt=0, le=1)
    """Share kept of the rows without a positive label of any binary task; 1 / keep is their weight.
    Which ones follows from their place in the sources."""
    splits: list[Literal["train", "valid", "test", "pretrain"]] = ["train"]
    """Splits it is done in; rows of the others have weight 1."""
    weight: str = "sample_weight"
    """Column of row weights that is written; times the schema's own weight where it has one."""


class Vocabularies(Section):
    default_min_count: PositiveInt = 1
    """Times a value must occur in the training part to get a row of its own."""
    min_count: dict[str, PositiveInt] = {}
    """The same for one table, by its name."""


class PrepareConfig(Section):
    """Raw parquet to a training log: joins, derived columns, split, fitted transforms."""

    model_config = ConfigDict(populate_by_name=True)

    data_root: str = "."
    """Folder or URL that relative source and join URLs start at."""
    sources: list[Source] = Field(min_length=1)
    joins: list[Join] = []
    derive: dict[str, Derived] = {}
    """New column -> how it is made; in this order, so later ones may use earlier ones."""
    outcomes: list[str] = []
    """Columns known only after the impression (play time, say). A feature that reads one, or a
    label, is refused."""
    sequences: Sequences | None = None
    """Lists of the user's rows strictly before the row; null makes none."""
    rates: list[Rate] = []
    """Positive rates of keys in periods strictly before the row's."""
    log_schema: LogSchema = Field(alias="schema")
    """Features, tables and tasks over the raw columns; `vocabulary`, `standardise` and `buckets`
    are fitted on the training part."""
    vocabularies: Vocabularies = Vocabularies()
    split: Split
    sample: Sample | None = None
    """Null keeps all rows."""
    keep: list[str] = []
    """Raw columns carried along under their own names, as row keys for `raymtl predict`."""
    chunk_rows: PositiveInt = 16_384
    """Rows of a row group: what training reads at once."""
    join_limit_bytes: PositiveInt = 2**30
    """Most memory of all side tables together; each process reads them from Ray's object store."""
    sample_rows: PositiveInt = 1_000_000
    """Rows from which quantile borders are taken: exact below, a fixed random sample above."""
    overwrite: bool = False
    """Replace a log that an earlier `raymtl prepare` wrote at the same place."""

    @model_validator(mode="after")
    def _names_fit(self) -> "PrepareConfig":
        for what, names in (
            ("sources", [s.name for s in self.sources]),
            ("joins", [j.name for j in self.joins]),
        ):
            if len(set(names)) < len(names):
                raise InputError(f"two {what} have one name", str(names), "each once", "rename one")
        if isinstance(self.split, SourceSplit):
            known = {s.name for s in self.sources}
            _refuse_unknown("split", {p.source for p in self.split.parts}, known, "source")
        tables = set(self.log_schema.table_names)
        _refuse_unknown("vocabularies.min_count", set(self.vocabularies.min_count), tables, "table")
        return self

    @model_validator(mode="after")
    def _no_outcome_is_an_input(self) -> "PrepareConfig":
        outcomes = {*self.outcomes, *(t.label for t in self.log_schema.tasks)}
        tainted = set(outcomes)
        for name, d in self.derive.items():
            if {d.column, d.days_since} & tainted:
                tainted.add(name)
        for f in self.log_schema.features:
            if f.source in tainted:
                raise InputError(
                    f"feature {f.name} reads an outcome",
                    f"column {f.source}: a label, listed under outcomes, or derived from one",
                    "features known before the impression is shown",
                    "remove the feature",
                )
        check_history(self.sequences, self.rates, [s.name for s in self.sources], tainted)
        return self

    @property
    def split_names(self) -> list[str]:
        """The splits this config makes; train is the first."""
        match self.split:
            case SourceSplit():
                return [n for n in SPLITS if n == "train" or getattr(self.split, n)]
            case TimeSplit():
                made = {"test": self.split.test_from, "pretrain": self.split.train_from}
                return [n for n in SPLITS if made.get(n, True) is not None]
            case OrderSplit():
                return list(SPLITS[: 3 if self.split.test else 2])

    def min_count(self, table: str) -> int:
        """Times a value of this table must occur to get a row."""
        return self.vocabularies.min_count.get(table, self.vocabularies.default_min_count)

    def fitted_tables(self) -> list[str]:
        """Tables whose vocabulary is counted and not taken over, in the features' order."""
        return list(
            dict.fromkeys(
                f.table_name
                for f in self.log_schema.features
                if not isinstance(f, NumericFeature)
                and f.encoding == "vocabulary"
                and self.log_schema.table(f.table_name).values is None
                and self.log_schema.table(f.table_name).vocabulary is None
            )
        )

    def counted_columns(self, table: str) -> list[str]:
        """Columns whose training values make a table's vocabulary.

        Those of its features; one that reads a list made here counts only where no other feature
        reads the table, and then as the list's item column: each row once, not once for every
        list it is part of.
        """
        items = {i.name: i.item for i in self.sequences.lists} if self.sequences else {}
        sources = [
            f.source
            for f in self.log_schema.features
            if not isinstance(f, NumericFeature) and f.table_name == table
        ]
        plain = [name for name in sources if name not in items]
        return plain or list(dict.fromkeys(items[name] for name in sources))

    @property
    def made_columns(self) -> list[str]:
        """Columns made of earlier rows: lists and rates."""
        return made_columns(self.sequences, self.rates)

    def history_columns(self) -> list[str]:
        """Raw, joined and derived columns that lists and rates are made of, each once."""
        return read_columns(self.sequences, self.rates)

    def raw_columns(self) -> list[str]:
        """Raw, derived and made columns the log itself is made of, each once."""
        names = [*self.log_schema.columns(), self.log_schema.time, *self.keep]
        if isinstance(self.split, TimeSplit):
            names.append(self.split.column)
        elif isinstance(self.split, OrderSplit):
            names.append(self.split.per)
        else:
            names += [p.column for p in self.split.parts]
        return list(dict.fromkeys(n for n in names if n))


def _refuse_unknown(where: str, names: set[str], known: set[str], what: str) -> None:
    if names - known:
        raise InputError(
            f"{where} names a {what} that is not there",
            ", ".join(sorted(names - known)),
            f"one of {', '.join(sorted(known))}",
            "mend the name",
        )
