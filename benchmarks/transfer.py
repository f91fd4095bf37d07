"""Whether transfer helps where the answer is planted: a study at each turn of a dial.

    python benchmarks/transfer.py conflict --out runs/transfer
    python benchmarks/transfer.py mmoe --out runs/transfer
    python benchmarks/transfer.py narrow --out runs/transfer
    python benchmarks/transfer.py dephn --out runs/transfer

- conflict: STEM-Net and Shared-Bottom as the tasks' preferences turn from equal over unrelated to
  opposed.
- mmoe: Shared-Bottom, OMoE and MMoE on MMoE's two regressions as their correlation falls.
- narrow: the same where towers are handed two units, of a bottom or of a mix of experts.
- dephn: DEPHN with and without its virtual gradient on related and on unrelated tasks.

Each turn of the dial is `raymtl synth` and `raymtl study`; what is finished is not done again.
Prints a table, of regressions also how errors rise from the first turn on, and writes
OUT/<experiment>.json.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table

from raymtl.analysis import Comparison
from raymtl.config import parse
from raymtl.data.synthetic import parse_log, synthesise
from raymtl.study.conduct import conduct
from raymtl.study.config import StudyConfig

COMPARABLE = "comparable"


@dataclass(frozen=True)
class Experiment:
    """A generated log with one dial, and the models that are held against the first of them."""

    dial: str
    turns: tuple[Any, ...]
    log: dict[str, Any]
    models: dict[str, dict[str, Any]]
    metrics: tuple[str, ...]
    base: dict[str, Any]


SMALL = {"expert_hidden_units": [32], "tower_hidden_units": [16], "gate_hidden_units": []}
PHN = {"name": "dephn", "expert_hidden_units": [64, 32], "num_interaction_experts": 1}
EXPERIMENTS = {
    "conflict": Experiment(
        dial="conflict",
        # Correlations 1, .5, 0 and -1 of the two tasks' preferences. Opposed tasks can share: one
        # tower turns the other's sign. Unrelated ones cannot.
        turns=(0.0, 0.25, 0.5, 1.0),
        log={
            "rows": 250_000,
            "num_users": 4000,
            "num_items": 1000,
            "chunk_rows": 2048,
            "history_length": 0,
            "valid_share": 0.1,
            "test_share": 0.2,
            "tasks": [
                {"name": "click", "positive_rate": 0.3},
                {"name": "like", "positive_rate": 0.2},
            ],
        },
        models={
            "shared_bottom": {
                "name": "shared_bottom",
                "bottom_hidden_units": [64],
                "tower_hidden_units": [16],
            },
            "stem": {"name": "stem", "num_shared_experts": 2, **SMALL},
        },
        metrics=("auc", "gauc"),
        base={
            "embedding": {"width": 8},
            "train": {"global_batch_size": 2048, "num_epochs": 6},
            "optimizer": {"rows": {"lr": 0.05}},
            "validation": {"patience": 1},
        },
    ),
    "mmoe": Experiment(
        dial="correlation",
        turns=(1.0, 0.9, 0.5),
        # Frequencies drawn, as in the PLE paper: the counted ones of MMoE's public generators are
        # not learnt to the end in minutes, and seeds differ more than correlations do. Few rows:
        # with 100,000 even Shared-Bottom comes close to the noise at any correlation.
        log={
            "kind": "mmoe",
            "rows": 40_000,
            "chunk_rows": 2048,
            "constants": "normal",
            "valid_share": 0.1,
            "test_share": 0.4,
        },
        models={
            # 113 units: as many parameters as eight experts of 16, as in the paper.
            "shared_bottom": {
                "name": "shared_bottom",
                "bottom_hidden_units": [113],
                "tower_hidden_units": [8],
            },
            "omoe": {
                "name": "omoe",
                "num_experts": 8,
                "expert_hidden_units": [16],
                "tower_hidden_units": [8],
            },
            "mmoe": {
                "name": "mmoe",
                "num_experts": 8,
                "expert_hidden_units": [16],
                "tower_hidden_units": [8],
            },
        },
        metrics=("rmse",),
        base={
            "data": {"num_lanes": 2},
            "embedding": {"width": 1},
            "train": {"global_batch_size": 512, "num_epochs": 20},
            "optimizer": {"dense": {"lr": 0.003}, "schedule": {"name": "linear"}},
            "validation": {"metric": "rmse", "every_steps": 400},
        },
    ),
    "dephn": Experiment(
        dial="second",
        turns=("related", "unrelated"),
        log={"kind": "dephn", "rows": 100_000, "chunk_rows": 2048},
        models={
            "plain_gate": {**PHN, "virtual_gradient": "none"},
            "plain_gate_x2": {
                **PHN,
                "virtual_gradient": "none",
                "gate_optimizer": {"name": "sgd", "lr": 0.2},
            },
            "dephn": PHN,
            "dephn_adam_gates": {**PHN, "gate_optimizer": None},
            "mt_phn": {"name": "mt_phn", "expert_hidden_units": [64, 32]},
        },
        metrics=("auc", "log_loss"),
        base={
            "embedding": {"width": 8},
            "train": {"global_batch_size": 2048, "num_epochs": 6},
            "optimizer": {"rows": {"lr": 0.05}},
            "validation": {"patience": 1},
        },
    ),
}

_MMOE = EXPERIMENTS["mmoe"]
_TOWER = {"tower_hidden_units": [8]}
EXPERIMENTS["narrow"] = replace(
    _MMOE,
    # 100,000 rows to train: errors are to be the models', not their few rows'.
    log={**_MMOE.log, "rows": 150_000, "valid_share": 0.03, "test_share": 0.3},
    models={
        # As many parameters: 144 units before the two, or eight experts of 16 before the two.
        "shared_bottom": {"name": "shared_bottom", "bottom_hidden_units": [144, 2], **_TOWER},
        "mmoe": {"name": "mmoe", "num_experts": 8, "expert_hidden_units": [16, 2], **_TOWER},
    },
    base={
        **_MMOE.base,
        "data": {"num_lanes": 32},
        "train": {"global_batch_size": 512, "num_epochs": 10},
    },
)


def main() -> None:
    """Runs what is missing of an experiment, prints its tables and writes the first as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experiment", choices=sorted(EXPERIMENTS))
    parser.add_argument("--out", default="runs/transfer", help="folder for logs and studies")
    parser.add_argument("--seeds", nargs="*", type=int, default=[1, 2, 3])
    args = parser.parse_args()
    experiment = EXPERIMENTS[args.experiment]
    folder = f"{Path(args.out).absolute()}/{args.experiment}"
    rows, errors = [], {}
    of_regressions = experiment.metrics == ("rmse",)
    for turn in experiment.turns:
        log = f"{folder}/{experiment.dial}-{turn}"
        synthesise(parse_log({**experiment.log, experiment.dial: turn}, args.experiment), log)
        values = study_of(experiment, log, args.seeds)
        study = parse(StudyConfig, {**values, "storage": folder}, args.experiment)
        found = conduct(study)
        rows += rows_of(found, experiment, turn)
        if of_regressions:
            errors[turn] = errors_of(found)
    Path(f"{folder}.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    Console(width=120).print(table_of(rows, experiment.dial))
    if of_regressions:
        Console(width=120).print(rises_of(errors, experiment.dial))
    print(f"result: {folder}.json")


def study_of(experiment: Experiment, log: str, seeds: list[int]) -> dict[str, Any]:
    """Values of the study of one log; gains are taken against the first model."""
    models = [
        {"label": label, "values": {"model": model}} for label, model in experiment.models.items()
    ]
    data = {"train": f"{log}/train", "valid": f"{log}/valid", **experiment.base.get("data", {})}
    return {
        "name": f"study-{Path(log).name}",
        "test": f"{log}/test",
        "seeds": seeds,
        "models": models,
        "base": {**experiment.base, "data": data},
        "compare": {"baseline": next(iter(experiment.models))},
    }


def rows_of(found: Comparison, experiment: Experiment, turn: Any) -> list[dict[str, Any]]:
    """Gains over the first model, of all rows and of the comparable ones."""
    tasks = found.outcomes.task_names
    return [
        {
            "turn": turn,
            "task": tasks[gain.task],
            "rows": gain.bin,
            "model": gain.model,
            "metric": gain.metric,
            "gain": gain.value,
            "low": gain.low,
            "high": gain.high,
            "verdict": gain.verdict,
        }
        for gain in found.gains
        if gain.metric in experiment.metrics and gain.bin in ("all", COMPARABLE)
    ]


def errors_of(found: Comparison) -> dict[str, dict[int, float]]:
    """Model -> seed -> RMSE of all rows, mean over tasks."""
    views = [v for v, view in enumerate(found.views) if view.pair is None]
    errors: dict[str, dict[int, float]] = {}
    for measured in found.measured:
        of_tasks = [measured.points[v]["rmse"] for v in views]
        known = [error for error in of_tasks if error is not None]
        assert len(known) == len(of_tasks), f"{measured.cell.name}: a task without a labelled row"
        errors.setdefault(measured.cell.label, {})[measured.cell.seed] = mean(known)
    return errors


def rises_of(errors: Mapping[Any, dict[str, dict[int, float]]], dial: str) -> Table:
    """RMSE at each turn, its rise from the first, and by how much that is below the first model's.

    All are means over seeds, ± standard error; differences are paired by seed.
    """
    table = Table(dial, "model", "RMSE", "rise", "smaller by", title="means over seeds")
    first_turn = next(iter(errors))
    for turn, of_turn in errors.items():
        rises = {
            model: [error - errors[first_turn][model][seed] for seed, error in by_seed.items()]
            for model, by_seed in of_turn.items()
        }
        of_first = next(iter(rises.values()))
        for model, rise in rises.items():
            smaller = [a - b for a, b in zip(of_first, rise, strict=True)]
            cells = (list(of_turn[model].values()), rise, smaller)
            table.add_row(str(turn), model, *map(_with_error, cells))
    return table


def _with_error(values: list[float]) -> str:
    error = stdev(values) / sqrt(len(values)) if len(values) > 1 else float("nan")
    return f"{mean(values):+.4f} ± {error:.4f}"


def table_of(rows: list[dict[str, Any]], dial: str) -> Table:
    """A line per turn, task, rows and model."""
    table = Table(dial, "task", "rows", "model", "metric", "gain", "95 % interval", "verdict")
    for row in rows:
        interval = f"{row['low']:+.4f} .. {row['high']:+.4f}" if row["low"] is not None else ""
        gain = "" if row["gain"] is None else f"{row['gain']:+.4f}"
        words = [str(row[key]) for key in ("turn", "task", "rows", "model", "metric")]
        table.add_row(*words, gain, interval, row["verdict"])
    return table


if __name__ == "__main__":
    main()
