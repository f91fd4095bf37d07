"""Fits a checkpoint's calibration on a log and keeps it in the run's folder."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from raymtl import calibration
from raymtl.analysis.cells import Cell, Outcomes, read_outcomes, read_scores
from raymtl.config import LaunchSection
from raymtl.data.log import LOG_ROW
from raymtl.errors import InputError
from raymtl.lineage import reading_schema
from raymtl.preflight import indexed
from raymtl.progress import Show
from raymtl.run import choose, home_of
from raymtl.saving import read_config
from raymtl.scoring import predict
from raymtl.storage import Folder

Scored = Callable[[str, str, str], object]
"""Scores a log with a checkpoint: (checkpoint, log, folder for the scores)."""


def calibrate(
    where: str,
    log: str,
    method: calibration.Method,
    launch: LaunchSection,
    which: str = "best",
    show: Show = print,
    scored: Scored | None = None,
) -> dict[str, Any]:
    """Fits each binary task's curve.

    Args:
        where: a run folder, or a checkpoint in one.
        log: URL of a log with labels that the run was not trained on.
        which: of a run, `best`, `last`, or a checkpoint's name.
        scored: how the log is scored; null means on Ray with `launch`.

    Returns:
        What is written, and "url", where to: {"checkpoint", "log", "method", "tasks": {task:
        {"curve", "rows", "before", "after"}}}.

    Raises:
        InputError: no such checkpoint or log; a task has no binary labels of both kinds.
    """
    found = choose(where, which)
    name = found.folder.url.rpartition("/")[2]
    run = Folder(home_of(found.folder.url))
    run.require_writable()
    _, schema = read_config(found)
    index = indexed(log, reading_schema(schema, log, found.folder.url))
    if not any(task.kind == "binary" for task in schema.tasks):
        raise InputError(
            "there is nothing to calibrate",
            f"tasks {', '.join(task.name for task in schema.tasks)}, all regressions",
            "a binary task",
            "use predictions as they are",
        )
    place = f"calibration/scores-{name}"
    run.delete(place)
    try:
        if scored is not None:
            scored(found.folder.url, log, f"{run.url}/{place}")
        else:
            keys, out = (LOG_ROW,), f"{run.url}/{place}"
            predict(found.folder.url, log, out, keys, launch, show=show)
        tasks = _fitted(f"{run.url}/{place}", read_outcomes(index, schema), method)
    finally:
        run.delete(place)
    fitted_on = {"url": log, "digest": index.digest}
    result = {"checkpoint": name, "log": fitted_on, "method": method, "tasks": tasks}
    text = json.dumps(result, indent=1, sort_keys=True) + "\n"
    run.write(calibration.path_of(name), text.encode())
    return result | {"url": f"{run.url}/{calibration.path_of(name)}"}


def _fitted(scores: str, outcomes: Outcomes, method: calibration.Method) -> dict[str, Any]:
    """Of each binary task what `calibration.fit_tasks` gives."""
    scores_NT = read_scores(Cell("model", 0, scores), outcomes)
    names = zip(outcomes.task_names, outcomes.kinds, strict=True)
    binary = {task: t for t, (task, kind) in enumerate(names) if kind == "binary"}

    def by_task(values_NT: np.ndarray) -> dict[str, np.ndarray]:
        return {task: values_NT[:, t] for task, t in binary.items()}

    labels, weights = by_task(outcomes.labels_NT), by_task(outcomes.weight_NT)
    return calibration.fit_tasks(by_task(scores_NT), labels, weights, method)
