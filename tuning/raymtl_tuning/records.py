"""The study folder. A trial's record, written last, is the truth about a trial that has ended.

tune.yaml           the config, every default written out
points/0003.json    the point of a trial that was begun
failures/0003.txt   why it failed, where its own process could say so
trials/0003.json    its record, once it has ended
runs/0003-2023/     its training's run folder, by seed
ray/                what Ray Tune keeps for itself; never read back
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from raymtl.config import dump, parse, parse_yaml
from raymtl.differences import differences
from raymtl.errors import InputError
from raymtl.storage import Folder, absolute
from raymtl_tuning.config import ObjectiveSection, TuneConfig
from raymtl_tuning.space import Point

CONFIG, POINTS, FAILURES, TRIALS = "tune.yaml", "points", "failures", "trials"
RUNS, RAY = "runs", "ray"
RESUME_MAY_CHANGE = ("trials", "budget", "parallel", "cpus_per_trial", "memory_per_trial_bytes")
RESUME_MAY_CHANGE += ("share_log", "keep_checkpoints")
"""Keys whose change leaves every point and every number of a trial as it was."""
Status = Literal["finished", "stopped", "cut", "failed"]
"""Trained to its end; stopped by the scheduler; by the study's budget; failed, see `reason`."""


@dataclass(frozen=True)
class Record:
    """A trial that has ended."""

    number: int
    point: Point
    status: Status
    reason: str | None = None
    """Of a failure: its kind, a colon, and the message."""
    value: float | None = None
    """The objective; of a stopped trial the best that it had reached. Mean over seeds."""
    spread: float | None = None
    """Standard deviation over seeds; null of one."""
    cost: float | None = None
    """The second objective."""
    values: list[float] = field(default_factory=list)
    """The objective by seed."""
    metrics: dict[str, float | int | None] = field(default_factory=dict)
    """Of the best validation, mean over seeds."""
    step: int = 0
    rows: int = 0
    """Trained in all seeds together, a pretraining left out."""
    time_s: float = 0.0
    study_s: float = 0.0
    """How far into the study it ended."""
    attrs: dict[str, Any] = field(default_factory=dict)
    """What Optuna's sampler noted about the trial."""


class StudyFolder:
    """A study's files by name."""

    def __init__(self, url: str):
        self.folder = Folder(url)

    @classmethod
    def of(cls, config: TuneConfig) -> "StudyFolder":
        """The folder a config's study lives in."""
        return cls(f"{absolute(config.storage).rstrip('/')}/{config.name}")

    @property
    def url(self) -> str:
        return self.folder.url

    def begin(self, config: TuneConfig, resume: bool) -> None:
        """Writes the config of a new study, or of one that goes on.

        Raises:
            InputError: there is a study where none must be, or none to go on with, or it was
                another one.
        """
        there = self.folder.size(CONFIG) is not None
        if there and not resume:
            raise InputError(
                "a tuning study of this name is there already",
                self.url,
                "a new name, or the wish to go on with it",
                "add --resume, or name=… for a new one, or remove the folder",
            )
        if resume and not there:
            raise InputError(
                "there is no tuning study to go on with",
                self.url,
                f"a folder with {CONFIG}",
                "leave --resume out, or check name and storage",
            )
        if there:
            self._require_same(config)
        self.folder.require_writable()
        self.folder.write(CONFIG, dump(config).encode())
        self.folder.delete(RAY)

    def read_config(self) -> TuneConfig:
        """The study's config as it began, or was last gone on with."""
        text, source = self.folder.read(CONFIG).decode(), f"{self.url}/{CONFIG}"
        return parse(TuneConfig, parse_yaml(text, source), source)

    def _require_same(self, config: TuneConfig) -> None:
        before, now = (c.model_dump(mode="json") for c in (self.read_config(), config))
        for place, then, wanted in differences("", before, now):
            if place.split(".")[0] not in RESUME_MAY_CHANGE and place not in ("name", "storage"):
                raise InputError(
                    "a resumed study cannot change this key",
                    f"{place} = {wanted!r}",
                    f"{then!r}, as the study began; {', '.join(RESUME_MAY_CHANGE)} may change",
                    "leave it as it was, or start a study of another name",
                )

    def begin_trial(self, number: int, point: Point) -> None:
        """Notes a trial's point before it trains."""
        values = {"number": number, "point": point}
        self.folder.write(f"{POINTS}/{number:04d}.json", json.dumps(values).encode())

    def note_failure(self, number: int, reason: str | None) -> None:
        """Notes why a trial fails, from its own process; null takes back an earlier note."""
        name = f"{FAILURES}/{number:04d}.txt"
        if reason is not None:
            self.folder.write(name, reason.encode())
        else:
            self.folder.delete(name)

    def failure(self, number: int) -> str | None:
        """What `note_failure` noted."""
        name = f"{FAILURES}/{number:04d}.txt"
        there = self.folder.size(name) is not None
        return self.folder.read(name).decode() if there else None

    def end_trial(self, record: Record) -> None:
        """Writes a trial's record: from here on it is never trained again."""
        text = json.dumps(asdict(record), indent=1)
        self.folder.write(f"{TRIALS}/{record.number:04d}.json", text.encode())

    def begun(self) -> dict[int, Point]:
        """Points of all trials that were begun, by number."""
        found = (self._json(POINTS, name) for name in self._names(POINTS))
        return {values["number"]: values["point"] for values in found}

    def records(self) -> list[Record]:
        """The trials that have ended, by number."""
        return [Record(**self._json(TRIALS, name)) for name in self._names(TRIALS)]

    def runs_of(self, number: int) -> list[str]:
        """Names of a trial's run folders."""
        names = (self.folder / RUNS).names()
        return [name for name in names if name.startswith(f"{number:04d}-")]

    def drop_checkpoints(self, number: int) -> None:
        """Removes the checkpoints of a trial's runs."""
        for name in self.runs_of(number):
            (self.folder / RUNS / name).delete("checkpoints")

    def _names(self, folder: str) -> list[str]:
        return [name for name in (self.folder / folder).names() if name[:1] != "."]

    def _json(self, folder: str, name: str) -> Mapping[str, Any]:
        return json.loads((self.folder / folder).read(name))


def front(objective: ObjectiveSection, records: list[Record]) -> list[Record]:
    """The best trial alone, or with two objectives those that none other is better than in both.

    A trial that was stopped or cut takes part with what it had reached; of equals the first.
    """
    sign = 1 if objective.maximised else -1
    known = [r for r in records if r.value is not None]
    if objective.cost is None:
        ranked = sorted(known, key=lambda r: (-sign * (r.value or 0.0), r.number))
        return ranked[:1]
    cost_sign = 1 if objective.cost_maximised else -1
    places = [
        (sign * r.value, cost_sign * r.cost, r)
        for r in known
        if r.value is not None and r.cost is not None
    ]
    kept = [
        (quality, r)
        for quality, cost, r in places
        if not any(
            q >= quality and c >= cost and ((q, c) != (quality, cost) or other.number < r.number)
            for q, c, other in places
        )
    ]
    return [r for _, r in sorted(kept, key=lambda pair: -pair[0])]
