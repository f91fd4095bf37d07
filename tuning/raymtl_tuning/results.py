"""What a study leaves: trials.parquet, best.yaml, result.json and report.html."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raymtl.config import TrainConfig, dump, parse
from raymtl.models import registry
from raymtl.run import Run
from raymtl.schema import LogSchema
from raymtl_tuning.checks import runs_at
from raymtl_tuning.config import TuneConfig
from raymtl_tuning.effects import Effects, effects
from raymtl_tuning.records import Record, StudyFolder, front

TRIALS_TABLE, BEST, PRETRAIN, RESULT, REPORT = (
    "trials.parquet",
    "best.yaml",
    "best_pretrain.yaml",
    "result.json",
    "report.html",
)
COLUMNS = [
    ("number", pa.int64()),
    ("status", pa.string()),
    ("reason", pa.string()),
    ("value", pa.float64()),
    ("spread", pa.float64()),
    ("cost", pa.float64()),
    ("step", pa.int64()),
    ("rows", pa.int64()),
    ("time_s", pa.float64()),
    ("study_s", pa.float64()),
]
"""Columns of trials.parquet, of `Record`; the searched keys and the metrics follow."""


@dataclass(frozen=True)
class Found:
    """The results of a study."""

    config: TuneConfig
    folder: StudyFolder
    records: list[Record]
    """Of all trials that have ended, by number."""
    front: list[Record]
    """The best trial; with two objectives the Pareto front, best quality first."""
    effects: Effects

    @property
    def best(self) -> Record:
        """The trial whose point is in best.yaml."""
        return self.front[0]


def write(
    config: TuneConfig, folder: StudyFolder, records: list[Record], schema: LogSchema
) -> Found:
    """Writes all results of a study that has a trial with a value."""
    from raymtl_tuning.report import page

    kept = front(config.objective, records)
    found = Found(config, folder, records, kept, effects(config, records))
    folder.folder.write(TRIALS_TABLE, trials_parquet(config, records))
    *before, best = best_configs(config, found.best)
    for pretraining in before:
        folder.folder.write(PRETRAIN, dump(pretraining).encode())
    folder.folder.write(BEST, dump(best).encode())
    text = json.dumps(result(found), indent=1, sort_keys=True)
    folder.folder.write(RESULT, (text + "\n").encode())
    folder.folder.write(REPORT, page(found, [task.name for task in schema.tasks]).encode())
    return found


def best_configs(config: TuneConfig, best: Record) -> list[TrainConfig]:
    """Configs that `raymtl train` runs as they are: a pretraining, if there is one, and the best.

    They train into `runs`, as `NAME-best`, with the first seed and every default written out.
    """
    made: list[TrainConfig] = []
    for run in runs_at(config, best.number, best.point, config.seed):
        values = run.model_dump(mode="json")
        values["model"] = registry.parse(run.model).model_dump(mode="json")
        ending = "-pretrained" if config.pretrain is not None and not made else ""
        values |= {"storage": "runs", "name": f"{config.name}-best{ending}"}
        if made:
            values["init_from"] = Run.of(made[0]).url
        made.append(parse(TrainConfig, values, BEST))
    return made


def trials_parquet(config: TuneConfig, records: Sequence[Record]) -> bytes:
    """A row per trial: its record, a column per searched key, a column per metric.

    Values of a key that are neither numbers nor text stand as JSON; null where it was not searched.
    """
    columns = {name: [getattr(r, name) for r in records] for name, _ in COLUMNS}
    table = pa.table(columns, schema=pa.schema(COLUMNS))
    for key in config.space:
        values = [record.point.get(key) for record in records]
        table = table.append_column(key, _column(values))
    for name in sorted({name for record in records for name in record.metrics}):
        values = [record.metrics.get(name) for record in records]
        table = table.append_column(f"metric:{name}", pa.array(values, pa.float64()))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def _column(values: list[Any]) -> pa.Array:
    known = [value for value in values if value is not None]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in known):
        whole = all(isinstance(value, int) for value in known)
        return pa.array(values, pa.int64() if whole else pa.float64())
    if all(isinstance(value, str) for value in known):
        return pa.array(values, pa.string())
    return pa.array([None if v is None else json.dumps(v) for v in values], pa.string())


def result(found: Found) -> dict[str, Any]:
    """result.json: the best, the front, how trials ended, what parameters did."""
    objective = found.config.objective
    return {
        "best": asdict(found.best),
        "front": [asdict(record) for record in found.front],
        "objective": objective.model_dump(mode="json"),
        "maximised": objective.maximised,
        "trials": len(found.records),
        "ended": dict(Counter(record.status for record in found.records)),
        "rows": sum(record.rows for record in found.records),
        "importance": found.effects.importance,
        "seeds": found.config.seeds,
        "config": f"{found.folder.url}/{BEST}",
        "report": f"{found.folder.url}/{REPORT}",
    }
