"""The objective: one number from the per-task metrics of a validation. Pure."""

import json
import math
import statistics
from collections.abc import Mapping
from typing import Any

from raymtl.errors import InputError
from raymtl.run import RESULT
from raymtl.schema import LogSchema
from raymtl.storage import Folder
from raymtl_tuning.config import ObjectiveSection

Metrics = Mapping[str, Any]
"""`<task>/<metric>` -> number, or null where it does not exist."""


def value(objective: ObjectiveSection, metrics: Metrics) -> float | None:
    """The objective of a validation; null where a metric it needs does not exist.

    Args:
        objective: with `against` resolved to values per task.
        metrics: of one validation; means over tasks among them are not read.
    """
    ending = f"/{objective.metric}"
    by_task = {k.removesuffix(ending): v for k, v in metrics.items() if k.endswith(ending)}
    wanted = set(objective.weights) or by_task.keys()
    if objective.name == "gain":
        assert isinstance(objective.against, dict)
        wanted = objective.against.keys()
    known = {task: by_task.get(task) for task in sorted(wanted)}
    if not known or any(v is None or not math.isfinite(v) for v in known.values()):
        return None
    return _of(objective, {task: float(v) for task, v in known.items() if v is not None})


def _of(objective: ObjectiveSection, by_task: dict[str, float]) -> float:
    values = list(by_task.values())
    higher = objective.metric in ("auc", "gauc")
    match objective.name:
        case "mean":
            return statistics.fmean(values)
        case "weighted":
            return statistics.fmean(values, [objective.weights[task] for task in by_task])
        case "worst":
            return min(values) if higher else max(values)
        case "gain":
            assert isinstance(objective.against, dict)
            gains = [v - objective.against[task] for task, v in by_task.items()]
            return statistics.fmean(gains) * (1 if higher else -1)


def resolved(objective: ObjectiveSection, schema: LogSchema) -> ObjectiveSection:
    """The objective with `against` as values per task, its tasks and metric checked.

    Raises:
        InputError: a task is not the schema's, the metric is not of these tasks, or no single-task
            result is there.
    """
    kinds = {"binary": ("auc", "gauc", "log_loss"), "regression": ("rmse", "mae")}
    fitting = [task.name for task in schema.tasks if objective.metric in kinds[task.kind]]
    if not fitting or (objective.metric == "gauc" and schema.group is None):
        raise InputError(
            "objective.metric is not a metric of these tasks",
            f"{objective.metric}; tasks {', '.join(f'{t.name} ({t.kind})' for t in schema.tasks)}",
            "auc or log_loss of binary tasks, gauc where the schema has a group; rmse, mae",
            "choose another",
        )
    against = objective.against
    if against is not None and not isinstance(against, dict):
        against = _reached([against] if isinstance(against, str) else against, objective.metric)
    for given in (objective.weights, against or {}):
        if unknown := sorted(set(given) - set(fitting)):
            raise InputError(
                "the objective names a task without its metric",
                f"{', '.join(unknown)}; {objective.metric}",
                f"some of {', '.join(fitting)}",
                "mend objective.weights or objective.against",
            )
    return objective.model_copy(update={"against": against})


def _reached(runs: list[str], metric: str) -> dict[str, float]:
    """Each task's best validation in the runs' results, mean over the runs."""
    found: dict[str, list[float]] = {}
    for run in runs:
        folder = Folder(run.removesuffix(f"/{RESULT}"))
        try:
            metrics = json.loads(folder.read(RESULT))["state"]["best_metrics"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                "objective.against is no finished run",
                f"{folder.url}: {error}",
                "the folder of a run that was validated",
                "train single_task on this log first, or give {TASK: value}",
            ) from None
        for key, number in metrics.items():
            task, _, name = key.rpartition("/")
            if task and name == metric and number is not None:
                found.setdefault(task, []).append(number)
    if not found:
        raise InputError(
            f"the runs of objective.against have no {metric}",
            ", ".join(runs),
            f"runs whose validation brought {metric}",
            "name others, or choose another objective.metric",
        )
    return {task: statistics.fmean(values) for task, values in found.items()}
