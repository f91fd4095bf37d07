"""The compiled loops do what plain torch does."""

from collections.abc import Iterator

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


def one_update(num_rows: int, lr_by_table: dict[str, float]) -> dict[str, torch.Tensor]:
    """Two steps of row-wise Adagrad on two thirds of the rows."""
    generator = torch.Generator().manual_seed(0)
    store = RowStore(torch.randn(num_rows, 10, generator=generator), 2, {"a": 0, "b": 40})

    class Tables:
        width, stores = 5, (store,)

    section = RowOptimizerSection(lr=0.1, lr_by_table=lr_by_table, initial_accumulator=0.1)
    optimizer = RowwiseAdagrad(section, Tables())
    for _ in range(2):
        index_n = torch.randperm(num_rows, generator=generator)[: num_rows * 2 // 3].sort().values
        grads = torch.randn(len(index_n), 10, generator=generator)
        grads[::3, :5] = 0
        part = RowPart(store, 0, num_rows, index_n, grads, counted=True)
        optimizer.squared_norm([part])
        optimizer.step([part], scale=0.5, factor=2.0)
    return store.tensors


@pytest.mark.parametrize("lr_by_table", [{}, {"b": 0.3}])
def test_the_adagrad_update_is_that_of_plain_torch(
    lr_by_table: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = one_update(1000, lr_by_table)
    monkeypatch.setattr(rows, "_kernels", lambda: None)
    for name, tensor in one_update(1000, lr_by_table).items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("two_threads")
def test_results_do_not_depend_on_the_number_of_threads() -> None:
    on_two = one_update(20_000, {})
    torch.set_num_threads(1)
    for name, tensor in one_update(20_000, {}).items():
        assert torch.equal(on_two[name], tensor), name


def test_a_row_takes_its_views_and_a_float_of_state_a_view() -> None:
    # V 2, D 5: 2 * 5 * 4 bytes of values and 2 * 4 of row-wise Adagrad's sums.
    tensors = one_update(1000, {})
    assert sum(t.untyped_storage().nbytes() for t in tensors.values()) == 1000 * (2 * 5 * 4 + 2 * 4)
