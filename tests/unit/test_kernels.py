"""The compiled loops do what plain torch does."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raymtl.batch import PAD
from raymtl.config import RowOptimizerSection
from raymtl.embedding import kernels, rows
from raymtl.embedding.optimizers import RowwiseAdagrad
from raymtl.embedding.plan import GroupPlan
from raymtl.embedding.pooling import pool, row_gradients, row_gradients_and_squares, sum_runs
from raymtl.embedding.rows import Bags, RowPart, RowStore, Runs
from raymtl.embedding.tables import TableSpec

SPECS = [TableSpec("a", 61, 2, 4), TableSpec("b", 5, 2, 4), TableSpec("c", 1000, 2, 4)]


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@given(st.lists(st.one_of(st.integers(0, 40), st.integers(-(2**29), 2**30)), max_size=200))
@settings(max_examples=50, deadline=None)
def test_runs_are_those_of_a_stable_sort(keys: list[int]) -> None:
    keys_n = torch.tensor(keys, dtype=torch.int64)
    found, expected = rows.find_runs(keys_n), rows.sorted_runs(keys_n)
    for name, tensor in vars(expected).items():
        assert torch.equal(getattr(found, name).long(), tensor), name
    assert torch.equal(found.unique_U[found.numbers(len(keys))], keys_n)


@pytest.mark.parametrize("how", ["plain", "compiled"])
def test_keys_too_far_apart_for_one_word_are_sorted_by_torch(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys_n = torch.tensor([2**40, 3, 2**40, 2**62])
    assert kernels.find_runs(keys_n) is None
    if how == "plain":
        monkeypatch.setattr(rows, "_kernels", lambda: None)
    runs = rows.find_runs(keys_n)
    assert runs.numbers(4).tolist() == [1, 0, 1, 2]
    assert runs.below(2**50).numbers(4).tolist() == [1, 0, 1, 2]
    assert runs.below(2**40).numbers(4).tolist() == [1, 0, 1, 1]
    assert runs.below(0).order_n.tolist() == []


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("num_buckets", [8, 7])
def test_keys_are_those_of_plain_torch(
    world_size: int, num_buckets: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = GroupPlan(SPECS, num_buckets, 10, world_size - 1, world_size)
    table_C = torch.tensor([plan.number[name] for name in ("c", "a", "b", "a")])
    ids = np.random.default_rng(0).integers(PAD, [1000, 61, 5, 61], (50, 4))
    found = plan.keys(torch.from_numpy(ids.astype(np.int32)), plan.terms(table_C))
    monkeypatch.setattr(rows, "_kernels", lambda: None)
    assert torch.equal(found, plan.keys(torch.from_numpy(ids), plan.terms(table_C)))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_extremes_are_those_of_plain_torch(dtype: torch.dtype) -> None:
    ids_BC = torch.randint(-1, 2**31 - 1, (300, 7), dtype=dtype)
    for found, wanted in zip(kernels.extremes(ids_BC), torch.aminmax(ids_BC, dim=0), strict=True):
        assert torch.equal(found, wanted)


def one_update(
    num_rows: int, lr_by_table: dict[str, float], width: int = 5
) -> dict[str, torch.Tensor]:
    """Two steps of row-wise Adagrad on two thirds of the rows."""
    generator = torch.Generator().manual_seed(0)
    store = RowStore.of(num_rows, 2, width, {"a": 0, "b": 40})
    store.values.normal_(generator=generator)

    class Tables:
        stores = (store,)

        def __init__(self) -> None:
            self.width = width

    section = RowOptimizerSection(lr=0.1, lr_by_table=lr_by_table, initial_accumulator=0.1)
    optimizer = RowwiseAdagrad(section, Tables())
    for _ in range(2):
        index_n = torch.randperm(num_rows, generator=generator)[: num_rows * 2 // 3].sort().values
        grads = torch.randn(len(index_n), 2 * width, generator=generator)
        grads[::3, :width] = 0
        part = RowPart(store, 0, num_rows, index_n, grads, counted=True)
        optimizer.squared_norm([part])
        optimizer.step([part], scale=0.5, factor=2.0)
    return store.tensors


@pytest.mark.parametrize("width", [5, 16, 20])
@pytest.mark.parametrize("lr_by_table", [{}, {"b": 0.3}])
def test_the_adagrad_update_is_that_of_plain_torch(
    lr_by_table: dict[str, float], width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = one_update(1000, lr_by_table, width)
    monkeypatch.setattr(rows, "_kernels", lambda: None)
    for name, tensor in one_update(1000, lr_by_table, width).items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("two_threads")
def test_results_do_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_LEAST_ROWS", 100)
    on_two = one_update(20_000, {})
    torch.set_num_threads(1)
    for name, tensor in one_update(20_000, {}).items():
        assert torch.equal(on_two[name], tensor), name


@pytest.mark.usefixtures("two_threads")
def test_pooling_does_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_LEAST_ROWS", 100)
    group, bags = some_rows(3, 5), some_bags(weighted=True)

    def both() -> list[torch.Tensor]:
        pooled = pool(group, bags)
        pooled.backward(torch.ones_like(pooled))
        return [pooled.detach(), *row_gradients_and_squares(group)]

    on_two = both()
    torch.set_num_threads(1)
    for two, one in zip(on_two, both(), strict=True):
        assert torch.equal(two, one)


def test_a_row_takes_its_views_and_a_float_of_state_a_view() -> None:
    # V 2, D 5: 2 * 5 * 4 bytes of values and 2 * 4 of row-wise Adagrad's sums; and PAD's row.
    tensors = one_update(1000, {})
    held = sum(t.untyped_storage().nbytes() for t in tensors.values())
    assert held == 1000 * (2 * 5 * 4 + 2 * 4) + 2 * 5 * 4


BATCH, COLUMNS = 1500, 7


def some_rows(views: int, width: int) -> rows.GroupRows:
    """Rows of a store that the ids of a batch look up, some of them PAD, and one none."""
    generator = torch.Generator().manual_seed(1)
    store = RowStore.of(900, views, width, {"a": 0})
    store.values.normal_(generator=generator)
    ids_n = torch.randint(-1, 700, (BATCH * COLUMNS,), generator=generator)
    place_n = torch.where(ids_n < 0, 900, ids_n + 100)
    runs = rows.find_runs(place_n).below(900)
    return rows.GroupRows(store.padded, views, place_n.view(BATCH, COLUMNS), range(COLUMNS), runs)


def some_bags(weighted: bool, columns: tuple[int, ...] = (0, 1, 2, 4, 5, 6)) -> Bags:
    """Of one id, of none, of two and of the rest."""
    weights_BK = torch.randn(BATCH, len(columns), generator=torch.Generator().manual_seed(2))
    sizes = (1, 0, 2, len(columns) - 3)
    return Bags(columns, sizes, weights_BK if weighted else None)


ALONE = Bags(tuple(range(COLUMNS)), (1,) * COLUMNS)
"""The ids themselves."""
OTHER_ORDER = Bags(tuple(reversed(range(COLUMNS))), (1,) * COLUMNS)
# Most columns, and one by itself; one column is not pooled.
POOLED = [
    [some_bags(weighted=False), Bags((3,), (1,))],
    [some_bags(weighted=True), Bags((3,), (1,))],
    [ALONE],
    [OTHER_ORDER],
    [Bags(ALONE.columns, (2, 0, 1, 1, 1, 1, 1))],
]


@pytest.mark.parametrize("all_bags", POOLED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("views", "width"), [(3, 5), (1, 16), (4, 20)])
def test_pooling_and_its_backward_are_those_of_plain_torch(
    views: int,
    width: int,
    dtype: torch.dtype,
    all_bags: list[Bags],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = list(zip(all_bags, [dtype, torch.float32], strict=False))
    generator = torch.Generator().manual_seed(3)
    given = [
        torch.randn(views, BATCH * len(bags.sizes), width, generator=generator).to(kind)
        for bags, kind in calls
    ]

    def all_() -> list[torch.Tensor]:
        group = some_rows(views, width)
        pooled = [pool(group, bags, kind) for bags, kind in calls]
        for tensor, grad in zip(pooled, given, strict=True):
            tensor.backward(grad.to(tensor.dtype))
        return [*(tensor.detach() for tensor in pooled), *row_gradients_and_squares(group)]

    found = all_()
    monkeypatch.setattr(rows, "_kernels", lambda: None)
    wanted = all_()
    # Bit by bit: exported scorers pool with torch's.
    n = len(calls)
    for one, other in zip(found[:n], wanted[:n], strict=True):
        assert torch.equal(one, other)
    for one, other in zip(found[n:], wanted[n:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_the_runs_of_rows_are_summed_as_plain_torch_does(monkeypatch: pytest.MonkeyPatch) -> None:
    grads = torch.randn(5000, 15)
    runs = rows.find_runs(torch.randint(0, 3000, (5000,)))
    found = sum_runs(grads, runs, 3)
    wide = Runs(runs.unique_U, runs.order_n.long(), runs.starts_U.long())
    assert torch.equal(sum_runs(grads, wide, 3)[0], found[0])
    monkeypatch.setattr(rows, "_kernels", lambda: None)
    summed, squares = sum_runs(grads, runs, 3)
    assert torch.equal(found[0], summed)
    torch.testing.assert_close(found[1], squares)


def test_sums_of_another_type_are_rounded_from_float32() -> None:
    group, bags = some_rows(2, 4), some_bags(weighted=True)
    pooled = pool(group, bags, torch.float16)
    assert torch.equal(pooled, pool(group, bags).half())
    pooled.sum().backward()
    assert row_gradients(group).any()


def test_rows_are_not_pooled_twice_before_they_are_collected() -> None:
    group = some_rows(2, 4)
    for _ in range(2):
        pool(group, some_bags(weighted=False)).sum().backward()
    with pytest.raises(AssertionError, match="pooled once"):
        row_gradients(group)


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50))
def test_sixteen_bits_are_those_that_torch_rounds_to(words: list[int]) -> None:
    values = torch.tensor(words, dtype=torch.int64).to(torch.uint32).view(torch.float32)
    values += 0.0  # as a sum: quiet NaN, no negative zero
    n = torch.arange(len(values))
    wanted = values.to(torch.bfloat16)
    nan = wanted.isnan()
    gathered = torch.empty(1, len(values), 1, dtype=torch.bfloat16)
    kernels.gather(values.unsqueeze(1), 1, n, gathered)
    for pooled_VmD in (
        gathered,
        kernels.pool(values.unsqueeze(1), 1, (n, n, None), torch.bfloat16),
    ):
        pooled = pooled_VmD[0, :, 0]
        assert torch.equal(nan, pooled.isnan())
        assert torch.equal(wanted[~nan].view(torch.int16), pooled[~nan].view(torch.int16))


def test_pooling_of_nothing() -> None:
    none = torch.empty(0, dtype=torch.int64)
    pooled = kernels.pool(torch.zeros(1, 6), 2, (none, none, None), torch.float32)
    assert pooled.shape == (2, 0, 3)
    kernels.gather(torch.zeros(1, 6), 2, none, pooled)
    columns = np.zeros((1, 6), np.int64)
    for some in (columns, columns[:0]):
        summed, squares = kernels.sum_bagged_runs(some, (none, none), (2, 3), with_squares=True)
        assert summed.shape == (0, 6) and squares.shape == (0, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_gathered_where_they_shall_lie(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    values, index_n = torch.randn(9, 6), torch.tensor([8, 0, 0, 3])
    wanted = values[index_n].to(dtype)
    for how in ("compiled", "plain"):
        if how == "plain":
            monkeypatch.setattr(rows, "_kernels", lambda: None)
        held = torch.zeros(6, 6, dtype=dtype)
        assert rows.gather_rows(values, index_n, held[1:5]).data_ptr() == held[1:].data_ptr()
        assert torch.equal(held[1:5], wanted)
        assert not held[0].any() and not held[5].any()
        assert torch.equal(rows.gather_rows(values, index_n), values[index_n])


@pytest.mark.parametrize("bags", [ALONE, some_bags(weighted=True)])
def test_gradients_are_summed_where_they_shall_lie(
    bags: Bags, monkeypatch: pytest.MonkeyPatch
) -> None:
    def summed(out: torch.Tensor | None) -> torch.Tensor:
        group = some_rows(2, 4)
        pool(group, bags).sum().backward()
        return row_gradients(group, out)

    wanted = summed(None)
    for how in ("compiled", "plain"):
        if how == "plain":
            monkeypatch.setattr(rows, "_kernels", lambda: None)
        held = torch.full((len(wanted) + 2, wanted.shape[1]), 7.0)
        summed(held[1:-1])
        torch.testing.assert_close(held[1:-1], wanted)
        assert (held[[0, -1]] == 7).all()


EVERY_ROW_LOOP = """
import torch
from raymtl.embedding import kernels
n = torch.arange(4)
kernels.gather(torch.zeros(4, 6), 2, n, torch.empty(2, 4, 3))
kernels.pool(torch.zeros(4, 6), 2, (n, n[:2], None), torch.float32)
values, sums = torch.zeros(4, 6), torch.zeros(4, 2)
columns = torch.zeros(1, 6, dtype=torch.int64).numpy()
kernels.sum_bagged_runs(columns, (n, n), (2, 3), True)
out = kernels.sum_runs(torch.zeros(2, 4, 3), (n, n), True)
kernels.adagrad((values, sums), n, *out, torch.ones(1), (1.0, 1e-8))
"""


def test_a_second_process_finds_what_the_first_one_compiled(tmp_path: Path) -> None:
    found = []
    for _ in range(2):
        environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
        subprocess.run([sys.executable, "-c", EVERY_ROW_LOOP], env=environment, check=True)
        found.append({f.name: f.stat().st_mtime_ns for f in tmp_path.rglob("*.nbc")})
    assert len(found[0]) >= 4
    assert found[1] == found[0]
