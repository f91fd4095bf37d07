"""Which runs a study is made of. A run's name follows from its config, so it is found again."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from raymtl.config import TrainConfig, parse
from raymtl.models import registry
from raymtl.run import Run, located
from raymtl.storage import absolute
from raymtl.study.config import PRETRAIN, StudyConfig, StudyModel


@dataclass(frozen=True)
class PlannedRun:
    """One training: a model at a point of its grid, with a seed."""

    label: str
    point: tuple[tuple[str, Any], ...]
    """Dotted key and value."""
    config: TrainConfig
    before: "PlannedRun | None" = None
    """The pretraining that it starts from."""

    @property
    def seed(self) -> int:
        """Of initial values, order and dropout."""
        return self.config.seed

    def __str__(self) -> str:
        settings = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in self.point)
        return f"{self.label} ({settings})" if settings else self.label


def folder_of(study: StudyConfig) -> str:
    """URL of the study's folder."""
    return f"{absolute(study.storage).rstrip('/')}/{study.name}"


def searched(study: StudyConfig) -> list[PlannedRun]:
    """Every model at every point of its grid, with the first seed; checks each config.

    Raises:
        InputError: a config is refused, naming the model.
    """
    return [
        planned(study, model, point, study.seeds[0])
        for model in study.models
        for point in study.points(model)
    ]


def planned(
    study: StudyConfig, model: StudyModel, point: Mapping[str, Any], seed: int
) -> PlannedRun:
    """One run of a study, and the pretraining it starts from; configs checked and names found."""
    earlier = {key: value for key, value in point.items() if key.startswith(PRETRAIN)}
    own = {key: value for key, value in point.items() if key not in earlier}
    values = merged(study.base, model.values)
    for key, value in own.items():
        put(values, key, value)
    before = None
    if study.pretrain is not None:
        first = merged(merged(study.base, model.values), study.pretrain)
        for key, value in earlier.items():
            put(first, key.removeprefix(PRETRAIN), value)
        before = _named(study, f"{model.label}-pretrained", earlier, first, seed)
        values["init_from"] = Run.of(before.config).url
    return replace(_named(study, model.label, point, values, seed), before=before)


def _named(
    study: StudyConfig, label: str, point: Mapping[str, Any], values: dict[str, Any], seed: int
) -> PlannedRun:
    values["seed"] = seed
    source = f"model {label} of the study"
    config = parse(TrainConfig, values, source)
    own = registry.parse(config.model).model_dump(mode="json")
    values = config.model_dump(mode="json") | {"model": own}
    values["storage"] = f"{folder_of(study)}/runs"
    values["name"] = f"{label.replace('+', '_')}-{_digest(values)}-{seed}"
    return PlannedRun(label, tuple(point.items()), located(parse(TrainConfig, values, source)))


def merged(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` over `base`, key by key at every depth; `model` is taken whole."""
    result = json.loads(json.dumps(dict(base)))
    for key, value in values.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both and key != "model" else value
    return result


def put(values: dict[str, Any], key: str, value: Any) -> None:
    """Sets a dotted key in nested values."""
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
    values[last] = value


def _digest(values: Mapping[str, Any]) -> str:
    """Of all that decides the trained numbers, the seed excepted."""
    kept = {k: v for k, v in values.items() if k not in ("name", "seed", "launch", "failure")}
    text = json.dumps(kept, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
