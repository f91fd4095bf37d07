"""A checkpoint's model in this process, without Ray."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import torch

from raymtl.batch import Batch, Layout
from raymtl.calibration import Curve
from raymtl.checkpoint import Checkpoint
from raymtl.data.decode import decode
from raymtl.learner import Learner
from raymtl.saving import load_learner, read_config
from raymtl.serving import ServingValues

BATCH_ROWS = 4096
"""Rows scored at once; bounds memory, changes no score."""


class Model:
    """A checkpoint's model with all its table rows, on the CPU of this process."""

    def __init__(self, checkpoint: Checkpoint, curves: Mapping[str, Curve] | None = None):
        """Reads and verifies the checkpoint.

        Args:
            curves: its calibration; null leaves predictions as the model makes them.

        Raises:
            DamagedCheckpoint: naming the file.
        """
        device = torch.device("cpu")
        checkpoint.verify_together(device)
        self.config, self.schema = read_config(checkpoint)
        self.step, self.curves = checkpoint.step, dict(curves or {})
        self.learner = Learner(self.config, self.schema, device)
        load_learner(checkpoint, self.learner, optimizer=False)
        self.serving = ServingValues.of(self.schema, self.learner.layout)

    @property
    def task_names(self) -> tuple[str, ...]:
        """The tasks, in the schema's order."""
        return self.learner.layout.task_names

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
            arrays = decode(rows, self.schema, self.learner.layout, where, labels=False)
            batch = self.serving.apply(unlabelled(arrays, self.learner.layout))
            batch = self.learner.checked(batch)
            parts.append(self.learner.probabilities(batch).numpy())
        scores_nT = np.concatenate(parts)
        scores = {task: scores_nT[:, t].copy() for t, task in enumerate(self.task_names)}
        for task, curve in self.curves.items():
            scores[task] = curve(scores[task]).astype(np.float32)
        return scores


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
