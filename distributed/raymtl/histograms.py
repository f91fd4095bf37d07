"""Metrics of any number of rows in a state of fixed size: histograms of scores, and exact sums.

Every number that is summed is first cut to a fixed grid, so that float64 adds it without rounding:
no order of the rows, number of ranks or resume changes a bit of the state.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from raymtl import collectives
from raymtl.batch import Batch
from raymtl.errors import NonFinite
from raymtl.scores import binary_loss, ratio

EDGE_LOGIT = 12.0
"""The bins cover logits from -12 to 12 evenly (probabilities from 6e-6), so that a task with one
positive in a thousand rows is resolved as finely as one with half. Scores beyond fill the ends."""

WEIGHT_GRID = 2.0**-20
COARSE_GRID, FINE_GRID = 2.0**-4, 2.0**-34

WEIGHT, LOSS, PREDICTED, OBSERVED, ABSOLUTE = range(5)
"""Columns of `sums`; LOSS is log loss or squared error, ABSOLUTE the absolute error."""
ROWS, POSITIVES, NOT_FINITE = range(3)
"""Columns of `counts`."""

Metrics = dict[str, float | int | None]


class TrainingHistograms:
    """Histograms and sums per task of the rows this rank has seen; summed over ranks in `compute`.

    Args:
        kinds: `binary` or `regression` per task.
        num_bins: bins of each class's histogram.
    """

    def __init__(self, task_names: Sequence[str], kinds: Sequence[str], num_bins: int):
        self.task_names, self.kinds, self.num_bins = tuple(task_names), tuple(kinds), num_bins
        self.reset()

    def reset(self) -> None:
        """Forgets all rows."""
        num_tasks = len(self.task_names)
        self.histogram = np.zeros((num_tasks, 2, self.num_bins))
        self.sums = np.zeros((num_tasks, 2, 5))
        self.counts = np.zeros((num_tasks, 3))

    def update(self, probs_BT: Tensor, batch: Batch) -> None:
        """Adds a batch; rows of weight 0 (padding, unobserved) count nowhere.

        Args:
            probs_BT: predictions of the batch's rows; probabilities for binary tasks.
        """
        predicted_BT = probs_BT.detach().cpu().double().numpy()
        labels_BT = batch.labels_BT.cpu().double().numpy()
        weight_BT = batch.weight_BT.cpu().double().numpy()
        for task, kind in enumerate(self.kinds):
            seen = weight_BT[:, task] > 0
            finite = seen & np.isfinite(predicted_BT[:, task])
            predicted, label = predicted_BT[finite, task], labels_BT[finite, task]
            weight = to_grid(weight_BT[finite, task], WEIGHT_GRID)
            positive = label > 0.5
            self._add_sums(task, predicted, label, weight)
            self.counts[task] += [seen.sum(), positive.sum(), seen.sum() - finite.sum()]
            if kind == "binary":
                cells = bins(predicted, self.num_bins) + self.num_bins * positive
                added = np.bincount(cells, weight, minlength=2 * self.num_bins)
                self.histogram[task] += added.reshape(2, self.num_bins)

    def _add_sums(
        self, task: int, predicted: np.ndarray, label: np.ndarray, weight: np.ndarray
    ) -> None:
        error = predicted - label
        loss = binary_loss(predicted, label) if self.kinds[task] == "binary" else error**2
        columns = np.stack([np.ones_like(label), loss, predicted, label, np.abs(error)])
        values = columns * weight
        coarse = to_grid(values, COARSE_GRID)
        fine = to_grid(values - coarse, FINE_GRID)
        self.sums[task] += np.stack([coarse.sum(axis=1), fine.sum(axis=1)])

    def state(self) -> dict[str, Tensor]:
        """This rank's part, float64 on the CPU; ranks' parts add up."""
        arrays = {"histogram": self.histogram, "sums": self.sums, "counts": self.counts}
        return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Takes up what `state` gave; on one rank the sum over ranks, zeros on the others."""
        for name, mine in self.state().items():
            assert state[name].shape == mine.shape, (name, state[name].shape, mine.shape)
            setattr(self, name, state[name].cpu().numpy().copy())

    def merged(self, device: torch.device | None = None) -> "TrainingHistograms":
        """Collective. The same over all ranks' rows, on every rank.

        Raises:
            NonFinite: on all ranks alike, when any rank met a prediction that is not finite.
        """
        whole = TrainingHistograms(self.task_names, self.kinds, self.num_bins)
        whole.load_state({k: collectives.sum_(t.to(device)) for k, t in self.state().items()})
        bad = {
            name: int(count)
            for name, count in zip(self.task_names, whole.counts[:, NOT_FINITE], strict=True)
            if count
        }
        if bad:
            raise NonFinite(f"predictions are not finite, rows per task: {bad}")
        return whole

    def compute(self, device: torch.device | None = None) -> Metrics:
        """Collective. Metrics over all ranks' rows since the last reset; equal on every rank.

        Returns:
            Per binary task `NAME/auc`, `auc_error` (the most the binned AUC can be off),
            `log_loss`, `calibration`, `rows`, `positives`; per regression task `NAME/rmse`,
            `mae`, `rows`; and the means of `auc` and `log_loss` over the tasks that have one.
        """
        return with_means(self.merged(device).values())

    def values(self) -> Metrics:
        """Metrics of the rows in this object, without means; None where undefined."""
        metrics: Metrics = {}
        for task, (name, kind) in enumerate(zip(self.task_names, self.kinds, strict=True)):
            values = self._binary(task) if kind == "binary" else self._regression(task)
            metrics |= {f"{name}/{key}": value for key, value in values.items()}
        return metrics

    def _binary(self, task: int) -> Metrics:
        sums, counts = self.sums[task].sum(axis=0), self.counts[task]
        area, error = binned_auc(self.histogram[task])
        return {
            "auc": area,
            "auc_error": error,
            "log_loss": ratio(sums[LOSS], sums[WEIGHT]),
            "calibration": ratio(sums[PREDICTED], sums[OBSERVED]),
            "rows": int(counts[ROWS]),
            "positives": int(counts[POSITIVES]),
        }

    def _regression(self, task: int) -> Metrics:
        sums = self.sums[task].sum(axis=0)
        mean_square = ratio(sums[LOSS], sums[WEIGHT])
        return {
            "rmse": None if mean_square is None else max(mean_square, 0.0) ** 0.5,
            "mae": ratio(sums[ABSOLUTE], sums[WEIGHT]),
            "rows": int(self.counts[task, ROWS]),
        }


def to_grid(values: np.ndarray, grid: float) -> np.ndarray:
    """Values rounded to multiples of `grid`."""
    return np.round(values / grid) * grid


def bins(probabilities: np.ndarray, num_bins: int) -> np.ndarray:
    """Bin numbers of probabilities, even steps of their logit."""
    low = 1 / (1 + np.exp(EDGE_LOGIT))
    p = np.clip(probabilities, low, 1 - low)
    place = (np.log(p / (1 - p)) + EDGE_LOGIT) / (2 * EDGE_LOGIT)
    return np.clip((place * num_bins).astype(np.int64), 0, num_bins - 1)


def binned_auc(histogram: np.ndarray) -> tuple[float | None, float | None]:
    """AUC of (2, bins) weights of negatives and positives, ascending; ties within a bin are half.

    Returns:
        The area, and the most it can be off: half the share of pairs that fell into one bin.
    """
    negative, positive = histogram
    pairs = negative.sum() * positive.sum()
    if not pairs:
        return None, None
    below = np.cumsum(negative) - negative
    area = (positive * (below + negative / 2)).sum() / pairs
    return float(area), float((positive * negative).sum() / 2 / pairs)


def with_means(metrics: Metrics) -> Metrics:
    """Adds `auc`, `gauc`, `log_loss`, `rmse`, `mae` as plain means over tasks where not None.

    `auc_tasks` and so on say over how many tasks; None and 0 where there is none.
    """
    metrics = dict(metrics)
    for kind in ("auc", "gauc", "log_loss", "rmse", "mae"):
        found = [v for key, v in metrics.items() if key.endswith(f"/{kind}")]
        known = [v for v in found if v is not None]
        if found:
            metrics[kind] = sum(known) / len(known) if known else None
            metrics[f"{kind}_tasks"] = len(known)
    return metrics
