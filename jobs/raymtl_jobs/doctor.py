"""`raymtl doctor`: whether this machine can train, a line a check, and what to do where not."""

import os
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from typing import Annotated, Any

import typer

from raymtl.config import DataSection, FailureSection, LaunchSection, TrainConfig
from raymtl.errors import InputError
from raymtl_jobs.options import Address, Overrides
from raymtl_jobs.output import say, show_config
from raymtl_jobs.train import of_config

MIN_MEMORY_GB = 4
"""Ray, its object store, two workers and their reading tasks take 2 to 3 GB for a small log."""
MEETING_TIMEOUT_S = 60.0
MAX_CLOCK_DIFFERENCE_S = 30.0
"""S3 refuses requests that are minutes off; file times decide whether a stored index is fresh."""
SYNCHRONISE = "let both follow a time server (chrony, systemd-timesyncd)"


def doctor(
    config: Annotated[
        str | None, typer.Argument(metavar="CONFIG", help="A training config to check as well.")
    ] = None,
    overrides: Overrides = None,
    storage: Annotated[str | None, typer.Option(help="Folder or URL that is to hold runs.")] = None,
    address: Address = None,
) -> None:
    """Check versions, cores, memory, storage, clock, Ray and its token, and workers that meet."""
    joined = address or os.environ.get("RAY_ADDRESS")
    checks: dict[str, Callable[[], str]] = {
        "versions": versions,
        "cores": cores,
        "memory": memory,
        "config": lambda: resolved(config, overrides or []),
        "storage": lambda: round_trip(storage or storage_of(config, overrides or [])),
        "auth": lambda: auth(joined),
        "ray": lambda: ray_runs(joined),
        "workers": lambda: meeting(num_workers=2, address=joined),
    }
    if config is None:
        del checks["config"]
    problems = [name for name, check in checks.items() if not _passes(name, check)]
    if problems:
        say(f"{len(problems)} problem{'s' if len(problems) > 1 else ''}: {', '.join(problems)}")
        raise typer.Exit(1)
    print("ready to train")


class Doubt(InputError):
    """Training works, but something should be mended."""


def _passes(name: str, check: Callable[[], str]) -> bool:
    try:
        print(f"ok       {name:9} {check()}", flush=True)
        return True
    except Doubt as doubt:
        print(f"warning  {name:9} {doubt.got}\n{'':19}do: {doubt.do}", flush=True)
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


def storage_of(config: str | None, overrides: list[str]) -> str:
    """Where the config's runs go; the default without one."""
    return of_config([config, *overrides]).storage if config else "runs"


def resolved(config: str | None, overrides: list[str]) -> str:
    """The config as it would be run, its log and schema checked; prints it."""
    from raymtl.preflight import check, describe
    from raymtl.run import located

    assert config is not None
    job = check(located(of_config([config, *overrides])))
    show_config(job.config)
    return describe(job).splitlines()[0]


def round_trip(storage: str) -> str:
    """A file is written to the storage, read back, its time compared with this clock, removed."""
    from raymtl.storage import Folder

    folder = Folder(nearest(storage))
    folder.require_writable()
    name, content, start = f".probe-{uuid.uuid4().hex}", os.urandom(2**16), time.time()
    folder.write(name, content)
    try:
        same = folder.read(name) == content
        written = folder.filesystem.get_file_info(f"{folder.path}/{name}").mtime_ns
    finally:
        folder.delete(name)
    elapsed = time.time() - start
    if not same:
        raise InputError("", f"{folder.url} gives back other bytes", "", "use another storage")
    off = 0.0 if not written else max(0.0, start - written / 1e9, written / 1e9 - start - elapsed)
    if off > MAX_CLOCK_DIFFERENCE_S:
        raise InputError(
            "",
            f"the clocks of {folder.url} and this machine differ by {off:.0f} s",
            "",
            SYNCHRONISE,
        )
    return f"{folder.url}: written and read in {elapsed * 1000:.0f} ms, clocks agree"


def nearest(storage: str) -> str:
    """The folder itself, or the first one above it that is there already on this disk."""
    from raymtl.storage import Folder

    folder = Folder(storage)
    path = folder.path
    while folder.is_local and not os.path.isdir(path):
        path = os.path.dirname(path)
    return path if folder.is_local else folder.url


def auth(address: str | None) -> str:
    """A local Ray asks for a token that only this user can read, and a cluster asks for one too."""
    from raymtl.auth import MODE, TOKEN, require_private_token, token_file

    mode = os.environ.get(MODE, "token")
    if mode.lower() != "token":
        raise Doubt("", f"{MODE}={mode}: Ray asks nobody for a token", "", f"unset {MODE}")
    if address is None:
        require_private_token()
        where = TOKEN if os.environ.get(TOKEN) else token_file()
        return f"a local Ray listens on loopback and asks for the token in {where}"
    if open_to_all(address):
        raise Doubt(
            "",
            f"the cluster at {address} is open: whoever reaches its ports can run code there",
            "",
            f"start its nodes with {MODE}=token and one token (docs/operations.md)",
        )
    return f"the cluster at {address} asks for a token"


def open_to_all(address: str) -> bool:
    """Whether a process without the token can join the cluster."""
    import subprocess

    code = "import ray, sys; ray.init(sys.argv[1], log_to_driver=False, logging_level='ERROR')"
    stranger = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": ""}
    tried = subprocess.run(
        [sys.executable, "-c", code, address], env=stranger, capture_output=True, check=False
    )
    return tried.returncode == 0


def ray_runs(address: str | None) -> str:
    """Ray starts, or the cluster is joined, and runs a task; the clocks of its nodes agree."""
    import ray

    from raymtl.cluster import session

    with session(LaunchSection(num_workers=1, address=address)):
        cpus = ray.cluster_resources().get("CPU", 0.0)
        start = time.time()
        answer = ray.get(ray.remote(num_cpus=1)(_now).remote())
        end = time.time()
    off = max(0.0, start - answer, answer - end)
    if off > MAX_CLOCK_DIFFERENCE_S:
        raise InputError("", f"a node's clock differs by {off:.0f} s", "", SYNCHRONISE)
    how = f"{address} is joined" if address else "starts"
    return f"{how} and runs a task, with {cpus:g} logical CPUs"


def _now() -> float:
    return time.time()


def meeting(num_workers: int, address: str | None = None) -> str:
    """Starts a worker group as training does, and sums a number over it."""
    from raymtl.cluster import session
    from raymtl.launch import run_workers

    launch = LaunchSection(num_workers=num_workers, address=address)
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
