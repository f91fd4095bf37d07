"""One pass over a log with a trained model."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from raymtl.batch import Batch
from raymtl.config import MetricsSection
from raymtl.learner import Learner
from raymtl.metrics import TaskMetrics
from raymtl.status import agree, attempt


def scored(
    learner: Learner, batches: Iterator[Batch], num_steps: int
) -> Iterator[tuple[Batch, Tensor]]:
    """Collective. Yields each batch with its predictions (B, T).

    Raises:
        InputError, RankFailed: on all ranks alike where one cannot read on.
    """
    nothing = torch.zeros(0, dtype=torch.float64, device=learner.device)
    for _ in range(num_steps):
        batch, error = attempt(lambda: learner.checked(next(batches)))
        agree(error, nothing)
        assert batch is not None
        yield batch, learner.probabilities(batch)


def evaluate(
    learner: Learner,
    batches: Iterator[Batch],
    num_steps: int,
    section: MetricsSection,
    adjust: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, float | int | None]:
    """Collective. Metrics of every task over a log; equal on every rank.

    Args:
        adjust: what is made of predictions (B, T) beforehand: calibration.
    """
    metrics = TaskMetrics(
        learner.layout.task_names, learner.kinds, section.exact_rows, section.num_bins
    )
    for batch, probabilities_BT in scored(learner, batches, num_steps):
        metrics.update(adjust(probabilities_BT) if adjust else probabilities_BT, batch)
    return metrics.compute(learner.device)
