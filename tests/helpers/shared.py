"""Finds the real logs that lie outside the project; tests that need them skip where they do not."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def shared_data(name: str) -> Path:
    """A file or folder of the real data, e.g. `kuairand_pure/impressions_0425_0430.parquet`.

    Looked for in the folder RAYMTL_SHARED_DATA, by default ../shared/data beside the project.
    """
    folder = Path(os.environ.get("RAYMTL_SHARED_DATA", ROOT.parent / "shared" / "data"))
    path = folder / name
    if not path.exists():
        pytest.skip(f"the real data is not here: {path} (set RAYMTL_SHARED_DATA to its folder)")
    return path
