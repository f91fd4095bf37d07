"""Exported artifacts for tests: one of every kind of feature, and ways to damage a copy."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from helpers.models import small_section
from helpers.prepared import prepared_log
from helpers.training import small_config
from raymtl import alone
from raymtl.artifact.export import export
from raymtl.config import TrainConfig, parse

FEWER = {
    name: {"num_dnn_experts": 1, "num_interaction_experts": 1, "num_interaction_layers": 1}
    for name in ("dephn", "mt_phn")
}
"""Models whose every expert costs seconds to trace."""


def trained(folder: Path | str, model: str, log: dict[str, Any], steps: int = 2) -> str:
    """Trains a small model for a few steps and returns its run.

    Args:
        log: the config's `data.train` and `data.valid`.
    """
    data = {"num_lanes": 8, "chunk_rows": 256, **log}
    section = small_section(model, **FEWER.get(model, {})).model_dump()
    overrides = [f"name={model}", f"train.max_steps={steps}"]
    values = small_config(str(folder), *overrides, model=section, data=data)
    values["train"]["global_batch_size"] = 64
    return alone.train(parse(TrainConfig, values, "a test"))["run"]


def prepared_artifact(folder: Path | str, model: str = "stem") -> tuple[str, Path]:
    """A run on `prepared_log(folder)` and its artifact, which takes raw and prepared columns."""
    prepared_log(folder)
    run = trained(folder, model, {"train": f"{folder}/log/train"})
    out = Path(folder, "artifact")
    export(run, str(out))
    return run, out


def copied(artifact: Path, folder: Path) -> Path:
    """A copy that may be damaged."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(artifact, folder)
    return folder


def signed(folder: Path) -> Path:
    """Writes a manifest that fits the files as they are now: damage with right hashes."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    for name, entry in manifest["files"].items():
        content = (folder / name).read_bytes()
        entry |= {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder
