"""What workers failed of, in words for a person."""

from collections.abc import Mapping
from typing import Any

from ray.train import UserCallback
from ray.train.v2._internal.exceptions import (
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)
from ray.train.v2.api.exceptions import TrainingFailedError

from raymtl.progress import Board

LONGEST = 200
"""Characters of an error's text that a line shows."""


class FailureLines(UserCallback):
    """Says on the board what failed, before the workers start anew or the run ends."""

    def __init__(self, board: Board):
        self._board = board

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        """Called by Ray Train's controller."""
        del run_context
        self._board.say(f"warning: {reason(worker_exceptions)}")


def reason(errors: Mapping[int, Exception]) -> str:
    """One line; where a rank is gone what the others made of that is left out.

    Args:
        errors: rank -> its error, one or more.
    """
    died = [r for r, e in sorted(errors.items()) if isinstance(e, WorkerHealthCheckFailedError)]
    silent = [r for r, e in sorted(errors.items()) if isinstance(e, WorkerHealthCheckTimeoutError)]
    if died:
        return f"{_named(died)} died"
    if silent:
        return f"{_named(silent)} stopped answering"
    rank, error = min(errors.items())
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"rank {rank} failed: {lines[-1].strip()[:LONGEST]}"


def first_cause(error: TrainingFailedError) -> str:
    """What ended a run, of the first two ranks that failed."""
    failures = getattr(error, "worker_failures", None) or {}
    texts = [f"rank {rank}: {failure}" for rank, failure in sorted(failures.items())]
    return "\n".join(texts[:2]) or str(error)


def _named(ranks: list[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
