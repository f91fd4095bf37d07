"""What tuning costs over training: the same runs through `raymtl tune` and back to back.

    python benchmarks/tune_overhead.py --trials 8 --seconds 60 --out benchmarks/results

Both sides train the same configs with one thread each; cost is wall time times cores held, so two
trials side by side pay for both cores, start of Ray, decoding of the log and report included.
Target: 1.3. Each side is a process of its own.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from interleaved import with_malloc_settings

SIDES = ("alone", "tune")


def values(folder: str, trials: int, epochs: int) -> dict[str, Any]:
    """A study of so many points that train alike."""
    base = {
        "data": {"train": f"{folder}/train", "valid": f"{folder}/valid", "num_lanes": 8},
        "model": {
            "name": "stem",
            "num_shared_experts": 4,
            "expert_hidden_units": [64, 64],
            "tower_hidden_units": [32],
        },
        "embedding": {"width": 16},
        "train": {"global_batch_size": 2048, "num_epochs": epochs},
    }
    rates = [0.01 + 0.001 * n for n in range(trials)]
    return {
        "name": "overhead",
        "storage": f"{folder}/tunings",
        "base": base,
        "space": {"optimizer.rows.lr": {"choice": rates}},
        "search": {"method": "grid"},
    }


def train_alone(folder: str, trials: int, epochs: int) -> None:
    """The runs one after another in this process."""
    import torch

    from raymtl import alone
    from raymtl_tuning.checks import runs_at
    from raymtl_tuning.config import TuneConfig
    from raymtl_tuning.space import grid_points

    torch.set_num_threads(1)
    study = TuneConfig.model_validate(values(folder, trials, epochs) | {"name": "alone"})
    for number, point in enumerate(grid_points(study.space)):
        alone.train(runs_at(study, number, point, study.seed)[-1])


def seconds_of(side: str, folder: str, trials: int, epochs: int) -> float:
    """Wall time of one side as a process, from its start to its end."""
    path = Path(folder, "study.yaml")
    path.write_text(yaml.safe_dump(values(folder, trials, epochs)))
    ours = [sys.executable, __file__, "--side", folder, str(trials), str(epochs)]
    command = [sys.executable, "-m", "raymtl_jobs.cli", "tune", str(path)]
    began = time.perf_counter()
    subprocess.run(ours if side == "alone" else command, check=True, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


def epochs_of(folder: str, seconds: float) -> int:
    """Epochs that take about so long: what a second one adds to a run."""
    taken = []
    for epochs in (1, 2):
        taken.append(seconds_of("alone", folder, 1, epochs))
        shutil.rmtree(f"{folder}/tunings")
    return max(1, round(seconds / max(0.1, taken[1] - taken[0])))


def main(trials: int, seconds: float, out: str) -> None:
    from raymtl.data.synthetic import SynthConfig, SynthTask, write_log

    with tempfile.TemporaryDirectory() as folder:
        tasks = [SynthTask(name=name, positive_rate=0.3) for name in ("click", "like")]
        write_log(SynthConfig(rows=400_000, tasks=tasks), folder)
        epochs = epochs_of(folder, seconds)
        taken = {side: seconds_of(side, folder, trials, epochs) for side in SIDES}
    cores = {"alone": 1, "tune": os.cpu_count() or 1}
    costs = {side: taken[side] * cores[side] for side in SIDES}
    print(f"{trials} trainings of {epochs} epochs, {taken['alone'] / trials:.0f} s each")
    print(f"{'side':>6} {'wall s':>8} {'cores':>6} {'core s':>8}")
    for side in SIDES:
        print(f"{side:>6} {taken[side]:>8.0f} {cores[side]:>6} {costs[side]:>8.0f}")
    ratio = costs["tune"] / costs["alone"]
    print(f"ratio {ratio:.2f} (target 1.3)")
    Path(out).mkdir(parents=True, exist_ok=True)
    found = {"trials": trials, "epochs": epochs, "wall_s": taken, "cores": cores, "ratio": ratio}
    Path(out, "tune_overhead.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--side"]:
        train_alone(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        parser = argparse.ArgumentParser(description=__doc__)
        parser.add_argument("--trials", type=int, default=8)
        parser.add_argument("--seconds", type=float, default=60)
        parser.add_argument("--out", default="benchmarks/results")
        arguments = parser.parse_args()
        with_malloc_settings(threads=1)
        main(arguments.trials, arguments.seconds, arguments.out)
