"""A Ray cluster of several nodes on this machine: a raylet each, on loopback, with a token."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
RAY = str(Path(sys.executable).with_name("ray"))
START_TIMEOUT_S = 120.0
LOOPBACK = "127.0.0.1"


class LocalCluster:
    """Used as a context; the first node has the dashboard and no CPUs to train with."""

    def __init__(self, bare: bool = False, store_bytes: int = 120_000_000):
        """Starts nothing yet.

        Args:
            bare: whether the nodes are without raymtl, so that jobs must bring it.
            store_bytes: of each node's object store.
        """
        self.folder = Path(tempfile.mkdtemp(prefix="rc", dir="/tmp"))  # sockets need a short path
        self.token = secrets.token_hex(32)
        self._bare, self._store_bytes = bare, store_bytes
        self._port, self._dashboard_port, self._agent_port = free_ports(3)
        self._cluster: Any = None
        self._added = 0
        self._before: dict[str, str] = {}

    def __enter__(self) -> "LocalCluster":
        path = self.folder / "token"
        path.write_text(self.token)
        path.chmod(0o600)
        self._before = dict(os.environ)
        os.environ.update(self.node_environment if self._bare else self.environment)
        if self._bare:
            os.environ.pop("PYTHONPATH", None)
        from ray.cluster_utils import Cluster  # reads the environment when it is imported

        self._cluster = Cluster()
        self._add(
            num_cpus=0,
            gcs_server_port=self._port,
            include_dashboard=True,
            dashboard_host=LOOPBACK,
            dashboard_port=self._dashboard_port,
            dashboard_agent_listen_port=self._agent_port,
            temp_dir=str(self.folder / "ray"),
        )
        self.wait_until_it_answers()
        return self

    def __exit__(self, *_: object) -> None:
        self._cluster.shutdown()
        os.environ.clear()
        os.environ.update(self._before)
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def address(self) -> str:
        """For --address of the verbs."""
        return f"{LOOPBACK}:{self._port}"

    @property
    def dashboard(self) -> str:
        """For --address of `raymtl submit`."""
        return f"http://{LOOPBACK}:{self._dashboard_port}"

    @property
    def environment(self) -> dict[str, str]:
        """Of commands that use the cluster."""
        homes = [str(ROOT / home) for home in ("distributed", "jobs", "tuning")]
        return os.environ | self.node_environment | {"PYTHONPATH": os.pathsep.join(homes)}

    @property
    def node_environment(self) -> dict[str, str]:
        """What the nodes have and commands too, but for the checkout on the path."""
        return {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.folder / "token"),
            "RAY_TMPDIR": str(self.folder),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # so that 127.0.0.1 stays 127.0.0.1
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_memory_monitor_refresh_ms": "0",  # other programs here may take the memory
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1",
        }

    def add(self, cpus: int) -> Any:
        """Starts a node to train on, and waits until the cluster counts it."""
        # Nodes that share a folder install the same wheel into the same place at the same time.
        self._added += 1
        return self._add(num_cpus=cpus, temp_dir=str(self.folder / f"n{self._added}"))

    def _add(self, **arguments: Any) -> Any:
        return self._cluster.add_node(
            node_ip_address=LOOPBACK, object_store_memory=self._store_bytes, **arguments
        )

    def kill(self, node: Any) -> None:
        """SIGKILLs the raylet and all below it at once, as a machine that loses its power."""
        raylet = psutil.Process(self.raylet(node))
        for process in [*raylet.children(recursive=True), raylet]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._cluster.remove_node(node, allow_graceful=False)

    def node_of(self, worker: int) -> Any:
        """The node that a worker process is on."""
        above = {process.pid for process in psutil.Process(worker).parents()}
        return next(n for n in self._cluster.list_all_nodes() if self.raylet(n) in above)

    def raylet(self, node: Any) -> int:
        """The process of a node's raylet, the parent of its workers."""
        return node.all_processes["raylet"][0].process.pid

    def drain(self, node: Any, seconds: int) -> None:
        """Ray's notice that a node will be taken away, as a cloud's autoscaler gives it."""
        told = ["--node-id", node.node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
        told += ["--reason-message", "chaos", "--deadline-remaining-seconds", str(seconds)]
        subprocess.run(
            [RAY, "drain-node", "--address", self.address, *told],
            env=self.environment,
            check=True,
            capture_output=True,
        )

    def alive(self) -> list[dict]:
        """Ray's own list of living nodes."""
        answer = self.get("/api/v0/nodes?limit=100&detail=true")
        return [n for n in answer["data"]["result"]["result"] if n["state"] == "ALIVE"]

    def get(self, path: str, token: str | None = None) -> dict:
        """What the dashboard answers; raises HTTPError where it refuses."""
        headers = {"Authorization": f"Bearer {self.token if token is None else token}"}
        request = urllib.request.Request(
            self.dashboard + path, headers=headers if token != "" else {}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def wait_until_it_answers(self) -> None:
        def answers() -> bool:
            try:
                return len(self.alive()) > 0
            except (urllib.error.URLError, OSError):
                return False

        wait_for(answers, "the head to answer")


def wait_for(
    true: Callable[[], bool], what: str, timeout_s: float = START_TIMEOUT_S, every_s: float = 0.2
) -> None:
    """Waits until a function says so; raises TimeoutError."""
    deadline = time.monotonic() + timeout_s
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_s:.0f} s for {what}")
        time.sleep(every_s)


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on now."""
    held = [socket.socket() for _ in range(count)]
    try:
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()
