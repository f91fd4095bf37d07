"""A local Ray for each test file of this folder that asks for one."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from raymtl.cluster import environment, start_local

ROOT = Path(__file__).parents[2]
PATIENCE = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "50"}
"""Serve kills a proxy that takes longer than 5 s to start, as on a busy machine it does."""


@pytest.fixture(scope="module")
def local_ray() -> Iterator[Path]:
    """A Ray of 4 logical CPUs and a small object store, which these tests start and stop.

    Yields the folder that its logs are below.
    """
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # Ray's sockets need a short path.
    with environment({"RAY_TMPDIR": folder}):
        _start()
    yield Path(folder)
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def _start() -> None:
    paths = [str(ROOT / home) for home in ("distributed", "jobs", "tuning", "tests")]
    variables = {"PYTHONPATH": os.pathsep.join(paths), **PATIENCE}
    start_local(num_cpus=4, store_bytes=200_000_000, runtime_env={"env_vars": variables})
