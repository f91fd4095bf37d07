"""Checkpoints: shards first, manifest last; whole buckets per file, so any world size loads them.

A checkpoint folder `step-00001200/` holds
    tables-RRRRR-of-WWWWW.safetensors   a rank's buckets of every sharded table and their optimizer
    replicated.safetensors              small tables, whole
    dense.safetensors                   model parameters and the dense optimizer's state
    metrics.safetensors                 training metric state of fixed size
    trainer.json config.yaml schema.yaml
    transforms.yaml distributions.json vocabulary-NNNNN.parquet   of a prepared log, copied
    manifest.json                       sizes, hashes and bucket ranges; written last
A folder without a manifest is an unfinished save and is passed over. Nothing here is a pickle.
"""

import hashlib
import json
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from raymtl import collectives
from raymtl.embedding.placement import bucket_start
from raymtl.errors import DamagedCheckpoint, InputError
from raymtl.manifest import MANIFEST, FileEntry, Manifest, read_manifest
from raymtl.shards import ShardFile, damaged, save_tensors
from raymtl.status import attempt, raise_together
from raymtl.storage import Folder, persistently


@dataclass
class Snapshot:
    """What one rank saves, copied so that training may go on."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    """File name -> key -> tensor."""
    buckets: dict[str, tuple[int, int]] = field(default_factory=dict)
    texts: dict[str, bytes] = field(default_factory=dict)
    copies: dict[str, Folder] = field(default_factory=dict)
    """File name -> folder it is copied from, under the same name."""
    metric: float | None = None
    """Validation metric at this step, higher or lower being better as the config says."""

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensors on this rank."""
        return sum(t.nbytes for file in self.tensors.values() for t in file.values())


def folder_name(step: int) -> str:
    """The checkpoint folder of a step."""
    return f"step-{step:08d}"


class CheckpointWriter:
    """Saves snapshots in a thread; the manifest is written when every rank's files are there."""

    def __init__(self, checkpoints: Folder, num_buckets: int):
        self.checkpoints, self.num_buckets = checkpoints, num_buckets
        self._thread: threading.Thread | None = None
        self._snapshot: Snapshot | None = None
        self._entries: list[FileEntry] = []
        self._error: Exception | None = None

    @property
    def busy(self) -> bool:
        """Whether a save was started and not yet completed by `complete`."""
        return self._snapshot is not None

    @property
    def metric(self) -> float | None:
        """The validation metric of the save under way."""
        return self._snapshot.metric if self._snapshot else None

    @property
    def written(self) -> bool:
        """Whether this rank's files of the save under way are written, or have failed."""
        return self._thread is not None and not self._thread.is_alive()

    def start(self, snapshot: Snapshot) -> None:
        """Begins to write this rank's files; returns at once."""
        assert not self.busy, "the save before must be completed first"
        self._snapshot, self._entries, self._error = snapshot, [], None
        self._thread = threading.Thread(target=self._write, args=(snapshot,), daemon=True)
        self._thread.start()

    def complete(self, device: torch.device, before: Callable[[], None]) -> int:
        """Collective. Waits for all ranks' files, then rank 0 writes the manifest.

        Args:
            before: what rank 0 has to write elsewhere for the checkpoint to be whole.

        Returns:
            The step whose checkpoint is now complete.
        """
        assert self._thread is not None and self._snapshot is not None
        self._thread.join()
        snapshot, error = self._snapshot, self._error
        self._thread, self._snapshot = None, None
        raise_together(error, device)
        mine = json.dumps([asdict(entry) for entry in self._entries]).encode()
        parts = collectives.gather_bytes(mine, device)
        entries = [entry for part in parts for entry in json.loads(part)]
        if collectives.rank() == 0:
            error = _refused(self.checkpoints, lambda: self._finish(snapshot, entries, before))
        raise_together(error, device)
        return snapshot.step

    def _write(self, snapshot: Snapshot) -> None:
        folder = self.checkpoints / folder_name(snapshot.step)

        def write() -> None:
            self._entries = write_files(folder, snapshot)

        self._error = _refused(folder, write)

    def _finish(self, snapshot: Snapshot, entries: list[dict], before: Callable[[], None]) -> None:
        before()
        folder = self.checkpoints / folder_name(snapshot.step)
        files = sorted((FileEntry(**entry) for entry in entries), key=lambda e: e.name)
        written = Manifest(snapshot.step, snapshot.metric, self.num_buckets, files)
        folder.write(MANIFEST, written.to_bytes())


def _refused(folder: Folder, write: Callable[[], None]) -> Exception | None:
    """Writes; what came of it where storage refuses to the end, or what else went wrong."""
    _, error = attempt(lambda: persistently(write))
    if not isinstance(error, OSError):
        return error
    return InputError(
        "a checkpoint cannot be written",
        f"{folder.url}: {error}",
        "room and permission for the checkpoint, and storage that answers",
        "free space or mend the storage, then resume; earlier checkpoints are whole",
    )


def write_files(folder: Folder, snapshot: Snapshot) -> list[FileEntry]:
    """Writes one rank's files of a checkpoint and says what they are."""
    entries = []
    scratch = folder.scratch()
    try:
        for name, tensors in snapshot.tensors.items():
            local = scratch / name
            save_tensors(local, tensors)
            size, digest = local.stat().st_size, hash_file(local)
            folder.put(name, local)
            entries.append(FileEntry(name, size, digest, snapshot.buckets.get(name)))
        for name, source in snapshot.copies.items():
            size, digest = source.fetch(name, scratch / name)
            folder.put(name, scratch / name)
            entries.append(FileEntry(name, size, digest))
        for name, text in snapshot.texts.items():
            folder.write(name, text)
            entries.append(FileEntry(name, len(text), hashlib.sha256(text).hexdigest()))
    finally:
        for left in scratch.iterdir():
            left.unlink()
        scratch.rmdir()
    return entries


def hash_file(path: Path) -> str:
    """SHA-256 of a local file, in hex."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class Checkpoint:
    """A complete checkpoint, its manifest read and the files' sizes checked."""

    def __init__(self, folder: Folder):
        self.folder = folder
        manifest = read_manifest(folder)
        self.entries = {entry.name: entry for entry in manifest.files}
        self.step, self.metric = manifest.step, manifest.metric
        self.num_buckets = manifest.num_buckets
        for entry in self.entries.values():
            size = folder.size(entry.name)
            if size != entry.size:
                got = "the file is missing" if size is None else f"{size} bytes"
                raise damaged(folder, entry.name, got, f"{entry.size} bytes")

    def verify(self, names: list[str]) -> None:
        """Hashes files and raises DamagedCheckpoint at the first that differs."""
        for name in names:
            digest = hashlib.sha256()
            with self.folder.filesystem.open_input_stream(f"{self.folder.path}/{name}") as stream:
                while block := stream.read(2**24):
                    digest.update(block)
            if digest.hexdigest() != self.entries[name].sha256:
                raise damaged(self.folder, name, "its bytes were altered", "the bytes saved")

    def verify_together(self, device: torch.device) -> None:
        """Collective. Each rank hashes its share of the files; all raise alike on damage."""
        share = sorted(self.entries)[collectives.rank() :: collectives.world_size()]
        _, error = attempt(lambda: self.verify(share))
        raise_together(error, device)

    def text(self, name: str) -> str:
        """A small text file."""
        return self.folder.read(name).decode()

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Every tensor of one file."""
        file = ShardFile(self.folder, name)
        try:
            return {key: file.read(key) for key in file.slots}
        finally:
            file.close()

    def tables(self) -> "TableReader":
        """The table rows, by key and bucket range."""
        return TableReader(self)


class TableReader:
    """Table rows of a checkpoint, read by byte ranges; files stay open until `close`."""

    def __init__(self, checkpoint: Checkpoint):
        self._checkpoint = checkpoint
        self._files = [
            (entry.buckets, ShardFile(checkpoint.folder, entry.name))
            for entry in checkpoint.entries.values()
            if entry.buckets is not None
        ]

    def read(self, key: str, num_rows: int, low: int, high: int) -> Tensor:
        """Rows of one table tensor in buckets low to high, in (bucket, k) order.

        Args:
            key: `<table>/values` or `<table>/<optimizer state>`.
            num_rows: rows of the whole table.
            low: first bucket wanted.
            high: past-last bucket wanted.
        """
        buckets = self._checkpoint.num_buckets
        parts = []
        for (first, last), file in sorted(
            (f for f in self._files if key in f[1].slots), key=lambda f: f[0]
        ):
            if (overlap := (max(first, low), min(last, high)))[0] < overlap[1]:
                base = bucket_start(num_rows, buckets, first)
                start, stop = (bucket_start(num_rows, buckets, b) - base for b in overlap)
                if stop > file.slots[key].shape[0]:
                    got = f"{key} has {file.slots[key].shape[0]} rows"
                    raise damaged(file.folder, file.name, got, f"at least {stop}")
                parts.append(file.read(key, start, stop))
        rows = torch.cat(parts) if len(parts) > 1 else parts[0] if parts else None
        wanted = bucket_start(num_rows, buckets, high) - bucket_start(num_rows, buckets, low)
        if rows is None or rows.shape[0] != wanted:
            got = f"{0 if rows is None else rows.shape[0]} rows of {key}"
            raise damaged(self._checkpoint.folder, MANIFEST, got, f"{wanted} rows")
        return rows

    def close(self) -> None:
        """Closes the files."""
        for _, file in self._files:
            file.close()


def complete_names(checkpoints: Folder) -> list[str]:
    """Names of the checkpoints that have a manifest, oldest first."""
    names = [n for n in checkpoints.names() if re.fullmatch(r"step-\d{8,}", n)]
    complete = [n for n in names if (checkpoints / n).size(MANIFEST) is not None]
    return sorted(complete, key=_step_of)


def newest_good(checkpoints: Folder, device: torch.device) -> tuple[Checkpoint | None, list[str]]:
    """Collective. The newest checkpoint whose every byte is as saved.

    Returns:
        The checkpoint, or None where there is none at all, and one warning per damaged one.

    Raises:
        DamagedCheckpoint: checkpoints exist and every one is damaged.
    """
    warnings: list[str] = []
    last: DamagedCheckpoint | None = None
    for name in reversed(complete_names(checkpoints)):
        try:
            opened, error = attempt(lambda name=name: Checkpoint(checkpoints / name))
            raise_together(error, device)
            assert opened is not None
            opened.verify_together(device)
            return opened, warnings
        except DamagedCheckpoint as damage:
            warnings.append(f"{name} is damaged and was passed over: {damage.got}")
            last = damage
    if last is not None:
        raise last
    return None, warnings


def to_delete(
    saved: Mapping[str, float | None], keep_last: int, keep_best: int, higher_is_better: bool
) -> list[str]:
    """Which checkpoints retention removes, a pure decision.

    Args:
        saved: checkpoint name -> its metric, null where it was not validated.
        keep_last: newest ones kept.
        keep_best: kept besides, by metric; ties keep the earlier one.
        higher_is_better: the metric's direction.
    """
    names = sorted(saved, key=_step_of)
    kept = set(names[-keep_last:])
    sign = -1.0 if higher_is_better else 1.0
    ranked = sorted((sign * m, _step_of(n), n) for n, m in saved.items() if m is not None)
    kept |= {name for *_, name in ranked[:keep_best]}
    return [name for name in names if name not in kept]


def delete(checkpoints: Folder, name: str) -> None:
    """Removes a checkpoint, its manifest first, so that a part of it is never taken for whole."""
    checkpoints.delete(f"{name}/{MANIFEST}")
    checkpoints.delete(name)


def delete_unfinished(checkpoints: Folder, after_step: int) -> None:
    """Removes saves without a manifest past a step; training is about to make them again."""
    for name in set(checkpoints.names()) - set(complete_names(checkpoints)):
        if re.fullmatch(r"step-\d{8,}", name) and _step_of(name) > after_step:
            checkpoints.delete(name)


def _step_of(name: str) -> int:
    return int(name.removeprefix("step-"))
