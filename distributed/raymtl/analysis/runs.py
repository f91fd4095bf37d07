"""What run folders tell: which model and seed a run is, its size, speed and metric lines."""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raymtl.checkpoint import Checkpoint, complete_names
from raymtl.config import TrainConfig
from raymtl.errors import InputError
from raymtl.run import METRICS, Run
from raymtl.schema import LogSchema
from raymtl.shards import ShardFile
from raymtl.storage import Folder, absolute

NOT_THE_MODEL = {"name", "storage", "seed", "launch", "failure", "checkpoint", "metrics"}
"""Sections of a config that may differ between the seeds of one model."""


@dataclass(frozen=True)
class NamedRun:
    """A run with the label its model has in a comparison."""

    label: str
    url: str
    config: TrainConfig
    schema: LogSchema

    @property
    def seed(self) -> int:
        """The seed it was trained with."""
        return self.config.seed


@dataclass(frozen=True)
class Training:
    """What a run adds to its scores."""

    num_dense: int | None
    """Parameters of the model outside the tables; null without a checkpoint."""
    num_table: int | None
    """Floats of all table rows."""
    rows_per_s: float | None
    """Median of the reports, the first left out where there are more: it holds the start."""
    num_workers: int | None
    lines: list[dict[str, Any]]
    """The objects of metrics.jsonl."""


def named_runs(given: Sequence[str]) -> list[NamedRun]:
    """Reads the runs named as `RUN` or `LABEL=RUN`.

    Without a LABEL it is the run's name; where that ends in its seed (`stem-1`, `stem_seed2023`),
    the name before it. Runs of one label are the seeds of one model.

    Raises:
        InputError: no run is there, one is named twice, runs of one label were trained with
            different configs, or runs have different tasks.
    """
    found = [_named(text) for text in given]
    _refuse_doubles(found)
    for run in found:
        first = next(other for other in found if other.label == run.label)
        _require_same_model(first, run)
        _require_same_tasks(found[0], run)
    return found


def _named(text: str) -> NamedRun:
    label, equals, url = text.partition("=")
    if not equals or "/" in label or Run(text).exists():
        label, url = "", text
    run = Run(absolute(url))
    config, schema = run.read_config(), run.read_schema()
    return NamedRun(label or without_seed(config.name, config.seed), run.url, config, schema)


def without_seed(name: str, seed: int) -> str:
    """A run's name without the seed at its end: `stem-1`, `stem_1`, `stem-seed1` give `stem`."""
    kept = name.removesuffix(str(seed))
    if kept == name or kept[-1:].isdigit():
        return name
    for ending in ("-seed", "_seed", "seed", "-", "_"):
        if kept.endswith(ending) and len(kept) > len(ending):
            return kept.removesuffix(ending).rstrip("-_") or name
    return name


def model_name(url: str) -> str:
    """The name of a run's model."""
    return Run(url).read_config().model.name


def read_training(url: str) -> Training:
    """Size from the newest checkpoint's own headers, speed and curves from the metric lines."""
    run = Run(url)
    lines = _lines(run)
    speeds = [float(values["rows_per_s"]) for values in lines if "rows_per_s" in values]
    dense, table = _sizes(run)
    return Training(
        dense,
        table,
        statistics.median(speeds[1:] or speeds) if speeds else None,
        run.read_config().launch.most_workers,
        lines,
    )


def _lines(run: Run) -> list[dict[str, Any]]:
    if run.folder.size(METRICS) is None:
        return []
    found = []
    for text in run.folder.read(METRICS).decode(errors="replace").splitlines():
        try:
            values = json.loads(text)
        except ValueError:
            continue  # the last line of a run that was killed
        if isinstance(values, dict) and "step" in values:
            found.append(values)
    return found


def _sizes(run: Run) -> tuple[int | None, int | None]:
    """Elements of the dense parameters and of the tables' values."""
    names = complete_names(run.checkpoints)
    if not names:
        return None, None
    folder = run.checkpoints / names[-1]
    dense = table = 0
    for name in Checkpoint(folder).entries:
        if name == "dense.safetensors":
            dense += _elements(folder, name, starts="model/")
        elif name == "replicated.safetensors" or name.startswith("tables-"):
            table += _elements(folder, name, ends="/values")
    return dense, table


def _elements(folder: Folder, name: str, starts: str = "", ends: str = "") -> int:
    """Elements of a file's tensors by their keys; reads its header only."""
    file = ShardFile(folder, name)
    file.close()
    kept = (s for k, s in file.slots.items() if k.startswith(starts) and k.endswith(ends))
    return sum(math.prod(slot.shape) for slot in kept)


def _refuse_doubles(found: list[NamedRun]) -> None:
    urls = [run.url for run in found]
    doubles = sorted({url for url in urls if urls.count(url) > 1})
    if doubles:
        raise InputError("a run is named twice", ", ".join(doubles), "each once", "leave one out")


def _require_same_model(first: NamedRun, run: NamedRun) -> None:
    a, b = (r.config.model_dump(mode="json", exclude=NOT_THE_MODEL) for r in (first, run))
    changed = sorted(key for key in a if a[key] != b[key])
    if changed:
        raise InputError(
            f"runs of {run.label} were not trained alike",
            f"{first.url} and {run.url} differ in {', '.join(changed)}",
            "runs of one label that differ in their seed alone",
            "give one another name: LABEL=RUN",
        )


def _require_same_tasks(first: NamedRun, run: NamedRun) -> None:
    a, b = (_measured_by(r.schema) for r in (first, run))
    if a != b:
        raise InputError(
            "the runs have different tasks",
            f"{run.url}: {_described(run.schema)}",
            f"as {first.url}: {_described(first.schema)}",
            "compare runs of the same tasks, labels, group and weights",
        )


def _measured_by(schema: LogSchema) -> tuple[object, ...]:
    """What decides about metrics in a schema."""
    tasks = [task.model_dump(exclude={"loss_weight", "given"}) for task in schema.tasks]
    return tasks, schema.group, schema.weight


def _described(schema: LogSchema) -> str:
    tasks = ", ".join(f"{task.name} ({task.label})" for task in schema.tasks)
    return f"{tasks}; group {schema.group}, weight {schema.weight}"
