"""What a prepared log holds: rows, users, positives, missing and unknown values. No Ray."""

# pyarrow makes its compute functions at import.
# pyright: reportAttributeAccessIssue=false

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.table import Table as RichTable

from raymtl.data.fitted import log_column
from raymtl.schema import LogSchema, looks_up


@dataclass
class Tally:
    """Counts per split; those of shares add up."""

    splits: dict[str, dict[str, Any]]

    @classmethod
    def of(cls, schema: LogSchema, splits: Iterable[str]) -> "Tally":
        """All zero."""
        zero = {
            "tasks": {t.name: {"observed": 0, "null": 0, "sum": 0.0} for t in schema.tasks},
            "features": {f.name: {"null": 0, "ids": 0, "unknown": 0} for f in schema.features},
        }
        return cls({s: {"rows": 0, **{k: _copy(v) for k, v in zero.items()}} for s in splits})

    def add(self, split: str, table: pa.Table, schema: LogSchema) -> None:
        """Counts rows of the finished log."""
        mine = self.splits[split]
        mine["rows"] += table.num_rows
        for task in schema.tasks:
            column, counts = table.column(task.label), mine["tasks"][task.name]
            counts["observed"] += len(column) - column.null_count
            counts["null"] += column.null_count
            counts["sum"] += float(pc.sum(column.cast(pa.float64())).as_py() or 0)
        for f in schema.features:
            column, counts = table.column(log_column(f.name)), mine["features"][f.name]
            counts["null"] += column.null_count
            if looks_up(f):
                ids = pc.list_flatten(column) if pa.types.is_list(column.type) else column
                counts["ids"] += len(ids) - ids.null_count
                counts["unknown"] += pc.sum(pc.equal(ids, 0)).as_py() or 0

    def merge(self, other: dict[str, Any]) -> None:
        """Adds another tally, as plain values."""
        for split, theirs in other.items():
            mine = self.splits[split]
            mine["rows"] += theirs["rows"]
            for kind in ("tasks", "features"):
                for name, counts in theirs[kind].items():
                    for key, count in counts.items():
                        mine[kind][name][key] += count

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return self.splits


def _copy(counts: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: dict(values) for name, values in counts.items()}


def report(
    tally: Tally,
    schema: LogSchema,
    users: dict[str, int],
    distinct: dict[str, int],
    dropped: int,
) -> dict[str, Any]:
    """Statistics as written to statistics.json.

    Args:
        users: split -> distinct users; empty without a group column.
        distinct: table -> distinct values in the training part before the rare ones went.
        dropped: rows no split takes.
    """
    kinds = {t.name: t.kind for t in schema.tasks}
    splits: dict[str, Any] = {}
    for name, counts in tally.splits.items():
        tasks = {}
        for task, c in counts["tasks"].items():
            mean = c["sum"] / c["observed"] if c["observed"] else None
            known = {"observed": c["observed"], "null": c["null"]}
            if kinds[task] == "binary":
                tasks[task] = {**known, "positives": int(c["sum"]), "rate": mean}
            else:
                tasks[task] = {**known, "mean": mean}
        splits[name] = {"rows": counts["rows"], "users": users.get(name), "tasks": tasks}
        splits[name]["features"] = counts["features"]
    tables = {}
    for name in schema.table_names:
        tables[name] = {"rows": schema.table(name).num_rows}
        if name in distinct:
            tables[name]["distinct_in_train"] = distinct[name]
    return {"splits": splits, "tables": tables, "dropped_rows": dropped}


def rich_table(statistics: dict[str, Any]) -> RichTable:
    """Rows, users and each task's labels per split, to be printed."""
    table = RichTable(title="prepared log", title_justify="left")
    for name in ("split", "rows", "users", "task", "positives", "nulls", "rate"):
        table.add_column(name, justify="left" if name in ("split", "task") else "right")
    for split, counts in statistics["splits"].items():
        users = "" if counts["users"] is None else f"{counts['users']:,}"
        first = [split, f"{counts['rows']:,}", users]
        for task, c in counts["tasks"].items():
            mean = c["rate"] if "rate" in c else c["mean"]
            positives = f"{c['positives']:,}" if "positives" in c else "regression"
            rate = "" if mean is None else f"{mean:.5f}"
            table.add_row(*first, task, positives, f"{c['null']:,}", rate)
            first = ["", "", ""]
    return table
