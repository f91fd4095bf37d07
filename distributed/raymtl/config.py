"""TrainConfig and its parts: frozen, unknown keys refused, YAML plus dotted overrides."""

from typing import Literal

from pydantic import (
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from raymtl.errors import InputError
from raymtl.sections import Section, dump, load, override, parse, parse_yaml, read_yaml

__all__ = [
    "Section",
    "TrainConfig",
    "dump",
    "load",
    "override",
    "parse",
    "parse_yaml",
    "read_yaml",
]


class DataSection(Section):
    train: str
    """URL of the training log: a parquet file or a folder of them, on any filesystem."""
    valid: str | None = None
    """URL of the validation log; null trains without validation."""
    schema_path: str | None = None
    """URL of schema.yaml; null means the one that lies beside the training log."""
    num_lanes: int = Field(default=32, ge=1, le=1024)
    """Lanes the log is dealt to, fixed for a run; the most workers a run can ever use."""
    chunk_rows: PositiveInt = 16_384
    """Most rows of one reading task; larger row groups are cut. Bounds the memory of a lane."""
    order: Literal["shuffled", "chronological"] = "shuffled"
    """`shuffled` deals chunks anew each epoch; `chronological` keeps the log's own order."""
    prefetch_chunks: NonNegativeInt = 4
    """Chunks a rank holds decoded ahead of its open lanes."""
    on_unreadable: Literal["fail", "skip"] = "fail"
    """What a damaged row group of the training log does: `fail` ends the run naming it, `skip`
    trains without its rows, names the file in a warning and counts them (`skipped_rows`)."""


class ModelSection(Section):
    """The model's name; its other keys are checked by that model's own config class."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str = "stem"


class EmbeddingSection(Section):
    width: PositiveInt = 16
    """D, floats of one view of one row; 16 is what the STEM authors train with."""
    init_std: NonNegativeFloat = 1e-4
    """Standard deviation of a new row's values; 1e-4 as in the official STEM code."""
    num_buckets: PositiveInt = 1024
    """P, fixed buckets that rows are dealt to (row mod P); at least the number of workers."""
    replicate_rows: NonNegativeInt = 4096
    """Tables of at most this many rows are kept whole on every rank; 0 shards all of them."""
    wire_precision: Literal["fp32", "bf16"] = "fp32"
    """What rows and their gradients travel as between ranks; `bf16` halves the bytes and rounds
    both, where they travel. They are stored and summed in fp32 all the same."""


class ScheduleSection(Section):
    name: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rates move after warm-up: not at all, or down to `final` of themselves."""
    warmup_steps: NonNegativeInt = 0
    """Steps over which the rates rise linearly from 0."""
    decay_steps: PositiveInt | None = None
    """Steps after which `linear` and `cosine` reach `final`; null means the whole run."""
    final: NonNegativeFloat = 0.0
    """Share of the rates left after `decay_steps`."""


class DenseOptimizerSection(Section):
    name: Literal["adam", "adamw", "sgd"] = "adam"
    lr: PositiveFloat = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0
    """torch's weight_decay of the named optimizer."""


class RowOptimizerSection(Section):
    name: Literal["rowwise_adagrad", "lazy_adam", "dense_adam"] = "rowwise_adagrad"
    """`dense_adam` moves every row every step as the official STEM code does; the others touch
    only the rows of the batch. They are not the same training: see docs/models.md."""
    lr: PositiveFloat = 0.02
    lr_by_table: dict[str, NonNegativeFloat] = {}
    """Table -> its own learning rate instead of `lr`; 0 leaves a table's rows as they are."""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    initial_accumulator: NonNegativeFloat = 0.0
    """Row-wise Adagrad's starting sum of squares."""
    l2: NonNegativeFloat = 0.0
    """lambda of lambda/2 * ||row||^2, once per touched row per step; all rows with dense_adam."""


class OptimizerSection(Section):
    dense: DenseOptimizerSection = DenseOptimizerSection()
    rows: RowOptimizerSection = RowOptimizerSection()
    schedule: ScheduleSection = ScheduleSection()
    clip_norm: PositiveFloat | None = 10.0
    """Largest global gradient norm over dense parameters and touched rows; null does not clip."""


class BalancingSection(Section):
    name: Literal["fixed", "uncertainty", "dwa", "pcgrad"] = "fixed"
    """How tasks are weighed beside their loss weights: not at all; by learnt uncertainty; by how
    fast each loss falls (Dynamic Weight Average); by projecting conflicting gradients, which costs
    one backward pass a task."""
    window_steps: PositiveInt = 100
    """`dwa`: steps of a window; losses of the last two are compared. The paper's windows are
    epochs, which a log that is read once has not."""
    temperature: PositiveFloat = 2.0
    """`dwa`: higher weighs tasks more evenly; 2 as in the paper."""


class TrainSection(Section):
    global_batch_size: PositiveInt = 4096
    """Impressions per step over all ranks; a multiple of data.num_lanes. 4096 is what the STEM
    authors train with."""
    num_epochs: PositiveInt = 1
    max_steps: PositiveInt | None = None
    max_rows: PositiveInt | None = None
    max_time_s: PositiveFloat | None = None
    """Wall time of training after which the run ends cleanly with a checkpoint."""
    loss_denominator: Literal["batch", "observed"] = "batch"
    """A task's loss is its observed rows' sum over the weight of the whole global batch, or over
    the weight of the task's observed rows."""
    precision: Literal["auto", "bf16", "fp32"] = "fp32"
    """`bf16` runs the model's matrix products in bfloat16 by autocast; weights, table rows, losses,
    optimizers and all scoring stay fp32. `auto` takes it where the processor multiplies it
    natively: resolved where the run is begun, and stored."""
    compile: Literal["auto"] | bool = "auto"
    """Whether the model's training forward and backward go through torch.compile. `auto` does so on
    CPUs with a C++ compiler, for models that were measured to gain, in runs of 10,000 steps or
    more: resolved where the run is begun, and stored."""
    report_every_steps: PositiveInt = 50
    """Steps between two lines of metrics.jsonl."""


class ValidationSection(Section):
    every_steps: PositiveInt | None = None
    """Steps between validations; null validates at the end of each epoch."""
    max_rows: PositiveInt | None = None
    """Rows of the validation log that are read, whole lanes' heads alike; null reads all."""
    metric: str = "auc"
    """`auc`, `gauc` or `log_loss` as mean over tasks, or of one task as `click/auc`; of regressions
    `rmse` or `mae`."""
    patience: PositiveInt | None = None
    """Validations without gain after which the run stops; null never stops early."""
    before_training: bool = False
    """Score the training log before the first step (progressive validation): `before/…` in
    metrics.jsonl, `state.before_metrics` in result.json. Meant for `init_from`, day after day;
    values that the checkpoint does not know are scored as it would, out of vocabulary."""
    min_delta: NonNegativeFloat = 1e-6
    """Smallest change that counts as a gain; 1e-6 as in the official STEM code."""

    @property
    def higher_is_better(self) -> bool:
        """Direction of the metric."""
        return self.metric.rsplit("/", 1)[-1] in ("auc", "gauc")


class MetricsSection(Section):
    exact_rows: PositiveInt = 5_000_000
    """Up to this many rows AUC is exact; above, from histograms, with the error bound printed."""
    num_bins: PositiveInt = 4096
    """Histogram bins of a score in [0, 1]."""


class CheckpointSection(Section):
    every_steps: PositiveInt | None = None
    """Steps between checkpoints; null saves at each validation and at the end of each epoch."""
    keep_last: PositiveInt = 2
    keep_best: NonNegativeInt = 1
    """Checkpoints with the best validation metric kept besides the last ones."""


class WorkerRange(Section):
    min: PositiveInt
    max: PositiveInt

    @model_validator(mode="after")
    def _in_order(self) -> "WorkerRange":
        if self.min > self.max:
            raise InputError(
                "the fewest workers are more than the most",
                f"launch.num_workers = {{min: {self.min}, max: {self.max}}}",
                "min at most max",
                "swap them, or give one number",
            )
        return self


class LaunchSection(Section):
    num_workers: PositiveInt | WorkerRange = 2
    """W, Ray Train workers; at most data.num_lanes. `{min: 2, max: 4}` takes as many of these as
    the cluster has CPUs for, more when nodes join, fewer when they leave."""
    resize_check_s: PositiveFloat = 60.0
    """With a range: seconds between looks whether the cluster has room for more workers. To grow,
    training starts anew from its last checkpoint, so not too often."""
    cpus_per_worker: PositiveFloat = 1.0
    threads_per_worker: PositiveInt | None = None
    """torch threads of a worker; null divides its node's cores by the workers on that node."""
    use_gpu: bool = False
    address: str | None = None
    """Ray cluster to join; null starts a local one unless RAY_ADDRESS is set."""
    object_store_bytes: PositiveInt | None = None
    """Object store of a local Ray; null leaves Ray's default."""

    @property
    def fewest_workers(self) -> int:
        """The least that training starts with."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers.min

    @property
    def most_workers(self) -> int:
        """The most that training can have."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers.max


class FailureSection(Section):
    max_failures: int = Field(default=3, ge=-1)
    """Restarts of the worker group after a failure; -1 retries for ever."""
    hang_timeout_s: PositiveFloat = 300.0
    """A rank that does not answer for this long is a failure: the process group's timeout, Ray's
    worker health check, and the longest that a batch may take to come."""


class TrainConfig(Section):
    """One training run, whole."""

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """The run folder's name below `storage`."""
    storage: str = "runs"
    """Folder or URL that holds run folders."""
    seed: NonNegativeInt = 2023
    """Seed of initial values, order and dropout."""
    init_from: str | None = None
    """Run (its best checkpoint) or checkpoint that a new run takes its weights and row-optimizer
    state from; all else starts anew. Null draws initial values."""
    data: DataSection
    model: ModelSection = ModelSection()
    embedding: EmbeddingSection = EmbeddingSection()
    optimizer: OptimizerSection = OptimizerSection()
    train: TrainSection = TrainSection()
    balancing: BalancingSection = BalancingSection()
    validation: ValidationSection = ValidationSection()
    metrics: MetricsSection = MetricsSection()
    checkpoint: CheckpointSection = CheckpointSection()
    launch: LaunchSection = LaunchSection()
    failure: FailureSection = FailureSection()

    @model_validator(mode="after")
    def _lanes_and_workers_fit(self) -> "TrainConfig":
        lanes, batch = self.data.num_lanes, self.train.global_batch_size
        if batch % lanes:
            raise InputError(
                "the global batch does not divide over the lanes",
                f"train.global_batch_size = {batch}, data.num_lanes = {lanes}",
                "a multiple of data.num_lanes",
                f"set train.global_batch_size to {max(lanes, batch // lanes * lanes)}",
            )
        workers = self.launch.most_workers
        if workers > lanes:
            raise InputError(
                "more workers than lanes: some would have nothing to read",
                f"launch.num_workers = {workers}, data.num_lanes = {lanes}",
                "launch.num_workers at most data.num_lanes",
                f"set launch.num_workers to {lanes} or fewer, or raise data.num_lanes",
            )
        if workers > self.embedding.num_buckets:
            raise InputError(
                "more workers than buckets of table rows",
                f"launch.num_workers = {workers}, num_buckets = {self.embedding.num_buckets}",
                "embedding.num_buckets of at least launch.num_workers",
                "raise embedding.num_buckets",
            )
        return self
