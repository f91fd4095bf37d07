"""A local Ray for a block, with the paths that its processes need."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

from raymtl.cluster import environment, start_local

ROOT = Path(__file__).parents[2]
HOMES = [str(ROOT / home) for home in ("distributed", "jobs", "tuning", "tests")]
NUM_CPUS = 4
PATIENCE = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "50"}
"""Serve kills a proxy that takes longer than 5 s to start, as on a busy machine it does."""


@contextmanager
def running_ray(dashboard: bool = False) -> Iterator[Path]:
    """Starts a Ray of NUM_CPUS logical CPUs and a small object store, and stops it.

    Yields:
        The folder that its logs are below.
    """
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # Ray's sockets need a short path.
    variables = {"PYTHONPATH": os.pathsep.join(HOMES), **PATIENCE}
    with environment({"RAY_TMPDIR": folder}):
        start_local(NUM_CPUS, 200_000_000, runtime_env={"env_vars": variables}, dashboard=dashboard)
    try:
        yield Path(folder)
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
