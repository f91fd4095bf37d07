"""The compiled loops do what plain torch does."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.models import grad_of
from raymtl.batch import PAD
from raymtl.config import RowOptimizerSection
from raymtl.embedding import kernels, rows
from raymtl.embedding.optimizers import RowwiseAdagrad
from raymtl.embedding.plan import GroupPlan
from raymtl.embedding.rows import NO_KEY, RowPart, RowStore
from raymtl.embedding.tables import TableSpec

SPECS = [TableSpec("a", 61, 2, 4), TableSpec("b", 5, 2, 4), TableSpec("c", 1000, 2, 4)]


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@given(
    st.lists(st.one_of(st.integers(0, 40), st.integers(0, 2**30), st.just(NO_KEY)), max_size=200)
)
@settings(max_examples=50, deadline=None)
def test_runs_are_those_of_a_stable_sort(keys: list[int]) -> None:
    keys_n = torch.tensor(keys, dtype=torch.int64)
    found, expected = rows.find_runs(keys_n), rows.sorted_runs(keys_n)
    for name, tensor in vars(expected).items():
        assert torch.equal(getattr(found, name), tensor), name


def test_keys_too_far_apart_for_one_word_are_sorted_by_torch() -> None:
    keys_n = torch.tensor([2**40, 3, 2**40, NO_KEY])
    assert kernels.find_runs(keys_n, NO_KEY) is None
    assert rows.find_runs(keys_n).inverse_n.tolist() == [1, 0, 1, 2]


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("num_buckets", [8, 7])
def test_keys_are_those_of_plain_torch(
    world_size: int, num_buckets: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = GroupPlan(SPECS, num_buckets, replicate_rows=10, world_size=world_size)
    table_C = torch.tensor([plan.number[name] for name in ("c", "a", "b", "a")])
    ids = np.random.default_rng(0).integers(PAD, [1000, 61, 5, 61], (50, 4))
    found = plan.keys(torch.from_numpy(ids.astype(np.int32)), table_C)
    monkeypatch.setattr(rows, "_kernels", lambda: None)
    assert torch.equal(found, plan.keys(torch.from_numpy(ids), table_C))


def one_update(
    num_rows: int, lr_by_table: dict[str, float], width: int = 5
) -> dict[str, torch.Tensor]:
    """Two steps of row-wise Adagrad on two thirds of the rows."""
    generator = torch.Generator().manual_seed(0)
    store = RowStore(torch.randn(num_rows, 2 * width, generator=generator), 2, {"a": 0, "b": 40})

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
    values, grad_VmD, bags = torch.randn(700, 15), torch.randn(3, 5000, 5), some_bags(700, True)
    on_two = kernels.pool(values, 3, bags, torch.float32), kernels.sum_views(grad_VmD, bags, 699)
    torch.set_num_threads(1)
    assert torch.equal(on_two[0], kernels.pool(values, 3, bags, torch.float32))
    assert torch.equal(on_two[1], kernels.sum_views(grad_VmD, bags, 699))


def test_a_row_takes_its_views_and_a_float_of_state_a_view() -> None:
    # V 2, D 5: 2 * 5 * 4 bytes of values and 2 * 4 of row-wise Adagrad's sums.
    tensors = one_update(1000, {})
    assert sum(t.untyped_storage().nbytes() for t in tensors.values()) == 1000 * (2 * 5 * 4 + 2 * 4)


def some_bags(num_rows: int, weighted: bool) -> kernels.Bags:
    """5,000 bags of 0 to 3 places; the last one is empty."""
    generator = torch.Generator().manual_seed(1)
    sizes = torch.randint(0, 4, (5000,), generator=generator)
    sizes[-1] = 0
    starts = sizes.cumsum(0) - sizes
    place = torch.randint(0, num_rows, (int(sizes.sum()),), generator=generator)
    return place, starts, torch.randn(len(place), generator=generator) if weighted else None


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("views", "width"), [(3, 5), (1, 16), (4, 20)])
def test_pooling_and_its_backward_are_those_of_plain_torch(
    views: int, width: int, dtype: torch.dtype, weighted: bool
) -> None:
    rows_nVD = torch.randn(700, views, width)
    bags = some_bags(len(rows_nVD), weighted)
    pooled = kernels.pool(rows_nVD.flatten(1), views, bags, dtype)
    wanted = [rows.sum_bags(of_view.contiguous(), *bags) for of_view in rows_nVD.unbind(1)]
    # Bit by bit: exported scorers pool with torch's.
    assert torch.equal(pooled, torch.stack(wanted).to(dtype))
    grad_VmD = torch.randn(views, 5000, width).to(dtype)
    # Two views of the same leaf: of torch's loops, which PAD's row (the last) gets nothing of.
    leaf = rows_nVD.flatten(1).requires_grad_()
    views_VmD = [
        F.embedding_bag(bags[0], v, bags[1], mode="sum", per_sample_weights=bags[2])
        for v in leaf.unflatten(1, (views, width)).unbind(1)
    ]
    torch.stack(views_VmD).backward(grad_VmD.float())
    summed = kernels.sum_views(grad_VmD, bags, 699)
    torch.testing.assert_close(summed[:699], grad_of(leaf)[:699])
    assert not summed[699].any()


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50))
def test_sixteen_bits_are_those_that_torch_rounds_to(words: list[int]) -> None:
    values = torch.tensor(words, dtype=torch.int64).to(torch.uint32).view(torch.float32)
    values += 0.0  # as a sum: quiet NaN, no negative zero
    n = torch.arange(len(values))
    pooled = kernels.pool(values.unsqueeze(1), 1, (n, n, None), torch.bfloat16)[0, :, 0]
    wanted = values.to(torch.bfloat16)
    nan = wanted.isnan()
    assert torch.equal(nan, pooled.isnan())
    assert torch.equal(wanted[~nan].view(torch.int16), pooled[~nan].view(torch.int16))


def test_pooling_of_nothing() -> None:
    none = torch.empty(0, dtype=torch.int64)
    assert kernels.pool(torch.zeros(1, 6), 2, (none, none, None), torch.float32).shape == (2, 0, 3)
    empty = none, torch.zeros(4, dtype=torch.int64), None
    assert torch.equal(kernels.sum_views(torch.ones(2, 4, 5), empty, 3), torch.zeros(4, 10))
