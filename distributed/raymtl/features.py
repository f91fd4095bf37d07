"""The kinds of features a schema may have."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from raymtl.config import Section

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
    training_only: bool = False
    """Known of shown impressions alone (the position, say): read in training, and replaced by
    `serving_value` wherever a model serves; the column may then be missing."""
    serving_value: int | str | None = None
    """Raw value that stands for it at serving; null: none."""


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
    training_only: bool = False
    """As of a categorical feature."""
    serving_value: float | None = None
    """Raw value that stands for it at serving; null: missing."""

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


def training_only(features: list[Feature]) -> list[CategoricalFeature | NumericFeature]:
    """The features that are known in training only."""
    return [
        f
        for f in features
        if isinstance(f, CategoricalFeature | NumericFeature) and f.training_only
    ]


def is_spared(f: Feature, labels: bool) -> bool:
    """Whether a missing column does not matter, since a value for serving is put in."""
    return not labels and isinstance(f, CategoricalFeature | NumericFeature) and f.training_only


def looks_up(feature: Feature) -> bool:
    """Whether a feature reads rows of a table."""
    return not isinstance(feature, NumericFeature) or feature.bucketed
