"""A model that goes on day after day, against one that stopped and ones that know one day alone.

    python benchmarks/seven_days.py --out runs/seven_days
    python benchmarks/seven_days.py --out runs/april --kuairand ../shared/data/kuairand_pure

Every day is scored by models that have not seen it (progressive validation):

- warm: trained on the day before, from the weights of all days before that (`init_from`);
- frozen: trained on the first day and never again;
- scratch: trained on the day before alone.

`prepare` extends the vocabularies by each day's new values; a model scores a later log with the
values it does not know out of vocabulary. On the generated days users and items are new each day.
On KuaiRand's, warm and frozen begin with a pass over the history before them; scratch does not.
Intervals: 95 %, users drawn 500 times, the same draws for all, each score the mean over seeds. What
is finished is not done again. Prints one table and writes OUT/seven_days.json.
"""

import argparse
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from day_logs import Days, generated, kuairand
from rich.console import Console
from rich.table import Table

from raymtl import alone
from raymtl.analysis.bootstrap import Draws, interval, metrics_of_draws
from raymtl.analysis.cells import Cell, Outcomes, read_outcomes, read_scores
from raymtl.analysis.views import Units, views_of
from raymtl.config import TrainConfig, parse
from raymtl.preflight import indexed, schema_at
from raymtl.run import RESULT, Run
from raymtl.scoring import Pick

MODELS = ("warm", "frozen", "scratch")
METRICS = ("auc", "gauc", "log_loss")
NUM_DRAWS = 500
Drawn = dict[str, np.ndarray]
"""`task/metric` -> its value on all users, then in each draw."""


def main() -> None:
    """Makes what is missing, then prints the table and writes it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/seven_days"))
    parser.add_argument("--kuairand", metavar="FOLDER", help="KuaiRand-Pure instead")
    parser.add_argument("--days", type=int, default=7, help="of the generated log")
    parser.add_argument("--rows", type=int, default=40_000, help="a generated day")
    parser.add_argument("--seeds", nargs="*", type=int, default=[1, 2, 3])
    args = parser.parse_args()
    torch.set_num_threads(1)
    days = (
        kuairand(args.kuairand)
        if args.kuairand
        else generated(args.out / "raw", args.days, args.rows)
    )
    logs = days.prepared(args.out / "logs")
    runs = {seed: train_all(days, logs, args.out / "runs", seed) for seed in args.seeds}
    measured = measure(logs, runs, args.out / "scores")
    summary = summarise(days, logs, measured)
    (args.out / "seven_days.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
    Console(width=150).print(table_of(summary))
    print(f"result: {args.out}/seven_days.json")


def train_all(days: Days, logs: list[Path], runs: Path, seed: int) -> dict[str, list[str]]:
    """Model -> the run that scores day 2, day 3, and so on."""
    start, passes = None, days.epochs
    if days.pretrain:
        start = trained(days, logs[0] / "pretrain", f"history-{seed}", runs, seed, days.pretrain)
    warm, scratch = [], []
    for number, log in enumerate(logs[:-1]):
        name = f"day-{number + 1}-{seed}"
        epochs = {"train": {"num_epochs": 1 if start else passes}}
        warm_keys = epochs | {"init_from": start, "validation": {"before_training": bool(start)}}
        start = trained(days, log / "train", f"warm-{name}", runs, seed, warm_keys)
        warm.append(start)
        alone_keys = {"train": {"num_epochs": passes}}
        if number or days.pretrain:
            scratch.append(trained(days, log / "train", f"scratch-{name}", runs, seed, alone_keys))
        else:
            scratch.append(start)
    return {"warm": warm, "frozen": warm[:1] * len(warm), "scratch": scratch}


def trained(
    days: Days, log: Path, name: str, runs: Path, seed: int, keys: Mapping[str, Any]
) -> str:
    """A run's folder, trained unless it was before."""
    values = merged({**days.train, "name": name, "storage": str(runs), "seed": seed}, keys)
    values = merged(values, {"data": {"train": str(log)}})
    config = parse(TrainConfig, values, name)
    run = Run.of(config)
    if run.folder.size(RESULT) is None:
        print(f"training {name}", flush=True)
        alone.train(run.read_config() if run.exists() else config, resume=run.exists())
    return run.url


def merged(values: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Values with others laid over them, key by key."""
    made = dict(values)
    for key, value in over.items():
        inside = isinstance(value, Mapping) and isinstance(made.get(key), Mapping)
        made[key] = merged(made[key], value) if inside else value
    return made


def measure(
    logs: list[Path], runs: dict[int, dict[str, list[str]]], scores: Path
) -> dict[str, list[Drawn]]:
    """Model -> for day 2, 3, … its metrics, of the scores' mean over seeds."""
    schemas = [schema_at(f"{log}/train/schema.yaml") for log in logs[1:]]
    indexes = [indexed(f"{log}/train", s) for log, s in zip(logs[1:], schemas, strict=True)]
    outcomes = [read_outcomes(i, s) for i, s in zip(indexes, schemas, strict=True)]
    units = Units.of(np.concatenate([o.group_N for o in outcomes]))
    draws = Draws(units.num_units, NUM_DRAWS, seed=0)
    measured: dict[str, list[Drawn]] = {model: [] for model in MODELS}
    first = 0
    for number, found in enumerate(outcomes):
        mine = Units(units.unit_N[first : first + found.num_rows], units.users_U, units.num_units)
        first += found.num_rows
        log = f"{logs[number + 1]}/train"
        for model in MODELS:
            parts = [scored(by[model][number], log, scores, found) for by in runs.values()]
            measured[model].append(drawn(found, mine, np.mean(parts, axis=0), draws))
    return measured


def scored(run: str, log: str, scores: Path, found: Outcomes) -> np.ndarray:
    """A run's scores of a log (N, T), made unless they were before."""
    folder = scores / f"{Path(run).name}-on-{Path(log).parent.name}"
    if not (folder / "_done").exists():
        for old in folder.glob("*"):
            old.unlink()
        print(f"scoring {folder.name}", flush=True)
        alone.predict(run, log, str(folder), Pick("last"))
        (folder / "_done").touch()
    return read_scores(Cell(folder.name, 0, str(folder)), found)


def drawn(found: Outcomes, units: Units, scores_NT: np.ndarray, draws: Draws) -> Drawn:
    """Each metric's value on all users, then in each draw."""
    views = views_of(found, units, [])
    values: Drawn = {}
    for view, by_draw in zip(views, metrics_of_draws(views, scores_NT, draws), strict=True):
        point = view.point(scores_NT[view.row_n, view.task])
        for metric in METRICS:
            key = f"{found.task_names[view.task]}/{metric}"
            exact = point[metric]
            values[key] = np.concatenate([[math.nan if exact is None else exact], by_draw[metric]])
    return values


def summarise(days: Days, logs: list[Path], measured: dict[str, list[Drawn]]) -> dict[str, Any]:
    """Each day's metrics and gains, and their means from the third day on.

    On the second day warm and frozen are one model.
    """
    titles = [*days.titles[1:], f"mean, {days.titles[2]} to {days.titles[-1]}"]
    keys = list(measured["warm"][0])
    by_model = {
        model: [*found, {k: np.mean([day[k] for day in found[1:]], axis=0) for k in keys}]
        for model, found in measured.items()
    }
    values = {
        title: {k: {m: rounded(by_model[m][i][k][0]) for m in MODELS} for k in keys}
        for i, title in enumerate(titles)
    }
    gains = {
        title: {
            k: {m: gain(by_model["warm"][i][k], by_model[m][i][k]) for m in MODELS[1:]}
            for k in keys
        }
        for i, title in enumerate(titles)
    }
    tables = {
        title: json.loads((log / "statistics.json").read_text(encoding="utf-8"))["tables"]
        for title, log in zip(days.titles, logs, strict=True)
    }
    return {"values": values, "warm_minus": gains, "tables": tables}


def gain(warm: np.ndarray, other: np.ndarray) -> list[float | None]:
    """The difference on all users, then both ends of its interval."""
    difference = warm - other
    low, high = interval(difference[1:])
    return [rounded(difference[0]), rounded(low), rounded(high)]


def rounded(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else round(float(value), 5)


def table_of(summary: dict[str, Any]) -> Table:
    """AUC by task and day, and what warm gains over the others."""
    columns = ("task", "day", *MODELS, *(f"warm - {m}" for m in MODELS[1:]))
    table = Table(*columns, title="AUC, each day scored before it is trained on")
    last = next(reversed(summary["values"]))
    for key in (k for k in summary["values"][last] if k.endswith("/auc")):
        for title, found in summary["values"].items():
            gains = summary["warm_minus"][title][key]
            table.add_row(
                key.removesuffix("/auc"),
                title,
                *(f"{found[key][m]:.4f}" for m in MODELS),
                *("{:+.4f} [{:+.4f}, {:+.4f}]".format(*gains[m]) for m in MODELS[1:]),
                end_section=title == last,
            )
    return table


if __name__ == "__main__":
    main()
