"""What is said of workers that failed."""

from ray.train.v2._internal.exceptions import (
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)

from raymtl.failures import LONGEST, reason

DIED = WorkerHealthCheckFailedError("A worker health check failed.", RuntimeError("gone"))
LOST = RuntimeError("Traceback:\n  File x\nRuntimeError: Connection closed by peer [127.0.0.1]\n")


def test_the_rank_that_died_is_named_and_not_those_that_noticed() -> None:
    assert reason({0: LOST, 1: DIED}) == "rank 1 died"
    assert reason({2: DIED, 0: DIED, 1: LOST}) == "ranks 0, 2 died"


def test_a_rank_that_hangs_is_named() -> None:
    hung = WorkerHealthCheckTimeoutError("hanging for 20.00 seconds")
    assert reason({0: LOST, 1: hung}) == "rank 1 stopped answering"


def test_any_other_error_is_its_last_line() -> None:
    assert reason({1: LOST}) == "rank 1 failed: RuntimeError: Connection closed by peer [127.0.0.1]"
    assert reason({3: ValueError("x" * 1000)}) == "rank 3 failed: " + "x" * LONGEST
    assert reason({0: KeyError()}) == "rank 0 failed: KeyError"
