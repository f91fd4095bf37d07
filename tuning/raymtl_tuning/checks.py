"""What is refused before any trial: keys, values and conditions that the training would refuse."""

import difflib
from collections.abc import Mapping
from typing import Any

from raymtl.config import TrainConfig, parse
from raymtl.errors import InputError
from raymtl.models import registry
from raymtl.preflight import Job, check, check_metric, check_table_names
from raymtl.run import Run, located
from raymtl.schema import LogSchema
from raymtl.study.plan import merged, put
from raymtl_tuning import objective
from raymtl_tuning.config import TuneConfig
from raymtl_tuning.records import RUNS, StudyFolder
from raymtl_tuning.space import Point, Space, domain, grid_points, ordered, tried, wanted_values

OWNED = ("name", "storage", "seed", "launch", "init_from", "failure")
OWNED += ("data.train", "data.valid", "data.schema_path", "validation.metric")
"""Keys that are the study's: searching them would compare what is not alike, or nothing."""


def checked(config: TuneConfig) -> tuple[TuneConfig, list[Job]]:
    """Checks a study as a whole; writes nothing.

    Returns:
        The config with `objective.against` resolved, and the jobs of a trial at no point (its
        training last, after the pretraining if there is one).

    Raises:
        InputError: base, space or objective cannot be.
    """
    if not (config.base.get("data") or {}).get("train"):
        raise InputError(
            "the tuning study does not say what to train on",
            "no base.data.train",
            "path or URL of a training log with a schema.yaml beside it",
            "add it: raymtl tune CONFIG base.data.train=LOG base.data.valid=LOG2",
        )
    plain = runs_at(config, 0, {}, config.seed)
    jobs = [check(run) for run in plain]
    if jobs[-1].valid is None:
        raise InputError(
            "tuning needs a validation log",
            "base.data.valid is not given",
            "the log that trials are judged by; a test log is never read",
            "add it",
        )
    schema = jobs[-1].schema
    _check_keys(config.space)
    for key in ordered(config.space):
        for value in tried(key, config.space[key]):
            _check_value(config, key, value, schema)
    if config.search.method == "grid":
        grid_points(config.space)
    made = objective.resolved(config.objective, schema)
    return config.model_copy(update={"objective": made}), jobs


def runs_at(
    config: TuneConfig, number: int, point: Mapping[str, Any], seed: int
) -> list[TrainConfig]:
    """The trainings of a trial for one seed: the pretraining, if there is one, and its own.

    Raises:
        InputError: a config is refused, naming the key.
    """
    values = merged(config.base, {})
    for key, value in point.items():
        put(values, key, value)
    values |= {"storage": f"{StudyFolder.of(config).url}/{RUNS}", "seed": seed}
    values.setdefault("launch", {}).setdefault("num_workers", 1)
    name = f"{number:04d}-{seed}"
    if config.pretrain is None:
        return [_run(values | {"name": name})]
    before = _run(merged(values, config.pretrain) | {"name": f"{name}-pretrained"})
    return [before, _run(values | {"name": name, "init_from": Run.of(before).url})]


def _run(values: dict[str, Any]) -> TrainConfig:
    run = parse(TrainConfig, values, "base of the tuning study")
    registry.parse(run.model)
    return located(run)


def _check_keys(space: Space) -> None:
    for key in space:
        if owned := next((o for o in OWNED if key == o or key.startswith(f"{o}.")), None):
            raise InputError(
                "a key is searched that must be alike in all trials",
                f"space.{key}",
                f"keys of model, embedding, optimizer, train, …, not {owned}",
                "remove it, or set it in base",
            )
        if above := next((other for other in space if key.startswith(f"{other}.")), None):
            raise InputError(
                "a searched key lies within another one",
                f"space.{key} and space.{above}",
                "keys of which none is part of another",
                "search one of them",
            )
        for parent, value in space[key].when.items():
            _check_condition(space, key, parent, wanted_values(value))


def _check_condition(space: Space, key: str, parent: str, wanted: list[Any]) -> None:
    """Refuses a condition that never holds."""
    if parent not in space:
        ordered(space)  # says so
    kind, arguments = space[parent].kind, space[parent].arguments
    domain(parent, space[parent])
    if kind == "choice":
        possible = [v for v in wanted if v in arguments[0]]
    else:
        possible = [v for v in wanted if isinstance(v, int | float) and _within(v, kind, arguments)]
    if len(possible) < len(wanted) or not wanted:
        lost = [v for v in wanted if v not in possible]
        raise InputError(
            "a condition names a value that its key never has",
            f"space.{key}.when.{parent} = {lost}",
            f"values of {kind}: {list(arguments)}",
            "mend the condition",
        )


def _within(value: float, kind: str, arguments: tuple[Any, ...]) -> bool:
    low, high, *step = arguments
    return low <= value < high if kind.endswith("randint") and not step else low <= value <= high


def _check_value(config: TuneConfig, key: str, value: Any, schema: LogSchema) -> None:
    """Refuses a value of a key that a trial could not be trained with.

    Other keys are as in `base`, but for those that its conditions name.
    """
    point = {**_conditions(config.space, key), key: value}
    try:
        for run in runs_at(config, 0, point, config.seed):
            registry.require_fit(run.model, schema, run.embedding.width)
            check_metric(run, schema)
            check_table_names(run, schema)
    except InputError as error:
        if error.what.startswith("unknown key"):
            raise InputError(
                f"the space has a key that no training config has: {key}",
                f"space.{key}; {error.what}",
                _known(config, key),
                error.do,
            ) from None
        raise InputError(
            f"the config refuses a value of the space: {key} = {value!r}",
            f"{error.what}; {error.got}",
            error.wanted,
            f"mend space.{key}, or search it under a condition (`when`)",
        ) from None


def _conditions(space: Space, key: str) -> Point:
    """The first values at which a key is searched, of the keys before it."""
    found: Point = {}
    for parent, value in space[key].when.items():
        found |= _conditions(space, parent)
        found[parent] = wanted_values(value)[0]
    return found


def _known(config: TuneConfig, key: str) -> str:
    """The keys there are beside an unknown one."""
    run = runs_at(config, 0, {}, config.seed)[-1]
    values: Any = run.model_dump(mode="json")
    values["model"] = registry.parse(run.model).model_dump(mode="json")
    above = ""
    for part in key.split("."):
        if not isinstance(values, dict) or part not in values:
            break
        values, above = values[part], f"{above}{part}."
    names = list(values) if isinstance(values, dict) else []
    near = difflib.get_close_matches(key.rpartition(".")[2], names, 12, 0.0)
    return f"one of {', '.join(above + name for name in near)}" if near else "a key it has"
