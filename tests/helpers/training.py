"""Whole training runs on gloo ranks, without Ray: what the trainer's tests run in processes."""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from raymtl import collectives
from raymtl.batch import Batch
from raymtl.checkpoint import Checkpoint
from raymtl.config import TrainConfig, override, parse
from raymtl.data.stream import Stream
from raymtl.learner import Learner
from raymtl.preflight import check
from raymtl.run import MetricLines, Run
from raymtl.saving import Saver
from raymtl.source import LogSource, read_batches
from raymtl.storage import Folder
from raymtl.trainer import Reports, Trainer

SMALL_STEM = {
    "name": "stem",
    "num_shared_experts": 2,
    "expert_hidden_units": [16],
    "gate_hidden_units": [8],
    "tower_hidden_units": [8],
}


def small_config(folder: str, *overrides: str, **values: Any) -> dict[str, Any]:
    """Plain values of a TrainConfig for the log that `small_log(folder)` wrote."""
    base: dict[str, Any] = {
        "storage": f"{folder}/runs",
        "data": {
            "train": f"{folder}/train",
            "valid": f"{folder}/valid",
            "num_lanes": 8,
            "chunk_rows": 256,
        },
        "model": SMALL_STEM,
        "train": {"global_batch_size": 256, "num_epochs": 2, "report_every_steps": 5},
        "embedding": {"width": 4, "replicate_rows": 150, "num_buckets": 16},
        "optimizer": {"rows": {"l2": 1e-4}, "clip_norm": 0.5},
    }
    return override(base | values, list(overrides))


def train_config(folder: str, *overrides: str) -> TrainConfig:
    """`small_config`, checked."""
    return parse(TrainConfig, small_config(folder, *overrides), "a test")


class Watched:
    """Reads plainly and notes which rows every step held; may fail at a step on a rank."""

    def __init__(self, failing: dict[str, Any] | None = None):
        self.rows: dict[int, list[tuple[int, int]]] = {}
        self.failing = failing or {}

    def __call__(self, stream: Stream) -> Iterator[Batch]:
        batches = read_batches(stream)
        return self._watched(batches) if stream.index.url.endswith("/train") else batches

    def _watched(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            kept = batch.file_B >= 0
            pairs = zip(batch.file_B[kept].tolist(), batch.row_B[kept].tolist(), strict=True)
            self.rows.setdefault(batch.step, []).extend(pairs)
            yield self._spoiled(batch)

    def _spoiled(self, batch: Batch) -> Batch:
        here = self.failing.get("rank") == collectives.rank()
        if not here or batch.step != self.failing.get("step"):
            return batch
        if self.failing["how"] == "read":
            raise OSError("the disk is on fire")
        if self.failing["how"] == "id":
            batch.ids_BC[0, 0] = 10**6
        if self.failing["how"] == "nan":
            batch.numeric_BN[:2] = float("nan")
        return batch


def train_on_rank_with(environment: dict[str, str], values: dict[str, Any]) -> dict[str, Any]:
    """Collective. `train_on_rank` in an environment that rank processes did not start with."""
    os.environ.update(environment)
    return train_on_rank(values)


def train_on_rank(
    values: dict[str, Any],
    failing: dict[str, Any] | None = None,
    leave_after: int | None = None,
    notice_at: int | None = None,
) -> dict[str, Any]:
    """Collective. Trains a run, beginning it or going on with it.

    Args:
        values: plain TrainConfig values.
        failing: {"rank", "step", "how": read | id | nan} spoils one rank's batch.
        notice_at: step at which all ranks are told that a node is about to go.
        leave_after: step after which the process walks away without saving, as if killed.

    Returns:
        Losses by step, rows by step, the final state, and the error met, if any.
    """
    config = parse(TrainConfig, values, "a test")
    job = check(config)
    run = Run.of(job.config)
    if collectives.rank() == 0 and not run.exists():
        run.begin(job.config, job.schema, job.train)
    collectives.barrier()
    watched = Watched(failing)
    learner = Learner(job.config, job.schema, torch.device("cpu"))
    source = LogSource(job.config, job.schema, job.train, job.valid, watched)
    saver = Saver(run, learner, job.train.digest)
    lines = MetricLines(run)
    reports = Reports(lines.add, _ignore, _ignore, lines.flush)
    trainer = Trainer(
        *(job.config, learner, source, saver, reports), lambda: trainer.state.step == notice_at
    )
    trainer.notice_interval_s = 0.0
    losses = _keep_losses(learner, leave_after)
    error, warnings = None, trainer.restore()
    if collectives.rank() == 0:
        lines.cut_back(trainer.state.step)
    start = trainer.state.step
    try:
        trainer.run()
    except Walked:
        pass
    except Exception as caught:
        error = f"{type(caught).__name__}: {caught}"
    return {
        "losses": losses,
        "rows": {step: rows for step, rows in watched.rows.items() if step in losses},
        "start": start,
        "state": asdict(trainer.state),
        "error": error,
        "warnings": warnings,
        "run": run.url,
    }


class Walked(Exception):
    """The process is to leave as if it had been killed."""


def _keep_losses(learner: Learner, leave_after: int | None) -> dict[int, list[float]]:
    losses: dict[int, list[float]] = {}
    step = learner.step

    def kept(batch: Batch, sums: Any, number: int, num_steps: int, *rest: Any) -> Any:
        if leave_after is not None and number >= leave_after:
            raise Walked
        outcome = step(batch, sums, number, num_steps, *rest)
        losses[number] = [float(outcome.loss), *outcome.loss_T.tolist()]
        return outcome

    learner.step = kept  # type: ignore[method-assign]
    return losses


def _ignore(*_: Any) -> None:
    pass


def final_checkpoint(run_url: str) -> Checkpoint:
    """The newest checkpoint of a run."""
    folder = Folder(run_url) / "checkpoints"
    return Checkpoint(folder / sorted(folder.names())[-1])


def weights_of(found: Checkpoint) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, table rows in their order over all buckets."""
    tensors = found.tensors("dense.safetensors")
    reader = found.tables()
    for _, file in reader._files:
        for key in file.slots:
            parts = [f.slots[key].shape[0] for _, f in reader._files if key in f.slots]
            tensors[key] = reader.read(key, sum(parts), 0, found.num_buckets)
    reader.close()
    return tensors


def bytes_of(run_url: str) -> dict[str, bytes]:
    """Every file of the newest checkpoint."""
    folder = Path(run_url, "checkpoints")
    newest = sorted(folder.iterdir())[-1]
    return {path.name: path.read_bytes() for path in sorted(newest.iterdir())}


def read_lines(run_url: str) -> list[dict[str, Any]]:
    """metrics.jsonl, line by line."""
    text = Path(run_url, "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
