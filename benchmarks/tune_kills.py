"""A tuning study whose driver is killed with SIGKILL at random moments, until it is through.

    python benchmarks/tune_kills.py --kills 5

Each start has a Ray of its own. After every kill the records that were there must stay as they are,
and all processes of that Ray must go by themselves; at the end every trial is there once, with the
points of a study that was never killed.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import yaml

from raymtl.data.synthetic import SynthConfig, SynthTask, write_log
from raymtl_tuning.config import TuneConfig
from raymtl_tuning.records import Record, StudyFolder
from raymtl_tuning.space import first, random_points

TRIALS = 12
GONE_S = 120
"""Seconds that processes of a killed study have to end."""


def study(folder: str) -> TuneConfig:
    base = {
        "data": {"train": f"{folder}/train", "valid": f"{folder}/valid", "num_lanes": 8},
        "model": {"name": "stem", "expert_hidden_units": [16], "tower_hidden_units": [8]},
        "embedding": {"width": 8},
        "train": {"global_batch_size": 256, "num_epochs": 3},
        "validation": {"every_steps": 50},
    }
    space = {
        "model.num_shared_experts": {"choice": [1, 2, 4, 8]},
        "optimizer.rows.lr": {"loguniform": [0.003, 0.3]},
    }
    values = {"name": "kills", "storage": f"{folder}/tunings", "base": base, "space": space}
    return TuneConfig.model_validate(
        {**values, "search": {"method": "random"}, "trials": TRIALS, "parallel": 2}
    )


def records(home: StudyFolder) -> dict[int, Record]:
    return {record.number: record for record in home.records()}


def of_ray(place: str) -> list[int]:
    """Processes of the Ray that was started with this folder for its files."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("RAY_TMPDIR") == place:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def all_gone(place: str) -> float:
    """Seconds until the last of them has ended."""
    began = time.monotonic()
    while left := of_ray(place):
        assert time.monotonic() - began < GONE_S, f"processes {left} are still there"
        time.sleep(0.5)
    return time.monotonic() - began


def main(kills: int, seed: int) -> None:
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory(dir="/tmp") as place:
        tasks = [SynthTask(name=name, positive_rate=0.3) for name in ("click", "like")]
        log = SynthConfig(rows=60_000, num_users=1_000, num_items=500, tasks=tasks)
        write_log(log, folder)
        made = study(folder)
        Path(folder, "study.yaml").write_text(yaml.safe_dump(made.model_dump(mode="json")))
        home, done = StudyFolder.of(made), 0
        command = [sys.executable, "-m", "raymtl_jobs.cli", "tune", f"{folder}/study.yaml"]
        while True:
            begun = home.folder.size("tune.yaml") is not None
            before = records(home)
            driver = subprocess.Popen(
                [*command, *(["--resume"] if begun else [])],
                env=os.environ | {"RAY_TMPDIR": place},
                stderr=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
            # From the moment on that trials run, so that a kill meets them.
            while done < kills and driver.poll() is None and len(records(home)) == len(before):
                time.sleep(0.05)
            if done < kills and driver.poll() is None:
                time.sleep(chance.uniform(0, 4))
            if done >= kills or driver.poll() is not None:
                assert driver.wait() == 0, "the study failed"
                break
            driver.send_signal(signal.SIGKILL)
            driver.wait()
            done += 1
            gone_s = all_gone(place)
            now = records(home)
            assert before.items() <= now.items(), "a record changed"
            print(f"kill {done}: {len(now)} of {TRIALS} trials ended, {gone_s:.0f} s to clean up")
        found = records(home)
        assert list(found) == list(range(TRIALS))
        points = first(random_points(made.space, made.seed), TRIALS)
        assert [record.point for record in found.values()] == points
        assert all(record.status == "finished" for record in found.values())
        print(json.dumps({"kills": done, "trials": len(found)}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    main(arguments.kills, arguments.seed)
