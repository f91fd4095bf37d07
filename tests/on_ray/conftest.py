"""A local Ray for each test file of this folder that asks for one."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from raymtl.cluster import environment

ROOT = Path(__file__).parents[2]
PATIENCE = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "50"}
"""Serve kills a proxy that takes longer than 5 s to start, as on a busy machine it does."""


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """A Ray of 4 logical CPUs and a small object store, which these tests start and stop."""
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # Ray's sockets need a short path.
    with environment({"RAY_TMPDIR": folder}):
        _start()
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def _start() -> None:
    paths = [str(ROOT / home) for home in ("distributed", "jobs", "tuning", "tests")]
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=200_000_000,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(paths), **PATIENCE}},
    )
