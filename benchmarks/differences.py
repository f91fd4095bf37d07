"""What a disturbed run ended with beside another one; the empty string where it is the same."""

import json
from pathlib import Path
from statistics import median
from typing import Any


def other_bytes(run: Path, whole: Path) -> str:
    """What differs from the undisturbed run; the empty string where nothing does."""
    from helpers.training import bytes_of  # chaos.py finds it when it has started

    if not (run / "result.json").exists():
        return "no result"
    state, wanted = state_of(run), state_of(whole)
    if {k: state[k] for k in ("step", "rows")} != {k: wanted[k] for k in ("step", "rows")}:
        return "other rows"
    return "" if bytes_of(str(run)) == bytes_of(str(whole)) else "other bytes"


def state_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text())["state"]


def other_batches(run: Path, fixed: Path) -> str:
    """What differs from a run of another number of workers; the empty string where nothing does.

    Its batches are the same, so every step's rows are, and its losses to float32's rounding, which
    grows over many passes. Losses of other batches would be several percent apart at most steps.
    """
    ours, theirs = ({line["step"]: line for line in lines_of(f)} for f in (run, fixed))
    if ours.keys() != theirs.keys():
        return "other steps"
    if any(ours[step]["rows"] != theirs[step]["rows"] for step in ours):
        return "other rows"
    losses = [(ours[step]["loss"], theirs[step]["loss"]) for step in ours]
    apart = median(abs(a - b) / abs(b) for a, b in losses)
    found, wanted = (state_of(f)["last_metrics"] for f in (run, fixed))
    aucs = max(abs(found[key] - wanted[key]) for key in wanted if key.endswith("/auc"))
    print(f"losses of {len(losses)} steps: {apart:.1e} apart in the median; AUC {aucs:.1e}")
    return "" if apart < 0.01 and aucs < 0.01 else "other numbers"


def lines_of(run: Path) -> list[dict[str, Any]]:
    """Training lines of metrics.jsonl."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if "loss" in line]
