"""Calibration: curves that recover a planted distortion, kept and read back, bad files refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from raymtl import calibration
from raymtl.calibration import Curve, fit, fit_tasks
from raymtl.errors import InputError
from raymtl.scores import auc
from raymtl.storage import Folder


def planted(seed: int, rows: int = 40_000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True log-odds, scores whose log-odds are (true + 1) / 0.7, and labels."""
    rng = np.random.default_rng(seed)
    true = rng.normal(-1.5, 1.2, rows)
    labels = (rng.random(rows) < 1 / (1 + np.exp(-true))).astype(np.float64)
    return true, 1 / (1 + np.exp(-(true + 1) / 0.7)), labels


def test_platt_recovers_a_planted_line() -> None:
    true, scores, labels = planted(1)
    curve = fit(scores, labels, np.ones(len(labels)), "platt")
    assert curve.slope == pytest.approx(0.7, abs=0.02)
    assert curve.intercept == pytest.approx(-1, abs=0.04)
    np.testing.assert_allclose(curve(scores), 1 / (1 + np.exp(-true)), atol=0.02)


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_a_curve_mends_other_rows_and_leaves_their_order(method: calibration.Method) -> None:
    _, scores, labels = planted(2)
    curve = fit(scores, labels, np.ones(len(labels)), method)
    _, others, theirs = planted(3)
    assert (calibration.calibration(others, theirs) or 0) > 1.15
    made = curve(others)
    assert calibration.calibration(made, theirs) == pytest.approx(1, abs=0.03)
    before, after = auc(others, theirs), auc(made, theirs)
    assert after == pytest.approx(before, abs=1e-9 if method == "platt" else 2e-3)
    assert ((made > 0) & (made < 1)).all()


def test_weights_count_as_rows() -> None:
    _, scores, labels = planted(4, 2000)
    weights = np.random.default_rng(0).integers(1, 4, 2000)
    weighted = fit(scores, labels, weights.astype(float), "platt")
    rows = np.repeat(np.arange(2000), weights)
    repeated = fit(scores[rows], labels[rows], np.ones(len(rows)), "platt")
    assert weighted.slope == pytest.approx(repeated.slope, rel=1e-4)
    assert weighted.intercept == pytest.approx(repeated.intercept, rel=1e-3)


def test_unobserved_rows_are_left_out_and_both_sides_reported() -> None:
    _, scores, labels = planted(5, 5000)
    weights = np.ones(5000)
    weights[::3] = 0
    gaps = np.where(weights > 0, labels, np.nan)
    found = fit_tasks({"click": scores}, {"click": gaps}, {"click": weights}, "platt")["click"]
    assert found["rows"] == int((weights > 0).sum())
    assert found["after"]["log_loss"] < found["before"]["log_loss"]
    assert found["after"]["calibration"] == pytest.approx(1, abs=1e-3)


def test_one_label_and_scores_that_rank_backwards_are_refused() -> None:
    _, scores, labels = planted(6, 1000)
    with pytest.raises(InputError, match="all of one label"):
        fit(scores, np.zeros(1000), np.ones(1000), "platt")
    with pytest.raises(InputError, match="line falls"):
        fit(1 - scores, labels, np.ones(1000), "platt")


def kept(folder: Path, text: str) -> Folder:
    (folder / "calibration").mkdir()
    (folder / "calibration" / "step-00000003.json").write_text(text)
    return Folder(str(folder / "checkpoints" / "step-00000003"))


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_a_curve_is_read_back_as_it_was(tmp_path: Path, method: calibration.Method) -> None:
    _, scores, labels = planted(7, 3000)
    weights = np.ones(3000)
    found = fit_tasks({"a/b": scores}, {"a/b": labels}, {"a/b": weights}, method)
    read = calibration.read(kept(tmp_path, json.dumps({"tasks": found})))
    np.testing.assert_array_equal(read["a/b"](scores), fit(scores, labels, weights, method)(scores))


def bad(**changes: object) -> str:
    curve = {"method": "isotonic", "slope": 1, "intercept": 0, "scores": [0, 1], "rates": [0, 1]}
    return json.dumps({"tasks": {"click": {"curve": curve | changes}}})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[",
        "3",
        "{}",
        '{"tasks": {"click": {}}}',
        bad(method="pickle"),
        bad(scores=[1, 0]),
        bad(rates=[1, 0]),
        bad(rates=[0]),
        bad(scores=[], rates=[]),
        bad(slope="x"),
        bad(intercept=float("nan")),
        bad(scores=[0, float("inf")]),
        "[" * 100_000,
    ],
)
def test_files_that_are_no_curves_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        calibration.read(kept(tmp_path, text))


def test_a_checkpoint_that_was_not_calibrated_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="was not calibrated"):
        calibration.read(Folder(str(tmp_path / "checkpoints" / "step-00000003")))


def test_a_curve_without_change_is_the_identity() -> None:
    scores = np.linspace(0.01, 0.99, 50)
    np.testing.assert_allclose(Curve("platt")(scores), scores)
