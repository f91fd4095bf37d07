"""`raymtl train` run as a user runs it, and what its run folder says: what benchmarks share."""

import json
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from peaks import peaks_of

RAYMTL = [sys.executable, "-m", "raymtl_jobs.cli"]


def synth(folder: Path, rows: int) -> None:
    """A generated log in folder/log."""
    given = ["synth", "demo_synth", "log", f"rows={rows}", "valid_share=0.01", "test_share=0.01"]
    peaks_of([*RAYMTL, *given], folder)


def trained(folder: Path, config: dict[str, Any], *overrides: str) -> dict[str, Any]:
    """Trains on folder/log: median rows/s of its lines but the first two, shares of time, peak."""
    with tempfile.TemporaryDirectory(dir=folder) as storage:
        path = Path(storage, "config.yaml")
        path.write_text(json.dumps(config))
        given = ["train", str(path), "name=run", f"storage={storage}", *overrides]
        peaks, seconds = peaks_of([*RAYMTL, *given], folder)
        text = Path(storage, "run", "metrics.jsonl").read_text(encoding="utf-8")
        result = json.loads(Path(storage, "run", "result.json").read_text(encoding="utf-8"))
    lines = [line for line in map(json.loads, text.splitlines()) if "rows_per_s" in line][2:]
    total = sum(result["seconds"].values())
    return {
        "rows_per_s": median(line["rows_per_s"] for line in lines),
        "waiting": median(line["time/data"] for line in lines),
        "shares": {phase: s / total for phase, s in result["seconds"].items()},
        "peak_bytes": peaks["train worker"] + peaks["feed of a train worker"],
        "seconds": seconds,
    }


def stem(folder: Path, width: int, num_workers: int, **launch: Any) -> dict[str, Any]:
    """STEM-Net with experts of some width on folder/log, several passes, a line every 10 steps."""
    return {
        "data": {"train": str(folder / "log" / "train")},
        "model": {
            "name": "stem",
            "num_shared_experts": 2,
            "expert_hidden_units": [width, width],
            "gate_hidden_units": [32],
            "tower_hidden_units": [32],
        },
        "train": {"num_epochs": 4, "report_every_steps": 10},
        "launch": {"num_workers": num_workers} | launch,
    }
