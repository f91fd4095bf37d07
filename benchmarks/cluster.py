"""Every verb as a job on a cluster of three nodes on this machine: `make cluster`.

The head has no CPUs, two nodes train. Commands are typed outside the checkout, with the token; the
nodes have raymtl's dependencies, but not raymtl, which comes with each job.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import urllib.error
from pathlib import Path

import psutil
import yaml
from local_cluster import LocalCluster, wait_for

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "distributed")]

SMALL = ["embedding.width=4", "train.global_batch_size=32", "data.num_lanes=4"]
SMALL += ["data.chunk_rows=16", "model.expert_hidden_units=[8]", "checkpoint.every_steps=5"]
STUDY = {
    "name": "small",
    "test": "log/test",
    "seeds": [1],
    "base": {
        "data": {"train": "log/train", "valid": "log/valid", "num_lanes": 4, "chunk_rows": 16},
        "embedding": {"width": 4},
        "train": {"global_batch_size": 32},
    },
    "models": [
        {"label": "single", "values": {"model": {"name": "single_task", "hidden_units": [8]}}},
        {
            "label": "shared",
            "values": {"model": {"name": "shared_bottom", "tower_hidden_units": [8]}},
        },
    ],
}
TUNING = {
    "name": "small",
    "trials": 2,
    "search": {"method": "random"},
    "space": {"model.num_shared_experts": {"choice": [1, 2]}},
    "base": {
        **STUDY["base"],
        "validation": {"every_steps": 2},
        "model": {"name": "stem", "expert_hidden_units": [8], "tower_hidden_units": [4]},
    },
}
COMMANDS = [
    ["prepare", "prepare.yaml", "log"],
    ["train", "stem", "name=first", "data.train=log/train", "data.valid=log/valid", *SMALL],
    ["study", "study.yaml"],
    ["tune", "tune.yaml"],
    ["evaluate", "runs/first", "--log", "log/test", "--workers", "2"],
    ["predict", "runs/first", "--log", "log/test", "--out", "scores", "--key", "log_row"],
]


def main() -> int:
    from helpers.raw_logs import CONFIG, write_raw

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="JSON of the table")
    out = parser.parse_args().out
    rows = []
    with LocalCluster(bare=True) as cluster:
        for _ in range(2):
            cluster.add(cpus=3)
        folder = cluster.folder / "user"
        (folder / "raw").mkdir(parents=True)
        write_raw(folder / "raw")
        prepared = yaml.safe_load(CONFIG) | {"data_root": "raw"}
        (folder / "prepare.yaml").write_text(yaml.safe_dump(prepared))
        (folder / "study.yaml").write_text(yaml.safe_dump(STUDY))
        (folder / "tune.yaml").write_text(yaml.safe_dump(TUNING))
        rows += [
            refused(cluster, "without a token", ""),
            refused(cluster, "a wrong token", "0" * 64),
        ]
        rows += [submitted(cluster, folder, command) for command in COMMANDS]
        rows += [driver_killed(cluster, folder), submitted_without_token(cluster, folder)]
    for row in rows:
        print(f"{row['what']:40} {row['came']:22} {row['seconds']:6.1f} s", flush=True)
    if out:
        out.write_text(json.dumps(rows, indent=1))
    return int(not all(row["good"] for row in rows))


def refused(cluster: LocalCluster, what: str, token: str) -> dict:
    """A request to the Jobs API that must not be answered."""
    start = time.monotonic()
    try:
        cluster.get("/api/jobs/", token=token)
        code = 200
    except urllib.error.HTTPError as error:
        code = error.code
    return row(f"GET /api/jobs/ {what}", f"HTTP {code}", code in (401, 403), start)


def submitted(cluster: LocalCluster, folder: Path, command: list[str]) -> dict:
    """A verb as a job, as its user types it."""
    start = time.monotonic()
    done = raymtl(["submit", *command, "--no-install"], cluster, folder, cluster.environment)
    if done.returncode:
        print(done.stdout[-4000:], done.stderr[-4000:], file=sys.stderr)
    came = f"exit code {done.returncode}"
    return row(f"raymtl submit {command[0]}", came, done.returncode == 0, start)


def driver_killed(cluster: LocalCluster, folder: Path) -> dict:
    """A training job whose driver is killed; --max-retries goes on with its run."""
    start = time.monotonic()
    train = [*COMMANDS[1][1:], "name=second", "train.num_epochs=10"]
    words = ["submit", "train", *train, "--no-install", "--max-retries", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "raymtl_jobs.cli", *words, "--address", cluster.dashboard],
        cwd=folder,
        env=cluster.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    checkpoints = folder / "runs" / "second" / "checkpoints"
    wait_for(lambda: any(checkpoints.glob("*/manifest.json")), "a checkpoint", 300)
    drivers = [p for p in psutil.Process().children(recursive=True) if is_driver(p)]
    for driver in drivers:
        driver.kill()
    out = process.communicate()[0]
    good = process.returncode == 0 and len(drivers) == 1 and "going on from step" in out
    if not good:
        print(out[-4000:], file=sys.stderr)
    came = f"exit code {process.returncode}"
    return row("raymtl submit train, its driver killed", came, good, start)


def is_driver(process: psutil.Process) -> bool:
    """Whether it is the job's own command, not the one that submitted it."""
    words = process.cmdline()
    return "raymtl_jobs.cli" in words and "name=second" in words and "submit" not in words


def submitted_without_token(cluster: LocalCluster, folder: Path) -> dict:
    """The command itself, on a machine that has no token."""
    start = time.monotonic()
    away = {"RAY_AUTH_TOKEN_PATH": str(folder / "none"), "RAY_AUTH_MODE": "disabled"}
    environment = cluster.environment | away
    done = raymtl(["submit", "doctor", "--no-install"], cluster, folder, environment)
    good = done.returncode == 2 and "the cluster does not take the job" in done.stderr
    return row("raymtl submit without a token", f"exit code {done.returncode}", good, start)


def raymtl(
    arguments: list[str], cluster: LocalCluster, folder: Path, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "raymtl_jobs.cli", *arguments, "--address", cluster.dashboard],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def row(what: str, came: str, good: bool, start: float) -> dict:
    return {"what": what, "came": came, "good": good, "seconds": time.monotonic() - start}


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
