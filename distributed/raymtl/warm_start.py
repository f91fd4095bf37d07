"""Starting a new run from another one's checkpoint (`init_from`)."""

from collections.abc import Iterator
from typing import Any

from raymtl.checkpoint import Checkpoint
from raymtl.config import TrainConfig
from raymtl.errors import InputError
from raymtl.learner import Learner
from raymtl.models import registry
from raymtl.run import choose
from raymtl.saving import load_learner, read_config
from raymtl.schema import LogSchema
from raymtl.storage import Folder

MUST_BE_EQUAL = ("model", "embedding.width", "embedding.num_buckets", "optimizer.rows.name")
"""Keys of a config that say which weights and row states there are, and where."""


def chosen(config: TrainConfig, schema: LogSchema) -> TrainConfig:
    """The config with `init_from` made the checkpoint that is taken, after it was checked.

    Raises:
        InputError: there is no such checkpoint, or its weights are not this run's, naming the key.
        DamagedCheckpoint: naming the file.
    """
    if config.init_from is None:
        return config
    found = choose(config.init_from)
    old_config, old_schema = read_config(found)
    for what, then, now in _differences(old_config, old_schema, config, schema):
        raise InputError(
            "a run cannot start from this checkpoint",
            f"{what} = {now}",
            f"{then}, as in {found.folder.url}",
            "make them equal, or start without init_from",
        )
    return config.model_copy(update={"init_from": found.folder.url})


def start(learner: Learner) -> None:
    """Collective. Takes weights and row-optimizer state from `init_from`, where one is given.

    Raises:
        DamagedCheckpoint: on all ranks alike.
    """
    if learner.config.init_from is None:
        return
    found = Checkpoint(Folder(learner.config.init_from))
    found.verify_together(learner.device)
    load_learner(found, learner, optimizer=False)
    learner.take_row_steps(found.tensors("dense.safetensors"))


def _differences(
    old_config: TrainConfig, old_schema: LogSchema, config: TrainConfig, schema: LogSchema
) -> Iterator[tuple[str, Any, Any]]:
    """What keeps weights from being taken: its name, then and now."""
    old_model, model = (
        registry.parse(c.model).model_dump(mode="json") for c in (old_config, config)
    )
    for key in MUST_BE_EQUAL:
        then, now = old_model, model
        if key != "model":
            then, now = (_at(c.model_dump(mode="json"), key) for c in (old_config, config))
        yield from _unequal(key, then, now)
    parts = (_weights_of(s) for s in (old_schema, schema))
    yield from _unequal("schema", *parts)


def _weights_of(schema: LogSchema) -> dict[str, Any]:
    """The part of a schema that decides what a weight means."""
    tasks = {t.name: {"kind": t.kind, "given": t.given} for t in schema.tasks}
    return {
        "transforms": schema.transforms,
        "features": {f.name: f.model_dump(mode="json") for f in schema.features},
        "order of features": [f.name for f in schema.features],
        "tables": {n: schema.table(n).model_dump(mode="json") for n in schema.table_names},
        "tasks": tasks,
        "order of tasks": list(tasks),
    }


def _unequal(name: str, then: Any, now: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(then, dict) and isinstance(now, dict):
        for key in [*then, *(k for k in now if k not in then)]:
            yield from _unequal(f"{name}.{key}", then.get(key, "none"), now.get(key, "none"))
    elif then != now:
        yield name, then, now


def _at(values: dict[str, Any], key: str) -> Any:
    for part in key.split("."):
        values = values[part]
    return values
