"""Whatever a stranger's file holds, a loader gives its value or one of our own errors.

A few hundred cases here; `make fuzz` tries 10,000 of each.
"""

import hashlib
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from helpers.logs import small_log
from helpers.mutation import JSON, spoiled, tampered
from helpers.training import small_config
from raymtl.batch import Layout
from raymtl.checkpoint import Checkpoint
from raymtl.config import TrainConfig, override, parse, parse_yaml
from raymtl.data.files import read_footer
from raymtl.data.frozen import TRANSFORMS, read_frozen
from raymtl.data.log import LogIndex, read_index
from raymtl.data.prepare_config import PrepareConfig
from raymtl.errors import InputError
from raymtl.models import registry
from raymtl.run import LOG, Run
from raymtl.saving import read_config, trainer_of
from raymtl.schema import LogSchema
from raymtl.shards import ShardFile
from raymtl.storage import Folder, filesystem
from raymtl.trainer import state_of

pytestmark = pytest.mark.timeout(3600)
CASES = settings(
    max_examples=10_000 if os.environ.get("HYPOTHESIS_PROFILE") == "fuzz" else 30,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
CONFIG = small_config("/log")
SCHEMA: dict[str, Any] = {
    "features": [
        {"kind": "categorical", "name": "user", "column": "user_id", "encoding": "hash"},
        {"kind": "categorical", "name": "device", "encoding": "vocabulary", "default": "phone"},
        {"kind": "bag", "name": "tags", "encoding": "hash", "max_length": 8, "pooling": "mean"},
        {"kind": "sequence", "name": "seen", "encoding": "index", "table": "item"},
        {"kind": "numeric", "name": "age", "log1p": True, "standardise": True, "mean": 1, "std": 2},
        {"kind": "numeric", "name": "price", "boundaries": [5.0, 20.0]},
    ],
    "tables": [
        {"name": "user", "rows": 100},
        {"name": "item", "rows": 100},
        {"name": "device", "values": ["phone", "tablet"]},
        {"name": "tags", "rows": 64},
    ],
    "tasks": [
        {"name": "click", "label": "click"},
        {"name": "buy", "label": "bought", "observed_if": {"column": "click", "equals": 1}},
    ],
    "group": "user_id",
}


def survives(load: Callable[[], object]) -> None:
    """Runs a loader; every other error than ours fails the test."""
    try:
        load()
    except InputError as error:
        assert all(isinstance(part, str) for part in error.args)


@CASES
@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda b: b.decode(errors="replace")))
def test_any_text_as_a_config(text: str) -> None:
    survives(lambda: parse(TrainConfig, parse_yaml(text, "x"), "x"))


@CASES
@given(tampered(CONFIG))
def test_a_tampered_config(values: Any) -> None:
    def load() -> None:
        text = yaml.safe_dump(values, allow_unicode=True)
        config = parse(TrainConfig, parse_yaml(text, "x"), "x")
        registry.parse(config.model)

    survives(load)


@CASES
@given(st.lists(st.tuples(st.text(max_size=20), JSON), max_size=3))
def test_any_overrides(pairs: list[tuple[str, Any]]) -> None:
    items = [f"{key}={json.dumps(value)}" for key, value in pairs]
    survives(lambda: parse(TrainConfig, override(CONFIG, items), "x"))


@CASES
@given(tampered(SCHEMA))
def test_a_tampered_schema(values: Any) -> None:
    def load() -> None:
        schema = parse(LogSchema, parse_yaml(yaml.safe_dump(values), "x"), "x")
        schema.require_ready()
        Layout.of(schema)

    survives(load)


@CASES
@given(tampered({"sources": [{"name": "a", "url": "a.parquet"}], "schema": SCHEMA}))
def test_a_tampered_prepare_config(values: Any) -> None:
    survives(lambda: parse(PrepareConfig, parse_yaml(yaml.safe_dump(values), "x"), "x"))


@CASES
@given(tampered({"digest": "0" * 32, "schema": SCHEMA, "joins": [{"name": "u"}], "extends": ["a"]}))
def test_tampered_transforms(tmp_path: Path, values: Any) -> None:
    (tmp_path / TRANSFORMS).write_text(yaml.safe_dump(values), encoding="utf-8")
    survives(lambda: read_frozen(str(tmp_path), extend=True))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint as its manifest describes it."""
    folder = tmp_path_factory.mktemp("checkpoint")
    save_file({"t/values": torch.zeros(16, 4), "t/sum": torch.zeros(16, 1)}, folder / "tables")
    save_file({"model/w": torch.zeros(3), "step": torch.tensor(3)}, folder / "dense.safetensors")
    texts = {"config.yaml": CONFIG, "schema.yaml": SCHEMA, "trainer.json": TRAINER}
    for name, values in texts.items():
        (folder / name).write_text(json.dumps(values))
    return folder


TRAINER = {"state": {"step": 3, "rows": 9, "best_metrics": {"auc": 0.5}}, "log_digest": "0"}


def manifest_of(folder: Path) -> dict[str, Any]:
    entries = [
        {
            "name": path.name,
            "size": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "buckets": [0, 4] if path.name == "tables" else None,
        }
        for path in sorted(folder.iterdir())
        if path.name != "manifest.json"
    ]
    return {"format_version": 1, "step": 3, "metric": 0.5, "num_buckets": 4, "files": entries}


def write_manifest(folder: Path, content: Any) -> None:
    """With a hash that fits, as an attacker would write it."""
    if isinstance(content, dict):
        text = json.dumps({k: v for k, v in content.items() if k != "sha256"}, sort_keys=True)
        content = content | {"sha256": hashlib.sha256(text.encode()).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(content))


def load_checkpoint(folder: Path) -> None:
    """All that a restore reads."""
    found = Checkpoint(Folder(str(folder)))
    found.verify(sorted(found.entries))
    for name in ("tables", "dense.safetensors"):
        found.tensors(name)
    state_of(trainer_of(found)["state"])
    read_config(found)
    tables = found.tables()
    try:
        tables.read("t/values", 16, 0, found.num_buckets)
    finally:
        tables.close()


def test_the_checkpoint_these_tests_spoil_is_whole(checkpoint: Path) -> None:
    write_manifest(checkpoint, manifest_of(checkpoint))
    load_checkpoint(checkpoint)


@CASES
@given(st.data())
def test_a_tampered_manifest(checkpoint: Path, data: st.DataObject) -> None:
    write_manifest(checkpoint, data.draw(tampered(manifest_of(checkpoint))))
    survives(lambda: load_checkpoint(checkpoint))


@CASES
@given(st.data(), st.sampled_from(["config.yaml", "schema.yaml", "trainer.json"]))
def test_tampered_texts_of_a_checkpoint_whose_hashes_fit(
    checkpoint: Path, data: st.DataObject, name: str
) -> None:
    before = (checkpoint / name).read_text()
    try:
        (checkpoint / name).write_text(json.dumps(data.draw(tampered(json.loads(before)))))
        write_manifest(checkpoint, manifest_of(checkpoint))
        survives(lambda: load_checkpoint(checkpoint))
    finally:
        (checkpoint / name).write_text(before)


HEADER = {
    "a": {"dtype": "F32", "shape": [4, 3], "data_offsets": [0, 48]},
    "b": {"dtype": "I64", "shape": [], "data_offsets": [48, 56]},
}


def read_all(path: Path) -> None:
    file = ShardFile(Folder(str(path.parent)), path.name)
    try:
        for key, slot in file.slots.items():
            read = file.read(key)
            assert read.nbytes <= path.stat().st_size and tuple(read.shape) == slot.shape
    finally:
        file.close()


@CASES
@given(tampered(HEADER))
def test_a_tampered_safetensors_header(tmp_path: Path, header: Any) -> None:
    text = json.dumps(header).encode()
    (tmp_path / "x").write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 56)
    survives(lambda: read_all(tmp_path / "x"))


@CASES
@given(spoiled(struct.pack("<Q", 90) + json.dumps(HEADER).encode()[:90] + b"\0" * 56))
def test_spoiled_safetensors(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    survives(lambda: read_all(tmp_path / "x"))


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log")
    small_log(folder, rows=200, block_rows=200)
    return folder / "train"


@CASES
@given(st.data())
def test_a_spoiled_parquet_footer(log: Path, tmp_path: Path, data: st.DataObject) -> None:
    whole = next(log.glob("*.parquet")).read_bytes()
    footer = int.from_bytes(whole[-8:-4], "little") + 8
    (tmp_path / "x.parquet").write_bytes(whole[:-footer] + data.draw(spoiled(whole[-footer:])))
    fs, path = filesystem(str(tmp_path / "x.parquet"))
    survives(lambda: read_footer(fs, path, "x"))


@CASES
@given(st.data())
def test_a_tampered_stored_index_is_not_believed(
    log: Path, tmp_path: Path, data: st.DataObject
) -> None:
    index = log / "_index.parquet"
    if not index.exists():
        read_index(str(log)).save()
    before = index.read_bytes()
    try:
        index.write_bytes(data.draw(spoiled(before)))
        survives(lambda: read_index(str(log)))
    finally:
        index.write_bytes(before)
    assert pq.read_table(index).num_rows == 1


@CASES
@given(st.data())
def test_a_tampered_list_of_the_logs_files(log: Path, tmp_path: Path, data: st.DataObject) -> None:
    values = json.loads(json.dumps(read_index(str(log)).to_dict()))
    (tmp_path / LOG).write_text(json.dumps(data.draw(tampered(values))))

    def load() -> None:
        found = Run(str(tmp_path)).read_log()
        assert isinstance(found, LogIndex) and isinstance(found.num_rows, int)

    survives(load)
