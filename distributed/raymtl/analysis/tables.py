"""What a comparison writes for programs: result.json's values and cells.parquet."""

from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raymtl.analysis.comparison import Comparison
from raymtl.analysis.gains import Difference, Measured

COLUMNS = pa.schema(
    [
        ("model", pa.string()),
        ("seed", pa.int64()),
        ("run", pa.string()),
        ("task", pa.string()),
        ("pair", pa.string()),
        ("bin", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
    ]
)
"""`pair` is `a, b` for a bin of two tasks and null for all rows."""


def cells_parquet(found: Comparison) -> bytes:
    """One row per model, seed, task, bin and metric."""
    rows = []
    for measured in found.measured:
        cell = measured.cell
        for view, points in zip(found.views, measured.points, strict=True):
            pair = pair_name(found, (view.pair.a, view.pair.b)) if view.pair else None
            for metric, value in points.items():
                rows.append(
                    {
                        "model": cell.label,
                        "seed": cell.seed,
                        "run": cell.run,
                        "task": found.outcomes.task_names[view.task],
                        "pair": pair,
                        "bin": view.bin,
                        "metric": metric,
                        "value": value,
                    }
                )
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=COLUMNS), sink)
    return sink.getvalue().to_pybytes()


def pair_name(found: Comparison, pair: tuple[int, int]) -> str:
    """`a, b`."""
    return ", ".join(found.outcomes.task_names[t] for t in pair)


def result(found: Comparison) -> dict[str, Any]:
    """Everything but the single cells, as JSON holds it."""
    outcomes = found.outcomes
    return {
        "log": found.log,
        "train_log": found.train_log,
        "rows": outcomes.num_rows,
        "users": found.num_users,
        "tasks": list(outcomes.task_names),
        "baseline": found.baseline,
        "baseline_is_single_task": found.baseline_is_single_task,
        "options": asdict(found.options),
        "models": {label: _model(found, label) for label in found.labels},
        "gains": [_difference(found, d) for d in found.gains],
        "pairs": [_difference(found, d) for d in found.pairs],
        "bins": _bins(found),
    }


def summary(cells: list[Measured], view: int) -> dict[str, dict[str, Any]]:
    """A model's metrics in a view: mean, spread and values over its seeds."""
    return {metric: _over_seeds(cells, view, metric) for metric in cells[0].points[view]}


def _over_seeds(cells: list[Measured], view: int, metric: str) -> dict[str, Any]:
    """Spread is the standard deviation with n - 1; None with one seed."""
    values = [m.points[view][metric] for m in cells]
    known = [v for v in values if v is not None]
    complete = len(known) == len(values)
    return {
        "mean": float(np.mean(known)) if complete else None,
        "spread": float(np.std(known, ddof=1)) if complete and len(known) > 1 else None,
        "values": values,
    }


def _model(found: Comparison, label: str) -> dict[str, Any]:
    cells = found.of(label)
    trained = found.trained(label)
    speeds = [t.rows_per_s for t in trained if t.rows_per_s is not None]
    names = found.outcomes.task_names
    return {
        "seeds": [m.cell.seed for m in cells],
        "runs": [m.cell.run for m in cells],
        "dense_parameters": trained[0].num_dense if trained else None,
        "table_parameters": trained[0].num_table if trained else None,
        "training_rows_per_s": float(np.mean(speeds)) if speeds else None,
        "num_workers": trained[0].num_workers if trained else None,
        "metrics": {
            names[view.task]: summary(cells, number)
            for number, view in enumerate(found.views)
            if view.pair is None
        },
    }


def _difference(found: Comparison, d: Difference) -> dict[str, Any]:
    names = found.outcomes.task_names
    values = asdict(d) | {"task": names[d.task]}
    return values | {"pair": [names[t] for t in d.pair] if d.pair else None}


def _bins(found: Comparison) -> dict[str, Any]:
    names = found.outcomes.task_names
    counts = [asdict(c) | {"pair": [names[t] for t in c.pair]} for c in found.bins]
    totals = dict(zip(names, found.training_positives, strict=False))
    return {"counts": counts, "training_positives": totals}
