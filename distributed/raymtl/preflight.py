"""Everything that is checked before any worker starts."""

import difflib
from dataclasses import dataclass, replace

import torch

from raymtl import compiling, warm_start
from raymtl.batch import Layout
from raymtl.config import TrainConfig, parse
from raymtl.data.files import find_files
from raymtl.data.log import LogIndex, changed_files, read_index
from raymtl.data.ranges import check_ranges, dated
from raymtl.differences import differences
from raymtl.errors import InputError
from raymtl.lineage import require_same, schema_at
from raymtl.models import registry
from raymtl.run import Run
from raymtl.schema import LogSchema
from raymtl.source import order_of, planned_steps

METRICS = {"binary": ("auc", "gauc", "log_loss"), "regression": ("rmse", "mae")}
RESUME_MAY_CHANGE = (
    "launch",
    "failure",
    "checkpoint",
    "metrics",
    "train.compile",
    "train.num_epochs",
    "train.max_steps",
    "train.max_rows",
    "train.max_time_s",
    "train.report_every_steps",
    "validation.patience",
)
"""Keys whose change leaves every batch and update of the run as it was; `train.compile` but for
rounding: `auto` may mean another thing with more epochs, or on a machine without a compiler."""


@dataclass(frozen=True)
class Job:
    """A checked run: what `launch` needs to start workers."""

    config: TrainConfig
    schema: LogSchema
    train: LogIndex
    valid: LogIndex | None
    news: tuple[str, ...] = ()
    """A line for each feature, task and table that has what `init_from` does not know."""


def check(config: TrainConfig) -> Job:
    """Reads schema and footers and refuses what cannot train.

    Returns:
        The job, its config with the model's defaults written out.

    Raises:
        InputError: naming key, file and column.
    """
    model = registry.parse(config.model)
    resolved = config.model_dump(mode="json") | {"model": model.model_dump(mode="json")}
    resolved["train"]["precision"] = resolved_precision(config)
    config = parse(TrainConfig, resolved, "the resolved config")
    for url in filter(None, [config.data.train, config.data.valid]):
        find_files(url)
    schema = read_schema(config)
    for url in filter(None, [config.data.train, config.data.valid]):
        require_same(schema, url, config.data.train)
    check_metric(config, schema)
    check_table_names(config, schema)
    registry.require_fit(config.model, schema, config.embedding.width)
    train = indexed(config.data.train, schema)
    valid = indexed(config.data.valid, schema) if config.data.valid else None
    steps = planned_steps(config, order_of(config, train).steps_per_epoch)
    chosen = config.train.model_copy(update={"compile": compiling.resolved(config, steps)})
    return Job(config.model_copy(update={"train": chosen}), schema, train, valid)


def resolved_precision(config: TrainConfig) -> str:
    """`bf16` or `fp32`; `auto` as this machine's processor, or with `use_gpu` as GPUs, like it."""
    if config.train.precision != "auto":
        return config.train.precision
    able = torch.cpu.get_capabilities()
    native = config.launch.use_gpu or able.get("avx512_bf16") or able.get("amx_bf16")
    return "bf16" if native else "fp32"


def check_run(config: TrainConfig, resume: bool) -> tuple[Job, Run]:
    """Checks a run that is to begin or, with `resume`, to go on; writes nothing.

    Raises:
        InputError: as `check`; a new run's name is taken; a resumed run was another one.
    """
    job = check(config)
    run = Run.of(job.config)
    if resume:
        check_resume(run, job.config, job.train)
        check_schema(run, job.schema)
    else:
        run.require_new()
        started, news = warm_start.chosen(job.config, job.schema)
        job = replace(job, config=started, news=tuple(news))
    return job, run


def read_schema(config: TrainConfig) -> LogSchema:
    """The schema at data.schema_path, or the one beside the training log."""
    url = config.data.schema_path or f"{config.data.train.rstrip('/')}/schema.yaml"
    return schema_at(url)


def indexed(url: str, schema: LogSchema, labels: bool = True) -> LogIndex:
    """A log's index, every file checked against the schema and its ranges.

    Args:
        labels: whether label and weight columns must be there.
    """
    index = read_index(url, schema, labels=labels)
    check_ranges(index, schema)
    return dated(index, schema) if labels else index


def check_metric(config: TrainConfig, schema: LogSchema) -> None:
    """Refuses a validation.metric that no evaluation will bring."""
    name = config.validation.metric
    known = list(dict.fromkeys(m for task in schema.tasks for m in METRICS[task.kind]))
    known += [f"{task.name}/{metric}" for task in schema.tasks for metric in METRICS[task.kind]]
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        raise InputError(
            "validation.metric is not a metric of these tasks",
            name,
            ", ".join(known),
            f"did you mean {near[0]}?" if near else "choose one of them",
        )
    if name.endswith("gauc") and schema.group is None:
        raise InputError(
            "validation.metric needs groups",
            f"{name}, and the schema has no group column",
            "a group column (the user)",
            "set group in schema.yaml, or use auc",
        )


def check_table_names(config: TrainConfig, schema: LogSchema) -> None:
    """Refuses a learning rate of a table that is not there."""
    for name in config.optimizer.rows.lr_by_table:
        if name not in schema.table_names:
            near = difflib.get_close_matches(name, schema.table_names, 1)
            raise InputError(
                "a learning rate is given for a table that is not there",
                f"optimizer.rows.lr_by_table.{name}",
                f"one of {', '.join(schema.table_names)}",
                f"did you mean {near[0]}?" if near else "mend the name",
            )


def check_resume(run: Run, config: TrainConfig, job_train: LogIndex) -> None:
    """Refuses to go on with a run whose config or log is another one than it began with."""
    old = _flat(run.read_config().model_dump(mode="json"))
    new = _flat(config.model_dump(mode="json"))
    for key in sorted(old.keys() | new.keys()):
        may = any(key == k or key.startswith(f"{k}.") for k in RESUME_MAY_CHANGE)
        if old.get(key) != new.get(key) and not may and key not in ("name", "storage"):
            raise InputError(
                "a resumed run cannot change this key",
                f"{key} = {new.get(key)!r}",
                f"{old.get(key)!r}, as the run began",
                "leave it out, or start a new run",
            )
    began = run.read_log()
    if changes := changed_files(began, job_train):
        raise InputError(
            "the log changed under this run",
            "; ".join(changes[:5]) + (f"; and {len(changes) - 5} more" if changes[5:] else ""),
            f"the log of {began.num_rows} rows the run began with",
            "restore the log, or start a new run on the new one",
        )


def check_schema(run: Run, schema: LogSchema) -> None:
    """Refuses to go on with a run whose schema, transforms included, is another one by now."""
    then, now = (s.model_dump(mode="json") for s in (run.read_schema(), schema))
    for place, before, after in differences("schema", then, now):
        raise InputError(
            "the schema changed under this run",
            f"{place} = {after}",
            f"{before}, as the run began ({run.url}/schema.yaml)",
            "restore the log's schema.yaml, or start a new run",
        )


def describe(job: Job) -> str:
    """One paragraph on what will be trained."""
    layout = Layout.of(job.schema)
    rows = f"{job.train.num_rows:,} rows"
    valid = f", {job.valid.num_rows:,} to validate" if job.valid else ", no validation log"
    start = job.config.init_from
    started = [f"starts from {start}", *job.news] if start else []
    return (
        f"{job.config.model.name} on {rows}{valid}; {len(layout.fields)} fields, "
        f"{len(layout.numeric_names)} numbers, tasks {', '.join(layout.task_names)}"
    ) + "".join(f"\n{line}" for line in started)


def _flat(values: dict, prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
