"""TensorBoard events of a run, where its folder is local."""

import warnings
from pathlib import Path
from typing import Any

from raymtl.storage import Folder


class EventWriter:
    """Writes each metric line's numbers as scalars; opened at the first line, on rank 0.

    It gives up with a warning where the disk refuses: metrics.jsonl holds the same numbers.
    """

    def __init__(self, folder: Folder):
        self._folder = folder
        self._writer: Any = None
        self._closed = False

    def add(self, values: dict) -> None:
        """Adds one metrics.jsonl line."""
        if self._closed:
            return
        if not self._folder.is_local:
            self._give_up("are written to local run folders only")
            return
        try:
            self._add(values)
        except OSError as error:
            self._give_up(f"end here: {error}")

    def _add(self, values: dict) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            path = Path(self._folder.path, "tensorboard")
            self._writer = SummaryWriter(str(path), purge_step=values["step"])
        for key, value in values.items():
            if key not in ("step", "rows") and isinstance(value, int | float):
                self._writer.add_scalar(key, value, values["step"])
        self._writer.flush()

    def _give_up(self, why: str) -> None:
        warnings.warn(f"TensorBoard events {why}", stacklevel=3)
        self._closed = True
