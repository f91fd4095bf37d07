"""A small log with users, and scores of made-up models on it."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raymtl.analysis import Cell
from raymtl.config import TrainConfig, dump
from raymtl.schema import CategoricalFeature, LogSchema, Table, Task

NUM_USERS = 60


def schema_of(tasks: tuple[str, ...] = ("click", "like"), group: str | None = "user") -> LogSchema:
    """One feature, a label column per task, and the user as group."""
    return LogSchema(
        features=[CategoricalFeature(kind="categorical", name="user", encoding="index")],
        tables=[Table(name="user", rows=1000)],
        tasks=[Task(name=name, label=name) for name in tasks],
        group=group,
    )


def write_log(folder: Path, columns: dict[str, list], rows_per_file: int = 10**6) -> str:
    """Writes columns as parquet, `rows_per_file` rows a file in row groups of 7, and the schema."""
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    for number, start in enumerate(range(0, table.num_rows, rows_per_file)):
        part = table.slice(start, rows_per_file)
        pq.write_table(part, folder / f"part-{number:03d}.parquet", row_group_size=7)
    (folder / "schema.yaml").write_text(dump(schema_of()), encoding="utf-8")
    return str(folder)


def drawn_log(folder: Path, rows: int = 900, seed: int = 0) -> tuple[str, np.ndarray]:
    """A log whose labels follow from known probabilities.

    Returns:
        Its URL and the true probabilities (N, 2), of click and like.
    """
    generator = np.random.default_rng(seed)
    users = generator.integers(0, NUM_USERS, rows)
    truth_NT = 1 / (1 + np.exp(-generator.normal([0.0, -1.0], 1.2, (rows, 2))))
    labels_NT = generator.random((rows, 2)) < truth_NT
    columns = {"user": users.tolist()} | {
        name: labels_NT[:, t].astype(int).tolist() for t, name in enumerate(("click", "like"))
    }
    return write_log(folder, columns, rows_per_file=400), truth_NT


def cell(label: str, seed: int, truth_NT: np.ndarray, noise: float) -> Cell:
    """The truth, blurred: the more noise on the logits, the worse the model."""
    generator = np.random.default_rng((seed, round(noise * 1000)))
    logits_NT = np.log(truth_NT / (1 - truth_NT)) + noise * generator.normal(size=truth_NT.shape)
    scores_NT = 1 / (1 + np.exp(-logits_NT))
    return Cell(label, seed, {"click": scores_NT[:, 0], "like": scores_NT[:, 1]})


def run_folder(folder: Path, seed: int, model: str = "stem", tasks=("click", "like"), **config):
    """A run's config and schema, as `raymtl train` writes them first."""
    values = {
        "name": folder.name,
        "storage": str(folder.parent),
        "seed": seed,
        "data": {"train": "train", "valid": "valid"},
        "model": {"name": model},
    }
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump(TrainConfig.model_validate(values | config)))
    (folder / "schema.yaml").write_text(dump(schema_of(tasks)))
    return str(folder)


def silent(line: str) -> None:
    """Takes lines for a person."""
