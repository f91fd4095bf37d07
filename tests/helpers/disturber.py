"""Signals workers of a run while it trains."""

import os
import re
import signal
import threading
import time

from raymtl.checkpoint import MANIFEST, folder_name
from raymtl.storage import Folder


class Disturber:
    """Shows lines, and signals a worker of each start of the run when a checkpoint is there."""

    def __init__(self, run: str, *plan: tuple[int, int, signal.Signals]):
        """`plan`: for each start (rank, step of the checkpoint waited for, signal)."""
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
        rank = int(found[1])
        if rank in self.begun:
            self.start, self.begun = self.start + 1, set()
        self.begun.add(rank)
        wanted, step, what = self.plan[min(self.start, len(self.plan) - 1)]
        if self.start < len(self.plan) and rank == wanted:
            waiting = (int(found[2]), step, what)
            threading.Thread(target=self._wait_and_signal, args=waiting).start()

    def _wait_and_signal(self, process: int, step: int, what: signal.Signals) -> None:
        while self.checkpoints.size(f"{folder_name(step)}/{MANIFEST}") is None:
            time.sleep(0.005)
        os.kill(process, what)
        self.signalled += 1
