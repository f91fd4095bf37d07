"""A run calibrated in this process, and scored with its curves."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from helpers.logs import small_log
from helpers.training import train_config
from raymtl import alone, calibration
from raymtl.analysis.calibrate import calibrate
from raymtl.config import LaunchSection
from raymtl.errors import InputError
from raymtl.run import choose
from raymtl.scoring import Pick


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A log's folder and a run on it, calibrated on the validation log."""
    folder = str(tmp_path_factory.mktemp("log"))
    small_log(folder, rows=3000)
    made = train_config(folder, "train.max_steps=14", "name=run")
    url = alone.train(made)["run"]
    calibrate(url, f"{folder}/valid", "isotonic", LaunchSection(), scored=alone.predict)
    return folder, url


def scores(url: str, log: str, out: Path, calibrated: bool) -> dict[str, np.ndarray]:
    alone.predict(url, log, str(out), Pick(calibrated=calibrated))
    table = pq.read_table(out).sort_by("log_row")
    return {name: table[name].to_numpy() for name in ("click", "like", "share")}


def test_scores_after_calibration_are_the_curves_of_those_before(
    run: tuple, tmp_path: Path
) -> None:
    folder, url = run
    plain = scores(url, f"{folder}/test", tmp_path / "plain", calibrated=False)
    made = scores(url, f"{folder}/test", tmp_path / "made", calibrated=True)
    curves = calibration.read(choose(url).folder)
    assert set(curves) == set(plain)
    for task, values in plain.items():
        np.testing.assert_allclose(made[task], curves[task](values), rtol=1e-6)
        assert np.abs(made[task] - values).max() > 1e-3


def test_the_file_says_what_it_was_fitted_on_and_what_it_changed(run: tuple) -> None:
    folder, url = run
    name = choose(url).folder.url.rpartition("/")[2]
    kept = json.loads(Path(url, "calibration", f"{name}.json").read_text())
    assert kept["log"]["url"] == f"{folder}/valid"
    assert kept["tasks"]["click"]["rows"] <= 300
    for values in kept["tasks"].values():
        assert values["after"]["log_loss"] <= values["before"]["log_loss"] + 1e-9
        assert values["after"]["calibration"] == pytest.approx(1, abs=1e-3)
    assert [p.name for p in Path(url, "calibration").iterdir()] == [f"{name}.json"]


def test_another_checkpoint_is_not_calibrated(run: tuple, tmp_path: Path) -> None:
    folder, _ = run
    made = train_config(folder, "train.max_steps=3", "name=other")
    other = alone.train(made)["run"]
    with pytest.raises(InputError, match="was not calibrated"):
        alone.predict(other, f"{folder}/test", str(tmp_path / "out"), Pick(calibrated=True))
