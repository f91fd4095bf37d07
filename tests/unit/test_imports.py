"""What stays light: modules that processes without a model import load no torch."""

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
    code = f"import sys, {', '.join(LIGHT[process])}; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(HOMES)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("False\n", "")
