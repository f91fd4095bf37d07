"""The next step's batch, read in a thread beside this step, and its rows asked for."""

from collections.abc import Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread

import torch

from raymtl import collectives
from raymtl.batch import Batch
from raymtl.embedding.sharded import Asked
from raymtl.learner import Learner
from raymtl.status import attempt


@dataclass
class Next:
    """What a step is made of; batch or error."""

    batch: Batch | None = None
    error: Exception | None = None
    asked: Asked | None = None
    """Null where another rank has no batch, which its status word will say, and on a GPU."""


class Ahead:
    """Batches one step ahead, as a context. No row is read before the step that moves it is over.

    A thread reads, checks, finds the distinct ids and exchanges them over a process group of its
    own. A trainer that fails does not wait for it: it ends with what was begun or with the process.
    """

    def __init__(self, learner: Learner, batches: Iterator[Batch], timeout_s: float):
        """Collective. Begins nothing yet.

        Args:
            batches: this rank's; read by the thread alone.
            timeout_s: for another rank to take part.
        """
        self._learner, self._batches = learner, batches
        self._group = collectives.second_group(timeout_s)
        self._wanted: SimpleQueue[bool] = SimpleQueue()
        self._read: SimpleQueue[tuple[Next | None, Exception | None]] = SimpleQueue()
        self._thread = Thread(target=self._run, name="ahead", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Ahead":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._wanted.put(False)
        if kind is None:
            self._thread.join()

    def begin(self) -> None:
        """Collective. Begins with the next batch, and returns."""
        self._wanted.put(True)

    def take(self) -> Next:
        """Waits for what was begun. Raises what the exchange raised, as a rank that is gone."""
        found, broken = self._read.get()
        if broken is not None:
            raise broken
        assert found is not None
        return found

    def _run(self) -> None:
        while self._wanted.get():
            self._read.put(attempt(self._next))

    def _next(self) -> Next:
        """Collective over the thread's group."""
        found = Next(*attempt(lambda: self._learner.checked(next(self._batches))))
        failed = torch.tensor([float(found.error is not None)])
        collectives.sum_(failed, self._group)
        if found.batch is not None and not failed and self._learner.device.type == "cpu":
            found.asked = self._learner.ask(found.batch, self._group)
        return found
