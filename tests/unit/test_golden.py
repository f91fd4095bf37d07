"""Losses of a fixed run, stored as text: a change that should not alter results shows none here.

RAYMTL_WRITE_GOLDEN=1 writes the files anew; say in docs/log.md why they moved.
"""

import os
from pathlib import Path

import pytest

from helpers.logs import small_log
from helpers.training import SMALL_STEM, small_config, train_on_rank
from raymtl.embedding import rows as embedding_rows

GOLDEN = Path(__file__).parents[1] / "golden"
TOLERANCE = 1e-4
"""Relative: other processors and thread counts round sums otherwise."""
SAME_STEPS = 8
"""Steps that compiled rows are compared over: they round otherwise than torch's operations, and
what that changes grows from step to step (one unit that is on here and off there is enough)."""
MODELS = {
    "stem": ["model.num_layers=2"],
    "stem_strict": ["model.num_layers=2", "model.isolation=strict"],
    "shared_bottom": [],
    "single_task": [],
}


@pytest.mark.parametrize("rows", ["plain", "compiled"])
@pytest.mark.parametrize("name", MODELS)
def test_losses_are_the_stored_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, rows: str
) -> None:
    if rows == "plain":
        monkeypatch.setattr(embedding_rows, "_kernels", lambda: None)
    small_log(tmp_path, rows=2500)
    model = SMALL_STEM if name.startswith("stem") else {"name": name}
    values = small_config(str(tmp_path), "train.max_steps=12", *MODELS[name], model=model)
    losses = train_on_rank(values)["losses"]
    stored = GOLDEN / f"{name}.txt"
    if os.environ.get("RAYMTL_WRITE_GOLDEN") and rows == "plain":
        lines = [" ".join(f"{value:.7g}" for value in losses[step]) for step in sorted(losses)]
        stored.write_text("\n".join(lines) + "\n")
    wanted = [[float(v) for v in line.split()] for line in stored.read_text().splitlines()]
    assert len(wanted) == len(losses) == 12
    for step, values_wanted in enumerate(wanted[: 12 if rows == "plain" else SAME_STEPS]):
        assert losses[step] == pytest.approx(values_wanted, rel=TOLERANCE), f"step {step}"
