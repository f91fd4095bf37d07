"""Batches cut from pieces: rows, padding, resuming, world sizes."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from helpers.parquet import SCHEMA, table_of, write_log
from helpers.resume import assert_resumes_exactly, assert_same_batch
from raymtl.batch import Batch
from raymtl.data.lanes import batches
from raymtl.data.log import LogIndex, read_index
from raymtl.data.order import Order
from raymtl.data.stream import Span, Stream
from raymtl.errors import IdOutOfRange, InputError
from raymtl.source import read_batches

NUM_LANES = 7
FILE_STARTS = np.array([0, 70, 70, 75])


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> LogIndex:
    return read_index(write_log(tmp_path_factory.mktemp("log"), [70, 0, 5, 60]), SCHEMA)


def order_of(index: LogIndex, shuffled: bool = True) -> Order:
    return Order(index, 11, NUM_LANES, chunk_rows=16, rows_per_step=4, shuffled=shuffled)


def stream_of(order: Order, *span: int, keys: tuple[str, ...] = ()) -> Stream:
    """The stream of a rank, world size, start step and stop step."""
    return Stream(order.index, SCHEMA, order, Span(*span), keys)


def log_rows(batch: Batch) -> np.ndarray:
    """Which row of the whole log each row is, -1 for padding."""
    return np.where(batch.file_B < 0, -1, FILE_STARTS[batch.file_B] + batch.row_B)


@pytest.mark.parametrize("shuffled", [True, False])
def test_every_value_of_a_row_stays_with_its_row(index: LogIndex, shuffled: bool) -> None:
    order = order_of(index, shuffled)
    keys = ("key", "maybe")
    seen = []
    for batch in read_batches(stream_of(order, 0, 1, 0, order.steps_per_epoch, keys=keys)):
        n = log_rows(batch)
        real = n >= 0
        seen += n[real].tolist()
        assert (batch.ids_BC[:, 0].numpy()[real] == n[real]).all()
        assert batch.keys["key"][real].tolist() == [f"row-{i}" for i in n[real]]
        wanted = [None if i % 10 == 0 else i for i in n[real].tolist()]
        assert batch.keys["maybe"][real].tolist() == wanted
        assert (batch.labels_BT[:, 0].numpy()[real] == n[real] % 2).all()
        assert (batch.mask_BT[:, 1].numpy()[real] == (n[real] % 3 != 0)).all()
        assert (batch.weight_B.numpy()[real] == 1 + n[real] % 4).all()
        observed = batch.mask_BT[:, 1].numpy() & real
        assert (batch.weight_BT[:, 1].numpy() == np.where(observed, 1 + n % 4, 0)).all()
        priced = n[real] % 5 != 0
        assert (batch.numeric_BN.numpy()[real, 0] == np.where(priced, n[real], 0)).all()
    assert sorted(seen) == list(range(135))


def test_padding_has_no_weight_no_ids_and_no_origin(index: LogIndex) -> None:
    order = order_of(index)
    *whole, last = read_batches(stream_of(order, 0, 1, 0, order.steps_per_epoch))
    assert all(b.num_rows == len(b) == 28 for b in whole)
    assert len(last) == 28
    assert last.num_rows == 135 - 28 * 4
    padding = torch.from_numpy(last.file_B < 0)
    assert (last.row_B[last.file_B < 0] == -1).all()
    assert (last.ids_BC[padding] == -1).all()
    assert not last.mask_BT[padding].any()
    assert not last.weight_B[padding].any()
    assert not last.weight_BT[padding].any()
    assert not last.labels_BT[padding].any()
    assert (last.group_B[padding] == -1).all()


@pytest.mark.parametrize("shuffled", [True, False])
@pytest.mark.parametrize("world_size", [2, 3, 5, 7])
def test_the_ranks_batches_are_the_single_ranks_lanes(
    index: LogIndex, world_size: int, shuffled: bool
) -> None:
    order = order_of(index, shuffled)
    stop = order.steps_per_epoch + 2
    single = list(read_batches(stream_of(order, 0, 1, 0, stop)))
    for rank in range(world_size):
        lanes = order.lanes(rank, world_size)
        rows = (lanes[:, None] * 4 + np.arange(4)).ravel()
        mine = read_batches(stream_of(order, rank, world_size, 0, stop))
        for got, whole in zip(mine, single, strict=True):
            arrays = {k: v[rows] for k, v in vars(whole).items() if hasattr(v, "shape")}
            assert_same_batch(got, replace(whole, **arrays))


@pytest.mark.parametrize("shuffled", [True, False])
@pytest.mark.parametrize("world_size", [1, 3])
def test_resuming_at_any_step_yields_the_same_batches(
    index: LogIndex, world_size: int, shuffled: bool
) -> None:
    order = order_of(index, shuffled)
    stop = 2 * order.steps_per_epoch + 1

    def load(start: int) -> Iterator[Batch]:
        fresh = order_of(index, shuffled)
        span = (world_size - 1, world_size, start, stop)
        return read_batches(stream_of(fresh, *span, keys=("key",)))

    assert_resumes_exactly(load, stop)


def test_more_lanes_than_rows_gives_ranks_of_padding_only(tmp_path: Path) -> None:
    index = read_index(write_log(tmp_path, [3]), SCHEMA)
    order = Order(index, 0, 8, 16, 2, shuffled=True)
    rows = [list(read_batches(stream_of(order, r, 8, 0, 2))) for r in range(8)]
    assert order.steps_per_epoch == 1
    assert [b.num_rows for batches in rows for b in batches].count(1) == 6
    assert all(len(b) == 2 for batches in rows for b in batches)


def test_pieces_of_another_start_step_are_caught(index: LogIndex) -> None:
    order = order_of(index)
    stream = stream_of(order, 0, 1, 2, 3)
    pieces = [(p, stream.read(p)) for p in stream.pieces()]
    with pytest.raises(AssertionError, match="a piece of"):
        next(batches(pieces, stream_of(order, 0, 1, 1, 3)))
    assert next(batches(pieces, stream))["step"] == 2


def test_pieces_that_end_early_or_late_are_caught(index: LogIndex) -> None:
    order = order_of(index)
    stream = stream_of(order, 0, 1, 0, order.steps_per_epoch)
    pieces = [(p, stream.read(p)) for p in stream.pieces()]
    with pytest.raises(AssertionError, match="the pieces end before step"):
        list(batches(pieces[:-1], stream))
    with pytest.raises(AssertionError, match="pieces are left"):
        list(batches(pieces, stream_of(order, 0, 1, 0, 1)))


def test_a_bad_value_is_named_with_its_row_in_the_file(tmp_path: Path) -> None:
    table = table_of(0, 50)
    items = table.column("item").to_pylist()
    items[33] = 999_999
    table = table.set_column(0, "item", [items])
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=25)
    index = read_index(str(tmp_path), SCHEMA)
    order = Order(index, 0, 2, 100, 5, shuffled=True)
    with pytest.raises(IdOutOfRange) as caught:
        list(read_batches(stream_of(order, 0, 1, 0, 5)))
    assert "999999" in str(caught.value)
    assert "a.parquet, row group 1" in str(caught.value)


def test_a_bad_label_of_another_ranks_rows_is_not_this_ranks_error(tmp_path: Path) -> None:
    table = table_of(0, 8)
    clicks = table.column("click").to_pylist()
    clicks[1] = 7
    table = table.set_column(table.column_names.index("click"), "click", [clicks])
    pq.write_table(table, tmp_path / "a.parquet")
    index = read_index(str(tmp_path), SCHEMA)
    order = Order(index, 0, 2, 100, 1, shuffled=False)
    assert len(list(read_batches(stream_of(order, 0, 2, 0, 4)))) == 4
    with pytest.raises(InputError, match="row 1 of it"):
        list(read_batches(stream_of(order, 1, 2, 0, 4)))


def test_labels_need_not_be_there_for_predicting(tmp_path: Path) -> None:
    pq.write_table(table_of(0, 9).drop_columns(["click", "like"]), tmp_path / "a.parquet")
    index = read_index(str(tmp_path))
    order = Order(index, 0, 2, 100, 5, shuffled=False)
    stream = replace(stream_of(order, 0, 1, 0, 1, keys=("key",)), labels=False)
    (batch,) = read_batches(stream)
    assert not batch.mask_BT.any()
    assert batch.keys["key"][:9].tolist() == [f"row-{i}" for i in range(9)]
