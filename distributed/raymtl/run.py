"""A run's folder: `storage/name/` with its config, schema, metric lines, result and checkpoints."""

import json
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from raymtl import checkpoint as checkpoints
from raymtl.checkpoint import Checkpoint
from raymtl.config import TrainConfig, dump, parse, parse_yaml
from raymtl.data.carried import CARRIED, carry
from raymtl.data.log import LogIndex
from raymtl.errors import InputError, one_line
from raymtl.schema import LogSchema
from raymtl.storage import Folder, absolute, persistently

CONFIG, SCHEMA, LOG = "config.yaml", "schema.yaml", "log.json"
METRICS, RESULT = "metrics.jsonl", "result.json"


class Run:
    """The run folder's files by name."""

    def __init__(self, url: str):
        self.folder = Folder(url)
        self.checkpoints = self.folder / "checkpoints"

    @classmethod
    def of(cls, config: TrainConfig) -> "Run":
        """The folder a config's run lives in."""
        return cls(f"{config.storage.rstrip('/')}/{config.name}")

    @property
    def url(self) -> str:
        return self.folder.url

    def exists(self) -> bool:
        """Whether a run was begun here."""
        return self.folder.size(CONFIG) is not None

    def require_new(self) -> None:
        """Raises InputError where a run was begun here already."""
        if self.exists():
            raise InputError(
                "a run of this name is there already",
                self.url,
                "a new name, or the wish to go on with it",
                f"use `raymtl train --resume {self.url}`, or name=… for a new run",
            )

    def begin(self, config: TrainConfig, schema: LogSchema, train: LogIndex) -> None:
        """Writes a new run's config, schema, transforms and log index.

        Raises:
            InputError: the folder has a run already.
        """
        self.require_new()
        carry(train.url, schema.transforms, self.folder / CARRIED)
        self.folder.write(LOG, json.dumps(train.to_dict()).encode())
        self.folder.write(SCHEMA, dump(schema).encode())
        self.folder.write(CONFIG, dump(config).encode())

    def read_config(self) -> TrainConfig:
        """The run's resolved config."""
        return parse(TrainConfig, self._read_yaml(CONFIG), f"{self.url}/{CONFIG}")

    def read_schema(self) -> LogSchema:
        """The run's schema."""
        return parse(LogSchema, self._read_yaml(SCHEMA), f"{self.url}/{SCHEMA}")

    def read_log(self) -> LogIndex:
        """The index of the training log the run began with."""
        try:
            return LogIndex.from_dict(json.loads(self.folder.read(LOG)))
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(
                "a run's list of its log's files cannot be read",
                f"{self.url}/{LOG}: {one_line(error)}",
                "the file that `raymtl train` wrote",
                "restore it, or start a new run",
            ) from None

    def write_config(self, config: TrainConfig) -> None:
        """Records a config changed by a resume (more epochs, say)."""
        self.folder.write(CONFIG, dump(config).encode())

    def _read_yaml(self, name: str) -> dict[str, Any]:
        try:
            text = self.folder.read(name).decode()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                "this is no run folder",
                f"{self.url}/{name}: {error}",
                "a folder that `raymtl train` made",
                "check the path",
            ) from None
        return parse_yaml(text, f"{self.url}/{name}")

    def write_result(self, result: dict) -> None:
        """Writes result.json. Raises OSError where storage stays away."""
        text = json.dumps(result, indent=1, sort_keys=True).encode()
        persistently(lambda: self.folder.write(RESULT, text))


def home_of(checkpoint: str) -> str:
    """URL of the run folder that a checkpoint folder lies in, or just of the folder above it."""
    return checkpoint.rstrip("/").rpartition("/")[0].removesuffix("/checkpoints") or "."


def choose(where: str, which: str = "best") -> Checkpoint:
    """Opens a checkpoint folder, or the wanted checkpoint of a run folder.

    Raises:
        InputError: neither is there.
        DamagedCheckpoint: its manifest or a file's size is wrong.
    """
    folder = Folder(where)
    if folder.size(checkpoints.MANIFEST) is not None or folder.size("trainer.json") is not None:
        return Checkpoint(folder)
    run = Run(where)
    names = checkpoints.complete_names(run.checkpoints)
    if which in names:
        return Checkpoint(run.checkpoints / which)
    if not names or which not in ("best", "last"):
        raise InputError(
            "there is no such checkpoint",
            f"{which} of {where}; complete ones: {', '.join(names) or 'none'}",
            "a run folder with checkpoints, or a checkpoint folder",
            "check the path, or let the run reach its first checkpoint",
        )
    name = _best(run, names) if which == "best" else names[-1]
    return Checkpoint(run.checkpoints / name)


def _best(run: Run, names: list[str]) -> str:
    higher = run.read_config().validation.higher_is_better
    metrics = {name: Checkpoint(run.checkpoints / name).metric for name in names}
    known = {n: m if higher else -m for n, m in metrics.items() if m is not None}
    return max(known, key=lambda n: known[n]) if known else names[-1]


def located(config: TrainConfig) -> TrainConfig:
    """The config with its relative paths made absolute: workers run in folders of their own."""
    keys = {"train", "valid", "schema_path"}
    urls = {k: url for k, url in config.data.model_dump(include=keys).items() if url is not None}
    data = config.data.model_copy(update={k: absolute(url) for k, url in urls.items()})
    update: dict[str, Any] = {"data": data, "storage": absolute(config.storage)}
    if config.init_from is not None:
        update["init_from"] = absolute(config.init_from)
    return config.model_copy(update=update)


class MetricLines:
    """metrics.jsonl: one JSON object a line, each with its step; cut back on resume.

    Lines that storage refuses are kept and tried with the next one; `flush` insists.
    """

    def __init__(self, run: Run):
        self._folder = run.folder
        self._lines: list[str] = []
        self._written = 0
        """Lines of the file; 0 also where the last one may be torn."""
        self._upload: threading.Thread | None = None

    def cut_back(self, step: int) -> None:
        """Drops lines past a step (and a torn last line), as a resume from there needs.

        A run that goes on from step 0 begins anew and keeps none.
        """
        text = (
            self._folder.read(METRICS).decode(errors="replace")
            if self._folder.size(METRICS) is not None
            else ""
        )
        self._lines = [line for line in text.splitlines() if step and _step_of(line) <= step]
        self._write()

    def add(self, values: dict) -> None:
        """Appends one line; on object stores a thread writes the file anew."""
        self._lines.append(json.dumps(values))
        if self._folder.is_local:
            with suppress(OSError):
                self._append()
        elif self._upload is None or not self._upload.is_alive():
            self._upload = threading.Thread(target=self._try, daemon=True)
            self._upload.start()

    def flush(self) -> None:
        """Returns when the file has every line. Raises OSError."""
        if self._upload is not None:
            self._upload.join()
        if self._written < len(self._lines):
            self._write()

    def _append(self) -> None:
        if self._written < len(self._lines) - 1:
            self._write()
            return
        self._written = 0
        with open(Path(self._folder.path, METRICS), "a", encoding="utf-8") as stream:
            stream.write(self._lines[-1] + "\n")
        self._written = len(self._lines)

    def _try(self) -> None:
        with suppress(OSError):
            self._write()

    def _write(self) -> None:
        lines = list(self._lines)
        self._folder.write(METRICS, _joined(lines))
        self._written = len(lines)


def _joined(lines: list[str]) -> bytes:
    return "".join(line + "\n" for line in lines).encode()


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")
