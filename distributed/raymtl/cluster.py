"""Starts or joins Ray, and checks that training and its data tasks both find CPUs there."""

import logging
import math
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import ray
from ray._private import ray_constants, worker
from ray.util import get_node_ip_address

from raymtl.auth import require_private_token
from raymtl.config import LaunchSection
from raymtl.errors import InputError

DATA_CPUS_PER_WORKER = 1.0
"""Logical CPUs a rank's reading tasks may hold at once."""
LOOPBACK = "127.0.0.1"
ANSWER_S = 3.0
"""For a port of this machine to accept a connection."""
LOCAL_ENVIRONMENT = {
    # Sockets, logs and spilled objects, in the subfolder `ray`; a short path, as sockets need it.
    # Processes of a local Ray that ask for "the" cluster look it up in this folder. In Ray's usual
    # one they would find, and ask, another cluster of this machine, or wait for one that is gone.
    "RAY_TMPDIR": f"/tmp/raymtl-{os.getuid()}",
    # Training keeps its place before the tasks that read for it, which step back themselves; Ray's
    # default puts both behind all other processes.
    "RAY_worker_niceness": "0",
    # A process that watches for nodes about to leave: here is one, which does not.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # Processes for tasks to come: those that wait wake 100 times a second, beside what trains.
    "RAY_prestart_worker_first_driver": "0",
} | (
    # Without it gloo looks up the host's name, which some distributions map to an address that no
    # interface has (127.0.1.1).
    {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
)
"""What a local Ray's processes inherit."""
WORKER_ENVIRONMENT = (
    {
        # glibc keeps freed memory instead of giving it back and asking anew: fresh pages are dear.
        "MALLOC_MMAP_THRESHOLD_": str(2**32),
        "MALLOC_TRIM_THRESHOLD_": str(2**34),
        "MALLOC_TOP_PAD_": str(2**26),
        # torch asks for huge pages: rows at random places miss fewer addresses.
        "THP_MEM_ALLOC_ENABLE": "1",
        # How long a step's threads spin for the next operation before they sleep. OpenMP's own is
        # 30 times as long, and leaves no core to what reads.
        "GOMP_SPINCOUNT": "10000",
    }
    if sys.platform == "linux"
    else {}
)
"""Of training workers, read at a process's start. What the user's environment sets stays."""


def local_cpus(section: LaunchSection) -> int:
    """Logical CPUs a local Ray is started with.

    Ray counts logical CPUs: with just the workers' share, reading tasks would wait for ever.
    """
    per_worker = section.cpus_per_worker + DATA_CPUS_PER_WORKER
    return max(os.cpu_count() or 1, math.ceil(section.most_workers * per_worker) + 1)


@contextmanager
def session(section: LaunchSection, dashboard: bool = False) -> Iterator[None]:
    """Joins the cluster at `address` or RAY_ADDRESS, or starts a local Ray and stops it after.

    A Ray that is running in this process already is used and left as it is.

    Args:
        dashboard: starts a local Ray with it, on loopback: Ray Tune asks it which placement groups
            are left, and without an answer trials that were stopped early keep theirs for ever.
    """
    if ray.is_initialized():
        require_cpus(section)
        yield
        return
    address = address_of(section)
    if address:
        with _on_loopback() if only_on_loopback(address) else nullcontext():
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    else:
        start_local(local_cpus(section), section.object_store_bytes, dashboard=dashboard)
    try:
        require_cpus(section)
        yield
    finally:
        ray.shutdown()


def start_local(
    num_cpus: int,
    store_bytes: int | None = None,
    runtime_env: dict[str, Any] | None = None,
    dashboard: bool = False,
) -> None:
    """Starts a Ray of this process, which listens on loopback and asks for a token.

    Args:
        num_cpus: logical ones.
        store_bytes: of its object store; null leaves Ray's default.
        runtime_env: of all its tasks and actors, as Ray takes it.
        dashboard: with Ray's dashboard, and the table of tasks that it shows.
    """
    require_private_token()
    # Ray warns of four times as many processes, with the machine's cores unless told: its own for
    # a run of two workers are as many.
    settings = {"RAY_worker_maximum_startup_concurrency": str(max(4, num_cpus))}
    if not dashboard:
        # Ray's table of all tasks ever done grows with the log, and only the dashboard shows it.
        settings["RAY_task_events_report_interval_ms"] = "0"
        # Neither does anything else show what its agent finds out about all processes.
        settings["REPORTER_UPDATE_INTERVAL_MS"] = "60000"
    with environment(LOCAL_ENVIRONMENT | settings), _on_loopback():
        ray.init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=dashboard,
            dashboard_host=LOOPBACK,
            object_store_memory=store_bytes,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env=runtime_env,
            _node_ip_address=LOOPBACK,
        )
    # It looks through all logs ten times a second for lines to show here, which is not asked for.
    _node().kill_log_monitor(check_alive=False)


def started_here() -> bool:
    """Whether this process started the Ray it uses, which then ends with it."""
    node = _node()
    return node is not None and node.is_head()


def _node() -> Any:
    """Ray's node as this driver holds it; null in a worker."""
    return worker._global_node


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Lets a Ray that is started or joined keep the address 127.0.0.1, where its ports listen only.

    On Linux Ray takes an address that the network reaches instead, whatever it is told, and listens
    on all of them; on other systems, where it is never more than one node, it does not.
    """
    several_nodes = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = several_nodes


def only_on_loopback(address: str) -> bool:
    """Whether a Ray on this machine listens at HOST:PORT and not at the host's own address.

    So does one that raymtl started; told 127.0.0.1, Ray waits at the host's own address.
    """
    host, _, port = address.rpartition(":")
    if host not in (LOOPBACK, "localhost") or not port.isdecimal():
        return False
    return _answers(LOOPBACK, int(port)) and not _answers(get_node_ip_address(), int(port))


def _answers(host: str, port: int) -> bool:
    with suppress(OSError), socket.create_connection((host, port), timeout=ANSWER_S):
        return True
    return False


def address_of(section: LaunchSection) -> str | None:
    """The cluster to join; null where a local Ray is started."""
    return section.address or os.environ.get("RAY_ADDRESS") or None


def side_by_side(wanted: int | None, cpus_each: int, address: str | None) -> int:
    """Runs at one time: as wanted, or one for each real core of this machine or CPU of a cluster.

    A local Ray is told of more CPUs than there are cores, so that reading never waits.
    """
    if wanted is not None:
        return wanted
    joined = address_of(LaunchSection(address=address)) is not None
    cpus = ray.cluster_resources().get("CPU", 1.0) if joined else os.cpu_count() or 1
    return max(1, int(cpus) // cpus_each)


def require_cpus(section: LaunchSection) -> None:
    """Raises InputError where the workers would leave no CPU to the tasks that read for them."""
    total = ray.cluster_resources().get("CPU", 0.0)
    # Workers that grow into all CPUs there are read without holding one.
    reading = 1 if isinstance(section.num_workers, int) else 0
    wanted = section.fewest_workers * section.cpus_per_worker + reading
    if total < wanted:
        raise InputError(
            "the cluster is too small: training would wait for ever for its data",
            f"{total:g} logical CPUs for {section.fewest_workers} workers of "
            f"{section.cpus_per_worker:g}",
            f"{wanted:g} or more: the workers' and {reading} for reading",
            "set launch.num_workers or launch.cpus_per_worker lower, or add nodes",
        )


def worker_environment() -> dict[str, str]:
    """WORKER_ENVIRONMENT without what this process's environment has."""
    return {key: value for key, value in WORKER_ENVIRONMENT.items() if key not in os.environ}


@contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Sets environment variables for the block, those the user set already excepted."""
    added = {key: value for key, value in values.items() if key not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for key in added:
            os.environ.pop(key, None)
