"""Starting a new run from another one's checkpoint (`init_from`)."""

from collections.abc import Iterator, Mapping
from operator import attrgetter
from typing import Any

from raymtl.checkpoint import Checkpoint
from raymtl.config import TrainConfig
from raymtl.data.frozen import named_difference
from raymtl.differences import differences
from raymtl.errors import InputError
from raymtl.growth import Growth
from raymtl.learner import Learner
from raymtl.models import registry
from raymtl.run import choose
from raymtl.saving import load_learner, read_config
from raymtl.schema import LogSchema
from raymtl.storage import Folder

MUST_BE_EQUAL = ("embedding.width", "embedding.num_buckets", "optimizer.rows.name")
"""Keys of a config, beside the model's own, that say which weights and row states there are."""
FREE = {"training_only", "serving_value", "default"}
"""Keys of a feature that no weight depends on."""


def chosen(config: TrainConfig, schema: LogSchema) -> tuple[TrainConfig, list[str]]:
    """The config with `init_from` made the checkpoint that is taken, after it was checked.

    Returns:
        The config, and a line for each feature, task and table with something that is new.

    Raises:
        InputError: there is no such checkpoint, or its weights are not this run's, naming the key.
        DamagedCheckpoint: naming the file.
    """
    if config.init_from is None:
        return config, []
    found = choose(config.init_from)
    old_config, old_schema = read_config(found)
    growth = growth_of(config, old_schema, schema)
    for what, then, now in _differences(old_config, config, growth):
        where = named_difference(found.folder.url, config.data.train)
        raise InputError(
            "a run cannot start from this checkpoint",
            f"{what} = {now}" + (f"   ({where})" if where and "transforms" in what else ""),
            f"{then}, as in {found.folder.url}",
            "make them equal, or start without init_from",
        )
    growth.check()
    return config.model_copy(update={"init_from": found.folder.url}), growth.lines()


def growth_of(config: TrainConfig, old: LogSchema, new: LogSchema) -> Growth:
    """What a run has that the checkpoint it starts from has not."""
    rows = {name: 0 for name in new.table_names if name not in old.table_names}
    if old.transforms in new.extends:
        shared = [name for name in old.table_names if name in new.table_names]
        sizes = {name: (old.table(name).num_rows, new.table(name).num_rows) for name in shared}
        rows = {n: then for n, (then, now) in sizes.items() if then < now} | rows
    return Growth(config.model, config.embedding.width, old, new, rows)


def start(learner: Learner) -> Mapping[str, int]:
    """Collective. Takes weights and row-optimizer state from `init_from`, where one is given.

    Returns:
        Table -> rows the checkpoint knows, of those that grew since; 0: the table is new.

    Raises:
        DamagedCheckpoint: on all ranks alike.
    """
    if learner.config.init_from is None:
        return {}
    found = Checkpoint(Folder(learner.config.init_from))
    found.verify_together(learner.device)
    _, old_schema = read_config(found)
    growth = growth_of(learner.config, old_schema, learner.schema)
    load_learner(found, learner, optimizer=False, growth=growth)
    learner.take_row_steps(found.tensors("dense.safetensors"))
    return growth.rows


def _differences(
    old_config: TrainConfig, config: TrainConfig, growth: Growth
) -> Iterator[tuple[str, Any, Any]]:
    """What keeps weights from being taken: its name, then and now."""
    then, now = (registry.parse(c.model).model_dump(mode="json") for c in (old_config, config))
    yield from differences("model", then, now)
    for key in MUST_BE_EQUAL:
        yield from differences(key, *map(attrgetter(key), (old_config, config)))
    old, new = growth.old, growth.new
    then, now = _weights_of(old), _weights_of(new)
    for name, rows in growth.rows.items():
        if rows:
            now["tables"][name]["rows"] = rows
        else:
            del now["tables"][name]
    for part in ("features", "tasks"):
        known = {p["name"] for p in then[part]}
        now[part] = [p for p in now[part] if p["name"] in known]
    if old.transforms in new.extends:
        now["transforms"] = then["transforms"]
    yield from differences("schema", then, now)
    names = [t.name for t in new.tasks]
    if names[: len(old.tasks)] != [t.name for t in old.tasks]:
        yield "order of schema.tasks", "the old ones first", names


def _weights_of(schema: LogSchema) -> dict[str, Any]:
    """The part of a schema that decides what a weight means."""
    return {
        "transforms": schema.transforms,
        "features": [f.model_dump(mode="json", exclude=FREE) for f in schema.features],
        "tables": {n: schema.table(n).model_dump(mode="json") for n in schema.table_names},
        "tasks": [{"name": t.name, "kind": t.kind, "given": t.given} for t in schema.tasks],
    }
