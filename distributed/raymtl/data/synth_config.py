"""What a generated log is asked to be, and the schema that follows from it."""

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from raymtl.config import Section
from raymtl.errors import InputError
from raymtl.schema import (
    BagFeature,
    CategoricalFeature,
    Feature,
    LogSchema,
    NumericFeature,
    SequenceFeature,
    Table,
    Task,
)

DEVICES = ("phone", "tablet", "desktop", "tv")
HOURS = 24


class SynthTask(Section):
    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")
    positive_rate: float = Field(default=0.2, gt=0, lt=1)
    """Share of positives among the observed labels, met by an intercept found on a sample."""
    null_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of the rows whose label is unobserved, at random."""


class LogSection(Section):
    """What every kind of generated log is asked."""

    rows: PositiveInt = 200_000
    """Impressions in train, valid and test together."""
    valid_share: float = Field(default=0.1, ge=0, lt=0.5)
    test_share: float = Field(default=0.1, ge=0, lt=0.5)
    block_rows: PositiveInt = 65_536
    """Rows of one part file, made by one Ray task."""
    chunk_rows: PositiveInt = 16_384
    """Rows of a row group; data.chunk_rows of the training that is to follow."""
    seed: NonNegativeInt = 2023


class SynthConfig(LogSection):
    """A log with planted structure; see `raymtl.data.planted` for the formula."""

    kind: Literal["planted"] = "planted"
    """What is generated; `mmoe` and `dephn` are the papers' artificial data, with keys of their
    own."""
    num_users: PositiveInt = 10_000
    num_items: PositiveInt = 2_000
    power: float = Field(default=1.0, ge=0, le=3)
    """The k-th most frequent user or item occurs in proportion to k^-power; 1 is Zipf's law."""
    tasks: list[SynthTask] = Field(
        default=[
            SynthTask(name="click", positive_rate=0.3),
            SynthTask(name="like", positive_rate=0.05),
        ],
        min_length=1,
    )
    conflict: float = Field(default=0.5, ge=0, le=1)
    """0: a user prefers the same items in all tasks; 1: as opposite as T tasks can be. The
    correlation between two tasks' preferences is 1 - conflict * T / (T - 1)."""
    signal: PositiveFloat = 2.0
    """Standard deviation of the true logit over impressions; 2 allows an AUC of about .85."""
    latent_width: PositiveInt = 8
    """Numbers in a user's and an item's true vector."""
    history_length: NonNegativeInt = 20
    """Most items of a user's history; 0 leaves the history columns out."""
    row_weights: bool = False
    """Whether a column `weight` (0.5 to 2, by chance) weighs the rows."""
    encoding: Literal["index", "hash"] = "index"
    """How the schema reads ids: as rows of a table that just holds them, or hashed."""

    @model_validator(mode="after")
    def _task_names_are_new(self) -> "SynthConfig":
        names = [task.name for task in self.tasks]
        taken = {f.name for f in _features(self)} | {"time", "weight", "tag_weights"}
        doubles = sorted({n for n in names if names.count(n) > 1 or n in taken})
        if doubles:
            raise InputError(
                "a task's name is taken",
                ", ".join(doubles),
                "names that no other task or column has",
                "rename it",
            )
        return self

    @property
    def num_categories(self) -> int:
        """Item categories, one to about 20 items."""
        return max(2, self.num_items // 20)

    @property
    def num_segments(self) -> int:
        """User segments, one to about 100 users."""
        return max(2, min(200, self.num_users // 100))

    @property
    def num_tags(self) -> int:
        """Tags that items carry one to four of."""
        return max(4, self.num_items // 10)

    def schema_of(self, duration_mean: float, duration_std: float) -> LogSchema:
        """The log's schema.

        Args:
            duration_mean: mean of log1p(duration_s).
            duration_std: its standard deviation.
        """
        features = _features(self)
        at = [f.name for f in features].index("duration_s")
        fitted = {"standardise": True, "mean": duration_mean, "std": duration_std}
        features[at] = features[at].model_copy(update=fitted)
        return LogSchema(
            features=features,
            tables=_tables(self),
            tasks=[Task(name=task.name, label=task.name) for task in self.tasks],
            group="user",
            time="time",
            weight="weight" if self.row_weights else None,
        )


def _features(config: SynthConfig) -> list[Feature]:
    encoding = config.encoding
    names = ["user", "item", "segment", "category", "hour"]
    features: list[Feature] = [
        CategoricalFeature(kind="categorical", name=name, encoding=encoding) for name in names
    ]
    features += [
        CategoricalFeature(kind="categorical", name="device", encoding="vocabulary"),
        NumericFeature(kind="numeric", name="duration_s", log1p=True, missing_indicator=True),
        BagFeature(kind="bag", name="tags", weights="tag_weights", max_length=4, encoding=encoding),
    ]
    if config.history_length:
        length = config.history_length
        features += [
            SequenceFeature(
                kind="sequence", name="history", table="item", encoding=encoding, max_length=length
            ),
            SequenceFeature(
                kind="sequence",
                name="history_action",
                aligned_with="history",
                encoding=encoding,
                max_length=length,
            ),
        ]
    return features


def _tables(config: SynthConfig) -> list[Table]:
    sizes = {
        "user": config.num_users,
        "item": config.num_items,
        "segment": config.num_segments,
        "category": config.num_categories,
        "hour": HOURS,
        "tags": config.num_tags,
    }
    if config.history_length:
        sizes["history_action"] = len(config.tasks)
    rows = {
        name: size + 1 if config.encoding == "index" else 1 << (2 * size).bit_length()
        for name, size in sizes.items()
    }
    tables = [Table(name=name, rows=count) for name, count in rows.items()]
    return [*tables, Table(name="device", values=list(DEVICES))]
