"""Batches through Ray Data are the plain reader's, bit for bit; errors arrive as raised."""

import time
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray

from helpers.parquet import SCHEMA, table_of, write_bad_log, write_log
from helpers.resume import assert_same_batch
from raymtl.batch import Batch, Layout
from raymtl.data import ingest
from raymtl.data.ingest import Share, dataset, iterate, memory_bytes
from raymtl.data.log import LogIndex, read_index
from raymtl.data.order import Order
from raymtl.data.stream import Span, Stream
from raymtl.errors import InputError
from raymtl.schema import BagFeature
from raymtl.source import read_batches

pytestmark = pytest.mark.usefixtures("local_ray")

LAYOUT = Layout.of(SCHEMA)
KEYS = ("key", "maybe")
SHARE = Share(cpus=0.5, object_store_bytes=50_000_000)
NARROW = Share(cpus=1.0, object_store_bytes=30_000_000)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> LogIndex:
    return read_index(write_log(tmp_path_factory.mktemp("log"), [700, 30, 610], 100), SCHEMA)


def order_of(index: LogIndex, shuffled: bool = True) -> Order:
    return Order(index, 3, 6, chunk_rows=64, rows_per_step=20, shuffled=shuffled)


def stream_of(order: Order, *span: int, keys: tuple[str, ...] = ()) -> Stream:
    """The stream of a rank, world size, start step and stop step."""
    return Stream(order.index, SCHEMA, order, Span(*span), keys)


@pytest.mark.parametrize("shuffled", [True, False])
def test_two_ranks_read_in_turn_give_the_plain_readers_batches(
    index: LogIndex, shuffled: bool
) -> None:
    order = order_of(index, shuffled)
    steps = (5, 2 * order.steps_per_epoch + 3)
    share = replace(SHARE, node_id=ray.get_runtime_context().get_node_id())
    streams = [stream_of(order, rank, 2, *steps, keys=KEYS) for rank in range(2)]
    read = [iterate(dataset(stream, share).iterator(), stream) for stream in streams]
    plain = [read_batches(stream) for stream in streams]
    for step in range(*steps):
        for rank in range(2):
            got = next(read[rank])
            assert got["step"] == step
            assert_same_batch(Batch.of(got), next(plain[rank]))
    assert [next(batches, None) for batches in read] == [None, None]


def test_a_stream_that_is_left_early_does_not_hold_up_another(index: LogIndex) -> None:
    order = order_of(index)
    long, short = (
        stream_of(order, 0, 1, 0, 40 * order.steps_per_epoch),
        stream_of(order, 0, 1, 0, 2),
    )
    batches = iterate(dataset(long, Share(cpus=4)).iterator(), long)
    assert next(batches)["step"] == 0
    assert [b["step"] for b in iterate(dataset(short, Share(cpus=1)), short)] == [0, 1]
    assert next(batches)["step"] == 1
    del batches


def test_a_piece_that_ray_cuts_into_blocks_is_put_together_again(
    index: LogIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "_chunk_bytes", lambda *_: 1000)
    stream = stream_of(order_of(index), 0, 1, 0, 4, keys=KEYS)
    made = dataset(stream)
    assert made.materialize().num_blocks() > 2 * len(list(stream.pieces()))
    for got, wanted in zip(iterate(made, stream), read_batches(stream), strict=True):
        assert_same_batch(Batch.of(got), wanted)


def test_a_node_that_is_gone_does_not_stop_the_reading(index: LogIndex) -> None:
    stream = stream_of(order_of(index), 0, 1, 0, 2)
    made = dataset(stream, replace(SHARE, node_id="0" * 56))
    assert [b["step"] for b in iterate(made, stream)] == [0, 1]


def test_a_rank_without_rows_gets_padding(tmp_path: Path) -> None:
    index = read_index(write_log(tmp_path, [2]), SCHEMA)
    order = Order(index, 0, 4, 16, 1, shuffled=False)
    stream = stream_of(order, 3, 4, 0, 3)
    assert [Batch.of(b).num_rows for b in iterate(dataset(stream), stream)] == [0, 0, 0]


def test_a_bad_value_in_a_task_is_the_input_error_it_was(tmp_path: Path) -> None:
    index = read_index(write_bad_log(tmp_path), SCHEMA)
    order = Order(index, 0, 2, 64, 10, shuffled=False)
    stream = stream_of(order, 0, 1, 0, 10)
    with pytest.raises(InputError) as caught:
        list(iterate(dataset(stream), stream))
    assert type(caught.value) is InputError
    assert "a.parquet, row group 3" in caught.value.got


def test_a_file_rewritten_under_a_run_is_named(tmp_path: Path) -> None:
    index = read_index(write_log(tmp_path, [100, 100]), SCHEMA)
    pq.write_table(table_of(0, 100), tmp_path / "part-001.parquet")
    order = Order(index, 0, 2, 64, 10, shuffled=False)
    stream = stream_of(order, 0, 1, 0, 10)
    with pytest.raises(InputError, match="rewritten since it was indexed") as caught:
        list(iterate(dataset(stream), stream))
    assert "part-001.parquet" in caught.value.got


def test_a_log_larger_than_the_object_store_streams_through(tmp_path: Path) -> None:
    stream = long_stream(tmp_path)
    num_rows = stream.span.stop_step * 2000
    store = ray.cluster_resources()["object_store_memory"]
    assert num_rows * ingest.row_bytes(stream.layout) > 1.5 * store
    rows = sum(Batch.of(b).num_rows for b in iterate(dataset(stream, NARROW), stream))
    assert rows == 20_000 * 8


def test_scheduling_rests_while_a_reader_takes_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[float] = []
    after_a_turn = ingest.Paced.on_execution_step

    def counted(self: ingest.Paced, executor: object) -> None:
        turns.append(time.monotonic())
        after_a_turn(self, executor)

    monkeypatch.setattr(ingest.Paced, "on_execution_step", counted)
    stream = long_stream(tmp_path)
    batches = iterate(dataset(stream, NARROW), stream)
    next(batches)
    time.sleep(3)  # until all that may be in flight is
    start = time.monotonic()
    time.sleep(3)
    seen = [t for t in turns if t > start]
    # Some thousand without a rest.
    assert 0 < len(seen) < 2 * 3 / ingest._REST_S[-1]
    next(batches)
    del batches


def long_stream(folder: Path) -> Stream:
    """Eight passes over 20,000 rows of 500 ids; some 400 MB decoded."""
    bag = BagFeature(kind="bag", name="tags", encoding="index", table="item", max_length=500)
    schema = SCHEMA.model_copy(update={"features": [SCHEMA.features[0], bag]})
    index = read_index(write_log(folder, [20_000], 2000), schema)
    order = Order(index, 0, 4, chunk_rows=2000, rows_per_step=500, shuffled=True)
    return Stream(index, schema, order, Span(0, 1, 0, order.steps_per_epoch * 8))


def test_footers_of_many_files_are_read_by_ray_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raymtl.data.log.ThreadPoolExecutor", None)
    url = write_log(tmp_path, [3] * 70)
    index = read_index(url, SCHEMA)
    assert [f.num_rows for f in index.files] == [3] * 70
    path = tmp_path / "part-050.parquet"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(InputError, match="not readable parquet") as caught:
        read_index(url, SCHEMA)
    assert "part-050.parquet" in caught.value.got
    assert type(caught.value) is InputError


def test_memory_is_a_chunk_for_each_open_lane_and_those_ahead(index: LogIndex) -> None:
    chunk = 64 * ingest.row_bytes(LAYOUT)
    assert memory_bytes(order_of(index), LAYOUT, 1, 4) == (6 + 1 + 4) * chunk
    assert memory_bytes(order_of(index), LAYOUT, 4, 4) == (2 + 1 + 4) * chunk
    assert memory_bytes(order_of(index, shuffled=False), LAYOUT, 1, 0) == 2 * chunk
