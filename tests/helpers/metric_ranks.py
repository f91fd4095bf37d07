"""A scored log for tests of metrics, and the functions its ranks run."""

import dataclasses

import numpy as np
import torch
from torch import Tensor

from helpers.batches import labelled
from raymtl.batch import Batch
from raymtl.histograms import Metrics
from raymtl.metrics import TaskMetrics, TrainingHistograms

TASKS = ("click", "like", "never", "watch")
KINDS = ("binary", "binary", "binary", "regression")


def scored_log(num_rows: int = 3000, weighted: bool = False) -> tuple[Tensor, Batch]:
    """Predictions with ties, and labels: masked, one task without positives, padding at the end."""
    generator = np.random.default_rng(7)
    predicted = generator.random((num_rows, 4)).round(2).clip(0.01, 0.99)
    labels = (generator.random((num_rows, 4)) < predicted * [1, 0.1, 0, 1]).astype(np.float64)
    labels[:, 3] = 3 * predicted[:, 3] + generator.normal(size=num_rows)
    labels[generator.random((num_rows, 4)) < 0.2] = np.nan
    weight = generator.integers(1, 4, num_rows) / 2 if weighted else np.ones(num_rows)
    weight[-num_rows // 10 :] = 0
    batch = labelled(torch.from_numpy(labels).float(), weight_B=torch.from_numpy(weight).float())
    users = torch.from_numpy(generator.integers(-1, num_rows // 15, num_rows))
    return torch.from_numpy(predicted).float(), dataclasses.replace(batch, group_B=users)


def rows_of(predicted_BT: Tensor, batch: Batch, kept: slice) -> tuple[Tensor, Batch]:
    """Some rows of a scored log."""
    parts = {k: v[kept] for k, v in vars(batch).items() if isinstance(v, Tensor | np.ndarray)}
    return predicted_BT[kept], dataclasses.replace(batch, **parts)


def fed(
    metrics: TaskMetrics | TrainingHistograms, rank: int, num_ranks: int, weighted: bool
) -> None:
    """Updates with a rank's uneven share of the scored log, in batches."""
    predicted_BT, batch = scored_log(weighted=weighted)
    cuts = [len(batch) * r * r // num_ranks**2 for r in (rank, rank + 1)]
    for start in range(cuts[0], cuts[1], 500):
        metrics.update(*rows_of(predicted_BT, batch, slice(start, min(start + 500, cuts[1]))))


def computed_on_a_rank(exact_rows: int, weighted: bool) -> Metrics:
    from raymtl import collectives

    metrics = TaskMetrics(TASKS, KINDS, exact_rows, num_bins=256)
    fed(metrics, collectives.rank(), collectives.world_size(), weighted)
    return metrics.compute()


def training_window_on_a_rank() -> tuple[Metrics, dict[str, np.ndarray]]:
    """What `compute` gives, and the state that a checkpoint would hold."""
    from raymtl import collectives

    window = TrainingHistograms(TASKS, KINDS, num_bins=64)
    fed(window, collectives.rank(), collectives.world_size(), weighted=True)
    state = {k: collectives.sum_(t).numpy() for k, t in window.state().items()}
    return window.compute(), state


def not_finite_on_the_last_rank() -> str:
    """The message each rank gets when the last one met a NaN."""
    from raymtl import collectives
    from raymtl.errors import NonFinite

    metrics = TaskMetrics(TASKS, KINDS, exact_rows=10_000, num_bins=16)
    predicted_BT, batch = scored_log(100)
    if collectives.rank() == collectives.world_size() - 1:
        predicted_BT[batch.mask_BT[:, 0].nonzero()[0], 0] = float("nan")
    metrics.update(predicted_BT, batch)
    try:
        metrics.compute()
    except NonFinite as error:
        return str(error)
    return "no error"
