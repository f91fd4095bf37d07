"""TPE against random search on a table: every cell of expert counts and gate settings trained once.

    python benchmarks/tune_replay.py train     # the table: 96 cells x 3 seeds; goes on where it was
    python benchmarks/tune_replay.py           # 50 studies of each method on the table

Regret is the table's best cell minus the best that a study of so many trials has tried, by the mean
over seeds; "less than random" is the mean over pairs of studies with one seed. The searchers are
those of `raymtl tune`; only the trainings are looked up.
"""

import argparse
import itertools
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from raymtl_tuning.adaptive import optuna_search
from raymtl_tuning.config import TuneConfig
from raymtl_tuning.space import first, grid_points, name_of, random_points

TABLE = Path(__file__).parent / "tune_replay.jsonl"
SPACE: dict[str, Any] = {
    "model.num_specific_experts": {"choice": [1, 2, 4]},
    "model.num_shared_experts": {"choice": [1, 2, 4, 8]},
    "model.gate_hidden_units": {"choice": [[], [16]]},
    "model.gate_temperature": {"choice": [0.5, 1.0, 2.0, 4.0]},
}
SEEDS = (1, 2, 3)
STUDIES, BUDGETS = 50, (10, 20, 30)
LOG = {"rows": 40_000, "num_users": 1_000, "num_items": 500, "chunk_rows": 2_000}


def study(seed: int, folder: str = "/nowhere", method: str = "tpe") -> TuneConfig:
    base = {
        "data": {"train": f"{folder}/train", "valid": f"{folder}/valid", "num_lanes": 8},
        "model": {"name": "stem", "expert_hidden_units": [16], "tower_hidden_units": [8]},
        "embedding": {"width": 8},
        "optimizer": {"dense": {"lr": 0.003}, "rows": {"lr": 0.1}},
        "train": {"global_batch_size": 512, "num_epochs": 2},
    }
    return TuneConfig.model_validate(
        {"base": base, "space": SPACE, "search": {"method": method}, "seed": seed}
    )


def train() -> None:
    """Trains what the table lacks; a line of the file is a cell and a seed."""
    import torch

    from raymtl import alone
    from raymtl.data.decoded import DecodedLog, decode_part, parts
    from raymtl.data.synthetic import SynthConfig, SynthTask, write_log
    from raymtl.preflight import check
    from raymtl_tuning.checks import runs_at

    torch.set_num_threads(1)
    done = {(name_of(p), seed) for p, seed, _ in read()}
    with tempfile.TemporaryDirectory() as folder:
        tasks = [SynthTask(name=n, positive_rate=0.3) for n in ("click", "like", "share")]
        write_log(SynthConfig.model_validate({**LOG, "tasks": tasks}), folder)
        held: dict[str, DecodedLog] = {}
        for number, point in enumerate(grid_points(study(0).space)):
            for seed in SEEDS:
                if (name_of(point), seed) in done:
                    continue
                config = study(seed, folder).model_copy(update={"storage": f"{folder}/runs"})
                run = runs_at(config, number, point, seed)[-1]
                if not held:
                    job = check(run)
                    for index in filter(None, (job.train, job.valid)):
                        cut = parts(index, 10**6)
                        rows = [decode_part(index, job.schema, part) for part in cut]
                        held[index.digest] = DecodedLog(
                            index.digest, job.schema, cut, rows.__getitem__
                        )
                state = alone.train(run, read=lambda s: held[s.index.digest].read(s))["state"]
                with open(TABLE, "a", encoding="utf-8") as stream:
                    stream.write(json.dumps([point, seed, state["best_value"]]) + "\n")


def read() -> list[tuple[dict[str, Any], int, float]]:
    if not TABLE.exists():
        return []
    return [json.loads(line) for line in TABLE.read_text(encoding="utf-8").splitlines()]


def cells() -> dict[str, float]:
    """Mean AUC of each cell."""
    found: dict[str, list[float]] = {}
    for point, _, value in read():
        found.setdefault(name_of(point), []).append(value)
    return {name: statistics.fmean(values) for name, values in found.items()}


def replay(method: str, seed: int, table: dict[str, float]) -> list[float]:
    """The best so far after each trial."""
    config = study(seed, method=method)
    values = []
    if method == "random":
        points = first(random_points(config.space, seed), max(BUDGETS))
        values = [table[name_of(point)] for point in points]
    else:
        searcher, _ = optuna_search(config)
        for number in range(max(BUDGETS)):
            given: Any = searcher.suggest(str(number))
            values.append(table[name_of(given["point"])])
            searcher.on_trial_complete(str(number), {"value": values[-1]})
    return list(itertools.accumulate(values, max))


def middle(values: list[float], of: Callable[..., Any]) -> tuple[float, float, float]:
    """A median or mean with its 95 % interval, of studies drawn with replacement."""
    random = np.random.default_rng(0)
    draws = of(random.choice(values, (10_000, len(values))), axis=1)
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(of(values)), float(low), float(high)


def compare() -> None:
    table = cells()
    size = len(grid_points(study(0).space))
    assert len(table) == size, f"the table has {len(table)} of {size} cells: train it first"
    best = max(table.values())
    print(f"{size} cells, mean AUC {min(table.values()):.4f} to {best:.4f}; {STUDIES} studies")
    head = f"{'trials':>6} {'method':>8} {'median regret':>14} {'95 % interval':>20}"
    print(f"{head} {'less than random':>30}")
    runs = {m: [replay(m, s, table) for s in range(STUDIES)] for m in ("random", "tpe")}
    for budget, method in itertools.product(BUDGETS, runs):
        regrets = [best - run[budget - 1] for run in runs[method]]
        value, low, high = middle(regrets, np.median)
        line = f"{budget:>6} {method:>8} {value:>14.5f} {f'[{low:.5f}, {high:.5f}]':>20}"
        if method != "random":
            pairs = zip(runs[method], runs["random"], strict=True)
            value, low, high = middle([a[budget - 1] - b[budget - 1] for a, b in pairs], np.mean)
            line += f"{f'{value:.5f} [{low:.5f}, {high:.5f}]':>31}"
        print(line)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="?", choices=["train", "compare"], default="compare")
    train() if parser.parse_args().what == "train" else compare()
