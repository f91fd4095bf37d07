"""STEM-Net, Shared-Bottom and single-task on KuaiRand-Pure, several seeds, as users run them.

    python benchmarks/kuairand.py --log data/kuairand --out runs/kuairand_study

Each cell is `raymtl train kuairand_MODEL seed=S` and one `raymtl evaluate` on the test log. Cells
that have a result are not run again, so a study that was stopped goes on. Training stops and picks
its checkpoint by validation; the test log is read once per finished cell.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

MODELS = ("single_task", "shared_bottom", "stem")
METRICS = ("auc", "gauc", "log_loss", "calibration")


def main() -> None:
    """Runs the missing cells, then prints the table and writes it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", default="data/kuairand", help="folder raymtl prepare made")
    parser.add_argument("--out", default="runs/kuairand_study", help="folder for the runs")
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--seeds", nargs="*", type=int, default=[1, 2, 3])
    args = parser.parse_args()
    cells = {
        (model, seed): run_cell(model, seed, Path(args.log), Path(args.out))
        for seed in args.seeds
        for model in args.models
    }
    summary = summarise(cells)
    Path(args.out, "kuairand.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
    Console().print(table_of(summary))
    print(f"result: {args.out}/kuairand.json")


def run_cell(model: str, seed: int, log: Path, out: Path) -> dict:
    """Trains and evaluates one model with one seed, unless that was done before."""
    name = f"{model}-{seed}"
    result = out / f"{name}.json"
    if not result.exists():
        run = out / name
        paths = [f"data.train={log}/train", f"data.valid={log}/valid"]
        if (run / "config.yaml").exists():
            raymtl("train", "--resume", str(run))
        else:
            named = [f"name={name}", f"storage={out}", f"seed={seed}"]
            raymtl("train", f"kuairand_{model}", *named, *paths)
        raymtl("evaluate", str(run), "--log", f"{log}/test", "--out", str(result))
    return json.loads(result.read_text(encoding="utf-8"))


def raymtl(*words: str) -> None:
    """Runs one raymtl command and stops at its failure."""
    print("$ raymtl", *words, flush=True)
    subprocess.run([sys.executable, "-m", "raymtl_jobs.cli", *words], check=True)


def summarise(cells: dict[tuple[str, int], dict]) -> dict:
    """Model -> `task/metric` -> mean, spread (standard deviation) and the seeds' values."""
    summary: dict = {}
    for model in dict.fromkeys(model for model, _ in cells):
        found = [cell["metrics"] for (m, _), cell in cells.items() if m == model]
        keys = [k for k in found[0] if "/" in k and k.rsplit("/", 1)[1] in METRICS]
        summary[model] = {
            key: {
                "mean": statistics.mean(values),
                "spread": statistics.stdev(values) if len(values) > 1 else 0.0,
                "values": values,
            }
            for key in keys
            if all(values := [m[key] for m in found])
        }
    return summary


def table_of(summary: dict) -> Table:
    """Mean and spread over seeds."""
    table = Table("task", "metric", *summary, title="KuaiRand-Pure, 29 and 30 April")
    for key in sorted(next(iter(summary.values()))):
        task, metric = key.rsplit("/", 1)
        values = [summary[model][key] for model in summary]
        table.add_row(task, metric, *(f"{v['mean']:.4f} ± {v['spread']:.4f}" for v in values))
    return table


if __name__ == "__main__":
    main()
