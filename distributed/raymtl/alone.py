"""A run in this process alone: W = 1, no worker group. For many small runs side by side.

The same trainer, order, checkpoints and run folder as `raymtl.launch`, which it leaves out: the
start of workers takes longer than a small run does.
"""

import logging
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from raymtl import scoring
from raymtl.config import TrainConfig, override, parse
from raymtl.data.log import LOG_ROW
from raymtl.learner import Learner
from raymtl.preflight import check_run
from raymtl.run import MetricLines
from raymtl.saving import Saver
from raymtl.source import LogSource, Read, read_batches
from raymtl.tensorboard import EventWriter
from raymtl.trainer import Reports, Trainer

logger = logging.getLogger(__name__)
Line = Callable[[dict[str, Any]], None]


def train(
    config: TrainConfig,
    resume: bool = False,
    line: Line | None = None,
    read: Read = read_batches,
) -> dict[str, Any]:
    """Trains a run to its end in this process.

    Args:
        config: the run; its launch section is not used but for `use_gpu`.
        resume: go on with the run that is there, instead of refusing it.
        line: takes each line of metrics.jsonl as well. What it raises ends the run where it is;
            the folder can be gone on with.
        read: gives the batches of a stream; from disk unless the caller holds the rows already.

    Returns:
        What result.json holds.

    Raises:
        InputError: before training, or from a row that cannot be trained.
        NonFinite: a loss or gradient is not finite.
    """
    config = parse(
        TrainConfig, override(config.model_dump(mode="json"), ["launch.num_workers=1"]), "a run"
    )
    job, run = check_run(config, resume)
    run.folder.require_writable()
    if resume:
        run.write_config(job.config)
    else:
        run.begin(job.config, job.schema, job.train)
    device = torch.device("cuda" if job.config.launch.use_gpu else "cpu")
    learner = Learner(job.config, job.schema, device)
    source = LogSource(job.config, job.schema, job.train, job.valid, read)
    saver = Saver(run, learner, job.train.digest)
    lines, events = MetricLines(run), EventWriter(run.folder)

    def add_line(values: dict[str, Any]) -> None:
        lines.add(values)
        events.add(values)
        if line is not None:
            line(values)

    reports = Reports(add_line, lambda values: None, lambda step, metrics: None, lines.flush)
    trainer = Trainer(job.config, learner, source, saver, reports)
    for warning in trainer.restore():
        logger.warning(warning)
    lines.cut_back(trainer.state.step)
    state = trainer.run()
    result = {
        "state": asdict(state),
        "checkpoint": saver.last_complete,
        "steps_per_epoch": source.steps_per_epoch,
        "run": run.url,
        "num_workers": 1,
    }
    run.write_result(result)
    return result


def predict(where: str, log: str, out: str, pick: scoring.Pick = scoring.BEST) -> dict[str, Any]:
    """Scores every row of a log in this process; as `raymtl.scoring.predict` with key `log_row`."""
    found, payload, _ = scoring.checked(where, pick, log, labels=False)
    payload |= {"out": out, "keys": (LOG_ROW,)}
    written = scoring.predict_rank(payload, torch.device("cpu"), read_batches)
    return {"checkpoint": found.folder.url, "log": log, "out": out, "rows": written["rows"]}
