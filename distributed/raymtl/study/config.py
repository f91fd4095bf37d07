"""StudyConfig: which models are trained on which log, and compared how."""

import itertools
from typing import Any

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from raymtl.config import Section
from raymtl.errors import InputError

PRETRAIN = "pretrain."
"""Begins a searched key of the pretraining."""


class StudyModel(Section):
    label: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")
    """What tables and plots call it."""
    values: dict[str, Any] = {}
    """Values of a training config over those of `base`, section by section; `model` as a whole."""
    search: dict[str, list[Any]] | None = None
    """A grid of its own instead of the study's."""


class External(Section):
    """Scores of something that raymtl did not train, to stand beside the models."""

    label: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")
    seed: NonNegativeInt = 0
    scores: str
    """Parquet with a column per task: rows as in the test log, or with a column `log_row`."""


class CompareSection(Section):
    baseline: str | None = None
    """Label that gains are taken against; null means the single-task model."""
    ratio: float = Field(default=2.0, gt=1)
    """A user has relatively more of a task from this many times the usual share on."""
    draws: PositiveInt = 1000
    """Bootstrap draws of users."""


class StudyConfig(Section):
    """Models x seeds on one log."""

    name: str = Field(default="study", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """The study folder's name below `storage`."""
    storage: str = "studies"
    """Folder or URL that holds study folders."""
    base: dict[str, Any]
    """Values of a training config that all models share: data, embedding, optimizer, train,
    validation. Name, storage and seed are the study's."""
    pretrain: dict[str, Any] | None = None
    """Values over those of a run, for a training of its own that the run starts from (`init_from`):
    another log, rates or length. Null starts runs from initial values."""
    test: str
    """URL of the log that each final model scores once."""
    models: list[StudyModel] = Field(min_length=1)
    seeds: list[NonNegativeInt] = Field(default=[1, 2, 3], min_length=1)
    search: dict[str, list[Any]] = {}
    """Dotted key -> values. Every model is trained at every point of this grid with the first seed,
    and goes on with the point of the best validation metric; empty searches nothing. Keys that
    start with `pretrain.` are of the training before."""
    external: list[External] = []
    compare: CompareSection = CompareSection()
    cpus_per_run: PositiveInt = 1
    """Logical CPUs, and torch threads, of a run."""
    parallel: PositiveInt | None = None
    """Runs side by side; null means as many as the machine's (or cluster's) CPUs hold."""

    @model_validator(mode="after")
    def _names_are_new(self) -> "StudyConfig":
        labels = [m.label for m in self.models]
        labels += [f"{e.label} seed {e.seed}" for e in self.external]
        labels += sorted({e.label for e in self.external})
        doubles = sorted({name for name in labels if labels.count(name) > 1})
        kept = sorted({"name", "storage", "seed", "init_from"} & self.base.keys())
        if doubles:
            raise InputError("two models have one label", ", ".join(doubles), "each once", "rename")
        if len(set(self.seeds)) < len(self.seeds):
            raise InputError("a seed is given twice", str(self.seeds), "each once", "remove one")
        if kept:
            raise InputError(
                "base sets what the study sets",
                ", ".join(f"base.{key}" for key in kept),
                "data, model, embedding, optimizer, train, validation, …",
                "use the study's own name, storage and seeds",
            )
        for grid in [self.search, *(m.search for m in self.models if m.search is not None)]:
            if empty := [key for key, values in grid.items() if not values]:
                raise InputError(
                    "a key of the search has no values",
                    ", ".join(empty),
                    "one value or more",
                    "add some, or remove the key",
                )
            if self.pretrain is None and (lost := [k for k in grid if k.startswith(PRETRAIN)]):
                raise InputError(
                    "a key of the search is of a pretraining that the study has not",
                    ", ".join(lost),
                    "a `pretrain` section, or keys of the runs themselves",
                    "add `pretrain: {data: {train: LOG}}`, or remove the key",
                )
        return self

    @property
    def uses_gpu(self) -> bool:
        """Whether each run takes a GPU."""
        return bool(self.base.get("launch", {}).get("use_gpu", False))

    def points(self, model: StudyModel) -> list[dict[str, Any]]:
        """The grid of one model: dotted overrides of each point; one empty point without a grid."""
        grid = self.search if model.search is None else model.search
        combinations = itertools.product(*grid.values())
        return [dict(zip(grid, values, strict=True)) for values in combinations]
