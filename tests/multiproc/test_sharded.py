"""Sharded tables equal the local ones, on 1, 2 and 3 ranks."""

import numpy as np
import pytest
import torch

from helpers import table_training as tt
from helpers.procs import run_ranks
from raymtl.batch import PAD
from raymtl.embedding.placement import bucket_range, bucket_start
from raymtl.embedding.sharded import ShardedTables
from raymtl.embedding.tables import LocalTables, TableSpec
from raymtl.errors import IdOutOfRange

pytestmark = pytest.mark.timeout(120)

WORLDS = pytest.mark.parametrize("world_size", [1, 2, 3])
# 0: all sharded; 9: tags and city (all narrow rows) replicated; 37: item too; 100: all of them.
REPLICATED = pytest.mark.parametrize("replicate_rows", [0, 9, 37, 100])
OPTIMIZERS = pytest.mark.parametrize(
    "rows",
    [
        {"name": "rowwise_adagrad", "l2": 1e-2, "initial_accumulator": 0.1},
        {"name": "lazy_adam", "l2": 1e-2},
        {"name": "dense_adam", "l2": 1e-2},
    ],
    ids=lambda rows: rows["name"],
)


def whole(states: list[dict[str, np.ndarray]], key: str, replicate_rows: int) -> np.ndarray:
    """A table's rows of all ranks in (bucket, k) order."""
    rows = {spec.name: spec.rows for spec in tt.SPECS}[key.split("/")[0]]
    if rows <= replicate_rows:
        return states[0][key]
    return np.concatenate([state[key] for state in states])


@WORLDS
@REPLICATED
def test_lookups_equal_the_local_ones_exactly(world_size: int, replicate_rows: int) -> None:
    local = LocalTables(tt.SPECS, tt.section(), seed=3)
    steps = [0, 1, 2]
    found = run_ranks(tt.looked_up, world_size, replicate_rows, steps)
    for rank, of_rank in enumerate(found):
        for step, arrays in zip(steps, of_rank, strict=True):
            expected = tt.seen(local, step, rank, world_size)
            for name, array in expected.items():
                np.testing.assert_array_equal(arrays[name], array, f"{name}, step {step}")


@WORLDS
def test_only_rows_that_travel_are_rounded_on_the_wire(world_size: int) -> None:
    local = LocalTables(tt.SPECS, tt.section(), seed=3)
    found = run_ranks(tt.looked_up, world_size, 0, [0], "bf16")
    for rank, [arrays] in enumerate(found):
        items = tt.seen(local, 0, rank, world_size)["recent"].reshape(-1, tt.NUM_VIEWS * tt.WIDTH)
        got = arrays["recent"].reshape(items.shape)
        rounded = torch.from_numpy(items).bfloat16().float().numpy()
        filled = items.any(axis=1)
        exact, coarse = ((got == wanted).all(axis=1)[filled] for wanted in (items, rounded))
        assert (exact | coarse).all()
        assert exact.any()
        assert coarse.any() == (world_size > 1)


@WORLDS
@pytest.mark.parametrize("replicate_rows", [0, 37])
@OPTIMIZERS
def test_training_equals_the_local_store(world_size: int, replicate_rows: int, rows: dict) -> None:
    local = tt.trained("local", rows, 0, 7)
    states = run_ranks(tt.trained, world_size, "sharded", rows, replicate_rows, 7)
    for state in states:
        np.testing.assert_allclose(state["norms"], local["norms"], rtol=1e-5)
    for key in local.keys() - {"norms"}:
        got = whole(states, key, replicate_rows)
        np.testing.assert_allclose(got, local[key], rtol=2e-4, atol=2e-6, err_msg=key)


@pytest.mark.parametrize("world_size", [2, 3])
@OPTIMIZERS
def test_copies_of_replicated_rows_stay_bit_identical(world_size: int, rows: dict) -> None:
    states = run_ranks(tt.trained, world_size, "sharded", rows, 37, 7)
    replicated = [key for key in states[0] if key.split("/")[0] in {"item", "tags", "city"}]
    assert len(replicated) >= 6
    for key in replicated:
        for state in states[1:]:
            assert state[key].tobytes() == states[0][key].tobytes(), key


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("replicate_rows", [0, 37])
def test_rows_in_bf16_on_the_wire_train_nearly_alike_and_copies_stay_equal(
    world_size: int, replicate_rows: int
) -> None:
    rows = {"name": "rowwise_adagrad", "initial_accumulator": 0.1}
    exact = tt.trained("local", rows, 0, 3)
    states = run_ranks(tt.trained, world_size, "sharded", rows, replicate_rows, 3, "bf16")
    for key in exact.keys() - {"norms"}:
        got = whole(states, key, replicate_rows)
        np.testing.assert_allclose(got, exact[key], rtol=0.05, atol=0.02, err_msg=key)
        if got is states[0][key]:
            for state in states[1:]:
                assert state[key].tobytes() == got.tobytes(), key
    assert not np.allclose(whole(states, "user/values", 0), exact["user/values"], rtol=1e-5)


@WORLDS
def test_the_same_training_twice_gives_the_same_bytes(world_size: int) -> None:
    rows = {"name": "lazy_adam", "l2": 1e-2}
    once = run_ranks(tt.trained, world_size, "sharded", rows, 9, 4)
    again = run_ranks(tt.trained, world_size, "sharded", rows, 9, 4)
    for a, b in zip(once, again, strict=True):
        assert {k: v.tobytes() for k, v in a.items()} == {k: v.tobytes() for k, v in b.items()}


@pytest.mark.parametrize("replicate_rows", [0, 5])
def test_two_ranks_update_a_shared_row_once_with_the_summed_gradient(replicate_rows: int) -> None:
    # 5 rows, 2 buckets: rank 0 holds rows 0, 2, 4 and rank 1 holds rows 1, 3.
    # Gradient of row 3: (1, 0) + (2, 0). Mean square 9/2; 1 - 0.5 * 3 / sqrt(4.5) = 0.2928932.
    # Two updates, or one with the mean gradient, would give other sums than 4.5.
    states = run_ranks(tt.update_row_3_once, 2, "rowwise_adagrad", replicate_rows)
    values = whole_of(states, "item/values", replicate_rows)
    sums = whole_of(states, "item/sum_of_squares", replicate_rows)
    expected = np.ones((5, 2))
    expected[4, 0] = 0.2928932  # (bucket, k) order: 0, 2, 4, 1, 3
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    np.testing.assert_allclose(sums, [[0], [0], [0], [0], [4.5]])


def test_lazy_adam_counts_a_shared_row_once() -> None:
    # First step of Adam: 1 - lr * g / |g| where g is not 0; the view counts one update, not two.
    states = run_ranks(tt.update_row_3_once, 2, "lazy_adam", 0)
    values = whole_of(states, "item/values", 0)
    np.testing.assert_allclose(values[4], [0.5, 1.0], rtol=1e-6)
    np.testing.assert_allclose(values[:4], 1.0)
    assert whole_of(states, "item/num_updates", 0).tolist() == [[0], [0], [0], [0], [1]]
    np.testing.assert_allclose(whole_of(states, "item/exp_avg", 0)[4], [0.3, 0.0], rtol=1e-6)


def whole_of(states: list[dict[str, np.ndarray]], key: str, replicate_rows: int) -> np.ndarray:
    if replicate_rows:
        assert states[0][key].tobytes() == states[1][key].tobytes()
        return states[0][key]
    return np.concatenate([state[key] for state in states])


@WORLDS
@pytest.mark.parametrize("replicate_rows", [0, 9])
def test_a_state_comes_back_as_it_was_saved(world_size: int, replicate_rows: int) -> None:
    saved = run_ranks(tt.trained, world_size, "sharded", {"name": "lazy_adam"}, replicate_rows, 3)
    loaded = run_ranks(tt.trained_state_and_reload, world_size, replicate_rows)
    for a, b in zip(saved, loaded, strict=True):
        del a["norms"]
        assert a.keys() == b.keys()
        assert all(np.array_equal(a[key], b[key]) for key in a)


def test_a_state_saved_on_three_ranks_loads_on_one_and_into_a_larger_table() -> None:
    states = run_ranks(tt.trained, 3, "sharded", {"name": "lazy_adam"}, 0, 3)
    saved = {key: np.concatenate([s[key] for s in states]) for key in states[0]}
    local = tt.trained("local", {"name": "lazy_adam"}, 0, 3)
    np.testing.assert_allclose(saved["user/values"], local["user/values"], rtol=1e-5, atol=1e-7)
    grown = [TableSpec(s.name, s.rows + 30, s.views, s.width) for s in tt.SPECS]
    old_rows = {s.name: s.rows for s in tt.SPECS}
    fresh = ShardedTables(grown, tt.section(), seed=3)
    fresh.load_state(lambda key: torch.from_numpy(saved[key]), old_rows)
    same = LocalTables(tt.SPECS, tt.section(), seed=0)
    same.load_state(lambda key: torch.from_numpy(saved[key]))
    batch = tt.random_batch(5)
    a, b = (t.lookup(batch.ids_BC, tt.LAYOUT) for t in (fresh, same))
    views = [tt.assemble(r, batch, tt.LAYOUT, tt.NUM_VIEWS, tt.WIDTH).views_BVFD for r in (a, b)]
    assert torch.equal(*views)
    untouched = LocalTables(grown, tt.section(), seed=3).state()["tags/values"]
    new_rows = [i for i, b in enumerate(np.argsort(np.arange(32) % 8, kind="stable")) if b >= 2]
    assert torch.equal(fresh.state()["tags/values"][new_rows], untouched[new_rows])


def test_a_rank_may_own_no_row_of_a_table() -> None:
    # tags has 2 rows in 8 buckets: rank 2 of 3 owns buckets 5 to 7 and none of them.
    lo, hi = bucket_range(2, 3, 8)
    assert bucket_start(2, 8, hi) - bucket_start(2, 8, lo) == 0
    states = run_ranks(tt.trained, 3, "sharded", {"name": "lazy_adam"}, 0, 1)
    assert [len(state["tags/values"]) for state in states] == [2, 0, 0]


def test_an_id_past_its_table_names_the_feature() -> None:
    tables = ShardedTables(tt.SPECS, tt.section(), seed=0)
    ids = tt.random_batch(0).ids_BC
    ids[3, 1] = 9
    with pytest.raises(IdOutOfRange, match="feature city"):
        tables.lookup(ids, tt.LAYOUT)
    ids[3, 1] = PAD - 1
    with pytest.raises(IdOutOfRange, match="-2; table city has 9 rows"):
        tables.lookup(ids, tt.LAYOUT)
