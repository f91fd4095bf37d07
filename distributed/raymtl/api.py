"""What a program calls: train, evaluate, load(run).predict(table). `raymtl.train` and so on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from raymtl import config as configs
from raymtl import launch, scoring
from raymtl.batch import Batch, Layout
from raymtl.checkpoint import Checkpoint
from raymtl.config import LaunchSection, TrainConfig
from raymtl.data.decode import decode
from raymtl.learner import Learner
from raymtl.models.registry import register as register_model
from raymtl.progress import Show
from raymtl.run import choose, located
from raymtl.saving import load_learner, read_config
from raymtl.serving import ServingValues
from raymtl.storage import absolute

__all__ = ["Model", "evaluate", "load", "register_model", "train"]

BATCH_ROWS = 4096
"""Rows scored at once; bounds memory, changes no score."""


def train(
    config: TrainConfig | Mapping[str, Any] | str | Path,
    *overrides: str,
    resume: bool = False,
    show: Show = print,
) -> dict[str, Any]:
    """Trains a run on Ray; see `raymtl.launch.train` for what it returns and raises.

    Args:
        config: a TrainConfig, its plain values, or the path of a YAML file. Relative paths in it
            start at the current folder.
        overrides: `key.sub=value` strings.
        resume: go on with the run that is there.
        show: takes lines for a person.
    """
    if isinstance(config, TrainConfig):
        values, source = config.model_dump(mode="json"), "the config given"
    elif isinstance(config, Mapping):
        values, source = dict(config), "the config given"
    else:
        values, source = configs.read_yaml(config), str(config)
    made = configs.parse(TrainConfig, configs.override(values, list(overrides)), source)
    return launch.train(located(made), resume, show)


def evaluate(
    where: str | Path, log: str, which: str = "best", num_workers: int = 1, show: Show = print
) -> dict[str, Any]:
    """Metrics of a run's checkpoint over a log, on Ray; see `raymtl.scoring.evaluate`."""
    section = LaunchSection(num_workers=num_workers)
    return scoring.evaluate(absolute(str(where)), log, section, scoring.Pick(which), show)


def load(where: str | Path, which: str = "best") -> "Model":
    """A trained model in this process, without Ray.

    Args:
        where: a run folder or a checkpoint folder.
        which: of a run, `best` (by validation), `last`, or a checkpoint's name.

    Raises:
        InputError: there is no such checkpoint.
        DamagedCheckpoint: naming the file.
    """
    return Model(choose(absolute(str(where)), which))


class Model:
    """A checkpoint's model with all its table rows, on the CPU of this process."""

    def __init__(self, checkpoint: Checkpoint):
        device = torch.device("cpu")
        checkpoint.verify_together(device)
        config, self.schema = read_config(checkpoint)
        self.step = checkpoint.step
        self._learner = Learner(config, self.schema, device)
        load_learner(checkpoint, self._learner, optimizer=False)
        self._serving = ServingValues.of(self.schema, self._learner.layout)

    @property
    def task_names(self) -> tuple[str, ...]:
        """The tasks, in the schema's order."""
        return self._learner.layout.task_names

    def predict(self, table: pa.Table) -> dict[str, np.ndarray]:
        """Scores rows.

        Args:
            table: the schema's feature columns as the training log has them; labels need not be
                there.

        Returns:
            Task name -> float32 (n,): probabilities, or values of a regression.

        Raises:
            InputError: a column is missing, or a value is not what its column must hold.
            IdOutOfRange: an id lies outside its table.
        """
        self.schema.check(table.schema, "the table given", labels=False)
        parts = [np.zeros((0, len(self.task_names)), np.float32)]
        for start in range(0, table.num_rows, BATCH_ROWS):
            rows = table.slice(start, BATCH_ROWS)
            where = f"the table given, rows from {start}"
            arrays = decode(rows, self.schema, self._learner.layout, where, labels=False)
            batch = self._serving.apply(unlabelled(arrays, self._learner.layout))
            batch = self._learner.checked(batch)
            parts.append(self._learner.probabilities(batch).numpy())
        scores_nT = np.concatenate(parts)
        return {task: scores_nT[:, t].copy() for t, task in enumerate(self.task_names)}


def unlabelled(arrays: dict[str, np.ndarray], layout: Layout) -> Batch:
    """A batch of decoded rows whose labels nobody asks for."""
    n, tasks = len(arrays["ids"]), len(layout.task_names)
    return Batch(
        step=0,
        ids_BC=torch.from_numpy(arrays["ids"].astype(np.int64)),
        bag_weights=torch.from_numpy(arrays["bag_weights"]),
        numeric_BN=torch.from_numpy(arrays["numeric"]),
        labels_BT=torch.zeros(n, tasks),
        mask_BT=torch.zeros(n, tasks, dtype=torch.bool),
        weight_B=torch.ones(n),
        weight_BT=torch.zeros(n, tasks),
        group_B=torch.from_numpy(arrays["group"]),
        file_B=np.zeros(n, np.int32),
        row_B=np.arange(n),
    )
