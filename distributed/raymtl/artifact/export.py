"""`raymtl export`: a checkpoint as one self-contained folder that `scorer.py` in it scores with."""

import importlib.metadata
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from raymtl import calibration
from raymtl.artifact.bundle import one_file
from raymtl.artifact.forms import Form, forms_of
from raymtl.artifact.golden import golden_requests
from raymtl.artifact.trace import trace
from raymtl.calibration import Curve
from raymtl.checkpoint import Checkpoint, hash_file
from raymtl.config import dump
from raymtl.data.log import LogIndex
from raymtl.data.ranges import column_range
from raymtl.embedding.placement import row_at
from raymtl.errors import InputError
from raymtl.loaded import Model
from raymtl.run import LOG, METRICS, choose, home_of
from raymtl.scorer import Scorer
from raymtl.scorer.files import FILES, FORMAT_VERSION, MANIFEST
from raymtl.shards import save_tensors
from raymtl.storage import Folder

AGREES = 1e-6
"""How far scorer and trainer may be apart on the golden requests, relative to max(1, score)."""


def export(where: str, out: str, which: str = "best", calibrated: bool = False) -> dict[str, Any]:
    """Writes a serving folder, its manifest last, and scores its golden requests with the scorer.

    Args:
        where: a run folder or a checkpoint folder.
        out: a new folder or URL.
        which: of a run, `best`, `last`, or a checkpoint's name.
        calibrated: with the checkpoint's calibration, which the scorer then applies.

    Returns:
        {"out", "checkpoint", "forms", "files", "size_bytes", "worst": largest difference between
        scorer and trainer, "warning": why requests before prepare are not taken, or None}.

    Raises:
        InputError: no such checkpoint or calibration, a model that cannot be traced, or `out` is
            not empty.
        DamagedCheckpoint: naming the file.
    """
    target = Folder(out)
    if target.names():
        raise InputError(
            "the folder for the export is not empty", out, "a new folder", "name another one"
        )
    found = choose(where, which)
    curves = calibration.read(found.folder) if calibrated else {}
    model = Model(found)
    forms, warning = forms_of(found, model.schema)
    target.require_writable()
    scratch = target.scratch()
    try:
        made = scratch / "made"
        made.mkdir()
        _write_model(made, model, forms)
        _write_texts(made, found, model, forms, curves)
        _write_manifest(made)
        worst = _compared(made, forms, model)
        size = sum(path.stat().st_size for path in made.iterdir())
        for name in (*FILES, MANIFEST):
            target.put(name, made / name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return {
        "out": target.url,
        "checkpoint": found.folder.url,
        "forms": [form.name for form in forms],
        "files": [*FILES, MANIFEST],
        "size_bytes": size,
        "worst": worst,
        "warning": warning,
    }


def _write_model(folder: Path, model: Model, forms: list[Form]) -> None:
    """The program, its weights, the tables and the vocabularies."""
    program, weights = trace(model.learner.model, model.learner.shape)
    vocabularies = {key: t for form in forms for key, t in form.tensors().items()}
    (folder / "program.json").write_text(json.dumps(program), encoding="utf-8")
    save_tensors(folder / "weights.safetensors", weights)
    save_tensors(folder / "tables.safetensors", _tables(model))
    save_tensors(folder / "vocabularies.safetensors", vocabularies)


def _tables(model: Model) -> dict[str, Tensor]:
    """Each table's rows in their order, (rows, views * D)."""
    tables, num_buckets = {}, model.config.embedding.num_buckets
    state = model.learner.tables.state()
    for spec in model.learner.tables.specs:
        rows = torch.empty(spec.rows, spec.width_floats)
        rows[row_at(spec.rows, num_buckets, torch.arange(spec.rows))] = state[f"{spec.name}/values"]
        tables[spec.name] = rows
    return tables


def _write_texts(
    folder: Path, found: Checkpoint, model: Model, forms: list[Form], curves: dict[str, Curve]
) -> None:
    info = _described(model, forms, curves) | {
        "checkpoint": found.folder.url,
        "step": found.step,
        "log": _log_of(found, model),
        "metrics": _metrics_of(found),
    }
    golden = [
        {
            "form": form.name,
            "columns": columns,
            "scores": _scores(model, form, columns),
        }
        for form in forms
        for columns in golden_requests(form)
    ]
    texts = {
        "artifact.json": json.dumps(info, indent=1),
        "golden.json": json.dumps(golden),
        "schema.yaml": dump(model.schema),
        "scorer.py": one_file(),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def _described(model: Model, forms: list[Form], curves: dict[str, Curve]) -> dict[str, Any]:
    """What the scorer must know besides tensors, and what a person asks first."""
    learner = model.learner
    layout, shape = learner.layout, learner.shape
    columns = [
        {
            "feature": c.feature,
            "table": c.table,
            "start": c.start,
            "width": c.width,
            "pooling": c.pooling,
            "weight_start": c.weight_start,
        }
        for c in layout.id_columns
    ]
    tables = {s.name: {"rows": s.rows, "views": s.views} for s in learner.tables.specs}
    calibrations = {task: vars(curve) for task, curve in curves.items()}
    return {
        "format_version": FORMAT_VERSION,
        "raymtl": _version(),
        "torch": torch.__version__,
        "model": model.config.model.name,
        "transforms": model.schema.transforms,
        "tasks": [{"name": t.name, "kind": t.kind} for t in model.schema.tasks],
        "num_views": shape.num_views,
        "width": shape.width,
        "tables": tables,
        "id_columns": columns,
        "numeric": list(layout.numeric_names),
        "constants": {
            "ids": list(model.serving.ids.items()),
            "numbers": list(model.serving.numbers.items()),
        },
        "forms": {form.name: form.features() for form in forms},
        "calibration": calibrations or None,
    }


def _version() -> str | None:
    try:
        return importlib.metadata.version("raymtl")
    except importlib.metadata.PackageNotFoundError:
        return None


def _log_of(found: Checkpoint, model: Model) -> dict[str, Any]:
    """The training log: its digest and rows, and its first and last time, as far as is known."""
    log: dict[str, Any] = {"url": model.config.data.train, "first_time": None, "last_time": None}
    log["digest"] = json.loads(found.text("trainer.json"))["log_digest"]
    home = Folder(home_of(found.folder.url))
    if home.size(LOG) is None:
        return log
    index = LogIndex.from_dict(json.loads(home.read(LOG)))
    log |= {"url": index.url, "rows": index.num_rows}
    try:
        times = column_range(index, model.schema.time) if model.schema.time else None
    except OSError:  # the log is gone; the rest is known
        times = None
    if times is not None:
        log["first_time"], log["last_time"] = (t if isinstance(t, int) else str(t) for t in times)
    return log


def _metrics_of(found: Checkpoint) -> dict[str, Any]:
    """What validation said at the checkpoint's step; empty where there was none."""
    home = Folder(home_of(found.folder.url))
    if home.size(METRICS) is None:
        return {}
    metrics: dict[str, Any] = {}
    for line in home.read(METRICS).decode(errors="replace").splitlines():
        values = json.loads(line)
        if values.get("step") == found.step:
            metrics |= {k: v for k, v in values.items() if k.startswith("valid/")}
    return metrics


def _scores(model: Model, form: Form, columns: dict[str, list[Any]]) -> dict[str, list[float]]:
    """The model's own scores of a request."""
    table = pa.table({name: pa.array(values) for name, values in columns.items()})
    scores = model.predict(form.log_table(table))
    return {task: values.astype(float).tolist() for task, values in scores.items()}


def _write_manifest(folder: Path) -> None:
    files = {
        name: {"size": (folder / name).stat().st_size, "sha256": hash_file(folder / name)}
        for name in FILES
    }
    content = {"format_version": FORMAT_VERSION, "files": files}
    (folder / MANIFEST).write_text(json.dumps(content, indent=1), encoding="utf-8")


def _compared(folder: Path, forms: list[Form], model: Model) -> float:
    """The largest difference between the scorer and the model on the golden requests."""
    scorer, worst = Scorer(folder), 0.0
    for request in json.loads((folder / "golden.json").read_text(encoding="utf-8")):
        scores = scorer.score(request["columns"], request["form"], calibrated=False)
        for task, wanted in request["scores"].items():
            apart = np.abs(scores[task] - np.array(wanted)) / np.maximum(1, np.abs(wanted))
            worst = max(worst, float(apart.max(initial=0)))
    assert worst <= AGREES, f"the scorer is {worst:.2g} off the model"
    return worst
