"""Peak memory of every process of a command: what the memory benchmarks share.

A peak is the kernel's VmHWM, shared pages of the object store included.
"""

import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

Peaks = dict[str, int]
"""Kind of process -> bytes."""
LOOK_S = 1.0
"""Between two looks at all processes. The kernel keeps their peaks; looking takes some
milliseconds from what runs."""


def peaks_of(command: Sequence[str], folder: Path) -> tuple[Peaks, float]:
    """Runs a command; the highest VmHWM of each kind of process, and the seconds taken.

    Raises:
        SystemExit: the command failed.
    """
    peaks: Peaks = {}
    start = time.monotonic()
    with subprocess.Popen(command, cwd=folder) as running:
        root = psutil.Process(running.pid)
        while running.poll() is None:
            for process in [root, *root.children(recursive=True)]:
                kind, peak = kind_and_peak(process, root.pid)
                peaks[kind] = max(peaks.get(kind, 0), peak)
            with suppress(subprocess.TimeoutExpired):
                running.wait(LOOK_S)
    if running.returncode:
        raise SystemExit(f"{' '.join(command)[:80]} failed with exit code {running.returncode}")
    return peaks, time.monotonic() - start


def kind_and_peak(process: psutil.Process, driver: int) -> tuple[str, int]:
    """`driver`, a kind of Ray worker or the program's name, and VmHWM; 0 for one that has ended."""
    try:
        name = " ".join(process.cmdline()[:1])
        status = Path(f"/proc/{process.pid}/status").read_text()
    except (psutil.Error, OSError):
        return "gone", 0
    line = next((x for x in status.splitlines() if x.startswith("VmHWM")), "VmHWM: 0 kB")
    peak = int(line.split()[1]) * 1024
    if process.pid == driver:
        return "driver", peak
    if name.startswith("ray::"):
        kinds = {"ray::RayTrainWorker": "train worker", "ray::feed": "feed of a train worker"}
        known = (kind for begin, kind in kinds.items() if name.startswith(begin))
        return next(known, "other ray worker"), peak
    return Path(name).name, peak


def print_table(found: Mapping[int, tuple[Peaks, float]]) -> None:
    """One line per kind of process: megabytes at both row counts, and their ratio."""
    (few, (small, small_s)), (many, (large, large_s)) = found.items()
    print(f"{'process':24}{few:>14,} rows{many:>14,} rows   ratio")
    for kind in sorted(small, key=small.__getitem__, reverse=True):
        if small[kind] and kind in large:  # 0: gone, or ending
            mb = small[kind] / 1e6, large[kind] / 1e6
            print(f"{kind:24}{mb[0]:>16.0f} MB{mb[1]:>16.0f} MB   {mb[1] / mb[0]:.2f}")
    print(f"{'seconds':24}{small_s:>19.1f}{large_s:>19.1f}")
