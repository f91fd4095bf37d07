"""TensorBoard events of a run, where its folder is local."""

import warnings
from pathlib import Path

from raymtl.storage import Folder


class EventWriter:
    """Writes each metric line's numbers as scalars; opened at the first line, on rank 0."""

    def __init__(self, folder: Folder):
        self._folder = folder
        self._writer = None

    def add(self, values: dict) -> None:
        """Adds one metrics.jsonl line."""
        if not self._folder.is_local:
            if self._writer is None:
                warnings.warn(
                    "TensorBoard events are written to local run folders only", stacklevel=2
                )
                self._writer = False
            return
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            path = Path(self._folder.path, "tensorboard")
            self._writer = SummaryWriter(str(path), purge_step=values["step"])
        assert self._writer
        for key, value in values.items():
            if key not in ("step", "rows") and isinstance(value, int | float):
                self._writer.add_scalar(key, value, values["step"])
        self._writer.flush()
