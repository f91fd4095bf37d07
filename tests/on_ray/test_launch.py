"""Training on Ray: killed and hung workers, and errors that end a run."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch

from helpers.disturber import Disturber
from helpers.logs import small_log
from helpers.own_model import Linear
from helpers.training import bytes_of, read_lines, train_config
from raymtl import alone, collectives, launch
from raymtl.config import TrainConfig, override, parse
from raymtl.errors import IdOutOfRange, InputError
from raymtl.models import registry

pytestmark = [pytest.mark.usefixtures("local_ray"), pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("log")
    small_log(folder, rows=8000)
    return str(folder)


def config(log: str, *overrides: str) -> TrainConfig:
    long = ["train.num_epochs=4", "checkpoint.every_steps=20", "validation.max_rows=500"]
    return train_config(log, *long, *overrides)


@pytest.fixture(scope="module")
def undisturbed(log: str) -> dict[str, Any]:
    return launch.train(config(log, "name=undisturbed"))


@pytest.mark.timeout(600)
def test_a_killed_worker_and_then_a_hung_one_cost_nothing_but_time(
    log: str, undisturbed: dict[str, Any]
) -> None:
    # A busy machine may take a slow worker for a hung one, which costs nothing but time either.
    made = config(log, "name=disturbed", "failure.hang_timeout_s=20", "failure.max_failures=-1")
    plan = (0, 20, signal.SIGKILL), (1, 40, signal.SIGSTOP)
    disturber = Disturber(f"{made.storage}/{made.name}", *plan)
    result = launch.train(made, show=disturber)
    assert disturber.signalled == 2
    assert sum(line.startswith("going on from step") for line in disturber.lines) >= 2
    assert sum(line.startswith("warning: rank") for line in disturber.lines) >= 2
    assert result["state"] == undisturbed["state"]
    assert bytes_of(result["run"]) == bytes_of(undisturbed["run"])
    assert [line["step"] for line in read_lines(result["run"])] == [
        line["step"] for line in read_lines(undisturbed["run"])
    ]


def test_a_registered_model_goes_on_with_more_epochs_and_another_number_of_workers(
    log: str,
) -> None:
    registry.register("linear", Linear)
    shape = ["train.num_epochs=1", "launch.num_workers=1"]
    short = config(log, "name=longer", *shape).model_dump()
    own = TrainConfig.model_validate(short | {"model": {"name": "linear"}})
    first = alone.train(own)
    assert first["state"]["stopped"] == "num_epochs"
    longer = override(own.model_dump(), ["train.num_epochs=2", "launch.num_workers=2"])
    second = launch.train(parse(TrainConfig, longer, "a test"), resume=True)
    assert second["state"]["step"] == 2 * first["state"]["step"]
    assert second["state"]["rows"] == 2 * first["state"]["rows"] == 2 * 6400


def test_a_local_ray_listens_on_loopback_only_and_asks_for_a_token(undisturbed: Any) -> None:
    assert ray.util.get_node_ip_address() == "127.0.0.1"
    assert os.environ["RAY_AUTH_MODE"] == "token"
    ours = [psutil.Process(), *psutil.Process().children(recursive=True)]
    listening = {
        (process.name(), connection.laddr.ip)
        for process in ours
        for connection in connections(process)
        if connection.status == psutil.CONN_LISTEN
    }
    assert {"raylet", "gcs_server"} <= {name for name, _ in listening}
    assert {ip.removeprefix("::ffff:") for _, ip in listening} == {"127.0.0.1"}


def test_a_local_ray_without_dashboard_keeps_no_table_of_its_tasks(undisturbed: Any) -> None:
    time.sleep(1.5)  # Ray's usual pause between reports of tasks, and more
    assert ray.timeline() == []


def test_a_local_ray_has_no_process_that_reads_logs_for_nobody(undisturbed: Any) -> None:
    commands = [" ".join(p.cmdline()) for p in psutil.Process().children(recursive=True)]
    assert any("raylet" in command for command in commands)
    assert not [command for command in commands if "log_monitor" in command]


def group_of(payload: dict[str, Any]) -> dict[str, Any]:
    """What a rank finds itself in, and Ray's actors beside it."""
    del payload
    wanted = (torch.distributed.is_initialized(), collectives.world_size(), collectives.rank())
    actors = [" ".join(p.cmdline()) for p in psutil.process_iter()]
    return {"group": wanted, "actors": [name for name in actors if name.startswith("ray::")]}


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_worker_of_its_own_has_no_process_group_and_none_has_actors_without_work(
    num_workers: int, log: str, tmp_path: Path
) -> None:
    small = config(log, f"launch.num_workers={num_workers}")
    found = launch.run_workers(group_of, {}, small, str(tmp_path), print)
    assert found["group"] == (num_workers > 1, num_workers, 0)
    beside = " ".join(found["actors"])
    assert "ray::RayTrainWorker" in beside
    assert not any(name in beside for name in ("DatasetManager", "PlacementGroupCleaner", "Board"))


def connections(process: psutil.Process) -> list[Any]:
    """None where the process has just ended."""
    try:
        return process.net_connections("inet")
    except psutil.NoSuchProcess:
        return []


def test_a_run_of_the_same_name_is_not_overwritten(log: str, undisturbed: dict[str, Any]) -> None:
    before = bytes_of(undisturbed["run"])
    with pytest.raises(InputError, match="a run of this name is there already"):
        launch.train(config(log, "name=undisturbed"))
    with pytest.raises(InputError, match="cannot change this key"):
        launch.train(config(log, "name=undisturbed", "seed=7"), resume=True)
    assert bytes_of(undisturbed["run"]) == before


def test_a_bad_id_that_no_statistic_shows_ends_the_run_without_retries(tmp_path: Path) -> None:
    small_log(tmp_path, rows=2500)
    part = sorted((tmp_path / "train").glob("*.parquet"))[0]
    table = pq.read_table(part)
    column = table.column_names.index("user")
    spoiled = pa.array([10**6, *table["user"].to_pylist()[1:]])
    table = table.set_column(column, "user", spoiled.cast(table["user"].type))
    pq.write_table(table, part, row_group_size=400, write_statistics=False)
    (tmp_path / "train" / "_index.parquet").unlink(missing_ok=True)
    lines: list[str] = []
    with pytest.raises(IdOutOfRange, match="user"):
        launch.train(config(str(tmp_path)), show=lines.append)
    assert sum(line.startswith("rank 0 of 2") for line in lines) == 1
