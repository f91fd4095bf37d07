"""A log decoded once gives the batches that reading it from disk gives."""

from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.logs import small_log
from helpers.training import bytes_of, train_config
from raymtl import alone
from raymtl.batch import Batch
from raymtl.data.decoded import DecodedLog, decode_part, parts
from raymtl.data.stream import Span, Stream
from raymtl.preflight import check
from raymtl.source import order_of, read_batches


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("log")
    small_log(folder, rows=6000)
    return str(folder)


def decoded(config, which: str = "train", part_rows: int = 1000) -> tuple[DecodedLog, list[int]]:
    """A log's parts in memory, and the numbers of those that were asked for."""
    job = check(config)
    index = job.train if which == "train" else job.valid
    assert index is not None
    cut = parts(index, part_rows)
    held = [decode_part(index, job.schema, part) for part in cut]
    asked: list[int] = []

    def arrays(number: int) -> dict[str, np.ndarray]:
        asked.append(number)
        return held[number]

    return DecodedLog(index.digest, job.schema, cut, arrays), asked


def assert_same(ours: Iterator[Batch], theirs: Iterator[Batch]) -> None:
    for a, b in zip_longest(ours, theirs):
        assert vars(a).keys() == vars(b).keys()
        for name, value in vars(a).items():
            other = getattr(b, name)
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(value, other, rtol=0, atol=0)
            elif isinstance(value, np.ndarray):
                np.testing.assert_array_equal(value, other)
            else:
                assert value == other


@pytest.mark.parametrize("order", ["shuffled", "chronological"])
@pytest.mark.parametrize("chunk_rows", [100, 256, 5000])
def test_the_batches_are_those_from_disk(log: str, order: str, chunk_rows: int) -> None:
    config = train_config(log, f"data.order={order}", f"data.chunk_rows={chunk_rows}")
    held, asked = decoded(config)
    job = check(config)
    shuffled = order == "shuffled"
    for rank, world_size in ((0, 1), (1, 3)):
        made = order_of(config, job.train, shuffled=shuffled)
        span = Span(rank, world_size, 2, 2 * made.steps_per_epoch + 1)
        stream = Stream(job.train, job.schema, made, span)
        assert_same(held.read(stream), read_batches(stream))
    assert set(asked) == set(range(len(held.parts)))


@given(part_rows=st.integers(1, 9000))
def test_parts_cover_every_row_group_once_and_keep_to_their_size(log: str, part_rows: int) -> None:
    index = check(train_config(log)).train
    cut = parts(index, part_rows)
    groups = [(part.file, group) for part in cut for group in part.row_groups]
    assert groups == [
        (n, group) for n, f in enumerate(index.files) for group in range(len(f.row_group_rows))
    ]
    for part in cut:
        rows = [index.files[part.file].row_group_rows[g] for g in part.row_groups]
        assert part.num_rows == sum(rows)
        assert part.num_rows <= part_rows or len(rows) == 1


def test_a_stream_of_another_log_or_with_keys_is_not_held(log: str) -> None:
    config = train_config(log)
    held, _ = decoded(config)
    job = check(config)
    assert job.valid is not None
    order, span = order_of(config, job.train), Span(0, 1, 0, 1)
    assert held.holds(Stream(job.train, job.schema, order, span))
    assert not held.holds(Stream(job.train, job.schema, order, span, keys=("user",)))
    assert not held.holds(Stream(job.valid, job.schema, order_of(config, job.valid), span))


def test_a_run_on_decoded_rows_is_the_run_from_disk(log: str) -> None:
    held = [decoded(train_config(log), which)[0] for which in ("train", "valid")]

    def read(stream: Stream) -> Iterator[Batch]:
        return next(log for log in held if log.holds(stream)).read(stream)

    ours = alone.train(train_config(log, "name=held", "train.max_steps=14"), read=read)
    theirs = alone.train(train_config(log, "name=disk", "train.max_steps=14"))
    ours_bytes, theirs_bytes = bytes_of(ours["run"]), bytes_of(theirs["run"])
    assert ours_bytes["dense.safetensors"] == theirs_bytes["dense.safetensors"]
    assert ours["state"]["best_metrics"] == theirs["state"]["best_metrics"]


def test_what_the_line_callback_raises_ends_the_run_and_it_goes_on_from_there(log: str) -> None:
    class Enough(Exception):
        pass

    def stop(values: dict) -> None:
        if "valid/auc" in values:
            raise Enough

    config = train_config(log, "name=stopped", "validation.every_steps=5")
    with pytest.raises(Enough):
        alone.train(config, line=stop)
    assert not Path(log, "runs", "stopped", "result.json").exists()
    result = alone.train(config, resume=True)
    whole = alone.train(train_config(log, "name=whole", "validation.every_steps=5"))
    assert result["state"] == whole["state"]
