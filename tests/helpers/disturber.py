"""Signals workers of a run while it trains."""

import os
import re
import signal
import threading
import time

from raymtl.checkpoint import MANIFEST, folder_name
from raymtl.storage import Folder


class Disturber:
    """Shows lines, and signals a worker when a checkpoint is there: one of the plan per start.

    A start that ends by itself (a slow worker taken for a hung one) uses up nothing of the plan.
    """

    def __init__(self, run: str, *plan: tuple[int, int, signal.Signals]):
        """`plan`: in this order (rank, step of the checkpoint waited for, signal)."""
        self.checkpoints, self.plan = Folder(f"{run}/checkpoints"), plan
        self.lines: list[str] = []
        self.begun: set[int] = set()
        """Ranks that said they began, since the last start."""
        self.start = self.signalled = 0

    def __call__(self, line: str) -> None:
        self.lines.append(line)
        found = re.match(r"rank (\d+) of \d+: process (\d+)", line)
        if not found:
            return
        rank, process = int(found[1]), int(found[2])
        if rank in self.begun:
            self.start, self.begun = self.start + 1, set()
        self.begun.add(rank)
        if self.signalled < len(self.plan) and rank == self.plan[self.signalled][0]:
            waiting = (self.start, process)
            threading.Thread(target=self._wait_and_signal, args=waiting, daemon=True).start()

    def _wait_and_signal(self, start: int, process: int) -> None:
        _, step, what = self.plan[self.signalled]
        while self.checkpoints.size(f"{folder_name(step)}/{MANIFEST}") is None:
            time.sleep(0.005)
        try:
            if self.start == start:
                os.kill(process, what)
                self.signalled += 1
        except ProcessLookupError:
            pass  # Its start has ended; the next one's worker is signalled instead.
