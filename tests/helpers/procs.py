"""`run_ranks`: a plain function on N gloo ranks, from a pool of processes started once."""

import atexit
import faulthandler
import importlib
import multiprocessing
import os
import pickle
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

_GRACE_S = 5.0
"""How long the other ranks may take to end after one has failed."""
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""}


class RanksFailed(AssertionError):
    """At least one rank raised, died or hung; holds their tracebacks."""


class _Worker:
    """One warm process that waits for functions to run as a rank."""

    def __init__(self, stacks: Path):
        context = multiprocessing.get_context("spawn")
        self.stacks = stacks
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, str(stacks)), daemon=True)
        with _environment():
            self.process.start()
        theirs.close()

    def stack(self) -> str:
        """Where the process is at the moment, as a traceback."""
        if not self.process.is_alive() or self.process.pid is None:
            return f"process ended with exit code {self.process.exitcode}"
        os.kill(self.process.pid, signal.SIGUSR1)
        before = time.monotonic()
        while not self.stacks.read_text() and time.monotonic() - before < 2:
            wait([self.process.sentinel], timeout=0.05)
        return self.stacks.read_text() or "no traceback"

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


_idle: list[_Worker] = []
_folder: list[tempfile.TemporaryDirectory] = []


def run_ranks(
    fn: Callable[..., Any], world_size: int, *args: Any, timeout_s: float = 60
) -> list[Any]:
    """Runs an importable function on `world_size` ranks of one gloo process group.

    Args:
        fn: a module's function, not of a test module; called as fn(*args) on every rank.
        args: picklable.
        timeout_s: for the whole call, the first start of processes aside.

    Returns:
        What each rank returned, in rank order.

    Raises:
        RanksFailed: with the traceback of every rank that raised, died or hung; those that did not
            end are killed.
    """
    if not _folder:
        _folder.append(tempfile.TemporaryDirectory(prefix="raymtl-ranks-"))
    workers = [_idle.pop() if _idle else _start() for _ in range(world_size)]
    for worker in workers:
        if worker.connection.recv_bytes() != b"ready":
            raise AssertionError("a rank process answered out of turn")
    meeting = tempfile.mktemp(dir=_folder[0].name)
    name = (fn.__module__, fn.__qualname__)
    for rank, worker in enumerate(workers):
        job = (name, args, rank, world_size, meeting, timeout_s)
        worker.connection.send_bytes(pickle.dumps(job))
    return _results(workers, name[1], timeout_s)


def _start() -> _Worker:
    return _Worker(Path(tempfile.mkstemp(dir=_folder[0].name)[1]))


def _results(workers: list[_Worker], name: str, timeout_s: float) -> list[Any]:
    answers: dict[int, tuple[bool, Any]] = {}
    deadline = time.monotonic() + timeout_s
    pending = {worker.connection: rank for rank, worker in enumerate(workers)}
    while pending and (left := deadline - time.monotonic()) > 0:
        for connection in wait(list(pending), timeout=left):
            assert isinstance(connection, Connection)
            rank = pending.pop(connection)
            answers[rank] = _answer(connection, workers[rank])
            if not answers[rank][0]:
                deadline = min(deadline, time.monotonic() + _GRACE_S)
    failures = {rank: text for rank, (good, text) in answers.items() if not good}
    for rank in sorted(pending.values()):
        failures[rank] = f"did not end in time; it was here:\n{workers[rank].stack()}"
    if not failures:
        _idle.extend(workers)
        return [answers[rank][1] for rank in range(len(workers))]
    for worker in workers:
        worker.kill()
    parts = [f"--- rank {rank} of {len(workers)}:\n{text}" for rank, text in failures.items()]
    raise RanksFailed(f"{name} failed on {len(failures)} rank(s)\n" + "\n".join(parts))


def _answer(connection: Connection, worker: _Worker) -> tuple[bool, Any]:
    try:
        return pickle.loads(connection.recv_bytes())
    except EOFError:
        worker.process.join()
        return False, f"the process died with exit code {worker.process.exitcode}"


@contextmanager
def _environment():
    before = {key: os.environ.get(key) for key in _ENVIRONMENT}
    os.environ.update(_ENVIRONMENT)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


def _serve(connection: Connection, stacks: str) -> None:
    """The rank process: says it is ready, runs a job, answers, until its parent is gone."""
    import torch

    torch.set_num_threads(1)
    with open(stacks, "w") as file:
        faulthandler.register(signal.SIGUSR1, file, all_threads=False)
        while True:
            try:
                connection.send_bytes(b"ready")
                job = pickle.loads(connection.recv_bytes())
            except (EOFError, BrokenPipeError):
                return
            connection.send_bytes(_run(*job))


def _run(
    name: tuple[str, str], args: tuple, rank: int, world_size: int, meeting: str, timeout_s: float
) -> bytes:
    import torch.distributed as dist

    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{meeting}",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=timeout_s),
        )
        return pickle.dumps((True, getattr(importlib.import_module(name[0]), name[1])(*args)))
    except BaseException:
        return pickle.dumps((False, traceback.format_exc()))
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


@atexit.register
def _stop() -> None:
    for worker in _idle:
        worker.kill()
    for folder in _folder:
        folder.cleanup()
