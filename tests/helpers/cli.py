"""The command line as a user calls it: a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

HOMES = [str(Path(__file__).parents[2] / home) for home in ("distributed", "jobs", "tuning")]


def raymtl(
    *arguments: str, folder: Path, timeout_s: float = 60, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs `raymtl ARGUMENTS` in a folder; never raises for its exit code."""
    paths = [*HOMES, *filter(None, [os.environ.get("PYTHONPATH")])]
    ours = {"PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "110"}
    return subprocess.run(
        [sys.executable, "-m", "raymtl_jobs.cli", *arguments],
        cwd=folder,
        env=os.environ | ours | environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
