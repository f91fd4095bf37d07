"""Generated logs with a known answer, written block by block, in parallel by Ray Data.

A log is a folder with train/, valid/ and test/ (part files and schema.yaml in each), synth.yaml
(the config it was made from) and, written last, truth.json (what was planted). What its rows are
is the matter of the config's kind: `KINDS`.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raymtl.config import dump, parse, parse_yaml
from raymtl.data.artificial import DephnLog, MmoeLog
from raymtl.data.artificial_config import DephnLogConfig, MmoeLogConfig
from raymtl.data.planted import SAMPLE_ROWS, World, block_table, sigmoid
from raymtl.data.synth_config import LogSection, SynthConfig, SynthTask
from raymtl.errors import InputError
from raymtl.schema import LogSchema
from raymtl.storage import Folder

__all__ = ["SynthConfig", "SynthTask", "parse_log", "synthesise", "write_log"]

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Block:
    """One part file to be: rows of one split, numbered over the whole log."""

    number: int
    split: str
    part: int
    first_row: int
    rows: int


class Generator(Protocol):
    """The rows of a log, decided once before any block is made; travels to Ray's tasks."""

    def table(self, block: int, first_row: int, rows: int) -> pa.Table:
        """The rows of one block, a pure function of the config and these numbers."""
        ...

    def schema(self) -> LogSchema:
        """The log's schema."""
        ...

    def facts(self) -> dict[str, Any]:
        """What truth.json says beside the rows; plain values."""
        ...


@dataclass(frozen=True)
class Truth:
    """What was planted; estimated once on a sample before any block is made."""

    intercepts: list[float]
    bayes_auc: list[float]
    duration_mean: float
    duration_std: float


@dataclass(frozen=True)
class PlantedLog:
    """Users, items and preferences in conflict; see `raymtl.data.planted`."""

    config: SynthConfig
    truth: Truth

    @classmethod
    def of(cls, config: SynthConfig) -> "PlantedLog":
        """Finds what must be estimated on a sample."""
        return cls(config, plant(config))

    def table(self, block: int, first_row: int, rows: int) -> pa.Table:
        """The rows of one block of the log."""
        intercepts = np.array(self.truth.intercepts)
        return block_table(World(self.config), intercepts, block, first_row, rows)

    def schema(self) -> LogSchema:
        """The log's schema, with the durations' mean and spread."""
        return self.config.schema_of(self.truth.duration_mean, self.truth.duration_std)

    def facts(self) -> dict[str, Any]:
        """Rates, conflict and the AUC of the true probabilities."""
        tasks, truth = self.config.tasks, self.truth
        return {
            "conflict": self.config.conflict,
            "preference_correlation": World(self.config).correlation,
            "tasks": {
                task.name: {
                    "positive_rate": task.positive_rate,
                    "null_share": task.null_share,
                    "intercept": intercept,
                    "bayes_auc": auc,
                }
                for task, intercept, auc in zip(
                    tasks, truth.intercepts, truth.bayes_auc, strict=True
                )
            },
        }


KINDS: dict[str, tuple[type[LogSection], Callable[[Any], Generator]]] = {
    "planted": (SynthConfig, PlantedLog.of),
    "mmoe": (MmoeLogConfig, MmoeLog.of),
    "dephn": (DephnLogConfig, DephnLog.of),
}
"""A config's `kind` -> its class, and what makes the rows of such a config."""


def parse_log(values: dict[str, Any], source: str) -> LogSection:
    """Checks the config of a generated log by the class of its `kind` (default `planted`).

    Raises:
        InputError: no such kind, an unknown key or a refused value.
    """
    kind = values.get("kind", "planted")
    if not isinstance(kind, str) or kind not in KINDS:
        raise InputError(
            "there is no such kind of generated log",
            f"kind = {kind!r}   ({source})",
            f"one of {', '.join(KINDS)}",
            "choose one, or leave it out for planted",
        )
    return parse(KINDS[kind][0], values, source)


def synthesise(config: LogSection, url: str) -> dict[str, Any]:
    """Writes a generated log with Ray Data; starts a local Ray unless there is one.

    A log made from the same config is left as it is. The files do not depend on the parallelism.

    Args:
        url: folder for the log, on any filesystem.

    Returns:
        What truth.json holds.

    Raises:
        InputError: the folder holds something else.
    """
    import ray.data

    def write(batch: Any) -> Any:
        for number in batch["id"].tolist():
            _write_block(config, made, block_of(config, number), Folder(url))
        return {"block": batch["id"]}

    done = _start(config, Folder(url))
    if done is not None:
        return done
    made = generator(config)
    numbers = ray.data.range(num_blocks(config), override_num_blocks=min(num_blocks(config), 1000))
    written = numbers.map_batches(write, batch_size=1)
    blocks = sum(len(batch["block"]) for batch in written.iter_batches(batch_size=None))
    assert blocks == num_blocks(config), f"{blocks} of {num_blocks(config)} blocks were written"
    return _finish(config, made, Folder(url))


def write_log(config: LogSection, url: str) -> dict[str, Any]:
    """Writes the same log in this process, without Ray; for small ones."""
    done = _start(config, Folder(url))
    if done is not None:
        return done
    made = generator(config)
    for number in range(num_blocks(config)):
        _write_block(config, made, block_of(config, number), Folder(url))
    return _finish(config, made, Folder(url))


def generator(config: LogSection) -> Generator:
    """What makes the rows of a config's log."""
    return next(make for cls, make in KINDS.values() if type(config) is cls)(config)


def split_rows(config: LogSection) -> dict[str, int]:
    """Rows of each split; train gets what rounding leaves."""
    valid, test = (int(config.rows * s) for s in (config.valid_share, config.test_share))
    return {"train": config.rows - valid - test, "valid": valid, "test": test}


def num_blocks(config: LogSection) -> int:
    """Part files of the whole log."""
    return sum(-(-rows // config.block_rows) for rows in split_rows(config).values())


def block_of(config: LogSection, number: int) -> Block:
    """The block of a number: train's come first, then valid's, then test's."""
    part, first_row = number, 0
    for split, rows in split_rows(config).items():
        parts = -(-rows // config.block_rows)
        if part < parts:
            start = part * config.block_rows
            size = min(config.block_rows, rows - start)
            return Block(number, split, part, first_row + start, size)
        part, first_row = part - parts, first_row + rows
    raise AssertionError(f"there is no block {number}")


def plant(config: SynthConfig) -> Truth:
    """Finds the intercepts that give the wished rates, on a sample, and what AUC they allow."""
    world = World(config)
    sample = world.draw(np.random.default_rng([config.seed, 0]), SAMPLE_ROWS)
    logits = config.signal * world.preferences(sample.user, sample.item)
    rates = np.array([task.positive_rate for task in config.tasks])
    low, high = np.full(len(rates), -60.0), np.full(len(rates), 60.0)
    for _ in range(50):
        middle = (low + high) / 2
        too_high = sigmoid(logits + middle).mean(axis=0) > rates
        low, high = np.where(too_high, low, middle), np.where(too_high, middle, high)
    intercepts = (low + high) / 2
    probabilities = sigmoid(logits + intercepts)
    durations = np.log1p(np.exp(3 + world.durations(sample.item)).astype(np.float64))
    return Truth(
        intercepts=intercepts.tolist(),
        bayes_auc=[expected_auc(p) for p in probabilities.T],
        duration_mean=float(durations.mean()),
        duration_std=float(durations.std()) or 1.0,
    )


def expected_auc(probabilities: np.ndarray) -> float:
    """AUC of the true probabilities themselves, in expectation over the labels."""
    p = np.sort(probabilities)
    negatives = np.cumsum(1 - p) - (1 - p) / 2
    return float((p * negatives).sum() / (p.sum() * (1 - p).sum()))


def _write_block(config: LogSection, made: Generator, block: Block, folder: Folder) -> None:
    table = made.table(block.number, block.first_row, block.rows)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=config.chunk_rows, compression="zstd")
    folder.write(f"{block.split}/part-{block.part:06d}.parquet", sink.getvalue().to_pybytes())


def _start(config: LogSection, folder: Folder) -> dict[str, Any] | None:
    """The truth, if this log is there already; else claims the folder or refuses it."""
    names = folder.names()
    if "synth.yaml" in names:
        text = folder.read("synth.yaml").decode()
        found = parse_log(parse_yaml(text, folder.url), folder.url)
        if found == config:
            return json.loads(folder.read("truth.json")) if "truth.json" in names else None
    if names:
        raise InputError(
            "the folder for the generated log holds something else",
            f"{folder.url}: {', '.join(names[:8])}",
            "an empty folder, or one holding a log of the same config",
            "choose another folder, or remove this one",
        )
    folder.require_writable()
    folder.write("synth.yaml", dump(config).encode())
    return None


def _finish(config: LogSection, made: Generator, folder: Folder) -> dict[str, Any]:
    schema = dump(made.schema()).encode()
    for split, rows in split_rows(config).items():
        if rows:
            folder.write(f"{split}/schema.yaml", schema)
    result = {"rows": split_rows(config), **made.facts()}
    folder.write("truth.json", (json.dumps(result, indent=2) + "\n").encode())
    return result
