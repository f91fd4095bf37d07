"""Where rows lie, how they start, and the local lookup."""

import hashlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import table_training as tt
from raymtl.batch import PAD, InputShape, Layout
from raymtl.config import EmbeddingSection
from raymtl.embedding.initial import fill_initial, initial_rows
from raymtl.embedding.placement import (
    bucket_and_k,
    bucket_range,
    bucket_start,
    position,
    row_at,
    rows_in_range,
)
from raymtl.embedding.plan import GroupPlan
from raymtl.embedding.sharded import ShardedTables
from raymtl.embedding.tables import LocalTables, TableSpec, check_ids, table_specs
from raymtl.errors import IdOutOfRange

SIZES = st.integers(1, 300), st.integers(1, 40)
"""Rows of a table and buckets: many a table has fewer rows than buckets."""


def test_seven_rows_in_three_buckets_lie_by_bucket_then_by_k() -> None:
    assert row_at(7, 3, torch.arange(7)).tolist() == [0, 3, 6, 1, 4, 2, 5]
    assert position(7, 3, torch.arange(7)).tolist() == [0, 3, 5, 1, 4, 6, 2]
    assert [bucket_start(7, 3, b) for b in range(4)] == [0, 3, 5, 7]
    assert rows_in_range(7, 3, 1, 3) == 4


def test_two_rows_in_five_buckets_leave_three_buckets_empty() -> None:
    assert [rows_in_range(2, 5, b, b + 1) for b in range(5)] == [1, 1, 0, 0, 0]
    assert row_at(2, 5, torch.arange(2)).tolist() == [0, 1]


@given(*SIZES)
def test_position_and_row_are_inverse_and_in_bucket_order(rows: int, num_buckets: int) -> None:
    row_n = row_at(rows, num_buckets, torch.arange(rows))
    assert sorted(row_n.tolist()) == list(range(rows))
    assert row_n.tolist() == sorted(range(rows), key=lambda r: (r % num_buckets, r))
    assert position(rows, num_buckets, row_n).tolist() == list(range(rows))


@given(st.integers(1, 40), st.integers(1, 50))
def test_ranks_share_all_buckets_in_order(num_buckets: int, world_size: int) -> None:
    ranges = [bucket_range(r, world_size, num_buckets) for r in range(world_size)]
    assert [b for lo, hi in ranges for b in range(lo, hi)] == list(range(num_buckets))


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=4),
    st.integers(1, 12),
    st.sampled_from([(r, w) for w in range(1, 5) for r in range(w)]),
    st.integers(0, 60),
)
def test_keys_are_a_bijection_sorted_by_owner_and_the_rank_itself_comes_last(
    table_rows: list[int], num_buckets: int, rank_of: tuple[int, int], replicate_rows: int
) -> None:
    specs = [TableSpec(f"t{i}", rows, 1, 4) for i, rows in enumerate(table_rows)]
    rank, world_size = rank_of
    plan = GroupPlan(specs, num_buckets, replicate_rows, rank, world_size)
    assert plan.owners == sorted(range(world_size), key=lambda r: (r == rank, r))
    assert sum(plan.num_sharded) + sum(s.rows for s in plan.replicated) == sum(table_rows)
    seen = []
    for spec in specs:
        number = torch.tensor([plan.number[spec.name]])
        keys = plan.keys(torch.arange(spec.rows).unsqueeze(1), plan.terms(number)).flatten()
        seen += keys.tolist()
        for row, key in enumerate(keys):
            if spec in plan.replicated:
                places = [plan.places(r)[spec.name] for r in range(world_size)]
                at = [int(plan.replicated_index(key, r)) for r in range(world_size)]
                assert at == [
                    p.start + int(position(spec.rows, num_buckets, torch.tensor(row)))
                    for p in places
                ]
                continue
            owner = next(
                r
                for r in range(world_size)
                if row % num_buckets in range(*bucket_range(r, world_size, num_buckets))
            )
            place = plan.places(owner)[spec.name]
            first = plan.first_key[owner]
            assert first <= key < first + plan.num_sharded[owner]
            first = bucket_start(spec.rows, num_buckets, place.lo)
            expected = (
                place.start + int(position(spec.rows, num_buckets, torch.tensor(row))) - first
            )
            assert int(plan.local_index(key, owner)) == expected < place.stop
    assert sorted(seen) == list(range(sum(table_rows)))
    starts = [plan.first_key[owner] for owner in plan.owners]
    assert starts == sorted(starts)
    keys = torch.arange(plan.pad_key)
    assert plan.cuts(keys) == [*starts, sum(plan.num_sharded)]


def test_padding_has_a_key_of_its_own() -> None:
    plan = GroupPlan([TableSpec("t", 5, 1, 4)], 3, 0, 1, 2)
    assert (
        plan.keys(torch.tensor([[PAD]]), plan.terms(torch.tensor([0]))).item() == plan.pad_key == 5
    )


def test_initial_values_are_normal_of_the_wanted_width() -> None:
    values = initial_rows("t", np.arange(50_000), (1, 4), seed=1, std=0.5).astype(np.float64)
    assert values.shape == (50_000, 4)
    assert abs(values.mean()) < 0.005
    assert abs(values.std() - 0.5) < 0.005
    inside = (np.abs(values) < 0.5).mean()
    assert abs(inside - math.erf(1 / math.sqrt(2))) < 0.005
    correlations = np.corrcoef(values.T) - np.eye(4)
    assert np.abs(correlations).max() < 0.02


def mix(x: int) -> int:
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def slow_initial(name: str, row: int, view: int, d: int, num_views: int, seed: int) -> float:
    """One value by Python integers; view 0 of the counter is the last view of the row."""
    golden = 0x9E3779B97F4A7C15
    key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
    of_row = mix((mix(mix(key) ^ seed) + golden * (row + 1)) % 2**64)
    counter = ((view + 1) % num_views) * 2**32 + d // 2
    bits = mix((of_row + golden * (counter + 1)) % 2**64)
    radius = math.sqrt(-2 * math.log(((bits >> 32) + 0.5) / 2**32))
    angle = 2 * math.pi * (bits % 2**32) / 2**32
    return radius * (math.sin(angle) if d % 2 else math.cos(angle))


def test_initial_values_are_those_of_a_slow_reference_and_the_pinned_ones() -> None:
    rows = [0, 123_456_789]
    got = initial_rows("item", np.array(rows), (2, 3), seed=2023, std=1.0)
    slow = [
        [slow_initial("item", r, v, d, 2, 2023) for v in (0, 1) for d in range(3)] for r in rows
    ]
    np.testing.assert_allclose(got, slow, rtol=1e-6)
    pinned = [1.22455, -0.6930694, 0.8727505, 0.4541896]
    np.testing.assert_allclose(got[:, :2].flatten(), pinned, rtol=1e-5)


def test_initial_values_differ_by_seed_table_and_row() -> None:
    a = initial_rows("t", np.array([1, 2]), (1, 4), seed=1, std=1.0)
    assert not np.isin(a[0], a[1]).any()
    assert not np.isin(a, initial_rows("u", np.array([1, 2]), (1, 4), seed=1, std=1.0)).any()
    assert not np.isin(a, initial_rows("t", np.array([1, 2]), (1, 4), seed=2, std=1.0)).any()


def test_a_new_task_leaves_the_other_views_initial_values_alone() -> None:
    rows = np.arange(9)
    one, two, three = (initial_rows("t", rows, (v, 5), 1, 1.0).reshape(9, v, 5) for v in (1, 2, 3))
    np.testing.assert_array_equal(two[:, 0], three[:, 0])
    np.testing.assert_array_equal(two[:, -1], three[:, -1])
    np.testing.assert_array_equal(one[:, -1], three[:, -1])


@pytest.mark.parametrize("chunk_values", [1, 37, 1 << 16])
def test_initial_values_depend_on_neither_chunks_nor_buckets_nor_rows(
    chunk_values: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raymtl.embedding.initial._CHUNK_VALUES", chunk_values)
    expected = initial_rows("t", np.arange(50), (3, 4), seed=1, std=1.0)
    for rows, num_buckets in ((50, 8), (80, 7)):
        spec = TableSpec("t", rows, 3, 4)
        out = torch.empty(rows, 12)
        fill_initial(out, spec, 0, num_buckets, seed=1, std=1.0)
        place_n = position(rows, num_buckets, torch.arange(50))
        np.testing.assert_array_equal(out[place_n].numpy(), expected)


def test_local_and_sharded_tables_start_alike() -> None:
    local = LocalTables(tt.SPECS, tt.section(), seed=3).state()
    sharded = ShardedTables(tt.SPECS, tt.section(9), seed=3)
    assert sharded.replicated_tables == ("city", "tags")
    for key, tensor in sharded.state().items():
        assert torch.equal(tensor, local[key]), key


def test_tables_that_are_not_task_specific_hold_one_view() -> None:
    shape = InputShape.of(tt.LAYOUT, 4, task_specific=True)
    sizes = {s.name: (s.rows, s.width_floats) for s in table_specs(tt.SCHEMA, shape)}
    assert sizes == {"user": (61, 12), "city": (9, 4), "item": (37, 12), "tags": (2, 12)}
    single = table_specs(tt.SCHEMA, InputShape.of(tt.LAYOUT, 4, task_specific=False))
    assert {s.width_floats for s in single} == {4}


def test_a_lookup_fetches_each_row_once_and_zeros_for_padding() -> None:
    specs = [TableSpec("item", 5, 1, 2)]
    layout = Layout.of(tt.ONE_ITEM)
    for make in (LocalTables, ShardedTables):
        tables = make(specs, EmbeddingSection(width=2, num_buckets=2, init_std=1.0), seed=0)
        rows = tables.lookup(torch.tensor([[3], [PAD], [3], [1]], dtype=torch.int32), layout)
        (group,) = rows.groups
        assert group.num_rows == 2
        row = initial_rows("item", np.array([1, 3]), (1, 2), seed=0, std=1.0)
        expected = np.stack([row[1], [0, 0], row[1], row[0]])
        got = group.values[group.place_BC[:, 0]].numpy()
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("make", [LocalTables, ShardedTables])
def test_rows_without_any_gradient_appear_with_zeros(make: type) -> None:
    tables = make(tt.SPECS, tt.section(), seed=0)
    rows = tables.lookup(tt.random_batch(0).ids_BC, tt.LAYOUT)
    parts = tables.collect(rows)
    assert sum(len(p.index_n) for p in parts) == sum(g.num_rows for g in rows.groups) > 0
    assert all((p.grads == 0).all() for p in parts)


@pytest.mark.parametrize("make", [LocalTables, ShardedTables])
def test_an_empty_batch_and_one_of_padding_only_look_up_nothing(make: type) -> None:
    tables = make(tt.SPECS, tt.section(), seed=0)
    for ids_BC in (
        torch.empty(0, tt.LAYOUT.num_id_columns, dtype=torch.int64),
        torch.full((3, tt.LAYOUT.num_id_columns), PAD),
    ):
        rows = tables.lookup(ids_BC, tt.LAYOUT)
        assert [g.num_rows for g in rows.groups] == [0] * len(rows.groups)
        assert all(len(p.grads) == 0 for p in tables.collect(rows))


def test_check_ids_names_the_feature_the_id_and_the_table() -> None:
    ids_BC = torch.zeros(4, tt.LAYOUT.num_id_columns, dtype=torch.int64)
    check_ids(ids_BC, tt.LAYOUT, tt.SPECS)
    ids_BC[2, 4] = 37
    with pytest.raises(IdOutOfRange) as caught:
        check_ids(ids_BC, tt.LAYOUT, tt.SPECS)
    assert "feature liked" in caught.value.what
    assert caught.value.got == "37; table item has 37 rows"
    assert caught.value.wanted == "0 to 36, or -1 for none"


@pytest.mark.parametrize("num_buckets", [1, 2, 3, 16, 1000, 1024])
def test_bucket_and_k_are_remainder_and_quotient(num_buckets: int) -> None:
    rows = torch.tensor([0, 1, 2, 15, 16, 17, 999, 1000, 1024, 2**31 - 2, 2**40])
    bucket, k = bucket_and_k(rows, num_buckets)
    assert bucket.tolist() == [int(row) % num_buckets for row in rows]
    assert k.tolist() == [int(row) // num_buckets for row in rows]
