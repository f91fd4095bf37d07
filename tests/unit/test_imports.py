"""What stays light: processes without a model load no torch, and those that plan no scipy."""

import os
import subprocess
import sys

import pytest

from helpers.cli import HOMES

LIGHT = {
    "the package": ["raymtl"],
    "reading tasks": ["raymtl.data.reading"],
    "processes that feed ranks": ["raymtl.data.feed"],
    "prepare's tasks": ["raymtl.data.prepare"],
    "synth's tasks": ["raymtl.data.synthetic", "ray.data"],
}


@pytest.mark.parametrize("process", LIGHT)
def test_a_process_without_a_model_does_not_import_torch(process: str) -> None:
    assert not _loads("torch", LIGHT[process])


def test_what_measures_a_process_for_a_plan_does_not_import_scipy() -> None:
    assert not _loads("scipy", ["raymtl.analysis.rates"])


def _loads(package: str, modules: list[str]) -> bool:
    """Whether a new process that imports modules has a package then."""
    code = f"import sys, {', '.join(modules)}; print({package!r} in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(HOMES)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    return {"True\n": True, "False\n": False}[done.stdout]
