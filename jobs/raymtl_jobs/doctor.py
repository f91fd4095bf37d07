"""`raymtl doctor`: whether this machine can train, a line a check, and what to do where not."""

import os
import sys
import tempfile
from collections.abc import Callable
from typing import Annotated, Any

import typer

from raymtl.config import DataSection, FailureSection, LaunchSection, TrainConfig
from raymtl.errors import InputError
from raymtl_jobs.output import say

MIN_MEMORY_GB = 4
"""Ray, its object store, two workers and their reading tasks take 2 to 3 GB for a small log."""
MEETING_TIMEOUT_S = 60.0


def doctor(
    storage: Annotated[str, typer.Option(help="Folder or URL that is to hold runs.")] = "runs",
) -> None:
    """Check versions, cores, memory, storage, a local Ray, and workers meeting over gloo."""
    checks: dict[str, Callable[[], str]] = {
        "versions": versions,
        "cores": cores,
        "memory": memory,
        "storage": lambda: writable(storage),
        "ray": local_ray,
        "workers": lambda: meeting(num_workers=2),
    }
    problems = [name for name, check in checks.items() if not _passes(name, check)]
    if problems:
        say(f"{len(problems)} problem{'s' if len(problems) > 1 else ''}: {', '.join(problems)}")
        raise typer.Exit(1)
    print("ready to train")


def _passes(name: str, check: Callable[[], str]) -> bool:
    try:
        print(f"ok       {name:9} {check()}", flush=True)
        return True
    except InputError as problem:
        print(f"problem  {name:9} {problem.got}\n{'':19}do: {problem.do}", flush=True)
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        print(f"problem  {name:9} {type(error).__name__}: {text}", flush=True)
        print(f"{'':19}do: {ADVICE.get(name, 'see docs/operations.md')}", flush=True)
    return False


ADVICE = {
    "versions": "install again: make setup, or pip install raymtl",
    "ray": "free memory and /dev/shm, look into Ray's logs (docs/operations.md says where)",
    "workers": "set GLOO_SOCKET_IFNAME=lo (one machine) or to the network's interface; a line "
    "127.0.1.1 with this host's name in /etc/hosts must go",
}


def versions() -> str:
    """The libraries that do the work, imported."""
    import pyarrow
    import ray
    import torch

    gpus = torch.cuda.device_count()
    on = f"{gpus} GPU{'s' if gpus > 1 else ''}" if gpus else "no GPU: training runs on CPU"
    names = f"python {sys.version.split()[0]}, torch {torch.__version__}, ray {ray.__version__}"
    return f"{names}, pyarrow {pyarrow.__version__}; {on}"


def cores() -> str:
    """Cores this process may use."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{count}; launch.num_workers is best at most that"


def memory() -> str:
    """Memory that is free now."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    free = max(free, _available_gb())
    if free < MIN_MEMORY_GB:
        raise InputError(
            "", f"{free:.1f} GB free", "", f"free some: {MIN_MEMORY_GB} GB or more are wanted"
        )
    return f"{free:.1f} GB free"


def _available_gb() -> float:
    """What Linux would free of its file cache as well; 0 where it does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as stream:
            fields = dict(line.split(":", 1) for line in stream)
        return int(fields["MemAvailable"].split()[0]) / 1e6
    except (OSError, KeyError, ValueError):
        return 0.0


def writable(storage: str) -> str:
    """A file can be made in the storage; one that is made here is removed again."""
    from raymtl.storage import Folder

    folder = Folder(storage)
    if not folder.is_local or os.path.isdir(folder.path):
        folder.require_writable()
        return folder.url
    parent = os.path.dirname(folder.path)
    while not os.path.isdir(parent):
        parent = os.path.dirname(parent)
    Folder(parent).require_writable()
    return f"{folder.url} can be made"


def local_ray() -> str:
    """Ray starts, or can be joined by RAY_ADDRESS, and runs a task."""
    import ray

    from raymtl.cluster import session

    with session(LaunchSection(num_workers=1)):
        cpus = ray.cluster_resources().get("CPU", 0.0)
        answer = ray.get(ray.remote(num_cpus=1)(_answer).remote())
    assert answer == 1, answer
    return f"starts and runs a task, with {cpus:g} logical CPUs"


def _answer() -> int:
    return 1


def meeting(num_workers: int) -> str:
    """Starts a worker group as training does, and sums a number over it."""
    from raymtl.cluster import session
    from raymtl.launch import run_workers

    launch = LaunchSection(num_workers=num_workers)
    failure = FailureSection(max_failures=0, hang_timeout_s=MEETING_TIMEOUT_S)
    config = TrainConfig(data=DataSection(train="-"), launch=launch, failure=failure)
    with tempfile.TemporaryDirectory(prefix="raymtl-doctor-") as folder, session(launch):
        total = run_workers(_add_one, {}, config, folder, say)["total"]
    if total != num_workers:
        raise RuntimeError(f"{num_workers} workers summed 1 to {total}")
    return f"{num_workers} Ray Train workers start and add numbers over gloo"


def _add_one(payload: dict[str, Any]) -> dict[str, Any]:
    """Collective. What each worker does."""
    import torch

    from raymtl import collectives

    return {"total": int(collectives.sum_(torch.ones(1)))}
