"""TuneConfig: what is searched, how, judged by what, and how much of it."""

from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from raymtl.config import Section
from raymtl.errors import InputError

KINDS = ("choice", "uniform", "quniform", "loguniform", "qloguniform")
KINDS += ("randint", "qrandint", "lograndint", "qlograndint")
"""Ray Tune's distributions, by its names."""
Scalar = bool | int | float | str


class Distribution(Section):
    """One of Ray Tune's distributions: its bounds, and after them the step of a quantised one."""

    choice: list[Any] | None = None
    """Values of any kind, each as likely."""
    uniform: tuple[float, float] | None = None
    quniform: tuple[float, float, float] | None = None
    loguniform: tuple[float, float] | None = None
    qloguniform: tuple[float, float, float] | None = None
    randint: tuple[int, int] | None = None
    """Integers from the first to the one before the second, as Ray Tune has it."""
    qrandint: tuple[int, int, int] | None = None
    """Multiples of the third, the second included."""
    lograndint: tuple[int, int] | None = None
    qlograndint: tuple[int, int, int] | None = None
    when: dict[str, Scalar | list[Scalar]] = {}
    """Other searched keys and the values at which this one is searched; else it stays as in
    `base`. All of them must hold."""

    @model_validator(mode="after")
    def _is_one(self) -> "Distribution":
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise InputError(
                "a searched key has not one distribution",
                ", ".join(given) or "none",
                f"one of {', '.join(KINDS)}",
                "write it like {choice: [1, 2, 4]} or {loguniform: [0.001, 0.1]}",
            )
        return self

    @property
    def kind(self) -> str:
        """Its name in Ray Tune."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def arguments(self) -> tuple[Any, ...]:
        """What the distribution takes there."""
        given = getattr(self, self.kind)
        return (given,) if self.kind == "choice" else given


class SearchSection(Section):
    method: Literal["random", "grid", "tpe", "nsga2"] = "tpe"
    """`random` and `grid` always give the same points. Optuna's `tpe` (one or two objectives) and
    `nsga2` (two) learn from finished trials, and repeat themselves at `parallel: 1`; after a kill
    `tpe` goes on as it would have, `nsga2` from the generations it had."""
    startup: PositiveInt = 10
    """Points before `tpe` learns, those of `random`; and the population of `nsga2`."""


class SchedulerSection(Section):
    name: Literal["none", "asha", "median"] = "none"
    """`asha` goes on with the best 1/reduction at each rung; `median` stops a trial that is below
    the median of the others' means."""
    by: Literal["steps", "rows"] = "rows"
    """What rungs and grace are counted in: a trial's trained steps or rows."""
    grace: PositiveInt | None = None
    """No trial is stopped before; the first rung of `asha`."""
    reduction: int = Field(default=3, ge=2)
    """Of `asha`: each rung lies so many times further than the one before."""


class ObjectiveSection(Section):
    name: Literal["mean", "weighted", "worst", "gain"] = "mean"
    """Over tasks: their mean, the mean with `weights`, the worst task, or the mean gain over what
    `against` says that a single-task model reaches."""
    metric: Literal["auc", "gauc", "log_loss", "rmse", "mae"] = "auc"
    """Of the validation log."""
    weights: dict[str, float] = {}
    """Task -> weight, of `weighted`; a task that is not named counts nothing."""
    against: dict[str, float] | list[str] | str | None = None
    """Of `gain`: task -> value, or the folder of a single-task run, or those of its seeds."""
    cost: Literal["parameters", "rows_per_s"] | None = None
    """A second objective: as few parameters, or as many trained rows a second, as can be."""

    @property
    def maximised(self) -> bool:
        """Whether more is better; a gain is turned so that it is."""
        return self.name == "gain" or self.metric in ("auc", "gauc")

    @property
    def cost_maximised(self) -> bool:
        """Whether more of the cost is better."""
        return self.cost == "rows_per_s"


class BudgetSection(Section):
    """Ends the study early; what is not begun then stays so, and a resume with more goes on."""

    time_s: PositiveFloat | None = None
    """Wall time of all parts of the study together."""
    rows: PositiveInt | None = None
    """Rows trained by all trials together."""


class TuneConfig(Section):
    """One tuning study."""

    name: str = Field(default="tuning", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """The study folder's name below `storage`."""
    storage: str = "tunings"
    """Folder or URL that holds study folders."""
    base: dict[str, Any]
    """Values of a training config that all trials share. Name, storage and seed are the study's."""
    pretrain: dict[str, Any] | None = None
    """Values over a trial's own, for a training that it starts from (`init_from`), as in
    `raymtl study`; its rows count for no scheduler."""
    space: dict[str, Distribution] = Field(min_length=1)
    """Dotted key of a training config -> where it is searched."""
    search: SearchSection = SearchSection()
    scheduler: SchedulerSection = SchedulerSection()
    objective: ObjectiveSection = ObjectiveSection()
    trials: PositiveInt = 20
    """Points to try; a grid has its own number, and this is not read."""
    seeds_per_trial: PositiveInt = 1
    """Trainings of each point. The objective is their mean; the first alone is watched by the
    scheduler."""
    budget: BudgetSection = BudgetSection()
    parallel: PositiveInt | None = None
    """Trials side by side; null means as many as the machine's (or cluster's) CPUs hold."""
    cpus_per_trial: PositiveInt = 1
    """Logical CPUs and torch threads of a trial that trains in its own process."""
    memory_per_trial_bytes: PositiveInt | None = None
    """Memory that a trial may take beyond what its process has at the start; past it the trial
    fails. Null leaves it to the machine. On Linux."""
    share_log: bool = True
    """Decodes the log once and holds it in Ray's object store; else each trial reads the files."""
    keep_checkpoints: Literal["best", "all"] = "best"
    """`best` removes those of the trials that are not the best (or on the front) any more."""
    seed: NonNegativeInt = 2023
    """Of the search; trials train with it and the numbers after it."""

    @model_validator(mode="after")
    def _fits_together(self) -> "TuneConfig":
        owned = [key for key in ("name", "storage", "seed") if key in self.base]
        if owned:
            raise InputError(
                "base sets what the study sets",
                ", ".join(owned),
                "data, model, embedding, optimizer, train, validation, …",
                "use the study's own name, storage and seed",
            )
        _check_objectives(self)
        _check_scheduler(self)
        return self

    @property
    def seeds(self) -> list[int]:
        """Seeds of each point's trainings."""
        return list(range(self.seed, self.seed + self.seeds_per_trial))

    @property
    def uses_gpu(self) -> bool:
        """Whether each trial takes a GPU."""
        return bool(self.base.get("launch", {}).get("use_gpu", False))

    @property
    def num_workers(self) -> int:
        """Ray Train workers of a trial; 1 trains in the trial's own process."""
        found = self.base.get("launch", {}).get("num_workers", 1)
        if isinstance(found, dict):
            raise InputError(
                "a trial has a fixed number of workers",
                f"base.launch.num_workers = {found}",
                "one number, so that trials take as much room as was counted for them",
                "give a number",
            )
        return int(found)


def _check_objectives(config: TuneConfig) -> None:
    objective = config.objective
    if (config.search.method == "nsga2") and objective.cost is None:
        raise InputError(
            "nsga2 needs two objectives",
            "search.method = nsga2, objective.cost = null",
            "objective.cost",
            "set it to parameters or rows_per_s, or take search.method tpe",
        )
    if (objective.name == "weighted") != bool(objective.weights):
        raise InputError(
            "weights belong to the weighted objective",
            f"objective.name = {objective.name}, objective.weights = {objective.weights}",
            "both or none",
            "set objective.name=weighted and objective.weights={TASK: 1.0, …}",
        )
    if objective.weights and (
        min(objective.weights.values()) < 0 or not any(objective.weights.values())
    ):
        raise InputError(
            "weights cannot be used",
            f"objective.weights = {objective.weights}",
            "weights of at least 0, one of them above",
            "mend them, or leave tasks out",
        )
    if (objective.name == "gain") != bool(objective.against):
        raise InputError(
            "a gain is against single-task results",
            f"objective.name = {objective.name}, objective.against = {objective.against}",
            "both or none",
            "set objective.against to a run's folder, or to {TASK: value}",
        )


def _check_scheduler(config: TuneConfig) -> None:
    scheduler = config.scheduler
    if scheduler.name == "none":
        return
    if scheduler.grace is None:
        raise InputError(
            f"{scheduler.name} needs to know where it may stop a trial first",
            "scheduler.grace = null",
            f"a number of {scheduler.by}",
            "set scheduler.grace to a tenth of a whole trial, say",
        )
    if config.objective.cost is not None:
        raise InputError(
            "a scheduler does not go with two objectives",
            f"scheduler.name = {scheduler.name}, objective.cost = {config.objective.cost}",
            "one of them: a trial that is stopped has no cost",
            "set scheduler.name=none, or objective.cost=null",
        )
    validation = config.base.get("validation") or {}
    if (
        not validation.get("every_steps")
        and (config.base.get("train") or {}).get("num_epochs", 1) == 1
    ):
        raise InputError(
            f"{scheduler.name} would see a trial at its end alone",
            "base.validation.every_steps is not given, and there is one epoch",
            "validations while a trial trains",
            "set base.validation.every_steps",
        )
