"""What a disturbed run ended with beside another one; the empty string where it is the same."""

import json
from pathlib import Path
from statistics import median
from typing import Any

EARLY_STEPS = 50
"""After two runs part, before their rounding has grown."""


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

    Its batches are the same, so every step's rows are. Its losses are to float32's rounding where
    they part; some hundred small steps on, rounding has grown to percents. Losses of other batches
    would be several percent apart at once.
    """
    ours, theirs = ({line["step"]: line for line in lines_of(f)} for f in (run, fixed))
    if ours.keys() != theirs.keys():
        return "other steps"
    if any(ours[step]["rows"] != theirs[step]["rows"] for step in ours):
        return "other rows"
    apart = [abs(ours[s]["loss"] - theirs[s]["loss"]) / theirs[s]["loss"] for s in sorted(ours)]
    first = next((i for i, by in enumerate(apart) if by), 0)
    early = median(apart[first : first + EARLY_STEPS])
    found, wanted = (state_of(f)["last_metrics"] for f in (run, fixed))
    aucs = max(abs(found[key] - wanted[key]) for key in wanted if key.endswith("/auc"))
    print(
        f"losses from step {first + 1} of {len(apart)}: {early:.1e} apart in the median of "
        f"{EARLY_STEPS} steps, {median(apart):.1e} of all; AUC {aucs:.1e}"
    )
    return "" if early < 1e-4 and aucs < 0.02 else "other numbers"


def lines_of(run: Path) -> list[dict[str, Any]]:
    """Training lines of metrics.jsonl."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if "loss" in line]
