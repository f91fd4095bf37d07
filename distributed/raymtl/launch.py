"""TrainConfig -> Ray Train: workers, restarts, progress and the run's result."""

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import ray
import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer, get_device
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.util.metrics import Gauge

from raymtl import collectives, footprint, status
from raymtl.batch import Batch
from raymtl.cluster import (
    DATA_CPUS_PER_WORKER,
    environment,
    session,
    started_here,
    worker_environment,
)
from raymtl.config import TrainConfig, parse
from raymtl.data import ingest
from raymtl.data.feed import feed
from raymtl.data.stream import Stream
from raymtl.errors import InputError, NonFinite, RankFailed
from raymtl.failures import FailureLines, first_cause
from raymtl.learner import Learner
from raymtl.models import registry
from raymtl.preflight import check_run, describe
from raymtl.process_group import ProcessGroup
from raymtl.progress import Board, Show, shown
from raymtl.run import MetricLines, Run
from raymtl.saving import Saver
from raymtl.schema import LogSchema
from raymtl.source import LogSource, Read
from raymtl.storage import absolute
from raymtl.tensorboard import EventWriter
from raymtl.trainer import Reports, Trainer

STORE_FOR_DATA = 0.5
"""Part of the object store that the ranks' streams share."""
SCORED = {"valid/": "validation", "before/": "this log before training on it:"}
"""Metrics that are said as they come: what their keys begin with, and words for a person."""
SWITCH_S = 0.00005
"""After which a worker's other threads give Python's lock to the step that waits for it: a step
takes it hundreds of times. Python's own is a hundred times as long."""
POLL_INTERVAL_S = 0.5
"""How often Ray Train looks after its workers: how late a death or the end is noticed."""


def train(
    config: TrainConfig,
    resume: bool = False,
    show: Show = print,
    callbacks: Sequence[UserCallback] = (),
) -> dict[str, Any]:
    """Trains a run to its end on Ray, restarting workers that fail.

    Args:
        config: the run; with `resume`, the stored config with the changes resuming allows.
        resume: go on with the run that is there, instead of refusing it.
        show: takes lines for a person.
        callbacks: Ray Train's, told of each checkpoint's step and validation metrics.

    Returns:
        What result.json holds.

    Raises:
        InputError: before any worker starts, or from a row that cannot be trained.
        NonFinite: a loss or gradient is not finite.
        RankFailed: workers failed more often than failure.max_failures.
    """
    job, run = check_run(config, resume)
    run.folder.require_writable()
    show(describe(job))
    with session(job.config.launch):
        for line in footprint.lines(job):
            show(line)
        if resume:
            run.write_config(job.config)
        else:
            run.begin(job.config, job.schema, job.train)
        payload = {
            "config": job.config.model_dump(mode="json"),
            "schema": job.schema.model_dump(mode="json"),
            "run": run.url,
            "train": job.train,
            "valid": job.valid,
        }
        result = run_workers(train_rank, payload, job.config, run.url, show, callbacks)
        while result.pop("leaving"):
            show("a node is about to go: all is saved, training starts anew without it")
            result = run_workers(train_rank, payload, job.config, run.url, show, callbacks)
    result |= {"run": run.url}
    run.write_result(result)
    return result


def run_workers(
    work: Callable[[dict], dict],
    payload: dict[str, Any],
    config: TrainConfig,
    storage_url: str,
    show: Show,
    callbacks: Sequence[UserCallback] = (),
) -> dict[str, Any]:
    """Runs a function on every rank of a Ray Train worker group and returns rank 0's result.

    What the user must mend (InputError, NonFinite) ends the run at once; any other failure
    restarts the group, up to failure.max_failures times.
    """
    launch, failure = config.launch, config.failure
    board = Board()
    trainer = _Trainer(
        _guarded,
        train_loop_config={
            "work": work,
            "board": board,
            "threads": launch.threads_per_worker,
            "models": registry.registered(),
            **payload,
        },
        torch_config=ProcessGroup(timeout_s=max(1, int(failure.hang_timeout_s))),
        scaling_config=ScalingConfig(
            num_workers=(
                launch.fewest_workers
                if isinstance(launch.num_workers, int)
                else (launch.fewest_workers, launch.most_workers)
            ),
            elastic_resize_monitor_interval_s=launch.resize_check_s,
            use_gpu=launch.use_gpu,
            resources_per_worker={"CPU": launch.cpus_per_worker}
            | ({"GPU": 1} if launch.use_gpu else {}),
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=absolute(storage_url),
            failure_config=FailureConfig(max_failures=failure.max_failures),
            callbacks=[FailureLines(board), *callbacks],
            worker_runtime_env={"env_vars": worker_environment()},
        ),
    )
    # The health check gives up on a worker at the same time as the process group does.
    health = {
        "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": str(failure.hang_timeout_s),
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": str(POLL_INTERVAL_S),
        "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": str(POLL_INTERVAL_S),
    }
    with environment(health), shown(board, show):
        try:
            outcome = trainer.fit().return_value
        except TrainingFailedError as error:
            raise RankFailed(first_cause(error)) from None
    assert outcome is not None, "Ray Train ended without a result"
    if "error" in outcome:
        raise status.from_dict(outcome["error"])
    return outcome["result"]


class _Trainer(TorchTrainer):
    """Without those of Ray Train's actors that have nothing to do here.

    Each is a process that wakes 100 times a second, on cores that train.
    """

    def _create_default_callbacks(self) -> list[Any]:
        unused = {"DatasetsCallback"}  # each rank makes its own dataset
        if started_here():  # then placement groups end with this process
            unused.add("PlacementGroupCleanerCallback")
        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if type(callback).__name__ not in unused]


def _guarded(payload: dict[str, Any]) -> dict[str, Any]:
    """One rank. Errors the user must mend are returned, so that Ray does not try them again."""
    on_this_node = ray.train.get_context().get_local_world_size()
    sys.setswitchinterval(SWITCH_S)
    torch.set_num_threads(payload["threads"] or max(1, (os.cpu_count() or 1) // on_this_node))
    for name, cls in payload["models"].items():
        registry.register(name, cls)
    try:
        return {"result": payload["work"](payload)}
    except (InputError, NonFinite) as error:
        return {"error": status.to_dict(error)}


def train_rank(payload: dict[str, Any]) -> dict[str, Any]:
    """Collective. One rank of a training run, from its newest good checkpoint to the end."""
    config = parse(TrainConfig, payload["config"], "the run's config")
    schema = parse(LogSchema, payload["schema"], "the run's schema")
    run, train_index, valid_index = Run(payload["run"]), payload["train"], payload["valid"]
    device = get_device()
    assert isinstance(device, torch.device)
    learner = Learner(config, schema, device)
    resizable = not isinstance(config.launch.num_workers, int)
    board, leads = payload["board"], collectives.rank() == 0

    def warn(text: str) -> None:
        board.say(f"warning: {text}")

    read = reader_on_ray(config, reserve=not resizable, warn=warn)
    source = LogSource(config, schema, train_index, valid_index, read, warn)
    saver = Saver(run, learner, train_index.digest)
    board.say(
        f"rank {collectives.rank()} of {collectives.world_size()}: process {os.getpid()} on "
        f"{ray.util.get_node_ip_address()}"
    )
    lines = MetricLines(run)
    reports = _reports(run, lines, board)
    trainer = Trainer(config, learner, source, saver, reports, notice=node_is_leaving)
    for warning in trainer.restore():
        if leads:
            warn(warning)
    if leads:
        lines.cut_back(trainer.state.step)
        if trainer.state.step:
            board.say(f"going on from step {trainer.state.step} ({saver.last_complete})")
    state = trainer.run()
    return {
        "state": asdict(state),
        "checkpoint": saver.last_complete,
        "seconds": trainer.times.seconds,
        "steps_per_epoch": source.steps_per_epoch,
        "num_workers": collectives.world_size(),
        "leaving": trainer.leaving,
    }


def node_is_leaving() -> bool:
    """Collective. Whether Ray was told that a node of the worker group will be taken away."""
    return ray.train.get_preemption_info() is not None


def reader_on_ray(
    config: TrainConfig, reserve: bool = True, warn: Callable[[str], None] = warnings.warn
) -> Read:
    """Reads through Ray Data, in a process beside each rank, in its share of the cluster.

    Args:
        reserve: whether reading tasks hold CPUs. Not where the worker group grows into all there
            are: it would wait for its data for ever.
    """
    prefetch_chunks, timeout_s = config.data.prefetch_chunks, config.failure.hang_timeout_s

    def read(stream: Stream) -> Iterator[Batch]:
        store = ray.cluster_resources().get("object_store_memory", 0.0)
        wanted = ingest.in_flight_bytes(stream.order, stream.layout, prefetch_chunks)
        most = store * STORE_FOR_DATA / stream.span.world_size
        share = ingest.Share(
            cpus=DATA_CPUS_PER_WORKER if reserve else 0.0,
            object_store_bytes=min(wanted, most) or None,
            node_id=ray.get_runtime_context().get_node_id(),
        )
        given = feed(stream, share, prefetch_chunks, warn, timeout_s)
        return (Batch.of(fields) for fields in given)

    return read


def _reports(run: Run, lines: MetricLines, board: Board) -> Reports:
    events = EventWriter(run.folder)

    gauges = Gauges(run.url.rpartition("/")[2])

    def add_line(values: dict) -> None:
        lines.add(values)
        events.add(values)
        gauges.set(values)
        for part, words in SCORED.items():
            if any(key.startswith(part) for key in values):
                board.say(_scored_line(values, part, words))

    def checkpointed(step: int, metrics: dict) -> None:
        ray.train.report({"step": step} | {k: v for k, v in metrics.items() if v is not None})

    return Reports(add_line, board.update, checkpointed, lines.flush)


class Gauges:
    """Rank 0's lines of training as `ray.util.metrics`, for Prometheus: see docs/operations.md."""

    def __init__(self, run: str):
        self._tags = {"run": run}
        self._share = Gauge("raymtl_time_share", "Share of a phase.", ("run", "phase"))
        self._plain = {
            "rows_per_s": Gauge("raymtl_rows_per_s", "Impressions trained a second.", ("run",)),
            "step": Gauge("raymtl_step", "Steps trained.", ("run",)),
            "loss": Gauge("raymtl_loss", "Loss of the step.", ("run",)),
        }

    def set(self, values: dict) -> None:
        """Shows one line of metrics.jsonl."""
        for key, value in values.items():
            if key.startswith("time/"):
                phase = key.removeprefix("time/")
                self._share.set(value, self._tags | {"phase": phase})
            elif key in self._plain:
                self._plain[key].set(value, self._tags)


def _scored_line(values: dict, part: str, words: str) -> str:
    found = {name: values.get(part + name) for name in ("auc", "gauc", "log_loss")}
    parts = [f"{name} {value:.4f}" for name, value in found.items() if value]
    return f"step {values['step']}: {words} {', '.join(parts)}"
