"""A cell (one model, one seed, its scores of a log), and the outcomes of the same rows."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raymtl.data.decode import outcomes
from raymtl.data.log import LOG_ROW, LogIndex
from raymtl.data.order import Chunk
from raymtl.data.read import read_chunk, where
from raymtl.errors import InputError, one_line
from raymtl.schema import LogSchema
from raymtl.storage import filesystem


@dataclass(frozen=True)
class Cell:
    """One model trained with one seed."""

    label: str
    """The model's name in tables; cells of one label are its seeds."""
    seed: int
    scores: str | Mapping[str, np.ndarray]
    """Probabilities of a binary task, values of a regression: parquet (a file or folder) with a
    column per task, or task -> (N,). Rows as in the log, files in the order of their paths; or in
    any order beside a column `log_row` with each row's number in the log."""
    run: str | None = None
    """Its run folder, where there is one: adds parameters, speed and curves."""

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.label}, seed {self.seed}"


@dataclass(frozen=True)
class Outcomes:
    """What happened in the N rows of a log."""

    task_names: tuple[str, ...]
    kinds: tuple[str, ...]
    """`binary` or `regression` per task."""
    group_N: np.ndarray
    """int64 user, -1 where there is none."""
    labels_NT: np.ndarray
    """float32, NaN where unobserved."""
    weight_NT: np.ndarray
    """float32, row weight times task weight, 0 where unobserved."""

    @property
    def num_rows(self) -> int:
        """N."""
        return len(self.group_N)

    @property
    def has_groups(self) -> bool:
        """Whether any row has a user."""
        return bool((self.group_N != -1).any())


def read_outcomes(index: LogIndex, schema: LogSchema) -> Outcomes:
    """Reads a log's labels, weights and groups, in the log's order.

    Raises:
        InputError: a file cannot be read, or a value is not what its column must hold.
    """
    parts = list(outcome_chunks(index, schema))
    weight_NT = [part["task_weights"] * part["weights"][:, None] for part in parts]
    return Outcomes(
        tuple(task.name for task in schema.tasks),
        tuple(task.kind for task in schema.tasks),
        np.concatenate([part["group"] for part in parts]),
        np.concatenate([part["labels"] for part in parts]),
        np.concatenate(weight_NT),
    )


def outcome_chunks(index: LogIndex, schema: LogSchema) -> Iterator[dict[str, np.ndarray]]:
    """The arrays of `decode.outcomes`, one row group at a time, in the log's order."""
    schema = index.as_of(schema)
    columns = schema.outcome_columns()
    for number, file in enumerate(index.files):
        first = 0
        for group, rows in enumerate(file.row_group_rows):
            chunk = Chunk(number, group, 0, rows, first)
            first += rows
            if rows:
                yield outcomes(read_chunk(index, chunk, columns), schema, where(index, chunk))


def read_scores(cell: Cell, expected: Outcomes) -> np.ndarray:
    """A cell's scores, float64 (N, T), in the log's order.

    Raises:
        InputError: a task has no scores, their number is not the log's, `log_row` does not name
            each row once, or a score is not finite or no probability.
    """
    columns = _columns(cell, expected.task_names)
    if LOG_ROW in columns:
        place = _places(cell, columns[LOG_ROW], expected.num_rows)
        columns = {task: columns[task][place] for task in expected.task_names}
    for task, kind in zip(expected.task_names, expected.kinds, strict=True):
        _check(cell, task, kind, columns[task], expected.num_rows)
    return np.stack([columns[task] for task in expected.task_names], axis=1)


def _columns(cell: Cell, tasks: tuple[str, ...]) -> dict[str, np.ndarray]:
    if isinstance(cell.scores, str):
        table = _read(cell, cell.scores)
        found = {n: table.column(n) for n in (*tasks, LOG_ROW) if n in table.column_names}
        columns = {n: c.to_numpy().astype(_kind(n)) for n, c in found.items()}
    else:
        columns = {n: np.asarray(a, _kind(n)) for n, a in cell.scores.items()}
    missing = [task for task in tasks if task not in columns]
    if missing:
        raise InputError(
            f"the scores of {cell.name} lack tasks",
            f"{', '.join(columns) or 'no task'}   ({_place(cell)})",
            f"a column for each of {', '.join(tasks)}",
            "score every task, or compare models of the same tasks",
        )
    return columns


def _kind(name: str) -> type[np.generic]:
    return np.int64 if name == LOG_ROW else np.float64


def _read(cell: Cell, url: str) -> pa.Table:
    fs, path = filesystem(url)
    try:
        return pq.read_table(path, filesystem=fs, use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            f"the scores of {cell.name} cannot be read",
            f"{url}: {one_line(error)}",
            "parquet with a column per task",
            "check the path, or make them again",
        ) from None


def _places(cell: Cell, log_row: np.ndarray, num_rows: int) -> np.ndarray:
    """Where each row of the log stands among the scores."""
    counts = np.zeros(0, np.int64)
    if len(log_row) and log_row.min() >= 0 and log_row.max() < num_rows:
        counts = np.bincount(log_row, minlength=num_rows)
    if len(counts) != num_rows or (counts != 1).any():
        raise InputError(
            f"the scores of {cell.name} do not name each row of the log once",
            f"{len(log_row)} values of {LOG_ROW}   ({_place(cell)})",
            f"0 to {num_rows - 1}, each once",
            "score this log again",
        )
    return np.argsort(log_row)


def _check(cell: Cell, task: str, kind: str, scores: np.ndarray, num_rows: int) -> None:
    if len(scores) != num_rows:
        raise InputError(
            f"the scores of {cell.name} are of another log",
            f"{len(scores)} rows   ({_place(cell)})",
            f"{num_rows} rows, as the log has",
            "score this log, or name the one they are of",
        )
    good = np.isfinite(scores)
    if kind == "binary":
        good &= (scores >= 0) & (scores <= 1)
    if not good.all():
        raise InputError(
            f"a score of {cell.name} for {task} cannot be measured",
            f"{scores[~good][0]:g}, and {int((~good).sum()) - 1} more   ({_place(cell)})",
            "probabilities, 0 to 1" if kind == "binary" else "finite numbers",
            "mend what made the scores; logits or ranks will not do",
        )


def _place(cell: Cell) -> str:
    return cell.scores if isinstance(cell.scores, str) else "arrays"
