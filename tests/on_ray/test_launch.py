"""Training on Ray: killed and hung workers, errors that end a run, evaluation and prediction."""

import os
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.logs import small_log
from helpers.own_model import Linear
from helpers.training import bytes_of, read_lines, small_config
from raymtl import launch, scoring
from raymtl.config import LaunchSection, TrainConfig, override, parse
from raymtl.errors import IdOutOfRange, InputError
from raymtl.models import registry

pytestmark = [pytest.mark.usefixtures("local_ray"), pytest.mark.timeout(300)]
TWO = LaunchSection(num_workers=2)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("log")
    small_log(folder, rows=20_000)
    return str(folder)


def config(log: str, *overrides: str) -> TrainConfig:
    long = ["train.num_epochs=4", "checkpoint.every_steps=20", "validation.max_rows=500"]
    return parse(TrainConfig, small_config(log, *long, *overrides), "a test")


@pytest.fixture(scope="module")
def undisturbed(log: str) -> dict[str, Any]:
    return launch.train(config(log, "name=undisturbed"))


class Disturber:
    """Shows lines, and signals one worker once the run has its first checkpoint."""

    def __init__(self, run: Path, rank: int, what: signal.Signals):
        self.run, self.rank, self.what = run, rank, what
        self.lines: list[str] = []
        self.signalled_at: float | None = None

    def __call__(self, line: str) -> None:
        self.lines.append(line)
        found = re.match(rf"rank {self.rank} of \d+: process (\d+)", line)
        if found and self.signalled_at is None:
            threading.Thread(target=self._wait_and_signal, args=(int(found[1]),)).start()

    def _wait_and_signal(self, process: int) -> None:
        manifest = self.run / "checkpoints" / "step-00000020" / "manifest.json"
        while not manifest.exists():
            time.sleep(0.005)
        self.signalled_at = time.monotonic()
        os.kill(process, self.what)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_worker_costs_nothing_but_time(
    log: str, undisturbed: dict[str, Any], rank: int
) -> None:
    made = config(log, f"name=killed-{rank}")
    run = Path(made.storage, made.name)
    disturber = Disturber(run, rank, signal.SIGKILL)
    result = launch.train(made, show=disturber)
    assert disturber.signalled_at is not None
    assert any(line.startswith("going on from step") for line in disturber.lines)
    assert result["state"] == undisturbed["state"]
    assert bytes_of(result["run"]) == bytes_of(undisturbed["run"])
    assert [line["step"] for line in read_lines(result["run"])] == [
        line["step"] for line in read_lines(undisturbed["run"])
    ]


def test_a_hung_worker_is_a_failure_after_the_timeout(
    log: str, undisturbed: dict[str, Any]
) -> None:
    made = config(log, "name=hung", "failure.hang_timeout_s=8")
    disturber = Disturber(Path(made.storage, made.name), 1, signal.SIGSTOP)
    result = launch.train(made, show=disturber)
    assert disturber.signalled_at is not None
    assert any(line.startswith("going on from step") for line in disturber.lines)
    assert bytes_of(result["run"]) == bytes_of(undisturbed["run"])


def test_a_registered_model_goes_on_with_more_epochs_and_another_number_of_workers(
    log: str,
) -> None:
    registry.register("linear", Linear)
    short = config(log, "name=longer", "train.num_epochs=1").model_dump()
    own = TrainConfig.model_validate(short | {"model": {"name": "linear"}})
    first = launch.train(own)
    assert first["state"]["stopped"] == "num_epochs"
    longer = override(own.model_dump(), ["train.num_epochs=2", "launch.num_workers=1"])
    second = launch.train(parse(TrainConfig, longer, "a test"), resume=True)
    assert second["state"]["step"] == 2 * first["state"]["step"]
    assert second["state"]["rows"] == 2 * first["state"]["rows"] == 2 * 16_000


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


def test_evaluation_and_prediction_agree_on_any_number_of_workers(
    log: str, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    run, test = undisturbed["run"], f"{log}/test"
    one = scoring.evaluate(run, test, LaunchSection(num_workers=1))
    two = scoring.evaluate(run, test, TWO)
    assert one["metrics"] == pytest.approx(two["metrics"], rel=1e-6)
    scoring.predict(run, test, str(tmp_path / "out"), ("user", "time"), TWO)
    scores = pq.read_table(tmp_path / "out")
    raw = pa.concat_tables(
        pq.read_table(p, columns=["user", "time"]) for p in sorted(Path(test).glob("part*.parquet"))
    )
    assert scores.num_rows == raw.num_rows == 2000
    assert sorted(scores["time"].to_pylist()) == sorted(raw["time"].to_pylist())
    for task in ("click", "like", "share"):
        values = scores[task].to_numpy()
        assert values.dtype == np.float32 and ((values > 0) & (values < 1)).all()
