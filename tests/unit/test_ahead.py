"""Batches one step ahead: what is read when, errors as values, and leaving while a read hangs."""

from collections.abc import Iterator
from threading import Event
from typing import Any

import pytest
import torch

from raymtl.ahead import Ahead
from raymtl.errors import InputError


class Named(str):
    """Stands for a batch: a name, and as many rows as letters."""

    @property
    def num_rows(self) -> int:
        return len(self)

    @property
    def skipped(self) -> dict[int, int]:
        return {0: 2}


class Recorder:
    """Stands for a learner: passes batches and remembers which rows were asked for."""

    device, num_sums = torch.device("cpu"), 1

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def checked(self, batch: str) -> Named:
        if batch == "bad":
            raise InputError("an id is too large", "9", "less than 9", "look")
        return Named(batch)

    def local_sums(self, batch: str) -> torch.Tensor:
        return torch.tensor([len(batch) / 2], dtype=torch.float64)

    def ask(self, batch: Any, group: None) -> str:
        self.asked.append(batch)
        return f"rows of {batch}"


def ahead_of(batches: Iterator[Any]) -> tuple[Any, Recorder]:
    learner: Any = Recorder()
    return Ahead(learner, batches, 10.0), learner


def test_a_batch_is_read_and_asked_for_when_begun_and_not_before() -> None:
    read: list[str] = []
    ahead, learner = ahead_of(read.append(name) or name for name in "abc")
    with ahead:
        assert read == []
        ahead.begin()
        first = ahead.take()
        assert (first.batch, first.asked, read, learner.asked) == ("a", "rows of a", ["a"], ["a"])
        assert (first.rows, first.skipped, first.sums.tolist()) == (1, 2, [0.5])
        ahead.begin()
    assert read == ["a", "b"], "what was begun is ended before the block is left"


def test_a_bad_batch_is_an_error_and_its_rows_are_not_asked_for() -> None:
    ahead, learner = ahead_of(iter(["bad", "b"]))
    with ahead:
        ahead.begin()
        with pytest.raises(InputError, match="too large"):
            ahead.take()
        assert learner.asked == []


def test_an_exception_leaves_a_read_that_hangs_behind() -> None:
    hang, begun = Event(), Event()

    def batches() -> Iterator[str]:
        begun.set()
        hang.wait()
        yield "late"

    ahead, _ = ahead_of(batches())
    with pytest.raises(ZeroDivisionError), ahead:
        ahead.begin()
        begun.wait()
        _ = 1 / 0
    assert not hang.is_set()
    hang.set()
