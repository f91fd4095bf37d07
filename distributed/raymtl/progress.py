"""Progress from ranks to the person at the driver: a board in between, a bar or plain lines."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from uuid import uuid4

from ray.exceptions import RayError
from ray.experimental import internal_kv
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Show = Callable[[str], None]
"""Takes a line for a person."""
POLL_S = 1.0
PLAIN_EVERY = 10
"""Polls between two plain progress lines where there is no terminal to draw a bar on."""
NAMESPACE = b"raymtl"
ANSWER_S = 5
"""For Ray's key-value store."""


class Board:
    """What ranks say to the driver, in Ray's key-value store; a value that crosses processes.

    An actor would be a process more, which wakes 100 times a second beside what trains. Whoever
    writes does not fail where the store does: the line is lost then.
    """

    def __init__(self) -> None:
        self._prefix = f"board/{uuid4().hex}/"

    def update(self, values: dict[str, Any]) -> None:
        """Replaces the progress values, which JSON must be able to hold."""
        self._put("values", json.dumps(values))

    def say(self, line: str) -> None:
        """Adds a line for the person; lines of one process keep their order."""
        self._put(f"said/{time.time_ns():020}-{uuid4().hex}", line)

    def read(self) -> tuple[dict[str, Any], list[str]]:
        """The progress values, and the lines said since the last read.

        Raises:
            RayError: the store does not answer.
        """
        store = _store()
        values = store.internal_kv_get(self._key("values"), NAMESPACE, ANSWER_S)
        keys = sorted(store.internal_kv_keys(self._key("said/"), NAMESPACE, ANSWER_S))
        # All lines are here before one is taken away: an answer that fails to come loses none.
        lines = store.internal_kv_multi_get(keys, NAMESPACE, ANSWER_S) if keys else {}
        for key in keys:
            store.internal_kv_del(key, False, NAMESPACE, ANSWER_S)
        return json.loads(values) if values else {}, [lines[key].decode() for key in keys]

    def clear(self) -> None:
        """Takes away all that is left. Raises RayError."""
        _store().internal_kv_del(self._prefix.encode(), True, NAMESPACE, ANSWER_S)

    def _key(self, name: str) -> bytes:
        return (self._prefix + name).encode()

    def _put(self, name: str, text: str) -> None:
        with suppress(RayError):
            _store().internal_kv_put(self._key(name), text.encode(), True, NAMESPACE, ANSWER_S)


def _store() -> Any:
    """The client of Ray's key-value store, in every process that Ray knows."""
    return internal_kv.internal_kv_get_gcs_client()


@contextmanager
def shown(board: Board, show: Show) -> Iterator[None]:
    """Shows a board until the block ends, and clears it."""
    ended = threading.Event()
    thread = threading.Thread(target=_follow, args=(board, show, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=3 * ANSWER_S)
        with suppress(RayError):
            board.clear()


def _follow(board: Board, show: Show, ended: threading.Event) -> None:
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


def _poll(board: Board, show: Show) -> dict[str, Any]:
    try:
        values, said = board.read()
    except RayError:
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
