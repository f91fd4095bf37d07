"""What a form of requests reads: its features, and the id columns they become. Checked at load."""

import math
from dataclasses import dataclass
from typing import Any

from raymtl.scorer.errors import require

POOLINGS = {"categorical": ("one",), "bag": ("mean", "sum"), "sequence": ("mean", "sum", "none")}


@dataclass(frozen=True)
class IdColumn:
    """Where the ids of one feature lie among all, and how they become vectors."""

    feature: str
    table: str
    start: int
    width: int
    pooling: str
    weight_start: int | None


@dataclass(frozen=True)
class Sizes:
    """Of the tables and the model's inputs."""

    columns: list[IdColumn]
    numeric: list[str]
    """Names of the model's numbers, in order."""
    rows: dict[str, int]
    """By table."""
    views: dict[str, int]
    """By table: the model's, or 1."""
    num_views: int
    width: int
    constant_ids: list[tuple[int, int]]
    """Id column and its row, of features known in training only."""
    constant_numbers: list[tuple[int, float]]
    """The same of numbers."""

    @classmethod
    def of(cls, info: dict[str, Any]) -> "Sizes":
        """Those of artifact.json."""
        tables = info["tables"]
        rows = {name: table["rows"] for name, table in tables.items()}
        views = {name: table["views"] for name, table in tables.items()}
        num_views, width = info["num_views"], info["width"]
        counts = [num_views, width, *rows.values(), *views.values()]
        require(all(type(n) is int and 0 < n < 2**31 for n in counts), "sizes that are none")
        require(all(n in (1, num_views) for n in views.values()), "tables of other views")
        require(all(n >= 2 for n in rows.values()), "a table without rows")
        numeric = info["numeric"]
        require(isinstance(numeric, list), "numbers without names")
        columns = id_columns_of(info["id_columns"], rows)
        ids, numbers = info["constants"]["ids"], info["constants"]["numbers"]
        by_start = {c.start: c for c in columns}
        for column, row in ids:
            require(type(row) is int and -1 <= row < rows[by_start[column].table], "a constant id")
        for column, number in numbers:
            require(column in range(len(numeric)) and _is_finite(number), "a constant number")
        return cls(columns, numeric, rows, views, num_views, width, ids, numbers)

    @property
    def num_ids(self) -> int:
        """C, id columns of all features."""
        return sum(c.width for c in self.columns)

    @property
    def num_weights(self) -> int:
        """Columns of bag weights."""
        return sum(c.width for c in self.columns if c.weight_start is not None)


@dataclass(frozen=True)
class Feature:
    """A feature as the schema has it; what its kind has not, keeps its default."""

    name: str
    kind: str
    column: str
    default: int | float | str | None = None
    """Used where a request lacks the whole column; null makes that an error."""
    is_constant: bool = False
    """Whether it is the same in every row, whatever a request holds: see `Sizes.constant_ids`."""
    table: str = ""
    encoding: str = ""
    max_length: int = 1
    weights: str | None = None
    aligned_with: str | None = None
    log1p: bool = False
    mean: float | None = None
    std: float | None = None
    """Of a number that is standardised; null where it is not."""
    boundaries: tuple[float, ...] | None = None
    missing_indicator: bool = False
    fill: float = 0.0

    @property
    def is_number(self) -> bool:
        """Whether it is read as a number."""
        return self.kind == "numeric"

    @property
    def is_list(self) -> bool:
        """Whether each row holds a list."""
        return self.kind in ("bag", "sequence")

    @property
    def numeric_names(self) -> list[str]:
        """Its columns among the model's numbers."""
        if not self.is_number or self.boundaries is not None:
            return []
        return [self.name, f"{self.name}:missing"] if self.missing_indicator else [self.name]


def feature_of(values: dict[str, Any]) -> Feature:
    """A feature of plain values. Raises ValueError or TypeError where they are none."""
    borders = values.get("boundaries")
    if borders is not None:
        require(isinstance(borders, list) and all(map(_is_finite, borders)), "borders")
        require(sorted(borders) == borders, "borders that do not ascend")
        values = {**values, "boundaries": tuple(borders)}
    f = Feature(**values)
    texts = (f.name, f.kind, f.column, f.table, f.encoding)
    flags = (f.is_constant, f.log1p, f.missing_indicator)
    known = [
        all(isinstance(text, str) for text in texts),
        all(isinstance(flag, bool) for flag in flags),
        f.kind in ("categorical", "bag", "sequence", "numeric"),
        f.is_number or f.encoding in ("index", "hash", "vocabulary"),
        type(f.max_length) is int and f.max_length > 0,
        all(name is None or isinstance(name, str) for name in (f.weights, f.aligned_with)),
        isinstance(f.default, int | float | str | None),
        _is_finite(f.fill),
        (f.mean is None) == (f.std is None),
        f.mean is None or (_is_finite(f.mean) and _is_finite(f.std) and f.std != 0),
    ]
    require(all(known), f"a feature that is none: {f.name!s:.40}")
    return f


def features_of(
    values: list[dict[str, Any]], columns: list[IdColumn], numeric: list[str]
) -> dict[str, Feature]:
    """A form's features by name, which must become these id columns and numbers."""
    features = {f.name: f for f in map(feature_of, values)}
    require(len(features) == len(values), "two features of one name")
    found = [name for f in features.values() for name in f.numeric_names]
    require(found == numeric, "features that do not become the model's numbers")
    looked_up = [f for f in features.values() if not f.numeric_names]
    require(len(looked_up) == len(columns), "features that do not become the model's ids")
    for f, c in zip(looked_up, columns, strict=True):
        same = (f.name, f.table, f.max_length if f.is_list else 1) == (c.feature, c.table, c.width)
        pooling = c.pooling in POOLINGS["categorical" if f.is_number else f.kind]
        weighted = (f.weights is not None) == (c.weight_start is not None)
        require(same and pooling and weighted, f"a feature unlike its column: {f.name}")
        other = features[f.aligned_with] if f.aligned_with is not None else f
        require(other.kind == f.kind and other.max_length == f.max_length, "sequences that differ")
    return features


def id_columns_of(values: list[dict[str, Any]], rows: dict[str, int]) -> list[IdColumn]:
    """The id columns of plain values, one behind the other."""
    columns, start, weight_start = [IdColumn(**c) for c in values], 0, 0
    for c in columns:
        require(type(c.width) is int and c.width > 0 and c.start == start, "id columns apart")
        require(c.table in rows, "a column without a table")
        require(c.weight_start in (None, weight_start), "weights apart")
        start += c.width
        weight_start += 0 if c.weight_start is None else c.width
    return columns


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
