"""TensorBoard events of a run, where its folder is local."""

import warnings
from pathlib import Path
from typing import Any

from raymtl.storage import Folder


class EventWriter:
    """Writes each metric line's numbers as scalars; opened at the first line, on rank 0."""

    def __init__(self, folder: Folder):
        self._folder = folder
        self._writer: Any = None
        self._warned = False

    def add(self, values: dict) -> None:
        """Adds one metrics.jsonl line."""
        if not self._folder.is_local:
            self._warn_once()
            return
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            path = Path(self._folder.path, "tensorboard")
            self._writer = SummaryWriter(str(path), purge_step=values["step"])
        for key, value in values.items():
            if key not in ("step", "rows") and isinstance(value, int | float):
                self._writer.add_scalar(key, value, values["step"])
        self._writer.flush()

    def _warn_once(self) -> None:
        if not self._warned:
            warnings.warn("TensorBoard events are written to local run folders only", stacklevel=3)
            self._warned = True
