"""What a run saves and takes up again: learner, training state and metric histograms."""

import json
from collections.abc import Callable

import torch
from torch import Tensor

from raymtl import checkpoint as checkpoints
from raymtl import collectives
from raymtl.checkpoint import Checkpoint, CheckpointWriter, Snapshot
from raymtl.config import TrainConfig, dump, parse, parse_yaml
from raymtl.data.carried import CARRIED
from raymtl.errors import InputError
from raymtl.growth import Growth
from raymtl.learner import Learner
from raymtl.manifest import peek
from raymtl.metrics import TrainingHistograms
from raymtl.run import Run
from raymtl.schema import LogSchema
from raymtl.shards import damaged
from raymtl.storage import Folder

DECIDES_NOTHING = {"name", "storage", "launch", "failure"}
"""Sections of a config that leave the trained numbers alone; not part of a checkpoint."""


class Saver:
    """Saves one rank's part of a run; every rank calls it alike."""

    def __init__(self, run: Run, learner: Learner, log_digest: str):
        config = learner.config
        self.run, self.learner, self.log_digest = run, learner, log_digest
        self._writer = CheckpointWriter(run.checkpoints, config.embedding.num_buckets)
        self._texts = {
            "config.yaml": dump_for_checkpoint(config).encode(),
            "schema.yaml": dump(learner.schema).encode(),
        }
        transforms = run.folder / CARRIED
        self._copies = {n: transforms for n in transforms.names() if not n.startswith(".")}
        self._saved: dict[str, float | None] = {}
        self.last_complete: str | None = None

    @property
    def busy(self) -> bool:
        """Whether a save is under way."""
        return self._writer.busy

    @property
    def written(self) -> bool:
        """Whether this rank's files of the save under way are written."""
        return self._writer.written

    def start(
        self, step: int, state: dict, window: TrainingHistograms, metric: float | None
    ) -> None:
        """Collective. Copies what is to be saved; a thread writes it while training goes on."""
        histograms = {k: collectives.sum_(t.clone()) for k, t in window.state().items()}
        tables = _copied(self.learner.tables.state())
        rank, world = collectives.rank(), collectives.world_size()
        mine = f"tables-{rank:05d}-of-{world:05d}.safetensors"
        replicated = self.learner.tables.replicated_tables
        tensors = {mine: {k: t for k, t in tables.items() if _table(k) not in replicated}}
        buckets = {mine: self.learner.tables.bucket_range}
        texts: dict[str, bytes] = {}
        copies: dict[str, Folder] = {}
        if rank == 0:
            copies = self._copies
            num_buckets = self.learner.config.embedding.num_buckets
            tensors["replicated.safetensors"] = {
                k: t for k, t in tables.items() if _table(k) in replicated
            }
            buckets["replicated.safetensors"] = (0, num_buckets)
            tensors["dense.safetensors"] = _copied(self.learner.dense_state())
            tensors["metrics.safetensors"] = {k: t.cpu() for k, t in histograms.items()}
            trainer = {"state": state, "log_digest": self.log_digest}
            texts = self._texts | {
                "trainer.json": json.dumps(trainer, indent=1, sort_keys=True).encode()
            }
        self._writer.start(Snapshot(step, tensors, buckets, texts, copies, metric))

    def complete(self, before: Callable[[], None]) -> int:
        """Collective. Waits for the save under way, records it, and removes what is not kept.

        Args:
            before: what rank 0 writes elsewhere before the checkpoint counts as whole.
        """
        snapshot_metric = self._writer.metric
        step = self._writer.complete(self.learner.device, before)
        name = checkpoints.folder_name(step)
        self._saved[name] = snapshot_metric
        self.last_complete = f"{self.run.checkpoints.url}/{name}"
        section = self.learner.config.checkpoint
        higher = self.learner.config.validation.higher_is_better
        for old in checkpoints.to_delete(self._saved, section.keep_last, section.keep_best, higher):
            del self._saved[old]
            if collectives.rank() == 0:
                checkpoints.delete(self.run.checkpoints, old)
        return step

    def restore(self, window: TrainingHistograms) -> tuple[dict | None, list[str]]:
        """Collective. Takes up the newest good checkpoint, if there is one.

        Returns:
            The saved training state or None, and warnings about damaged checkpoints.
        """
        device = self.learner.device
        found, warnings = checkpoints.newest_good(self.run.checkpoints, device)
        if found is None:
            return None, warnings
        trainer = trainer_of(found)
        if trainer["log_digest"] != self.log_digest:
            raise InputError(
                "the log changed under this run",
                f"log digest {self.log_digest}",
                f"{trainer['log_digest']}, as at step {found.step}",
                "restore the log, or start a new run on the new one",
            )
        load_learner(found, self.learner, optimizer=True)
        histograms = found.tensors("metrics.safetensors")
        if collectives.rank() > 0:
            histograms = {k: torch.zeros_like(t) for k, t in histograms.items()}
        window.load_state(histograms)
        self._saved = _metrics_of(self.run, found.step)
        self.last_complete = found.folder.url
        collectives.barrier()
        if collectives.rank() == 0:
            checkpoints.delete_unfinished(self.run.checkpoints, found.step)
        collectives.barrier()
        return trainer["state"], warnings


def trainer_of(found: Checkpoint) -> dict:
    """A checkpoint's trainer.json: "state" and "log_digest".

    Raises:
        DamagedCheckpoint: it does not hold them.
    """
    try:
        trainer = json.loads(found.text("trainer.json"))
        whole = isinstance(trainer["state"], dict) and isinstance(trainer["log_digest"], str)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise damaged(found.folder, "trainer.json", str(error), "a trainer's state") from None
    if not whole:
        raise damaged(found.folder, "trainer.json", "other values", "a trainer's state")
    return trainer


def load_learner(
    found: Checkpoint,
    learner: Learner,
    optimizer: bool,
    growth: Growth | None = None,
) -> None:
    """Collective. Puts a checkpoint's weights, and optimizer state if asked, into a learner.

    Every rank reads only the byte ranges of its own buckets.

    Args:
        growth: what the learner has more than was saved, which stays as it is; null: nothing.
    """
    dense = found.tensors("dense.safetensors")
    model = {f"model/{name}": p for name, p in learner.model.named_parameters()}
    for key, parameter in model.items():
        if growth is not None:
            saved = dense[key] if key in dense else parameter.detach()
            dense[key] = growth.filled(key, saved, parameter)
        got = dense[key].shape if key in dense else None
        if got != parameter.shape:
            raise damaged(
                found.folder, "dense.safetensors", f"{key}: {got}", f"{tuple(parameter.shape)}"
            )
    learner.load_dense_state(dense, optimizer)
    reader = found.tables()
    saved_rows = dict(growth.rows) if growth is not None else {}
    rows = {spec.name: spec.rows for spec in learner.tables.specs} | saved_rows
    replicated, whole = learner.tables.replicated_tables, (0, found.num_buckets)

    def read(key: str) -> Tensor:
        low, high = whole if _table(key) in replicated else learner.tables.bucket_range
        return reader.read(key, rows[_table(key)], low, high)

    try:
        learner.tables.load_state(read, saved_rows, growth.columns if growth is not None else None)
    finally:
        reader.close()


def read_config(found: Checkpoint) -> tuple[TrainConfig, LogSchema]:
    """The config and schema a checkpoint was trained with."""
    source = f"{found.folder.url}/"
    config = parse(
        TrainConfig, parse_yaml(found.text("config.yaml"), source), f"{source}config.yaml"
    )
    schema = parse(LogSchema, parse_yaml(found.text("schema.yaml"), source), f"{source}schema.yaml")
    return config, schema


def dump_for_checkpoint(config: TrainConfig) -> str:
    """The part of a config that decides the trained numbers, as YAML."""
    kept = set(TrainConfig.model_fields) - DECIDES_NOTHING
    return dump(config, include=kept)


def _metrics_of(run: Run, up_to_step: int) -> dict[str, float | None]:
    """Checkpoint name -> validation metric, of those up to a step whose manifest can be read."""
    found: dict[str, float | None] = {}
    for name in checkpoints.complete_names(run.checkpoints):
        manifest = peek(run.checkpoints / name)
        if manifest is not None and manifest.step <= up_to_step:
            found[name] = manifest.metric
    return found


def _copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: t.detach().to("cpu", copy=True) for key, t in tensors.items()}


def _table(key: str) -> str:
    return key.rsplit("/", 1)[0]
