"""Rows on their way: looked up, gathered, and their gradients; what both stores of tables share."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from raymtl.batch import Layout


@dataclass
class RowStore:
    """Rows of equal width and the optimizer's rows beside them."""

    padded: Tensor
    """float32 (n + 1, views * D); the last row is zeros and stands for PAD."""
    views: int
    first_rows: dict[str, int] = field(default_factory=dict)
    """Table -> the first of its rows here; tables lie one behind the other."""
    states: dict[str, Tensor] = field(default_factory=dict)
    """State name -> (n, k), k a multiple of `views`, view after view."""

    @classmethod
    def of(
        cls,
        num_rows: int,
        views: int,
        width: int,
        first_rows: dict[str, int],
        device: torch.device | None = None,
    ) -> "RowStore":
        """Makes `num_rows` rows of views * width floats, whose values are still to be filled."""
        padded = torch.empty(num_rows + 1, views * width, device=device)
        padded[-1] = 0
        return cls(padded, views, first_rows)

    @property
    def values(self) -> Tensor:
        """float32 (n, views * D)."""
        return self.padded[:-1]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """`values` and the states, by name."""
        return {"values": self.values, **self.states}

    def add_state(
        self, name: str, floats: int, fill: float = 0.0, dtype: torch.dtype = torch.float32
    ) -> None:
        """Adds a state of `floats` numbers a view, all `fill`."""
        shape = (len(self.values), self.views * floats)
        self.states[name] = torch.full(shape, fill, dtype=dtype, device=self.values.device)


@dataclass
class Runs:
    """Equal keys brought together: run i is keys[order[starts[i] : starts[i + 1]]]."""

    unique_U: Tensor
    """int64, the different keys, ascending."""
    order_n: Tensor
    """Stable: equal keys keep their order."""
    starts_U: Tensor

    def below(self, key: int) -> "Runs":
        """Those of smaller keys."""
        cut = int(torch.searchsorted(self.unique_U, key))
        if cut == len(self.unique_U):
            return self
        order_n = self.order_n[: int(self.starts_U[cut])]
        return Runs(self.unique_U[:cut], order_n, self.starts_U[:cut])

    def numbers(self, num_keys: int) -> Tensor:
        """int64 (num_keys,): the run of each key, U where it is in none."""
        if kernels := compiled(self.order_n):
            return kernels.numbers((self.order_n, self.starts_U), num_keys)
        lengths_U = torch.diff(self.starts_U, append=self.starts_U.new_tensor([len(self.order_n)]))
        out = self.unique_U.new_full((num_keys,), len(lengths_U))
        run_n = torch.arange(len(lengths_U), device=out.device).repeat_interleave(lengths_U)
        return out.scatter_(0, self.order_n.long(), run_n)


@dataclass
class Bags:
    """Columns of a group that are pooled: bag f of each row of a batch is `sizes[f]` of them."""

    columns: tuple[int, ...]
    """Of the group's, side by side bag by bag; K."""
    sizes: tuple[int, ...]
    """Of each of a row's bags; F."""
    weights_BK: Tensor | None = None
    """float32; null means 1."""


@dataclass
class GroupRows:
    """Distinct rows of one width that a batch looks up, and what becomes of their gradients."""

    values: Tensor
    """float32 (n, views * D): holds them, and a last row of zeros for PAD."""
    views: int
    place_BC: Tensor
    """int64: where in `values` each id's row lies; of the columns below."""
    columns: Sequence[int]
    """The layout's id columns that look them up; C."""
    runs: Runs
    """Of the ids of these columns, flattened (B, C), without PAD's."""
    route: Any = None
    """How the rows came; read by the `collect` of the store that made it."""
    anchor: Tensor = field(default_factory=lambda: torch.zeros((), requires_grad=True))
    """What autograd takes for the rows."""
    pooled: list[tuple[Tensor, Bags]] = field(default_factory=list)
    """Gradients (views, B * F, D) of pooled rows that backward brought, not yet summed by row."""

    @property
    def num_rows(self) -> int:
        """U, distinct rows."""
        return len(self.runs.unique_U)


@dataclass
class Rows:
    """What a lookup gives."""

    groups: tuple[GroupRows, ...]
    group_of_table: dict[str, int]


@dataclass
class RowPart:
    """Summed gradients of some rows of a store that this rank updates."""

    store: RowStore
    start: int
    stop: int
    """The part speaks for rows [start, stop) of the store."""
    index_n: Tensor | None
    """int64, ascending, distinct rows of the store; null means all of [start, stop)."""
    grads: Tensor
    """float32 (n, views * D)."""
    counted: bool
    """Whether this rank counts it in a norm over ranks: false for copies of replicated rows."""
    _squares: Tensor | None = None
    """As `squares_nV`, where they are known."""
    _touched: Tensor | None = None

    @property
    def shape_VD(self) -> tuple[int, int]:
        """(V, D) of its rows."""
        return self.store.views, self.grads.shape[1] // self.store.views

    @property
    def grads_nVD(self) -> Tensor:
        """The gradients, view by view."""
        return self.grads.view(len(self.grads), *self.shape_VD)

    @property
    def squares_nV(self) -> Tensor:
        """float64 sums of squared gradients of each view."""
        if self._squares is not None:
            return self._squares
        self._squares = squares(self.grads, self.store.views)
        return self._squares

    @property
    def touched_nV(self) -> Tensor:
        """bool, true for views whose summed gradient, before L2, is not all zero."""
        if self._touched is None:
            self._touched = self.squares_nV != 0
        return self._touched

    def add(self, change: Tensor, factor: float) -> None:
        """Adds `factor` times a change to the gradients; what counts as touched stays."""
        if self.index_n is not None:
            self._touched = self.touched_nV
        self.grads.add_(change, alpha=factor)
        self._squares = None

    def make_dense(self) -> None:
        """Turns it into the gradients of all its rows, zero where there was none."""
        if self.index_n is not None:
            dense = self.grads.new_zeros(self.stop - self.start, self.grads.shape[1])
            dense.index_copy_(0, self.index_n - self.start, self.grads)
            self.grads, self.index_n, self._squares, self._touched = dense, None, None, None


RowGradients = list[RowPart]
"""Parts of all stores, each row of a rank at most once."""


def inner_products(of_tasks: Sequence[RowGradients]) -> Tensor:
    """This rank's part of the inner products of several gradients of the same rows.

    Returns:
        float64 (T, T), to be summed over ranks.
    """
    parts = [p for p in zip(*of_tasks, strict=True) if p[0].counted]
    device = of_tasks[0][0].grads.device if of_tasks[0] else None
    total_TT = torch.zeros(len(of_tasks), len(of_tasks), dtype=torch.float64, device=device)
    for same in parts:
        grads_Tn = torch.stack([part.grads.flatten() for part in same]).double()
        total_TT += grads_Tn @ grads_Tn.t()
    return total_TT


def combined(of_tasks: Sequence[RowGradients], weights: Sequence[float]) -> RowGradients:
    """The weighted sum of several gradients of the same rows; overwrites the first."""
    for first, *others in zip(*of_tasks, strict=True):
        first.grads = first.grads * weights[0]
        for other, weight in zip(others, weights[1:], strict=True):
            first.add(other.grads, weight)
        first._squares = first._touched = None
    return of_tasks[0]


class Stores(Protocol):
    """What an optimizer needs of tables."""

    width: int
    """D."""
    stores: tuple[RowStore, ...]


class Tables(Stores, Protocol):
    """All tables' rows: `LocalTables` or `ShardedTables`."""

    def lookup(self, ids_BC: Tensor, layout: Layout) -> Rows:
        """Collective. The distinct rows of a batch."""
        ...

    def collect(self, rows: Rows) -> RowGradients:
        """Collective. After backward: the summed gradients of the rows this rank updates."""
        ...


@cache
def _kernels() -> ModuleType | None:
    try:
        from raymtl.embedding import kernels
    except ImportError:
        warnings.warn("numba is not installed: table rows take longer", stacklevel=2)
        return None
    return kernels


def compiled(tensor: Tensor) -> Any:
    """The compiled kernels, null where plain torch must do."""
    return _kernels() if tensor.device.type == "cpu" else None


def find_runs(keys_n: Tensor) -> Runs:
    """Sorts keys and finds the runs of equal ones."""
    kernels = compiled(keys_n)
    found = kernels.find_runs(keys_n) if kernels else None
    return Runs(*found) if found else sorted_runs(keys_n)


def sorted_runs(keys_n: Tensor) -> Runs:
    """`find_runs` in plain torch."""
    sorted_n, order_n = torch.sort(keys_n, stable=True)
    first_n = torch.ones_like(sorted_n, dtype=torch.bool)
    torch.ne(sorted_n[1:], sorted_n[:-1], out=first_n[1:])
    starts_U = first_n.nonzero().squeeze(1)
    return Runs(sorted_n[starts_U], order_n, starts_U)


def squares(grads: Tensor, num_views: int) -> Tensor:
    """float64 (n, views): sums of squares of each view of each row."""
    if kernels := compiled(grads):
        return kernels.squares(grads, num_views)
    views_nVD = grads.view(len(grads), num_views, grads.shape[1] // num_views)
    norms: Tensor = torch.linalg.vector_norm(views_nVD, dim=-1, dtype=torch.float64)
    return norms.square_()


def gather_rows(values: Tensor, index_n: Tensor, out: Tensor | None = None) -> Tensor:
    """values[index] of a 2-D tensor.

    Args:
        out: contiguous, of float32 or bfloat16, to gather in; null for a new tensor.
    """
    if out is not None and (kernels := compiled(values)):
        kernels.gather(values, 1, index_n, out.unsqueeze(0))
        return out
    if values.is_floating_point():
        found = sum_bags(values, index_n, torch.arange(len(index_n), device=index_n.device))
    else:
        found = values.index_select(0, index_n)
    return found if out is None else out.copy_(found)


def sum_bags(
    values: Tensor, index_n: Tensor, starts_m: Tensor, weights_n: Tensor | None = None
) -> Tensor:
    """Sums rows bag by bag: bag i is index[starts[i] : starts[i + 1]], the last one to the end.

    Each bag is summed in the order of `index`, so the result does not depend on threads. Also the
    quickest way to gather rows, as bags of one: torch's kernel prefetches, index_select's does not.

    Returns:
        (m, width); zeros for an empty bag.
    """
    if len(index_n) == 0:
        return values.new_zeros(len(starts_m), values.shape[1])
    return F.embedding_bag(index_n, values, starts_m, mode="sum", per_sample_weights=weights_n)
