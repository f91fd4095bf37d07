"""Peak memory of every process of `raymtl train` on a generated log and on one ten times longer.

    python benchmarks/train_memory.py [--rows 200000] [--times 10] [--synth history_length=0]

STEM-Net on 2 workers, one pass over the log; tables, chunks and lanes are the same on both logs.
Prints one table and writes train_memory.json.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from peaks import peaks_of, print_table

RAYMTL = [sys.executable, "-m", "raymtl_jobs.cli"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--synth", nargs="*", default=[], help="other keys of demo_synth")
    args = parser.parse_args()
    found = {}
    for rows in (args.rows, args.rows * args.times):
        with tempfile.TemporaryDirectory() as folder:
            synth = ["synth", "demo_synth", "log", f"rows={rows}", "valid_share=0.01", *args.synth]
            peaks_of([*RAYMTL, *synth], Path(folder))
            small = ["model.expert_hidden_units=[64,64]", "train.global_batch_size=4096"]
            logs = ["data.train=log/train", "data.valid=log/valid"]
            found[rows] = peaks_of([*RAYMTL, "train", "stem", *logs, *small], Path(folder))
    print_table(found)
    result = {str(rows): {"bytes": peaks, "seconds": s} for rows, (peaks, s) in found.items()}
    Path("train_memory.json").write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
