"""What a program calls: train, evaluate, load(run).predict(table). `raymtl.train` and so on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raymtl import calibration, launch, scoring
from raymtl import config as configs
from raymtl.artifact.export import export as write_artifact
from raymtl.config import LaunchSection, TrainConfig
from raymtl.loaded import Model
from raymtl.models.registry import register as register_model
from raymtl.progress import Show
from raymtl.run import choose, located
from raymtl.storage import absolute

__all__ = ["Model", "evaluate", "export", "load", "register_model", "train"]

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
    where: str | Path,
    log: str,
    which: str = "best",
    num_workers: int = 1,
    show: Show = print,
    calibrated: bool = False,
) -> dict[str, Any]:
    """Metrics of a checkpoint over a log, on Ray.

    Args:
        where: a run folder or a checkpoint folder.
        log: parquet under a path or URL, with the columns of the training log and its labels.
        which: of a run, `best` (by validation), `last`, or a checkpoint's name.
        num_workers: Ray Train workers.
        show: takes lines for a person.
        calibrated: after the checkpoint's calibration.

    Returns:
        {"checkpoint", "log", "rows", "metrics": {"<task>/<metric>": value or None, …}}.

    Raises:
        InputError: no such checkpoint, log or calibration, or they do not fit.
        DamagedCheckpoint: naming the file.
    """
    section, pick = LaunchSection(num_workers=num_workers), scoring.Pick(which, calibrated)
    return scoring.evaluate(absolute(str(where)), log, section, pick, show)


def load(where: str | Path, which: str = "best", calibrated: bool = False) -> Model:
    """A trained model in this process, without Ray.

    Args:
        where: a run folder or a checkpoint folder.
        which: of a run, `best` (by validation), `last`, or a checkpoint's name.
        calibrated: after the checkpoint's calibration.

    Returns:
        A model whose `predict(table)` scores an arrow table.

    Raises:
        InputError: there is no such checkpoint, or it was not calibrated.
        DamagedCheckpoint: naming the file.
    """
    found = choose(absolute(str(where)), which)
    return Model(found, calibration.read(found.folder) if calibrated else None)


def export(
    where: str | Path, out: str | Path, which: str = "best", calibrated: bool = False
) -> dict[str, Any]:
    """Writes a serving folder that the `scorer.py` in it scores with; without Ray.

    Arguments, result and errors are those of `raymtl.artifact.export.export`.
    """
    return write_artifact(absolute(str(where)), absolute(str(out)), which, calibrated)
