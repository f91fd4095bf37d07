"""The next step's batch, read and agreed on beside this step, and its rows asked for."""

from collections.abc import Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread

import torch
from torch import Tensor

from raymtl import collectives
from raymtl.batch import Batch
from raymtl.embedding.sharded import Asked
from raymtl.learner import Learner
from raymtl.status import agree, attempt


@dataclass
class Next:
    """What a step is made of."""

    batch: Batch
    """This rank's."""
    rows: int
    """Impressions of all ranks' batches."""
    skipped: int
    """Impressions that could not be read, of all ranks."""
    sums: Tensor
    """`local_sums` of all ranks."""
    asked: Asked | None
    """Null on a GPU."""


class Ahead:
    """Batches one step ahead, as a context. No row is read before the step that moves it is over.

    A thread reads and checks, agrees with the other ranks that all have a batch and on what a step
    must know of all of them, finds the distinct ids and exchanges them, over a process group of its
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
        """Waits for what was begun.

        Raises:
            InputError, RankFailed: on all ranks alike, as one could not read.
            RuntimeError: a rank is gone.
        """
        found, error = self._read.get()
        if error is not None:
            raise error
        assert found is not None
        return found

    def _run(self) -> None:
        while self._wanted.get():
            self._read.put(attempt(self._next))

    def _next(self) -> Next:
        """Collective over the thread's group."""
        learner = self._learner
        found, error = attempt(self._found)
        batch, numbers = found or (None, torch.zeros(2 + learner.num_sums, dtype=torch.float64))
        total = agree(error, numbers, self._group)
        assert batch is not None
        asked = learner.ask(batch, self._group) if learner.device.type == "cpu" else None
        sums = total[2:].to(learner.device)
        return Next(batch, int(total[0]), int(total[1]), sums, asked)

    def _found(self) -> tuple[Batch, Tensor]:
        """A checked batch and this rank's part of rows, skipped rows and sums."""
        batch = self._learner.checked(next(self._batches))
        counts = [float(batch.num_rows), float(sum(batch.skipped.values()))]
        sums = self._learner.local_sums(batch).cpu()
        return batch, torch.cat([torch.tensor(counts, dtype=torch.float64), sums])
