"""Progress from rank 0 to the person at the driver: an actor in between, a bar or plain lines."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Show = Callable[[str], None]
"""Takes a line for a person."""
POLL_S = 0.5
PLAIN_EVERY = 20
"""Polls between two plain progress lines where there is no terminal to draw a bar on."""


@ray.remote(num_cpus=0)
class Board:
    """Holds what rank 0 said last; rank 0 writes and does not wait."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self._said: list[str] = []

    def update(self, values: dict[str, Any]) -> None:
        """Replaces the progress values."""
        self._values = values

    def say(self, line: str) -> None:
        """Adds a line for the person."""
        self._said.append(line)

    def read(self) -> tuple[dict[str, Any], list[str]]:
        """The progress values, and the lines said since the last read."""
        said, self._said = self._said, []
        return self._values, said


def new_board() -> Any:
    """A board on this process's own node, for another one may go while training goes on."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Board.options(scheduling_strategy=here).remote()


@contextmanager
def shown(board: Any, show: Show) -> Iterator[None]:
    """Shows a board until the block ends."""
    ended = threading.Event()
    thread = threading.Thread(target=_follow, args=(board, show, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=10)


def _follow(board: Any, show: Show, ended: threading.Event) -> None:
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("step"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}  {task.fields[rows_per_s]:,.0f} rows/s  ETA"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    polls, shown_last = 0, ""
    with bar:
        task = bar.add_task("train", total=None, loss=float("nan"), rows_per_s=0.0)
        while not ended.wait(POLL_S) or polls == 0:
            values = _poll(board, show)
            polls += 1
            if values:
                bar.update(
                    task,
                    completed=values["step"],
                    total=values["stop_step"],
                    loss=values["loss"],
                    rows_per_s=values["rows_per_s"],
                )
                line = _plain(values)
                if not console.is_terminal and polls % PLAIN_EVERY == 0 and line != shown_last:
                    show(line)
                    shown_last = line
        _poll(board, show)


def _poll(board: Any, show: Show) -> dict[str, Any]:
    try:
        values, said = ray.get(board.read.remote(), timeout=5)
    except (RayError, TimeoutError):
        return {}
    for line in said:
        show(line)
    return values


def _plain(values: dict[str, Any]) -> str:
    steps_left = values["stop_step"] - values["step"]
    left_s = steps_left * values["rows_per_step"] / max(1.0, values["rows_per_s"])
    return (
        f"step {values['step']} of {values['stop_step']}, loss {values['loss']:.4f}, "
        f"{values['rows_per_s']:,.0f} rows/s, ETA {left_s:.0f} s"
    )
