"""The bootstrap against rows that are really drawn again, and what an interval may be called."""

from typing import Any

import numpy as np
import pytest

from raymtl.analysis import bootstrap
from raymtl.analysis.bootstrap import Draws, Interval, interval, metrics_of_draws
from raymtl.analysis.cells import Outcomes
from raymtl.analysis.gains import over_seeds, verdict
from raymtl.analysis.views import Units, View, views_of
from raymtl.scores import auc, calibration, gauc, log_loss, mae, rmse


def outcomes_of(group: np.ndarray, labels: np.ndarray, **given: Any) -> Outcomes:
    """One task."""
    weight = given.get("weight", np.ones(len(group)))
    kind = given.get("kind", "binary")
    return Outcomes(("click",), (kind,), group, labels[:, None], weight[:, None])


def random_outcomes(seed: int, users: int = 12, rows: int = 80, **given: Any) -> Outcomes:
    generator = np.random.default_rng(seed)
    group = generator.integers(0, users, rows) * 7 + 3
    labels = (generator.random(rows) < 0.4).astype(np.float32)
    return outcomes_of(group, labels, **given)


def prepared(outcomes: Outcomes) -> tuple[Units, View]:
    units = Units.of(outcomes.group_N)
    return units, views_of(outcomes, units, [])[0]


def drawn_rows(units: Units, counts_U: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers as often as their unit was drawn, and a user number for each copy of a user."""
    rows, users = [], []
    for unit, times in enumerate(counts_U.astype(int)):
        mine = np.flatnonzero(units.unit_N == unit)
        for copy in range(times):
            rows.append(mine)
            users.append(np.full(len(mine), unit * 1000 + copy))
    return np.concatenate(rows), np.concatenate(users)


def assert_equal(found: np.ndarray, wanted: list[float | None]) -> None:
    numbers = [np.nan if value is None else value for value in wanted]
    np.testing.assert_allclose(found, numbers, rtol=1e-9)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_every_metric_of_every_draw_is_that_of_the_rows_really_drawn(weighted, tied) -> None:
    generator = np.random.default_rng(5)
    weight = generator.choice([0.5, 1.0, 2.0, 0.0], 80) if weighted else np.ones(80)
    outcomes = random_outcomes(1, weight=weight)
    scores = generator.random(80) * 0.98 + 0.01
    scores = np.round(scores, 1) if tied else scores
    units, view = prepared(outcomes)
    draws = Draws(units.num_units, 40, seed=9)
    found = metrics_of_draws([view], scores[:, None], draws)[0]
    wanted: dict[str, list[float | None]] = {name: [] for name in found}
    for counts_U in draws:
        rows, users = drawn_rows(units, counts_U)
        s, y, w = scores[rows], outcomes.labels_NT[rows, 0], outcomes.weight_NT[rows, 0]
        kept = w > 0
        s, y, w, users = s[kept], y[kept], w[kept], users[kept]
        wanted["auc"].append(auc(s, y, w))
        wanted["gauc"].append(gauc(s, y, users, w).value)
        wanted["log_loss"].append(log_loss(s, y, w))
        wanted["calibration"].append(calibration(s, y, w))
    for name, values in wanted.items():
        assert_equal(found[name], values)


def test_a_regression_has_the_errors_of_the_rows_really_drawn() -> None:
    outcomes = random_outcomes(2, kind="regression")
    scores = np.random.default_rng(3).normal(size=80)
    units, view = prepared(outcomes)
    draws = Draws(units.num_units, 20, seed=1)
    found = metrics_of_draws([view], scores[:, None], draws)[0]
    rows = [drawn_rows(units, counts_U)[0] for counts_U in draws]
    labels = outcomes.labels_NT[:, 0]
    assert_equal(found["rmse"], [rmse(scores[r], labels[r]) for r in rows])
    assert_equal(found["mae"], [mae(scores[r], labels[r]) for r in rows])


def test_rows_without_a_user_are_drawn_one_by_one_and_are_in_no_gauc() -> None:
    group = np.array([-1, 5, 5, -1, 5, -1])
    labels = np.array([1, 1, 0, 0, 0, 1], np.float32)
    units, view = prepared(outcomes_of(group, labels))
    assert units.num_units == 4
    assert units.unit_N.tolist() == [1, 0, 0, 2, 0, 3]
    assert view.point(np.linspace(0.1, 0.9, 6))["gauc_users"] == 1
    alone = outcomes_of(np.full(6, -1), labels)
    units, view = prepared(alone)
    assert units.unit_N.tolist() == [0, 1, 2, 3, 4, 5]
    scores = np.array([0.3, 0.9, 0.2, 0.6, 0.1, 0.5])
    found = metrics_of_draws([view], scores[:, None], Draws(6, 30, seed=0))[0]
    rows = [drawn_rows(units, counts_U)[0] for counts_U in Draws(6, 30, seed=0)]
    assert_equal(found["auc"], [auc(scores[r], labels[r]) for r in rows])
    assert np.isnan(found["gauc"]).all()


def test_a_draw_takes_as_many_users_as_there_are() -> None:
    assert [counts_U.sum() for counts_U in Draws(50, 5, seed=3)] == [50.0] * 5
    mean = np.mean(list(Draws(50, 2000, seed=3)), axis=0)
    assert abs(mean - 1).max() < 0.15  # six times the standard error, .022


def test_draws_follow_from_the_seed_whether_kept_or_drawn_again(monkeypatch) -> None:
    kept = Draws(30, 8, seed=4)
    first, second = list(kept), list(kept)
    monkeypatch.setattr(bootstrap, "KEPT_COUNTS", 0)
    again = list(Draws(30, 8, seed=4))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, list(Draws(30, 8, seed=5)))


def test_two_models_are_measured_on_the_same_draws_so_equal_scores_never_differ() -> None:
    outcomes = random_outcomes(7)
    units, view = prepared(outcomes)
    draws = Draws(units.num_units, 50, seed=2)
    scores = np.random.default_rng(8).random((80, 1))
    one, two = (metrics_of_draws([view], s, draws)[0]["auc"] for s in (scores, scores**2))
    np.testing.assert_array_equal(one, two)


def test_an_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Scores N(1, 1) and N(0, 1) of 3 positives and 3 negatives per user: AUC = Phi(1/sqrt 2)."""
    truth, covered = 0.760250, 0
    for seed in range(60):
        generator = np.random.default_rng(seed)
        labels = np.tile([1, 0], 150).astype(np.float32)
        scores = generator.normal(labels, 1.0)
        outcomes = outcomes_of(np.repeat(np.arange(50), 6), labels)
        units, view = prepared(outcomes)
        probabilities = 1 / (1 + np.exp(-scores))[:, None]
        draws = Draws(units.num_units, 200, seed)
        found = interval(metrics_of_draws([view], probabilities, draws)[0]["auc"])
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= truth <= found.high
    assert 51 <= covered <= 60  # 57 expected, standard deviation 1.7


def test_too_few_draws_with_a_value_give_no_interval() -> None:
    assert interval(np.array([np.nan] * 10 + [0.5] * 90)) == Interval(None, None)
    low, high = interval(np.append(np.linspace(0, 1, 99), np.nan))
    assert low == pytest.approx(0.025)
    assert high == pytest.approx(0.975)


@pytest.mark.parametrize(
    ("low", "high", "metric", "said"),
    [
        (0.001, 0.002, "auc", "better"),
        (-0.002, -0.001, "gauc", "worse"),
        (-0.002, 0.004, "auc", "within noise"),
        (-0.0021, 0.0041, "auc", "undecided"),
        (-0.0001, 0.0001, "log_loss", "undecided"),
        (0.0, 0.006, "gauc", "within noise"),
        (None, None, "auc", "unknown"),
    ],
)
def test_a_verdict_is_the_words_of_its_interval(low, high, metric, said) -> None:
    assert verdict(Interval(low, high), metric) == said


def test_the_interval_over_seeds_is_students() -> None:
    found = over_seeds([0.001, -0.002, 0.004])
    # Mean .001, standard deviation .003, t(2) 4.302653.
    half = 4.302653 * 0.003 / 3**0.5
    assert found == pytest.approx((0.001 - half, 0.001 + half), abs=1e-8)
    for too_few in ([0.001, -0.002], [0.001, -0.002, 0.004, None]):
        assert over_seeds(too_few) == Interval(None, None)


def test_an_interval_over_seeds_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    intervals = [over_seeds(generator.normal(0.5, 2.0, 3).tolist()) for _ in range(2000)]
    both_ends = [(low, high) for low, high in intervals if low is not None and high is not None]
    assert len(both_ends) == 2000
    covered = sum(low <= 0.5 <= high for low, high in both_ends)
    assert 1870 <= covered <= 1930  # 1900 expected, standard deviation 9.7
