"""AUC and GAUC of 10 million rows, exact and from histograms, beside scikit-learn's AUC.

    python benchmarks/metrics.py [--rows 10000000] [--users 500000] [--rounds 5]

Scores are random, labels follow them; users' rows follow Zipf's law. Prints a table and writes
results/metrics.json.
"""

import argparse
from pathlib import Path

import numpy as np
from interleaved import seconds_of, with_malloc_settings, written
from rich.console import Console
from rich.table import Table
from sklearn.metrics import roc_auc_score

from raymtl.scores import auc, gauc


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--users", type=int, default=500_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    with_malloc_settings(2)
    rng = np.random.default_rng(0)
    scores = rng.random(arguments.rows, dtype=np.float32)
    labels = (rng.random(arguments.rows) < 0.1 + 0.3 * scores).astype(np.float32)
    users = (rng.zipf(1.3, arguments.rows) - 1) % arguments.users
    contenders = {
        "AUC": lambda: auc(scores, labels),
        "GAUC": lambda: gauc(scores, labels, users),
        "AUC of scikit-learn": lambda: roc_auc_score(labels, scores),
    }
    seconds = seconds_of(contenders, arguments.rounds)
    table = Table("metric", "s", "million rows/s", title=f"{arguments.rows:,} rows")
    for name, s in seconds.items():
        table.add_row(name, f"{s:.2f}", f"{arguments.rows / s / 1e6:.1f}")
    Console().print(table)
    written(arguments.out, "metrics", {"rows": arguments.rows, "seconds": seconds})


if __name__ == "__main__":
    main()
