"""Logs of successive days as `raymtl prepare --extend-vocab` leaves them, made without Ray."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from raymtl.config import TrainConfig, dump, parse
from raymtl.data.carried import DISTRIBUTIONS, TRANSFORMS
from raymtl.data.drift import dump_distributions, of_log
from raymtl.data.fitted import digest_of, file_digest
from raymtl.data.log import read_index
from raymtl.schema import LogSchema
from raymtl.storage import filesystem

FIRST_ITEMS, NEW_ITEMS, USERS, HOURS = 30, 5, 20, 4
MODEL = {"name": "shared_bottom", "bottom_hidden_units": [6], "tower_hidden_units": [4]}


def items_of(day: int) -> int:
    """Items known by the end of a day, the first being day 1."""
    return FIRST_ITEMS + NEW_ITEMS * (day - 1)


def write_day(folder: Path, day: int, rows: int = 600, chained: bool = True) -> str:
    """Writes `folder/day-N` whose item vocabulary extends that of the day before.

    Args:
        chained: False: it extends nothing.

    Returns:
        URL of its training part.
    """
    log = folder / f"day-{day}"
    (log / "train").mkdir(parents=True)
    (log / "vocabularies").mkdir()
    rng = np.random.default_rng(day)
    user, item = rng.integers(1, USERS + 1, rows), rng.integers(1, items_of(day) + 1, rows)
    click = (rng.random(rows) < np.where((user + item) % 3 == 0, 0.8, 0.2)).astype(np.int8)
    columns = {"user": user, "item": item, "hour": rng.integers(1, HOURS + 1, rows), "click": click}
    pq.write_table(pa.table(columns), log / "train" / "part-0.parquet", row_group_size=100)
    extends = [_transforms(folder, d)["digest"] for d in range(day - 1, 0, -1) if chained]
    path = log / "vocabularies" / "item.parquet"
    values = {"value": np.arange(items_of(day)) + 1000, "count": np.full(items_of(day), 2)}
    pq.write_table(pa.table(values), path)
    fs, place = filesystem(str(path))
    fitted = schema_of(day).model_dump(mode="json")
    content = {"schema": fitted, "joins": [], "derive": {}, "sequences": None, "rates": []}
    content["vocabularies"] = {"vocabularies/item.parquet": file_digest(fs, place)}
    if extends:
        content["extends"] = extends
    values = parse(LogSchema, schema_of(day).model_dump(), "a day").model_copy(
        update={"transforms": digest_of(content), "extends": extends}
    )
    text = yaml.safe_dump({"digest": digest_of(content), **content}, sort_keys=False)
    (log / TRANSFORMS).write_text(text)
    (log / "train" / "schema.yaml").write_text(dump(values))
    counts = of_log(read_index(str(log / "train")), values)
    (log / DISTRIBUTIONS).write_text(dump_distributions(counts))
    return str(log / "train")


def _transforms(folder: Path, day: int) -> dict:
    return yaml.safe_load((folder / f"day-{day}" / TRANSFORMS).read_text())


def schema_of(day: int) -> LogSchema:
    """What a day's log holds: rows of three tables, of which items grow."""
    rows = {"user": USERS + 1, "item": items_of(day) + 1, "hour": HOURS + 1}
    paths = {"item": "vocabularies/item.parquet"}
    return LogSchema.model_validate(
        {
            "features": [
                {"kind": "categorical", "name": name, "encoding": "index"} for name in rows
            ],
            "tables": [
                {"name": name, "rows": count, "vocabulary": paths.get(name)}
                for name, count in rows.items()
            ],
            "tasks": [{"name": "click", "label": "click"}],
            "group": "user",
        }
    )


def day_config(log: str, name: str, start: str | None = None, **sections: dict) -> TrainConfig:
    """One pass over a day, in its own time order, from the run of the day before."""
    values = {
        "name": name,
        "storage": str(Path(log).parents[1] / "runs"),
        "init_from": start,
        "data": {"train": log, "num_lanes": 4, "chunk_rows": 100, "order": "chronological"},
        "model": MODEL,
        "embedding": {"width": 4, "num_buckets": 4, "replicate_rows": 10},
        "train": {"global_batch_size": 100},
        "validation": {"before_training": start is not None},
    }
    return parse(TrainConfig, values | sections, "a day")
