"""Faults during training on a cluster of three nodes on this machine: `make chaos`.

After each fault the run must end with the same step, rows and, on as many workers as before, the
same checkpoint bytes as an undisturbed one. Prints what came of it, seconds until training went on,
and steps that were trained twice.
"""

import argparse
import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import psutil
from differences import other_batches, other_bytes
from local_cluster import LocalCluster, wait_for

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "distributed")]
RANK = re.compile(r"rank (\d+) of (\d+): process (\d+)")
GOING_ON = re.compile(r"going on from step (\d+)")
FAULT_AT = 40
"""Step of the checkpoint after which a fault comes; reading tasks are killed before."""
CASE_TIMEOUT_S = 600.0
SETTINGS = ["train.num_epochs=24", "checkpoint.every_steps=20", "validation.every_steps=100"]
SETTINGS += ["train.report_every_steps=1", "failure.max_failures=5", "failure.hang_timeout_s=30"]


class Command:
    """`raymtl train …` as a process, its lines followed."""

    def __init__(self, cluster: LocalCluster, arguments: list[str]):
        self.workers: dict[int, int] = {}
        self.world_sizes: list[int] = []
        self.resumed: list[tuple[float, int]] = []
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-m", "raymtl_jobs.cli", *arguments],
            env=cluster.environment,
            cwd=cluster.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        self._follower = threading.Thread(target=self._follow, daemon=True)
        self._follower.start()

    def _follow(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            if found := RANK.search(line):
                self.workers[int(found[1])] = int(found[3])
                if found[1] == "0":
                    self.world_sizes.append(int(found[2]))
            if found := GOING_ON.search(line):
                self.resumed.append((time.monotonic(), int(found[1])))

    def wait_for(self, true: Callable[[], bool], what: str, timeout_s: float) -> None:
        """While the command goes on."""

        def found() -> bool:
            assert self.process.poll() is None, "\n".join(self.lines[-25:])
            return true()

        wait_for(found, what, timeout_s)

    def end(self) -> int:
        """Waits for the command, and kills it when it takes too long."""
        try:
            code = self.process.wait(CASE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = -1
        self._follower.join(10)
        return code


class Trial:
    """One run of the table, with what the faults need to know."""

    def __init__(self, cluster: LocalCluster, log: str, name: str):
        self.cluster, self.log, self.name = cluster, log, name
        self.storage = f"{cluster.folder}/runs"
        self.fault_s, self.fault_step = 0.0, 0

    @property
    def run(self) -> Path:
        return Path(self.storage, self.name)

    def arguments(self, *overrides: str) -> list[str]:
        return [
            *("train", f"{self.cluster.folder}/chaos.yaml", f"name={self.name}"),
            *(f"storage={self.storage}", *SETTINGS, *overrides),
        ]

    def start(self, *overrides: str) -> Command:
        address = ["--address", self.cluster.address]
        return Command(self.cluster, [*self.arguments(*overrides), *address])

    def wait_for_checkpoint(self, command: Command) -> None:
        """Until the checkpoint of FAULT_AT is whole."""
        manifest = self.run / "checkpoints" / f"step-{FAULT_AT:08}" / "manifest.json"
        command.wait_for(manifest.exists, "a checkpoint", CASE_TIMEOUT_S)

    def struck(self) -> None:
        """Notes time and step of a fault that comes now."""
        self.fault_s = time.monotonic()
        metrics = self.run / "metrics.jsonl"
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        steps = [json.loads(line)["step"] for line in lines if line.endswith("}")]
        self.fault_step = max([0, *steps])


def signalled(rank: int, what: signal.Signals) -> Callable[[Trial, Command], None]:
    """A signal to a rank's worker process."""

    def fault(trial: Trial, command: Command) -> None:
        os.kill(command.workers[rank], what)

    return fault


def node_killed(trial: Trial, command: Command) -> None:
    """A node that has a worker loses its power; another one is there soon after."""
    cluster = trial.cluster
    node = cluster.node_of(command.workers[1])
    cluster.kill(node)
    cluster.add(cpus=3)


def data_task_killed(trial: Trial, command: Command) -> None:
    """A process that reads for Ray Data dies: as soon as one is seen, for soon all is read."""
    kill_first(trial, command, "ray::MapBatches")


def feed_killed(trial: Trial, command: Command) -> None:
    """A process that feeds a rank dies."""
    kill_first(trial, command, "ray::feed")


def kill_first(trial: Trial, command: Command, name: str) -> None:
    """Kills the first process seen whose name begins so."""
    found: list[psutil.Process] = []

    def there() -> bool:
        assert command.process.poll() is None, "\n".join(command.lines[-20:])
        found.extend(p for p in psutil.Process().children(recursive=True) if called(p, name))
        return bool(found)

    wait_for(lambda: bool(command.workers), "workers", CASE_TIMEOUT_S)
    wait_for(there, f"a process {name}", CASE_TIMEOUT_S, every_s=0.0)
    trial.struck()
    found[0].kill()


def called(process: psutil.Process, name: str) -> bool:
    """Whether a process's name begins so."""
    with suppress(psutil.NoSuchProcess):
        return process.name().startswith(name)
    return False


def drained(trial: Trial, command: Command) -> None:
    """Ray is told that a node with a worker goes in a minute, and then it goes."""
    cluster = trial.cluster
    cluster.add(cpus=3)
    node = cluster.node_of(command.workers[1])
    trial.struck()
    cluster.drain(node, seconds=60)
    deadline = time.monotonic() + 120
    while not command.resumed and time.monotonic() < deadline:
        time.sleep(0.2)
    cluster.kill(node)


FILLER = """
import sys
import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On
ray.init(sys.argv[1], logging_level="ERROR", log_to_driver=False)

@ray.remote(num_cpus=0)
class Holder:
    def fill(self):
        self.refs = [ray.put(np.ones(10**7, np.uint8)) for _ in range(11)]

nodes = [n["NodeID"] for n in ray.nodes() if n["Alive"]]
holders = [Holder.options(scheduling_strategy=On(n, soft=False)).remote() for n in nodes]
ray.get([h.fill.remote() for h in holders])
print("full", flush=True)
sys.stdin.read()
"""
"""Fills the object store of every node but for 10 of its 120 MB."""


def store_filled(trial: Trial, command: Command) -> None:
    """Somebody else's objects fill every node's store until the run ends."""
    filler = subprocess.Popen(
        [sys.executable, "-c", FILLER, trial.cluster.address],
        env=trial.cluster.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert filler.stdout is not None and filler.stdin is not None
    said = filler.stdout.readline()
    assert said == "full\n", said
    command.end()
    filler.stdin.close()
    filler.wait()


def disk_filled(trial: Trial, command: Command) -> None:
    """The disk of the runs fills up until a save fails; then there is room again."""
    filler = Path(trial.storage, "filler")
    with open(filler, "wb") as file:
        try:
            while True:
                file.write(b"\0" * 2**16)
        except OSError as error:
            assert error.errno == errno.ENOSPC, error
    code = command.end()
    said = any("cannot be written" in line for line in command.lines)
    assert code == 2 and said, "\n".join(command.lines[-25:])
    filler.unlink()
    trial.struck()


def driver_killed(trial: Trial, command: Command) -> None:
    """The command itself dies; the same command with --or-resume follows."""
    command.process.kill()


@contextmanager
def small_disk(trial: Trial) -> Iterator[None]:
    """The trial's runs on a disk of 4 MB of their own; needs the right to mount."""
    trial.storage = f"{trial.cluster.folder}/small"
    os.makedirs(trial.storage, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", trial.storage], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", trial.storage], check=True)


def disturbed(trial: Trial, fault: Callable[[Trial, Command], None], *overrides: str) -> dict:
    """Runs a command, its fault, and what follows; the row of the table."""
    command = trial.start(*overrides)
    if fault is not data_task_killed:
        trial.wait_for_checkpoint(command)
        trial.struck()
    fault(trial, command)
    code = command.end()
    if fault in STARTED_BY_HAND:
        command = trial.start(*overrides, "--or-resume")
        code = command.end()
    if code:
        print("\n".join(command.lines[-25:]), file=sys.stderr)
    after = [(at, step) for at, step in command.resumed if at >= trial.fault_s]
    seconds = after[0][0] - trial.fault_s if after else 0.0
    lost = trial.fault_step - after[0][1] if after else 0
    return {
        "exit": code,
        "resumed": bool(after),
        "fault_step": trial.fault_step,
        "seconds": seconds,
        "steps_lost": max(0, lost),
    }


FAULTS: dict[str, Callable[[Trial, Command], None]] = {
    "SIGKILL of rank 0": signalled(0, signal.SIGKILL),
    "SIGKILL of rank 1": signalled(1, signal.SIGKILL),
    "SIGSTOP of rank 1": signalled(1, signal.SIGSTOP),
    "SIGKILL of a Ray Data task": data_task_killed,
    "SIGKILL of a process that feeds a rank": feed_killed,
    "SIGKILL of the driver": driver_killed,
    "a drained node": drained,
    "SIGKILL of a raylet with its workers": node_killed,
    "a full object store": store_filled,
    "a full disk": disk_filled,
}
STARTED_BY_HAND = (driver_killed, disk_filled)
"""Faults after which the command is typed once more."""
UNNOTICED = (data_task_killed, feed_killed, store_filled)
"""Faults that training does not stop for."""


LONG = ["train.num_epochs=96"]
"""As long as it takes a node to join, and to leave again."""


def joined_and_left(cluster: LocalCluster, log: str, fixed: Path, number: int) -> dict:
    """2 -> 3 -> 2 workers: a node joins, another is drained; beside a run of 2 workers."""
    trial = Trial(cluster, log, f"elastic-{number}")
    elastic = ["launch.num_workers={min: 2, max: 3}", "launch.resize_check_s=5"]
    elastic += ["launch.cpus_per_worker=3", *LONG]
    command = trial.start(*elastic)
    trial.wait_for_checkpoint(command)
    trial.struck()
    node = cluster.add(cpus=3)
    command.wait_for(lambda: 3 in command.world_sizes, "a third worker", 200)
    grown = time.monotonic() - trial.fault_s
    time.sleep(10)
    cluster.drain(node, seconds=15)
    command.wait_for(lambda: command.world_sizes[-1] == 2, "two workers again", 200)
    cluster.kill(node)
    code = command.end()
    if code:
        print("\n".join(command.lines[-25:]), file=sys.stderr)
    wrong = f"exit {code}" if code else other_batches(trial.run, fixed)
    return {
        "what": f"workers {' -> '.join(map(str, command.world_sizes))}",
        "came": wrong or "same batches",
        "good": not wrong,
        "seconds": grown,
        "steps_lost": max(0, trial.fault_step - command.resumed[0][1]),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", action="append", help="part of a fault's name; may repeat")
    parser.add_argument("--out", type=Path, help="JSON of the table")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with LocalCluster() as cluster:
        for _ in range(2):
            cluster.add(cpus=3)
        log = written_log(cluster)
        whole = Trial(cluster, log, "undisturbed")
        command = whole.start()
        assert command.end() == 0, "\n".join(command.lines[-30:])
        fixed = Trial(cluster, log, "fixed")
        if elastic := not args.only or "elastic" in args.only:
            command = fixed.start(*LONG)
            assert command.end() == 0, "\n".join(command.lines[-30:])
        for number in range(args.rounds):
            for name, fault in FAULTS.items():
                if args.only and not any(part in name for part in args.only):
                    continue
                trial = Trial(cluster, log, re.sub(r"\W+", "-", f"{name} {number}"))
                with small_disk(trial) if fault is disk_filled else nullcontext():
                    row = disturbed(trial, fault)
                    wrong = (
                        f"exit {row['exit']}" if row["exit"] else other_bytes(trial.run, whole.run)
                    )
                    if not row["resumed"] and fault not in UNNOTICED:
                        wrong = wrong or "ended before"
                rows.append({"what": name, "came": wrong or "same bytes", "good": not wrong, **row})
                show(rows, args.out)
            if elastic:
                rows.append(joined_and_left(cluster, log, fixed.run, number))
                show(rows, args.out)
    return int(not all(row["good"] for row in rows))


def written_log(cluster: LocalCluster) -> str:
    """A small log, and the config all runs share."""
    from helpers.logs import small_log
    from helpers.training import small_config
    from raymtl.config import TrainConfig, dump, parse

    log = cluster.folder / "log"
    log.mkdir()
    small_log(log, rows=8000)
    config = parse(TrainConfig, small_config(str(log)), "chaos")
    (cluster.folder / "chaos.yaml").write_text(dump(config))
    return str(log)


def show(rows: list[dict[str, Any]], out: Path | None) -> None:
    """Prints the last row and writes all."""
    row = rows[-1]
    print(
        f"| {row['what']:38} | {row['came']:12} | {row['seconds']:6.1f} | {row['steps_lost']:4} |",
        flush=True,
    )
    if out:
        out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
