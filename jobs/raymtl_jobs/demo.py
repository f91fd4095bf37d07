"""`make demo`: a generated log, STEM-Net on two workers, one killed, the recovery, a test.

Every step is a command a user would type; it is printed before it runs. All is made below ./demo.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

DEMO = Path("demo")
MARKER = ".made-by-raymtl-demo"
RUN = DEMO / "runs" / "stem"
RANK = re.compile(r"^rank (\d+) of \d+: process (\d+) ")
"""How `raymtl train` names its workers' processes."""
POLL_S = 0.2


def main() -> int:
    """Runs the demo; returns the exit code of the first command that failed, or 0."""
    start = time.monotonic()
    if not fresh_folder(DEMO):
        return 2
    steps: list[tuple[str, list[str], Callable[[list[str]], int]]] = [
        ("Generate a log with two tasks that disagree", ["synth", "demo_synth", "demo/log"], run),
        ("Train STEM-Net on two workers, and kill one", ["train", "demo_stem"], train_and_kill),
        ("Evaluate the best checkpoint", ["evaluate", str(RUN), "--log", "demo/log/test"], run),
    ]
    for number, (title, arguments, action) in enumerate(steps, start=1):
        print(f"\n[{number}/{len(steps)}] {title}\n$ raymtl {' '.join(arguments)}", flush=True)
        code = action(arguments)
        if code:
            print(f"raymtl {arguments[0]} failed with exit code {code}", file=sys.stderr)
            return code
    print(where_everything_is(time.monotonic() - start), flush=True)
    return 0


def fresh_folder(folder: Path) -> bool:
    """Makes the demo's folder; removes the one an earlier demo made, and nothing else."""
    if folder.exists():
        if not (folder / MARKER).is_file():
            print(
                f"error: {folder.absolute()} is there already, and not of an earlier demo\n"
                f"  do:     move it away, or run the demo in another folder",
                file=sys.stderr,
            )
            return False
        shutil.rmtree(folder)
    folder.mkdir()
    (folder / MARKER).write_text("removed by the next `make demo`\n", encoding="utf-8")
    return True


def run(arguments: list[str]) -> int:
    """Runs one command to its end."""
    return subprocess.call(command(arguments))


def command(arguments: list[str]) -> list[str]:
    """`raymtl …` with this Python."""
    return [sys.executable, "-u", "-m", "raymtl_jobs.cli", *arguments]


def train_and_kill(arguments: list[str]) -> int:
    """Runs training, and kills the last rank's worker once a checkpoint is complete."""
    process = subprocess.Popen(
        command(arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    workers: dict[int, int] = {}
    echo = threading.Thread(target=pass_on, args=(process, workers), daemon=True)
    echo.start()
    killed = False
    while process.poll() is None:
        time.sleep(POLL_S)
        if not killed and has_checkpoint() and workers:
            killed = kill_worker(workers[max(workers)], process.pid)
    echo.join()
    if not process.returncode and not killed:
        print("the run ended before a worker could be killed", file=sys.stderr)
        return 1
    return process.returncode


def pass_on(process: subprocess.Popen[str], workers: dict[int, int]) -> None:
    """Prints a command's lines, and notes each rank's process in `workers`."""
    assert process.stdout is not None
    for line in process.stdout:
        if "(raylet)" not in line:  # a page of Ray's own on the worker that was killed
            print(line, end="", flush=True)
        if found := RANK.match(line):
            workers[int(found[1])] = int(found[2])


def has_checkpoint() -> bool:
    """Whether the run has one that is complete."""
    return any((RUN / "checkpoints").glob("step-*/manifest.json"))


def kill_worker(victim: int, ancestor: int) -> bool:
    """SIGKILLs a worker, if it is one of this demo's own training."""
    if ancestor not in ancestors(victim):
        return False
    os.kill(victim, signal.SIGKILL)
    print(f">>> worker killed: kill -9 {victim}; Ray Train starts the workers anew", flush=True)
    return True


def ancestors(process: int) -> set[int]:
    """The processes a process descends from; empty where /proc does not say."""
    found: set[int] = set()
    while process > 1:
        try:
            status = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            break
        process = int(status.rpartition(")")[2].split()[1])
        found.add(process)
    return found


def where_everything_is(elapsed_s: float) -> str:
    """What the demo leaves, for a person."""
    return (
        f"\nDone in {elapsed_s:.0f} s. What there is now:\n"
        f"  log            {DEMO}/log   (truth.json: the AUC that the true model would reach)\n"
        f"  run            {RUN}\n"
        f"  training       {RUN}/metrics.jsonl, {RUN}/result.json\n"
        f"  test metrics   {RUN}/evaluate/test/result.json\n"
        f"  curves         {Path(sys.executable).parent}/tensorboard --logdir {DEMO}/runs\n"
        f"Next: raymtl init demo_stem, edit, raymtl train demo_stem.yaml name=mine"
    )


if __name__ == "__main__":
    sys.exit(main())
