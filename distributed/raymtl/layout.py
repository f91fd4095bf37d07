"""Layout: which columns of a batch belong to which feature. Without torch, for reading tasks."""

from dataclasses import dataclass, replace
from functools import cached_property

from raymtl.schema import BagFeature, LogSchema, NumericFeature, SequenceFeature, looks_up

PAD = -1
"""Row number of `no id`: looks up nothing, gives zeros, gets no gradient."""


@dataclass(frozen=True)
class IdColumns:
    """The id columns of one feature: `ids_BC[:, start : start + width]`."""

    feature: str
    table: str
    start: int
    width: int
    pooling: str
    """`one` (a categorical), `sum`, `mean`, or `none` (a sequence passed whole)."""
    weight_start: int | None = None
    """First column of a weighted bag's weights in `bag_weights`; null where unweighted."""
    aligned_with: str | None = None
    """A sequence that holds the same events (item and author, say); null where there is none."""

    @property
    def stop(self) -> int:
        return self.start + self.width


@dataclass(frozen=True)
class Layout:
    """Which columns of a batch belong to which feature; a pure function of the schema."""

    id_columns: tuple[IdColumns, ...]
    numeric_names: tuple[str, ...]
    """One per numeric column; a missing indicator follows its feature as `name:missing`."""
    task_names: tuple[str, ...]
    task_kinds: tuple[str, ...] = ()
    """`binary` or `regression` per task."""
    task_given: tuple[int | None, ...] = ()
    """Per task the task that must be positive for it to be; null where there is none."""

    @classmethod
    def of(cls, schema: LogSchema) -> "Layout":
        columns, numeric, start, weight_start = [], [], 0, 0
        for f in schema.features:
            if looks_up(f):
                width = f.max_length if isinstance(f, BagFeature | SequenceFeature) else 1
                pooling = f.pooling if isinstance(f, BagFeature | SequenceFeature) else "one"
                weighted = isinstance(f, BagFeature) and f.weights is not None
                columns.append(
                    IdColumns(
                        feature=f.name,
                        table=f.table_name,
                        start=start,
                        width=width,
                        pooling=pooling,
                        weight_start=weight_start if weighted else None,
                        aligned_with=f.aligned_with if isinstance(f, SequenceFeature) else None,
                    )
                )
                start += width
                weight_start += width if weighted else 0
            else:
                assert isinstance(f, NumericFeature)
                numeric.append(f.name)
                if f.missing_indicator:
                    numeric.append(f"{f.name}:missing")
        names = [task.name for task in schema.tasks]
        return cls(
            id_columns=tuple(columns),
            numeric_names=tuple(numeric),
            task_names=tuple(names),
            task_kinds=tuple(task.kind for task in schema.tasks),
            task_given=tuple(names.index(t.given) if t.given else None for t in schema.tasks),
        )

    def pooled(self) -> "Layout":
        """The same columns, with sequences that would be passed whole pooled to their mean."""
        columns = tuple(
            replace(c, pooling="mean") if c.pooling == "none" else c for c in self.id_columns
        )
        return replace(self, id_columns=columns)

    @cached_property
    def num_id_columns(self) -> int:
        """C."""
        return self.id_columns[-1].stop if self.id_columns else 0

    @cached_property
    def num_bag_weights(self) -> int:
        """Columns of `bag_weights`."""
        return sum(c.width for c in self.id_columns if c.weight_start is not None)

    @cached_property
    def fields(self) -> tuple[IdColumns, ...]:
        """The F features that become one vector each, in order."""
        return tuple(c for c in self.id_columns if c.pooling != "none")

    @cached_property
    def sequences(self) -> tuple[IdColumns, ...]:
        """The features that are passed whole."""
        return tuple(c for c in self.id_columns if c.pooling == "none")
