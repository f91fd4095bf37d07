"""The board between ranks and the driver, in Ray's own store."""

from pathlib import Path

import pytest
import ray
from ray.exceptions import RpcError

from raymtl import progress
from raymtl.progress import Board, shown

VALUES = {"stop_step": 3, "rows_per_step": 8, "loss": float("nan"), "rows_per_s": 1.0}


@ray.remote
def writer(board: Board) -> None:
    for step in range(3):
        board.update(VALUES | {"step": step})
        board.say(f"line {step}")


def test_the_driver_reads_each_line_once_in_order_and_the_last_values(local_ray: Path) -> None:
    board, other = Board(), Board()
    ray.get(writer.remote(board))
    values, lines = board.read()
    assert values["step"] == 2 and values["loss"] != values["loss"]
    assert lines == ["line 0", "line 1", "line 2"]
    assert board.read()[1] == []
    assert other.read() == ({}, [])


def test_all_lines_are_shown_at_the_end_of_the_block_and_nothing_stays(local_ray: Path) -> None:
    board, told = Board(), []
    with shown(board, told.append):
        ray.get(writer.remote(board))
    assert told == ["line 0", "line 1", "line 2"]
    assert progress._store().internal_kv_keys(board._key(""), progress.NAMESPACE, 5) == []


def test_a_store_that_does_not_answer_costs_a_line_and_no_step(
    local_ray: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board, asked = Board(), []

    class Silent:
        def internal_kv_put(self, *arguments: object) -> None:
            asked.append(arguments[-1])
            raise RpcError("Deadline Exceeded")

    with monkeypatch.context() as patched:
        patched.setattr(progress, "_store", Silent)
        board.say("lost")
        board.update(VALUES)
    board.say("kept")
    assert asked == [progress.ANSWER_S] * 2
    assert board.read() == ({}, ["kept"])
