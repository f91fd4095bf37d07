"""The order of a log's rows, against what a person can count."""

import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from raymtl.data.log import LogFile, LogIndex
from raymtl.data.order import Order, permutation

Rows = list[tuple[int, int]]


def index_of(*files: tuple[int, ...]) -> LogIndex:
    """An index of files with these row groups, which lie nowhere."""
    return LogIndex(
        "nowhere",
        tuple(
            LogFile(f"{i}.parquet", sum(rows), tuple(rows), 1, str(i))
            for i, rows in enumerate(files)
        ),
    )


def rank_rows(order: Order, rank: int, world_size: int, start: int, stop: int) -> list[list[Rows]]:
    """For each step, the rows of each of the rank's lines, cut from the pieces alone."""
    pieces = list(order.pieces(rank, world_size, start, stop))
    lines = order.lines(rank, world_size).tolist()
    waiting: dict[int, Rows] = {line: [] for line in lines}
    for piece in pieces:
        rows = (piece.chunk.file_row + order.rows(piece)).tolist()
        assert len(rows) == piece.num_rows
        waiting[piece.lane] += [(piece.chunk.file, row) for row in rows]
    steps = []
    for step in range(start, stop):
        counts = order.row_counts(rank, world_size, step).tolist()
        steps.append([waiting[line][:n] for line, n in zip(lines, counts, strict=True)])
        for line, n in zip(lines, counts, strict=True):
            assert len(waiting[line]) >= n
            waiting[line] = waiting[line][n:]
    assert not any(waiting.values())
    return steps


def global_batches(order: Order, world_size: int, start: int, stop: int) -> list[list[Rows]]:
    """For each step, the rows of each lane 0 .. L-1 whatever the world size."""
    k, steps = (
        order.rows_per_step,
        [[[] for _ in range(order.num_lanes)] for _ in range(start, stop)],
    )
    for rank in range(world_size):
        lanes = order.lanes(rank, world_size).tolist()
        for step, lines in zip(steps, rank_rows(order, rank, world_size, start, stop), strict=True):
            if not order.shuffled:
                lines = [lines[0][i * k : (i + 1) * k] for i in range(len(lanes))]
            for lane, rows in zip(lanes, lines, strict=True):
                step[lane] = rows
    return steps


logs = st.lists(
    st.lists(st.integers(0, 40), min_size=1, max_size=4).map(tuple), min_size=1, max_size=4
).filter(lambda files: sum(map(sum, files)) > 0)


@st.composite
def orders(draw: st.DrawFn) -> Order:
    return Order(
        index_of(*draw(logs)),
        seed=draw(st.integers(0, 2**70)),
        num_lanes=draw(st.integers(1, 9)),
        chunk_rows=draw(st.integers(1, 15)),
        rows_per_step=draw(st.integers(1, 5)),
        shuffled=draw(st.booleans()),
    )


@given(orders(), st.data())
def test_a_step_holds_the_same_rows_at_any_world_size(order: Order, data: st.DataObject) -> None:
    world_size = data.draw(st.integers(1, order.num_lanes))
    stop = 2 * order.steps_per_epoch
    assert global_batches(order, world_size, 0, stop) == global_batches(order, 1, 0, stop)


@pytest.mark.parametrize("shuffled", [True, False])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 32])
def test_32_lanes_give_the_same_global_batch(world_size: int, shuffled: bool) -> None:
    order = Order(index_of((300, 41), (7,), (500,)), 5, 32, 64, 3, shuffled)
    expected = [[order.row_ranges(lane, step) for lane in range(32)] for step in range(9)]
    assert global_batches(order, world_size, 0, 9) == expected
    assert order.steps_per_epoch == 9


@given(orders(), st.integers(0, 3))
def test_every_row_is_read_exactly_once_an_epoch(order: Order, epoch: int) -> None:
    steps = order.steps_per_epoch
    lanes = [
        row
        for step in global_batches(order, 1, epoch * steps, (epoch + 1) * steps)
        for lane in step
        for row in lane
    ]
    everything = {(i, r) for i, f in enumerate(order.index.files) for r in range(f.num_rows)}
    assert Counter(lanes) == Counter(everything)


@settings(max_examples=20)
@given(orders(), st.data())
def test_resuming_at_any_step_with_any_world_size_yields_the_rest(
    order: Order, data: st.DataObject
) -> None:
    assume(order.steps_per_epoch <= 20)
    stop = 2 * order.steps_per_epoch + 1
    whole = global_batches(order, 1, 0, stop)
    world_size = data.draw(st.integers(1, order.num_lanes))
    for start in range(stop):
        assert global_batches(order, world_size, start, stop) == whole[start:]


@given(orders())
def test_lanes_differ_by_at_most_one_row_when_shuffled(order: Order) -> None:
    order = Order(order.index, 1, order.num_lanes, 7, 2, shuffled=True)
    rows = [sum(p.num_rows for p in order.lane_pieces(0, lane)) for lane in range(order.num_lanes)]
    assert max(rows) - min(rows) <= 1
    assert sum(rows) == order.index.num_rows


@given(orders())
def test_pieces_come_in_the_order_they_are_first_needed(order: Order) -> None:
    for rank in range(min(2, order.num_lanes)):
        per_step = order.batch_rows(rank, 2 if order.num_lanes > 1 else 1)
        per_step //= len(order.lines(rank, 2 if order.num_lanes > 1 else 1))
        pieces = list(order.pieces(rank, 2 if order.num_lanes > 1 else 1, 0))
        needed = [(p.epoch, p.offset // per_step) for p in pieces]
        assert needed == sorted(needed)
        numbers = [p.number for p in pieces]
        assert numbers == sorted(set(numbers))


def test_chronological_order_is_the_logs_own() -> None:
    order = Order(
        index_of((5, 4), (6,)), 9, num_lanes=2, chunk_rows=3, rows_per_step=2, shuffled=False
    )
    first, second = [(0, 0), (0, 1)], [(0, 2), (0, 3)]
    assert [order.row_ranges(lane, 0) for lane in (0, 1)] == [first, second]
    assert [order.row_ranges(lane, 2) for lane in (0, 1)] == [[(0, 8), (1, 0)], [(1, 1), (1, 2)]]
    assert [order.row_ranges(lane, 3) for lane in (0, 1)] == [[(1, 3), (1, 4)], [(1, 5)]]
    assert order.steps_per_epoch == 4


def test_a_rank_reads_each_chunk_once_chronologically() -> None:
    order = Order(index_of((100,), (60,)), 0, 8, 10, 1, shuffled=False)
    for rank in range(3):
        chunks = [p.chunk for p in order.pieces(rank, 3, 0)]
        assert len(chunks) == len(set(chunks)) == 16


def test_shuffling_splits_at_most_one_chunk_for_each_border_between_lanes() -> None:
    order = Order(index_of((64,) * 20), 3, 8, 64, 4, shuffled=True)
    pieces = list(order.pieces(0, 1, 0))
    assert len(pieces) <= 20 + 7


def test_epochs_and_seeds_give_different_orders_and_a_seed_gives_one() -> None:
    index = index_of((400,), (400,))

    def rows(seed: int, epoch: int) -> list[list[Rows]]:
        order = Order(index, seed, 4, 50, 10, shuffled=True)
        return global_batches(
            order, 1, epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch
        )

    assert rows(1, 0) == rows(1, 0)
    assert rows(1, 0) != rows(1, 1)
    assert rows(1, 0) != rows(2, 0)


def test_max_rows_keeps_the_heads_of_the_lanes() -> None:
    index = index_of((1000,))
    whole, part = (Order(index, 1, 4, 30, 5, True, max_rows=m) for m in (None, 60))
    assert part.steps_per_epoch == 3
    assert global_batches(part, 2, 0, 3) == global_batches(whole, 1, 0, 3)
    early = Order(index, 1, 4, 30, 5, False, max_rows=33)
    read = [row for step in global_batches(early, 3, 0, 2) for lane in step for row in lane]
    assert read == [(0, r) for r in range(33)]
    assert early.steps_per_epoch == 2


def test_the_order_of_a_seed_is_pinned() -> None:
    assert permutation(10, 7).tolist() == PINNED_PERMUTATION
    order = Order(index_of((4, 4), (4,)), 2023, 2, 4, 3, shuffled=True)
    assert order.row_ranges(0, 0) + order.row_ranges(1, 1) == PINNED_ROWS


PINNED_PERMUTATION = [2, 0, 9, 6, 8, 1, 5, 7, 4, 3]
PINNED_ROWS = [(0, 4), (0, 7), (0, 5), (1, 0), (1, 1), (1, 3)]


def test_a_permutation_is_fair() -> None:
    firsts = Counter(int(permutation(4, seed)[0]) for seed in range(4000))
    assert set(firsts) == {0, 1, 2, 3}
    assert max(abs(n - 1000) for n in firsts.values()) < 150


def test_an_epoch_of_20000_chunks_and_1024_lanes_is_dealt_within_a_second_of_cpu() -> None:
    order = Order(index_of(*[(16384,) * 20] * 1000), 0, 1024, 16384, 4, shuffled=True)
    began = time.process_time()
    pieces = list(order.pieces(0, 1, 0))
    again = next(iter(order.pieces(0, 1, order.steps_per_epoch // 2)))
    assert time.process_time() - began < 1
    assert 20_000 <= len(pieces) <= 20_000 + 1023
    assert again.epoch == 0
    assert sum(p.num_rows for p in pieces) == 20_000 * 16384 == order.num_rows


def test_row_counts_add_up_to_the_log_and_only_the_last_step_is_padded() -> None:
    order = Order(index_of((103,)), 0, 5, 10, 3, shuffled=True)
    counts = np.array([order.row_counts(0, 1, s) for s in range(order.steps_per_epoch)])
    assert counts.sum() == 103
    assert (counts[:-1] == 3).all()
    assert order.steps_per_epoch == 7
