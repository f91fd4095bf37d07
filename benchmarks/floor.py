"""The floor any model has to beat on KuaiRand-Pure: smoothed log-odds of the user plus of the item.

Rates are counted on the history and 25 to 28 April 2022, and tested on 29 and 30 April.

    python benchmarks/floor.py --data FOLDER [--out floor.json]

FOLDER holds history_to_0424.parquet and impressions_0425_0430.parquet.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raymtl.scores import auc, gauc

FIRST_TEST_DATE = 20220429
SMOOTHINGS = (5, 20)
"""Impressions at the overall rate that are added to every user and every item."""

RECORDED = {"long_view": (0.746, 0.746), "is_like": (0.873, 0.877), "is_click": (0.695, 0.699)}
"""Lowest and highest AUC over the smoothings in the data's PROVENANCE page, three decimals."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the parquet files")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/floor.json"))
    arguments = parser.parse_args()
    rows = [
        floor(*split(arguments.data, label), label, smoothing)
        for label in RECORDED
        for smoothing in SMOOTHINGS
    ]
    show(rows)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(rows, indent=1) + "\n")
    print(f"written to {arguments.out}")


def split(folder: Path, label: str) -> tuple[pa.Table, pa.Table]:
    """Users, items and a label: what is known before the test days, and the test days.

    The history adds to it where it knows the label; it holds long_view and is_like only.
    """
    columns = ["user_id", "video_id", label]
    impressions = pq.read_table(folder / "impressions_0425_0430.parquet")
    is_test = impressions["date"].to_numpy() >= FIRST_TEST_DATE
    known = [impressions.filter(pa.array(~is_test)).select(columns)]
    history = folder / "history_to_0424.parquet"
    if label in pq.read_schema(history).names:
        known.append(pq.read_table(history, columns=columns))
    return pa.concat_tables(known), impressions.filter(pa.array(is_test)).select(columns)


def floor(known: pa.Table, test: pa.Table, label: str, smoothing: float) -> dict:
    """AUC and GAUC of the sum of log-odds on the test rows, and what is recorded for them."""
    user_scores = log_odds(known, test, "user_id", label, smoothing)
    item_scores = log_odds(known, test, "video_id", label, smoothing)
    labels, users = test[label].to_numpy(), test["user_id"].to_numpy()
    within = gauc(user_scores + item_scores, labels, users)
    return {
        "label": label,
        "smoothing": smoothing,
        "auc": auc(user_scores + item_scores, labels),
        "gauc": within.value,
        "gauc_users": within.num_users,
        "known_rows": len(known),
        "test_rows": len(test),
        "test_positives": int(labels.sum()),
        "recorded_auc": RECORDED[label],
    }


def log_odds(known: pa.Table, test: pa.Table, key: str, label: str, smoothing: float) -> np.ndarray:
    """Log-odds of the label per test row, by the smoothed rate of the row's key."""
    ids, labels = known[key].to_numpy(), known[label].to_numpy()
    size = max(ids.max(), test[key].to_numpy().max()) + 1
    positives = np.bincount(ids, labels, minlength=size)
    shown = np.bincount(ids, minlength=size)
    rate = (positives + smoothing * labels.mean()) / (shown + smoothing)
    return np.log(rate / (1 - rate))[test[key].to_numpy()]


def show(rows: list[dict]) -> None:
    print(f"{'label':10} {'smoothing':>9} {'AUC':>7} {'recorded':>11} {'GAUC':>7} {'users':>6}")
    for row in rows:
        low, high = row["recorded_auc"]
        recorded = f"{low:.3f}" if low == high else f"{low:.3f}-{high:.3f}"
        print(
            f"{row['label']:10} {row['smoothing']:9} {row['auc']:7.4f} {recorded:>11} "
            f"{row['gauc']:7.4f} {row['gauc_users']:6}"
        )


if __name__ == "__main__":
    main()
