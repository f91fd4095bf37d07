"""A Ray for the verbs that use Ray Data only."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ray_session(address: str | None) -> Iterator[None]:
    """Joins or starts Ray; Ray Data's own progress and log lines stay out of the terminal."""
    import ray.data  # sets its loggers' levels; ours must come after

    from raymtl.cluster import session
    from raymtl.config import LaunchSection

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    with session(LaunchSection(num_workers=1, address=address)):
        yield
