"""One pass over a log with a trained model."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from raymtl.batch import Batch
from raymtl.config import MetricsSection
from raymtl.learner import Learner
from raymtl.metrics import TaskMetrics
from raymtl.serving import ServingValues
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
    serving: ServingValues | None = None,
) -> dict[str, float | int | None]:
    """Collective. Metrics of every task over a log; equal on every rank.

    Args:
        adjust: what is made of predictions (B, T) beforehand: calibration.
        serving: values put in for features that are known in training only, which brings the
            metrics a second time, as `serving/…`; null, or without such values: once.
    """
    tasks = learner.layout.task_names, learner.kinds
    logged, served = (TaskMetrics(*tasks, section.exact_rows, section.num_bins) for _ in range(2))
    for batch, probabilities_BT in scored(learner, batches, num_steps):
        logged.update(adjust(probabilities_BT) if adjust else probabilities_BT, batch)
        if serving:
            probabilities_BT = learner.probabilities(serving.apply(batch))
            served.update(adjust(probabilities_BT) if adjust else probabilities_BT, batch)
    metrics = logged.compute(learner.device)
    if serving:
        found = served.compute(learner.device)
        metrics |= {f"serving/{key}": value for key, value in found.items()}
    return metrics
