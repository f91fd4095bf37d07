"""Checkpoints: retention, and every kind of damage named and survived."""

import errno
import json
import shutil
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError

from helpers.logs import small_log
from helpers.training import small_config, train_on_rank
from raymtl import checkpoint
from raymtl import manifest as manifest_module
from raymtl.checkpoint import Checkpoint, to_delete
from raymtl.errors import DamagedCheckpoint, InputError
from raymtl.run import choose
from raymtl.shards import ShardFile, save_tensors
from raymtl.storage import Folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints at steps 3, 6 and 8."""
    folder = tmp_path_factory.mktemp("run")
    small_log(folder, rows=2500)
    values = small_config(
        str(folder),
        "train.max_steps=8",
        "checkpoint.every_steps=3",
        "checkpoint.keep_last=3",
        "validation.every_steps=100",
    )
    train_on_rank(values)
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy to damage; its log stays where it is."""
    shutil.copytree(finished / "runs" / "run", tmp_path / "run")
    return tmp_path / "run"


FILES = [
    "tables-00000-of-00001.safetensors",
    "replicated.safetensors",
    "dense.safetensors",
    "metrics.safetensors",
    "trainer.json",
    "config.yaml",
    "schema.yaml",
    "manifest.json",
]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def alter(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("harm", [truncate, alter, remove])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_and_the_checkpoint_before_is_used(
    finished: Path, run: Path, name: str, harm
) -> None:
    newest = run / "checkpoints" / "step-00000008"
    harm(newest / name)
    with pytest.raises(DamagedCheckpoint) as caught:
        found = Checkpoint(Folder(str(newest)))
        found.verify(sorted(found.entries))
    assert name in str(caught.value)
    values = small_config(str(finished), f"storage={run.parent}", "name=run", "train.max_steps=10")
    values["validation"] = {"every_steps": 100}
    resumed = train_on_rank(values)
    assert resumed["start"] == 6 and resumed["error"] is None
    unfinished = name == "manifest.json" and harm is remove
    assert unfinished or "step-00000008" in resumed["warnings"][0]


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_anew(
    finished: Path, run: Path
) -> None:
    for folder in (run / "checkpoints").iterdir():
        alter(folder / "dense.safetensors")
    values = small_config(str(finished), f"storage={run.parent}", "name=run", "train.max_steps=10")
    with pytest.raises(DamagedCheckpoint, match=r"dense\.safetensors"):
        train_on_rank(values)


def test_a_log_that_changed_under_the_run_is_refused(finished: Path, run: Path) -> None:
    trainer = run / "checkpoints" / "step-00000008" / "trainer.json"
    values = json.loads(trainer.read_text())
    values["log_digest"] = "0" * 32
    trainer.write_text(json.dumps(values, indent=1, sort_keys=True))
    rewrite_manifest(trainer.parent)
    config = small_config(str(finished), f"storage={run.parent}", "name=run")
    with pytest.raises(InputError, match="the log changed under this run"):
        train_on_rank(config)


def rewrite_manifest(folder: Path) -> None:
    """Makes a tampered folder's manifest fit again, as an attacker would."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest.pop("sha256")
    for entry in manifest["files"]:
        path = folder / entry["name"]
        if path.is_file():
            entry["size"], entry["sha256"] = path.stat().st_size, checkpoint.hash_file(path)
    manifest["sha256"] = manifest_module._self_hash(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_manifest_cannot_name_files_outside_its_folder(run: Path) -> None:
    folder = run / "checkpoints" / "step-00000008"
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][0]["name"] = "../../config.yaml"
    manifest.pop("sha256")
    manifest["sha256"] = manifest_module._self_hash(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DamagedCheckpoint, match="plain file names"):
        Checkpoint(Folder(str(folder)))


@pytest.mark.parametrize(
    "header",
    [
        {"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}},
        {"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}},
        {"x": {"dtype": "F32", "shape": [-1, -4], "data_offsets": [0, 16]}},
        {"x": {"dtype": "PY", "shape": [4], "data_offsets": [0, 16]}},
        {"x": []},
        [],
    ],
)
def test_a_header_that_lies_is_refused_before_memory_is_taken(tmp_path: Path, header) -> None:
    text = json.dumps(header).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 16)
    with pytest.raises(DamagedCheckpoint):
        ShardFile(Folder(str(tmp_path)), "x.safetensors")


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\xff\xff\xff\x7f" + b"\0" * 4, b"{}"])
def test_a_file_that_is_no_safetensors_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(DamagedCheckpoint, match=r"x\.safetensors"):
        ShardFile(Folder(str(tmp_path)), "x.safetensors")


def test_a_full_disk_is_an_error_of_the_operating_system(tmp_path: Path, monkeypatch) -> None:
    def refuse(tensors, path) -> None:
        raise SafetensorError("Error while serializing: No space left on device (os error 28)")

    monkeypatch.setattr("raymtl.shards.save_file", refuse)
    with pytest.raises(OSError, match="No space left") as raised:
        save_tensors(tmp_path / "x.safetensors", {"x": torch.zeros(2)})
    assert raised.value.errno == errno.ENOSPC


def test_a_whole_tensor_and_its_rows_are_read_as_saved(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    saved = {"a": torch.arange(12.0).view(4, 3), "b": torch.tensor(7), "c": torch.zeros(0, 3)}
    save_file(saved, tmp_path / "x.safetensors")
    file = ShardFile(Folder(str(tmp_path)), "x.safetensors")
    for key, tensor in saved.items():
        assert torch.equal(file.read(key), tensor)
    assert torch.equal(file.read("a", 1, 3), saved["a"][1:3])


def test_best_and_last_checkpoints_of_a_run_are_found(finished: Path) -> None:
    run = str(finished / "runs" / "run")
    assert choose(run, "last").step == 8
    assert choose(run, "best").step == 8, "the only validated one"
    assert choose(run, "step-00000003").step == 3
    with pytest.raises(InputError, match="step-00000009"):
        choose(run, "step-00000009")


def test_retention_keeps_the_last_and_the_best() -> None:
    saved = {"step-00000001": 0.9, "step-00000002": 0.5, "step-00000003": None}
    assert to_delete(saved, 1, 1, higher_is_better=True) == ["step-00000002"]
    assert to_delete(saved, 1, 1, higher_is_better=False) == ["step-00000001"]
    assert to_delete(saved, 2, 0, higher_is_better=True) == ["step-00000001"]
    assert to_delete({}, 1, 1, higher_is_better=True) == []


@given(
    st.dictionaries(st.integers(0, 99), st.none() | st.floats(0, 1)),
    st.integers(1, 4),
    st.integers(0, 3),
)
def test_retention_never_removes_the_newest(metrics, keep_last: int, keep_best: int) -> None:
    saved = {checkpoint.folder_name(step): metric for step, metric in metrics.items()}
    removed = to_delete(saved, keep_last, keep_best, higher_is_better=True)
    kept = set(saved) - set(removed)
    assert set(sorted(saved)[-keep_last:]) <= kept
    assert len(kept) <= keep_last + keep_best
