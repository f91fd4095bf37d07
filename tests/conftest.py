"""Guards around every test: nothing it changes in its process outlives it."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Before torch is imported, here and in the processes tests start: spinning threads of several
# processes on few cores take many times what one thread each does.
os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("raymtl", deadline=None, derandomize=True, max_examples=50)
settings.register_profile("fuzz", deadline=None, max_examples=10_000)  # make fuzz
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "raymtl"))

ON_RAY = {Path(__file__).parent / folder for folder in ("on_ray", "own_ray")}
ON_RAY_TIMEOUT_S = 300
"""Starting a local Ray and its workers takes 10 to 30 seconds of a test on 2 cores."""

SET_BY_LIBRARIES = (
    "PYTEST_",
    "KMP_",
    "TORCHINDUCTOR_",
    "_TORCHINDUCTOR_",
    "RAY_CLIENT_MODE",
    "PYTHONBREAKPOINT",
)
"""Starts of names that pytest sets by itself, and torch and ray when they are imported."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if ON_RAY & {*item.path.parents} and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(ON_RAY_TIMEOUT_S))


@pytest.fixture(autouse=True)
def guard_environment(request: pytest.FixtureRequest) -> Iterator[None]:
    """Restores os.environ and fails the test that changed it (Ray's own variables may on Ray)."""
    before = dict(os.environ)
    yield
    after = dict(os.environ)
    os.environ.clear()
    os.environ.update(before)
    ignored = SET_BY_LIBRARIES + (("RAY_",) if ON_RAY & {*request.path.parents} else ())
    leaked = sorted(
        name
        for name in before.keys() | after.keys()
        if before.get(name) != after.get(name) and not name.startswith(ignored)
    )
    if leaked:
        pytest.fail(f"the test left environment variables changed: {', '.join(leaked)}")


@pytest.fixture(autouse=True)
def guard_processes(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that left a process group behind, or a Ray outside the folders for it."""
    yield
    dist = sys.modules.get("torch.distributed")
    if dist is not None and dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
        pytest.fail("the test left a process group initialised")
    ray = sys.modules.get("ray")
    if not ON_RAY & {*request.path.parents} and ray is not None and ray.is_initialized():
        ray.shutdown()
        pytest.fail("the test left Ray initialised; tests that start Ray stand in tests/on_ray")
