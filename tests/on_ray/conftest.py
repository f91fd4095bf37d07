"""One local Ray for the tests of this folder: starting one takes as long as several tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.local_ray import running_ray


@pytest.fixture(scope="package")
def local_ray() -> Iterator[Path]:
    """Yields the folder that Ray's logs are below."""
    with running_ray() as folder:
        yield folder
