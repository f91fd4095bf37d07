"""Evaluate and predict: a checkpoint over a log, on any number of workers."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from ray.train.torch import get_device
from torch import Tensor

from raymtl import calibration, collectives
from raymtl.batch import Batch
from raymtl.checkpoint import Checkpoint
from raymtl.cluster import address_of, session
from raymtl.config import LaunchSection, TrainConfig, parse
from raymtl.data import drift
from raymtl.data.log import LOG_ROW, LogIndex
from raymtl.data.order import Order
from raymtl.data.stream import Span, Stream
from raymtl.errors import InputError
from raymtl.evaluator import evaluate as evaluate_log
from raymtl.evaluator import scored
from raymtl.launch import reader_on_ray, run_workers
from raymtl.learner import Learner
from raymtl.lineage import known_rows, reading_schema
from raymtl.preflight import indexed
from raymtl.progress import Show
from raymtl.run import choose
from raymtl.saving import load_learner, read_config
from raymtl.schema import LogSchema
from raymtl.serving import ServingValues
from raymtl.source import Read, order_of
from raymtl.storage import Folder


@dataclass(frozen=True)
class Pick:
    """What of a run scores."""

    which: str = "best"
    """`best` (by validation; the last where nothing was validated), `last`, or a checkpoint's name;
    not looked at where a checkpoint's own folder is given."""
    calibrated: bool = False
    """After the checkpoint's calibration."""


BEST = Pick()


def evaluate(
    where: str,
    log: str,
    launch: LaunchSection,
    pick: Pick = BEST,
    show: Show = print,
) -> dict[str, Any]:
    """Metrics of a checkpoint over a log, per task.

    Args:
        where: a run folder or a checkpoint folder.
        log: URL of the log.
        launch: workers to use.
        pick: which checkpoint of a run, and whether after its calibration.
        show: takes lines for a person.

    Returns:
        {"checkpoint", "log", "rows", "metrics": {"<task>/<metric>": value or None, …}, "drift": as
        `raymtl.data.drift.compared`, null where the model's log was not prepared}. With features
        that are known in training only, `serving/<task>/<metric>` are those at serving.

    Raises:
        InputError: no such checkpoint or log, or they do not fit.
        DamagedCheckpoint: naming the file.
    """
    with _job(where, pick, log, launch) as (found, payload, config, ray_folder):
        rows = payload["index"].num_rows
        show(f"evaluating {found.folder.url} on {rows:,} rows of {log}")
        metrics = run_workers(evaluate_rank, payload, config, ray_folder, show)
    result = {"checkpoint": found.folder.url, "log": log, "rows": rows, "metrics": metrics}
    return result | {"drift": drift_of(found, payload)}


def drift_of(found: Checkpoint, payload: dict[str, Any]) -> dict[str, Any] | None:
    """The log's columns beside those of the model's training part; null where these are unknown."""
    then = drift.read_distributions(found.folder)
    if then is None:
        return None
    schema = parse(LogSchema, payload["schema"], "the checkpoint's schema")
    return drift.compared(then, drift.of_log(payload["index"], schema), schema)


def predict(
    where: str,
    log: str,
    out: str,
    keys: tuple[str, ...],
    launch: LaunchSection,
    pick: Pick = BEST,
    show: Show = print,
) -> dict[str, Any]:
    """Scores every row of a log and writes them as parquet, beside the row keys.

    Args:
        out: URL of a new folder; gets one part file per worker with the columns
            `keys…, <task>…` (float32 probabilities, or values of a regression).
        keys: columns of the log that name a row; labels need not be there. `log_row` is the row's
            number in the log.

    Raises:
        InputError: as `evaluate`, and where a key is no column or `out` is not empty.
    """
    target = Folder(out)
    if target.names():
        raise InputError(
            "the folder for predictions is not empty",
            out,
            "a new folder",
            "name another one, or remove it",
        )
    with _job(where, pick, log, launch, labels=False) as (found, payload, config, ray_folder):
        _require_columns(payload["index"], keys)
        target.require_writable()
        rows = payload["index"].num_rows
        show(f"predicting {rows:,} rows of {log} with {found.folder.url}")
        payload |= {"out": out, "keys": keys}
        written = run_workers(predict_rank, payload, config, ray_folder, show)
    return {"checkpoint": found.folder.url, "log": log, "out": out, "rows": written["rows"]}


def evaluate_rank(payload: dict[str, Any]) -> dict[str, Any]:
    """Collective. One rank of an evaluation."""
    return evaluate_batches(payload, _device())


def evaluate_batches(
    payload: dict[str, Any], device: torch.device, read: Read | None = None
) -> dict[str, Any]:
    """Collective. As `evaluate_rank`; a null `read` means through Ray Data."""
    learner, order = _prepared(payload, device)
    batches = _batches(payload, learner, order, read=read)
    adjust = _adjusted(payload, learner)
    steps, serving = order.steps_per_epoch, ServingValues.of(learner.schema, learner.layout)
    return evaluate_log(learner, batches, steps, learner.config.metrics, adjust, serving)


def predict_rank(
    payload: dict[str, Any], device: torch.device | None = None, read: Read | None = None
) -> dict[str, Any]:
    """Collective. One rank of a prediction; writes its part file as it goes.

    Args:
        device: null means the one Ray Train gave.
        read: null means through Ray Data.
    """
    learner, order = _prepared(payload, device or _device())
    keys, rank, adjust = payload["keys"], collectives.rank(), _adjusted(payload, learner)
    columns_read = tuple(key for key in keys if key != LOG_ROW)
    serving = ServingValues.of(learner.schema, learner.layout)
    read_ = _batches(payload, learner, order, columns_read, labels=False, read=read)
    batches = map(serving.apply, read_)
    first_rows = np.array(payload["index"].first_rows)
    out = Folder(payload["out"])
    scratch = Path(tempfile.mkdtemp(prefix="raymtl-predict-"))
    part, rows = scratch / "part.parquet", 0
    table_schema = _schema_of(payload["index"], keys, learner.layout.task_names)
    try:
        with pq.ParquetWriter(part, table_schema) as writer:
            for batch, probabilities_BT in scored(learner, batches, order.steps_per_epoch):
                kept = batch.file_B >= 0
                batch.keys[LOG_ROW] = first_rows[batch.file_B] + batch.row_B
                columns = [batch.keys[key][kept] for key in keys]
                columns += list(adjust(probabilities_BT).cpu().numpy()[kept].T)
                writer.write_table(_table(columns, table_schema))
                rows += int(kept.sum())
        if rows:
            out.put(f"part-{rank:05d}.parquet", part)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    total = collectives.sum_(torch.tensor([rows], dtype=torch.int64, device=learner.device))
    return {"rows": int(total)}


@contextmanager
def _job(
    where: str, pick: Pick, log: str, launch: LaunchSection, labels: bool = True
) -> Iterator[tuple[Checkpoint, dict[str, Any], TrainConfig, str]]:
    """Checks everything, and gives Ray a folder of its own that goes away afterwards."""
    found, payload, config = checked(where, pick, log, labels)
    values = config.model_dump(mode="json") | {"launch": launch.model_dump(mode="json")}
    config = parse(TrainConfig, values, "the command line")
    payload["config"] = config.model_dump(mode="json")
    with _ray_folder(found, launch) as ray_folder, session(launch):
        yield found, payload, config, ray_folder


def checked(
    where: str, pick: Pick, log: str, labels: bool
) -> tuple[Checkpoint, dict[str, Any], TrainConfig]:
    """A checkpoint and a log that fit, with what a rank needs to know of them.

    Raises:
        InputError: no such checkpoint or log, or they do not fit.
    """
    found = choose(where, pick.which)
    config, schema = read_config(found)
    reading = reading_schema(schema, log, found.folder.url)
    payload = {
        "checkpoint": found.folder.url,
        "config": config.model_dump(mode="json"),
        "schema": schema.model_dump(mode="json"),
        "reading": reading.model_dump(mode="json"),
        "index": indexed(log, reading, labels=labels),
        "curves": calibration.read(found.folder) if pick.calibrated else None,
    }
    return found, payload, config


@contextmanager
def _ray_folder(found: Checkpoint, launch: LaunchSection) -> Iterator[str]:
    """Where Ray Train keeps its own files: all nodes of a cluster must reach it."""
    if address_of(launch) is not None:
        yield found.folder.url.rsplit("/", 2)[0]
        return
    folder = tempfile.mkdtemp(prefix="raymtl-ray-")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _require_columns(index: Any, columns: tuple[str, ...]) -> None:
    for schema in index.schemas:
        for column in columns:
            if column not in schema.names and column != LOG_ROW:
                raise InputError(
                    f"row key {column} is no column of the log",
                    f"columns {', '.join(schema.names[:20])}",
                    f"a column of every file, or {LOG_ROW}, the row's number in the log",
                    "name another with --key",
                )


def _prepared(payload: dict[str, Any], device: torch.device) -> tuple[Learner, Order]:
    """Collective. The learner with the checkpoint's weights, and the log's order."""
    config = parse(TrainConfig, payload["config"], "the checkpoint's config")
    schema = parse(LogSchema, payload["schema"], "the checkpoint's schema")
    found = Checkpoint(Folder(payload["checkpoint"]))
    found.verify_together(device)
    learner = Learner(config, schema, device)
    load_learner(found, learner, optimizer=False)
    return learner, order_of(config, payload["index"])


def _adjusted(payload: dict[str, Any], learner: Learner) -> Callable[[Tensor], Tensor]:
    """What calibration makes of predictions (B, T); the predictions themselves without one."""
    curves = payload["curves"]
    if curves is None:
        return lambda probabilities_BT: probabilities_BT
    names = learner.layout.task_names

    def adjust(probabilities_BT: Tensor) -> Tensor:
        columns = probabilities_BT.cpu().numpy().T
        made = [
            curves[name](scores) if name in curves else scores
            for name, scores in zip(names, columns, strict=True)
        ]
        return torch.from_numpy(np.stack(made, axis=1).astype(np.float32)).to(learner.device)

    return adjust


def _device() -> torch.device:
    device = get_device()
    assert isinstance(device, torch.device)
    return device


def _batches(
    payload: dict[str, Any],
    learner: Learner,
    order: Order,
    keys: tuple[str, ...] = (),
    labels: bool = True,
    read: Read | None = None,
) -> Iterator[Batch]:
    span = Span(collectives.rank(), collectives.world_size(), 0, order.steps_per_epoch)
    reading = parse(LogSchema, payload["reading"], "the log's schema")
    stream = Stream(payload["index"], reading, order, span, keys, labels)
    rows = {spec.name: spec.rows for spec in learner.tables.specs}
    batches = (read or reader_on_ray(learner.config))(stream)
    return (known_rows(batch, learner.layout, rows) for batch in batches)


def _schema_of(index: LogIndex, keys: tuple[str, ...], tasks: tuple[str, ...]) -> pa.Schema:
    """Columns of a prediction: the keys with the log's own types, then a score for each task."""
    columns = index.schemas[0]
    types = [(k, pa.int64() if k == LOG_ROW else columns.field(k).type) for k in keys]
    return pa.schema(types + [(task, pa.float32()) for task in tasks])


def _table(columns: list[np.ndarray], schema: pa.Schema) -> pa.Table:
    arrays = [
        pa.array(values.tolist() if values.dtype == object else values, field.type)
        for values, field in zip(columns, schema, strict=True)
    ]
    return pa.table(arrays, schema=schema)
