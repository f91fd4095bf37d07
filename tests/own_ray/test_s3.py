"""Raw files, log and run on an S3 server: a worker is killed, the run goes on and is scored."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pyarrow import fs

from helpers.disturber import Disturber
from helpers.local_ray import running_ray
from helpers.procs import run_ranks
from helpers.raw_logs import CONFIG, write_raw
from helpers.s3 import BUCKET, Server, s3_server
from helpers.training import bytes_of, read_lines, small_config, train_on_rank_with
from raymtl import launch, scoring
from raymtl.checkpoint import MANIFEST, folder_name
from raymtl.config import LaunchSection, TrainConfig, override, parse
from raymtl.data.log import read_index
from raymtl.data.prepare import PrepareConfig, prepare
from raymtl.storage import Folder

ROOT = f"s3://{BUCKET}"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with s3_server() as server:
        yield server


@pytest.fixture(scope="module")
def local_ray(server: Server) -> Iterator[Path]:
    """A Ray whose processes know the server from their environment; the folder of its logs."""
    with running_ray() as folder:
        yield folder


@pytest.fixture(scope="module")
def log(server: Server, local_ray: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A log prepared from raw files in the bucket."""
    raw = tmp_path_factory.mktemp("raw")
    write_raw(raw)
    remote = fs.FileSystem.from_uri(ROOT)[0]
    fs.copy_files(str(raw), f"{BUCKET}/raw", destination_filesystem=remote)
    config = yaml.safe_load(CONFIG) | {"data_root": f"{ROOT}/raw"}
    return prepare(parse(PrepareConfig, config, "a test"), f"{ROOT}/log")["url"]


def values(log: str, storage: str, *overrides: str) -> dict[str, Any]:
    sizes = ["data.chunk_rows=16", "train.global_batch_size=32", "checkpoint.every_steps=10"]
    sizes += ["embedding.replicate_rows=4", "train.num_epochs=3", "validation.every_steps=20"]
    return small_config(log, f"storage={storage}", *sizes, *overrides)


def trained(values: dict[str, Any]) -> dict[str, Any]:
    """What two rank processes return; they know the server from their environment."""
    address = {key: value for key, value in os.environ.items() if key.startswith("AWS_")}
    return run_ranks(train_on_rank_with, 2, address, values, timeout_s=240)[0]


def copied(run: str, folder: Path) -> str:
    """The run's files on this disk."""
    remote, path = fs.FileSystem.from_uri(run)
    fs.copy_files(path, str(folder), source_filesystem=remote)
    return str(folder)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_killed_run_with_everything_on_s3_ends_as_one_on_a_disk_and_writes_no_secret(
    server: Server, log: str, local_ray: Path, tmp_path: Path
) -> None:
    made = parse(TrainConfig, values(log, f"{ROOT}/runs"), "a test")
    disturber = Disturber(f"{made.storage}/{made.name}", (1, 10, signal.SIGKILL))
    result = launch.train(made, show=disturber)
    assert disturber.signalled == 1 and any(line.startswith("going on") for line in disturber.lines)
    undisturbed = trained(values(log, str(tmp_path / "disk")))
    assert result["state"] == undisturbed["state"]
    here = copied(result["run"], tmp_path / "killed")
    assert bytes_of(here) == bytes_of(undisturbed["run"])
    steps = [line["step"] for line in read_lines(here)]
    assert steps == [line["step"] for line in read_lines(undisturbed["run"])]

    longer = override(made.model_dump(), ["train.num_epochs=4", "launch.num_workers=1"])
    resumed = launch.train(parse(TrainConfig, longer, "a test"), resume=True)
    assert resumed["state"]["rows"] == result["state"]["rows"] * 4 // 3
    found = scoring.evaluate(result["run"], f"{log}/test", LaunchSection(num_workers=1))
    assert found["rows"] == read_index(f"{log}/test").num_rows > 0
    assert found["metrics"]["like/auc"] is not None
    everything = [Path(copied(ROOT, tmp_path / "bucket")), local_ray]
    files = [path for root in everything for path in root.rglob("*") if path.is_file()]
    assert len(files) > 50
    assert [path for path in files if server.secret.encode() in path.read_bytes()] == []


@pytest.mark.long
@pytest.mark.timeout(300)
def test_storage_that_goes_away_ends_the_run_by_name_and_nothing_is_lost(
    server: Server, log: str, tmp_path: Path
) -> None:
    log = copied(log, tmp_path / "log")  # else reading it may be the first thing that fails
    remote = values(log, f"{ROOT}/away", "train.num_epochs=6")
    name = parse(TrainConfig, remote, "a test").name
    first = Folder(f"{ROOT}/away/{name}/checkpoints/{folder_name(10)}")

    def leave() -> None:
        while first.size(MANIFEST) is None:
            time.sleep(0.005)
        server.go_away()

    leaving = threading.Thread(target=leave)
    leaving.start()
    ended = trained(remote)
    leaving.join()
    assert "a checkpoint cannot be written" in ended["error"]
    server.come_back()
    result = trained(remote)
    assert result["error"] is None
    assert result["start"] >= 10
    undisturbed = trained(values(log, str(tmp_path / "disk"), "train.num_epochs=6"))
    assert result["state"] == undisturbed["state"]
    assert bytes_of(copied(result["run"], tmp_path / "away")) == bytes_of(undisturbed["run"])
