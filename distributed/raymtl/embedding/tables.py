"""Tables of embedding rows: what they are, and the plain local store, the reference of the sharded.

A row holds its V views side by side, V*D floats: tasks 0, 1, ... and the shared view last. Tables
declared `task_specific: false`, and all tables of models with one view, hold D floats.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raymtl.batch import PAD, InputShape, Layout
from raymtl.config import EmbeddingSection
from raymtl.embedding.initial import fill_initial
from raymtl.embedding.placement import bucket_start, position, row_at
from raymtl.embedding.pooling import row_gradients_and_squares
from raymtl.embedding.rows import (
    GroupRows,
    RowGradients,
    RowPart,
    Rows,
    RowStore,
    compiled,
    find_runs,
)
from raymtl.errors import IdOutOfRange
from raymtl.schema import LogSchema

Columns = Callable[["TableSpec", int, int], Tensor]
"""Of a table whose rows are wider than they were saved: (spec, saved width, width) -> the column
that each saved one goes to; the others stay as they are."""
StateSource = Mapping[str, Tensor] | Callable[[str], Tensor]
"""Gives this rank's rows of `<table>/values` or `<table>/<state>`, in (bucket, k) order."""


@dataclass(frozen=True)
class TableSpec:
    """One table's size."""

    name: str
    rows: int
    views: int
    """Views a row holds: V, or 1."""
    width: int
    """D."""

    @property
    def width_floats(self) -> int:
        """Floats of a row."""
        return self.views * self.width


def table_specs(schema: LogSchema, shape: InputShape) -> tuple[TableSpec, ...]:
    """The tables a schema's features use, in their order, sized for a model's input shape."""
    tables = [schema.table(name) for name in schema.table_names]
    return tuple(
        TableSpec(t.name, t.num_rows, shape.num_views if t.task_specific else 1, shape.width)
        for t in tables
    )


def check_ids(ids_BC: Tensor, layout: Layout, specs: Sequence[TableSpec]) -> None:
    """Checks that every id is a row of its feature's table, or PAD. Not collective.

    Raises:
        IdOutOfRange: naming the first such feature, an id and its table.
    """
    if ids_BC.numel() == 0:
        return
    rows = {spec.name: spec.rows for spec in specs}
    kernels = compiled(ids_BC)
    extremes = kernels.extremes(ids_BC) if kernels else torch.aminmax(ids_BC, dim=0)
    lowest, highest = (t.tolist() for t in extremes)
    for c in layout.id_columns:
        low, high = min(lowest[c.start : c.stop]), max(highest[c.start : c.stop])
        if low < PAD or high >= rows[c.table]:
            raise IdOutOfRange(
                f"an id of feature {c.feature} is not a row of its table",
                f"{low if low < PAD else high}; table {c.table} has {rows[c.table]} rows",
                f"0 to {rows[c.table] - 1}, or {PAD} for none",
                f"raise the rows of table {c.table} in the schema, or use `encoding: hash`",
            )


class LocalTables:
    """All rows in this process, a plain tensor for each table, row i at index i."""

    replicated_tables: tuple[str, ...] = ()

    def __init__(
        self,
        specs: Sequence[TableSpec],
        config: EmbeddingSection,
        seed: int,
        device: torch.device | None = None,
    ):
        self.specs = tuple(specs)
        self.width = specs[0].width if specs else 0
        self.num_buckets = config.num_buckets
        self.bucket_range = (0, config.num_buckets)
        self.stores = tuple(
            RowStore.of(s.rows, s.views, s.width, {s.name: 0}, device) for s in specs
        )
        for spec, store in zip(self.specs, self.stores, strict=True):
            fill_initial(store.values, spec, 0, 1, seed, config.init_std)

    def lookup(self, ids_BC: Tensor, layout: Layout) -> Rows:
        """Finds the distinct rows of each table.

        Args:
            ids_BC: rows within each column's table, PAD where empty.
            layout: which columns belong to which table.

        Raises:
            IdOutOfRange: naming the feature.
        """
        check_ids(ids_BC, layout, self.specs)
        groups = []
        for spec, store in zip(self.specs, self.stores, strict=True):
            columns = columns_of(layout, {spec.name})
            ids = ids_BC[:, columns].to(torch.int64)
            place_BC = ids.masked_fill(ids == PAD, spec.rows)
            runs = find_runs(place_BC.flatten()).below(spec.rows)
            groups.append(GroupRows(store.padded, store.views, place_BC, columns, runs))
        return Rows(tuple(groups), {s.name: i for i, s in enumerate(self.specs)})

    def collect(self, rows: Rows) -> RowGradients:
        """The gradients of the rows looked up, zeros where backward brought none."""
        summed = [row_gradients_and_squares(group) for group in rows.groups]
        return [
            RowPart(store, 0, len(store.values), group.runs.unique_U, grads, True, squares)
            for store, group, (grads, squares) in zip(self.stores, rows.groups, summed, strict=True)
        ]

    def state(self) -> dict[str, Tensor]:
        """Copies of all rows, `<table>/values` and `<table>/<state>`, in (bucket, k) order."""
        return {
            f"{spec.name}/{name}": tensor[self._saved_order(spec)]
            for spec, store in zip(self.specs, self.stores, strict=True)
            for name, tensor in store.tensors.items()
        }

    def load_state(
        self,
        source: StateSource,
        saved_rows: Mapping[str, int] | None = None,
        columns: Columns | None = None,
    ) -> None:
        """Overwrites all rows; arguments as in `load_rows`."""
        state, buckets = self.state(), (0, self.num_buckets, self.num_buckets)
        for spec, store in zip(self.specs, self.stores, strict=True):
            load_rows(state, spec, buckets, source, saved_rows, columns)
            for name, tensor in store.tensors.items():
                tensor[self._saved_order(spec)] = state[f"{spec.name}/{name}"]

    def _saved_order(self, spec: TableSpec) -> Tensor:
        return row_at(spec.rows, self.num_buckets, torch.arange(spec.rows))


def load_rows(
    state: dict[str, Tensor],
    spec: TableSpec,
    buckets: tuple[int, int, int],
    source: StateSource,
    saved_rows: Mapping[str, int] | None,
    columns: Columns | None = None,
) -> None:
    """Copies one table's saved rows into `state`; what the table gained since stays as it is.

    Args:
        state: tensors to be overwritten, in (bucket, k) order.
        buckets: the range [lo, hi) that `state` holds, and P.
        source: mapping or function from a key of `state` to the saved rows of the same buckets.
        saved_rows: rows of each table when it was saved, 0 for a new one; null, or a table left
            out: as now.
        columns: null: rows are as wide as they were.
    """
    lo, hi, num_buckets = buckets
    old_rows = (saved_rows or {}).get(spec.name, spec.rows)
    if old_rows == 0:
        return
    assert old_rows <= spec.rows, f"table {spec.name} shrank from {old_rows} to {spec.rows} rows"
    first = bucket_start(old_rows, num_buckets, lo)
    old_n = torch.arange(first, bucket_start(old_rows, num_buckets, hi))
    place_n = position(spec.rows, num_buckets, row_at(old_rows, num_buckets, old_n))
    place_n -= bucket_start(spec.rows, num_buckets, lo)
    for key, target in state.items():
        if key.rpartition("/")[0] != spec.name:
            continue
        saved = source(key) if callable(source) else source[key]
        if columns is not None and saved.dim() == 2 and saved.shape[1:] != target.shape[1:]:
            whole = target[place_n].clone()
            whole[:, columns(spec, saved.shape[1], target.shape[1])] = saved.to(whole)
            saved = whole
        assert saved.shape == (len(old_n), *target.shape[1:]), f"{key}: {tuple(saved.shape)}"
        assert saved.dtype == target.dtype, f"{key}: {saved.dtype}"
        if old_rows == spec.rows:
            target.copy_(saved)
        else:
            target[place_n] = saved.to(target.device)


def columns_of(layout: Layout, tables: set[str]) -> list[int]:
    """The id columns that look up one of these tables."""
    return [i for c in layout.id_columns if c.table in tables for i in range(c.start, c.stop)]
