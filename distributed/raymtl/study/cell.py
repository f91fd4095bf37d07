"""One run of a study, in a process of its own."""

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from raymtl import alone
from raymtl.config import TrainConfig, parse
from raymtl.errors import InputError, NonFinite
from raymtl.models import registry
from raymtl.run import RESULT, Run

Models = Mapping[str, type[nn.Module]]


def finished(config: TrainConfig) -> dict[str, Any] | None:
    """What a run's result.json holds; null where it has not come to its end."""
    run = Run.of(config)
    if run.folder.size(RESULT) is None:
        return None
    return json.loads(run.folder.read(RESULT))


def train_cell(values: dict[str, Any], threads: int, models: Models) -> dict[str, Any]:
    """Trains a run, or goes on with it where an earlier process left it.

    Args:
        models: what `register_model` made known to the process that asks.

    Returns:
        {"result": as result.json} or {"error": text} for what the user must mend.
    """
    begin(threads, models)
    config = parse(TrainConfig, values, "a run of the study")
    try:
        return {"result": alone.train(as_begun(config), resume=Run.of(config).exists())}
    except (InputError, NonFinite) as error:
        return {"error": str(error)}


def as_begun(config: TrainConfig) -> TrainConfig:
    """The config of a run that is new, or was begun: then with the checkpoint it started from."""
    run = Run.of(config)
    if config.init_from is None or not run.exists():
        return config
    return config.model_copy(update={"init_from": run.read_config().init_from})


def score_cell(run: str, log: str, out: str, threads: int, models: Models) -> dict[str, Any]:
    """Scores a log with a run's best checkpoint; as `train_cell`."""
    begin(threads, models)
    try:
        return {"result": alone.predict(run, log, out)}
    except (InputError, NonFinite) as error:
        return {"error": str(error)}


def begin(threads: int, models: Models) -> None:
    """Prepares a process of its own: its torch threads, and models it would not know."""
    torch.set_num_threads(threads)
    for name, cls in models.items():
        registry.register(name, cls)
