"""Small logs for tests, made in this process in well under a second."""

from pathlib import Path
from typing import Any

from raymtl.config import dump
from raymtl.data.synthetic import SynthConfig, SynthTask, plant, write_log
from raymtl.schema import (
    CategoricalFeature,
    LogSchema,
    NumericFeature,
    Rule,
    Table,
)

SMALL: dict[str, Any] = {
    "num_users": 200,
    "num_items": 100,
    "block_rows": 1500,
    "chunk_rows": 400,
    "history_length": 5,
    "row_weights": True,
    "tasks": [
        SynthTask(name="click", positive_rate=0.4),
        SynthTask(name="like", positive_rate=0.2, null_share=0.3),
        SynthTask(name="share", positive_rate=0.2),
    ],
}


def small_log(folder: Path | str, rows: int = 5000, **config: Any) -> LogSchema:
    """Writes folder/train, valid and test (80, 10 and 10 %) whose schema uses every kind of thing.

    Categoricals by index, hash and values; a weighted bag; two aligned sequences; numbers with
    log1p, standardising, boundaries and a missing indicator; nulls, a rule, task and row weights.

    Args:
        rows: of all splits together.
        config: fields of SynthConfig, over `SMALL`.

    Returns:
        The schema, also in each split's schema.yaml.
    """
    made = SynthConfig(**{**SMALL, "rows": rows, **config})
    write_log(made, str(folder))
    truth = plant(made)
    schema = every_kind(made.schema_of(truth.duration_mean, truth.duration_std))
    for split in ("train", "valid", "test"):
        if (Path(folder) / split).is_dir():
            (Path(folder) / split / "schema.yaml").write_text(dump(schema), encoding="utf-8")
    return schema


def every_kind(schema: LogSchema) -> LogSchema:
    """Adds to a generated log's schema what it has not by itself; the columns stay the same."""
    features = [
        *schema.features,
        CategoricalFeature(
            kind="categorical", name="item_hashed", column="item", encoding="hash", table="hashed"
        ),
        NumericFeature(kind="numeric", name="duration_plain", column="duration_s", fill=-1.0),
        NumericFeature(
            kind="numeric",
            name="duration_bucket",
            column="duration_s",
            boundaries=[5.0, 20.0, 60.0],
        ),
    ]
    tasks = list(schema.tasks)
    tasks[-1] = tasks[-1].model_copy(
        update={"observed_if": Rule(column="hour", at_least=4), "weight": "hour"}
    )
    tables = [*schema.tables, Table(name="hashed", rows=64)]
    update = {"features": features, "tables": tables, "tasks": tasks}
    return LogSchema.model_validate({**schema.model_dump(), **_plain(update)})


def _plain(update: dict[str, list]) -> dict[str, list]:
    return {key: [part.model_dump() for part in parts] for key, parts in update.items()}
