"""A rank's batches from another process: the plain reader's, whatever becomes of the process."""

import os
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import ray
from ray.exceptions import RayError

from helpers.parquet import SCHEMA, write_bad_log, write_log
from helpers.resume import assert_same_batch
from raymtl.batch import Batch
from raymtl.data.feed import BATCHES_AHEAD, feed
from raymtl.data.ingest import Share
from raymtl.data.log import LogIndex, read_index
from raymtl.data.order import Order
from raymtl.data.stream import Span, Stream
from raymtl.errors import InputError
from raymtl.source import read_batches

pytestmark = pytest.mark.usefixtures("local_ray")

SHARE = Share(cpus=0.5, object_store_bytes=50_000_000)
EPOCHS = 6


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> LogIndex:
    return read_index(write_log(tmp_path_factory.mktemp("log"), [700, 30, 610], 100), SCHEMA)


def stream_of(index: LogIndex, start: int = 0, epochs: int = EPOCHS) -> Stream:
    """Rank 1 of 2."""
    order = Order(index, 3, 6, chunk_rows=64, rows_per_step=20, shuffled=True)
    span = Span(1, 2, start, epochs * order.steps_per_epoch)
    return Stream(index, SCHEMA, order, span, ("key", "maybe"))


def feeding() -> list[psutil.Process]:
    """The processes that feed a rank of this test."""
    return [
        p for p in psutil.Process().children(recursive=True) if p.name() == "ray::feed of rank 1"
    ]


def test_the_batches_are_the_plain_readers_and_writable(index: LogIndex) -> None:
    stream = stream_of(index, start=5, epochs=2)
    near = Share(0.5, 50_000_000, ray.get_runtime_context().get_node_id())
    for got, wanted in zip(feed(stream, near), read_batches(stream), strict=True):
        assert_same_batch(Batch.of(got), wanted)
        assert got["ids_BC"].flags.writeable and got["keys"]["key"].flags.owndata


def test_another_process_goes_on_where_one_died(index: LogIndex) -> None:
    stream = stream_of(index)
    wanted = read_batches(stream)
    warned: list[str] = []
    batches = feed(stream, SHARE, warn=warned.append)
    killed = []
    for step, got in enumerate(batches):
        assert_same_batch(Batch.of(got), next(wanted))
        if step in (0, 7, 40):
            (process,) = feeding()
            process.kill()
            killed.append(step)
    assert killed == [0, 7, 40] and next(wanted, None) is None
    for step, text in zip(killed, warned, strict=True):
        # Batches that wait in the object store outlive their process.
        from_step = re.search("rank 1 died, another goes on from step (\\d+)", text)
        assert from_step and step < int(from_step[1]) <= step + 1 + BATCHES_AHEAD


def test_a_process_that_dies_before_its_first_batch_ends_the_reading(
    index: LogIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: object) -> Iterator[None]:
        os._exit(1)
        yield

    monkeypatch.setattr("raymtl.data.feed._feeding", dies)
    with pytest.raises(RayError, match="died"):
        next(feed(stream_of(index), SHARE))


def test_a_process_that_hangs_is_waited_for_no_longer_than_said(
    index: LogIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hangs(*_: object) -> Iterator[None]:
        time.sleep(10)
        yield

    monkeypatch.setattr("raymtl.data.feed._feeding", hangs)
    stream = stream_of(index, start=5)
    # Of rank 0: it outlives this test, and `feeding` is not to find it in the next.
    stream = replace(stream, span=replace(stream.span, rank=0))
    with pytest.raises(TimeoutError, match=r"rank 0 gave no batch of step 5 for 1 s.*hang_timeout"):
        next(feed(stream, SHARE, timeout_s=1))


def test_a_feed_that_is_left_early_ends_and_does_not_hold_up_another(index: LogIndex) -> None:
    batches = feed(stream_of(index, epochs=4000), Share(cpus=4))
    first = next(batches)
    (process,) = feeding()
    assert process.nice() == 19 > psutil.Process().nice()
    assert first["step"] == 0 and next(batches)["step"] == 1
    del batches
    process.wait(timeout=30)
    assert sum(1 for _ in feed(stream_of(index, epochs=1), SHARE)) > 0


def test_a_bad_value_is_the_input_error_it_was(tmp_path: Path) -> None:
    index = read_index(write_bad_log(tmp_path), SCHEMA)
    order = Order(index, 0, 2, 64, 10, shuffled=False)
    stream = Stream(index, SCHEMA, order, Span(0, 1, 0, 10))
    with pytest.raises(InputError) as caught:
        list(feed(stream, SHARE))
    assert type(caught.value) is InputError
    assert "a.parquet, row group 3" in caught.value.got
