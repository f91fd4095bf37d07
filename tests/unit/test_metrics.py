"""Metrics against scikit-learn, a slow reference per user, and answers known beforehand."""

import dataclasses
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sklearn

from helpers.batches import labelled
from helpers.metric_ranks import KINDS, TASKS, fed, rows_of, scored_log
from raymtl.errors import NonFinite
from raymtl.histograms import binned_auc, bins
from raymtl.metrics import TaskMetrics, TrainingHistograms, hash_groups
from raymtl.scores import auc, calibration, gauc, log_loss, mae, rmse


def slow_gauc(scores, labels, groups, weights) -> tuple[float | None, int, float]:
    """One user after another, by scikit-learn."""
    total, users, impressions = 0.0, 0, 0.0
    for user in np.unique(groups):
        own = (groups == user) & (weights > 0)
        if len(np.unique(labels[own])) == 2:
            area = sklearn.roc_auc_score(labels[own], scores[own], sample_weight=weights[own])
            total += float(area) * weights[own].sum()
            users, impressions = users + 1, impressions + weights[own].sum()
    return (total / impressions if users else None), users, impressions


@st.composite
def scored_rows(draw):
    """Scores with many ties, labels, users, weights (some 0)."""
    size = draw(st.integers(1, 60))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scores = generator.integers(0, draw(st.integers(1, 20)), size).astype(np.float32)
    labels = generator.integers(0, 2, size)
    groups = generator.integers(-3, draw(st.integers(-2, 20)), size)
    return scores, labels, groups, generator.integers(0, 4, size) / 2


@given(scored_rows())
def test_auc_is_that_of_scikit_learn_with_ties_and_weights(rows) -> None:
    scores, labels, _, weights = rows
    seen = weights > 0
    if len(np.unique(labels[seen])) < 2:
        assert auc(scores, labels, weights) is None
        return
    expected = sklearn.roc_auc_score(labels[seen], scores[seen], sample_weight=weights[seen])
    assert auc(scores, labels, weights) == pytest.approx(expected, abs=1e-12)


@given(scored_rows())
def test_gauc_is_that_of_one_user_after_another(rows) -> None:
    scores, labels, groups, weights = rows
    expected, users, impressions = slow_gauc(scores, labels, groups, weights)
    found = gauc(scores, labels, groups, weights)
    assert (found.num_users, found.impressions) == (users, pytest.approx(impressions))
    assert found.value == (None if expected is None else pytest.approx(expected, abs=1e-12))


def test_gauc_weighs_users_by_impressions_and_leaves_out_users_of_one_class() -> None:
    scores = np.array([0.1, 0.9, 0.8, 0.2, 0.2, 0.3, 0.5, 0.6])
    labels = np.array([0, 1, 0, 1, 1, 1, 0, 1])
    users = np.array([5, 5, 7, 7, 7, 8, 8, 9])
    # User 5 is right (1.0, 2 rows), 7 wrong (0.0, 3 rows), 8 wrong (0.0, 2 rows), 9 has one class.
    assert gauc(scores, labels, users) == (pytest.approx(2 / 7), 3, 7.0)


def test_a_million_rows_of_twenty_thousand_users_take_less_than_two_seconds() -> None:
    generator = np.random.default_rng(1)
    scores = generator.random(1_000_000).astype(np.float32)
    labels = generator.random(1_000_000) < scores
    users = generator.integers(0, 20_000, 1_000_000)
    started = time.process_time()
    found = gauc(scores, labels, users)
    assert time.process_time() - started < 2
    assert found.num_users == 20_000
    assert found.value == pytest.approx(5 / 6, abs=0.005)


def test_log_loss_calibration_and_errors_are_those_of_scikit_learn() -> None:
    generator = np.random.default_rng(2)
    predicted, weights = generator.random(500), generator.random(500)
    labels = (generator.random(500) < predicted).astype(float)
    assert log_loss(predicted, labels, weights) == pytest.approx(
        sklearn.log_loss(labels, predicted, sample_weight=weights)
    )
    square = sklearn.mean_squared_error(labels, predicted, sample_weight=weights)
    assert rmse(predicted, labels, weights) == pytest.approx(square**0.5)
    absolute = sklearn.mean_absolute_error(labels, predicted, sample_weight=weights)
    assert mae(predicted, labels, weights) == pytest.approx(absolute)
    assert calibration(predicted, labels) == pytest.approx(predicted.sum() / labels.sum())


def test_log_loss_clips_a_certain_mistake_to_one_in_ten_million() -> None:
    assert log_loss(np.array([0.0]), np.array([1.0])) == pytest.approx(np.log(1e7))


def test_what_does_not_exist_is_none() -> None:
    empty, zeros = np.zeros(0), np.zeros(3)
    groups = np.zeros(0, np.int64)
    assert [m(empty, empty) for m in (auc, log_loss, calibration, rmse, mae)] == [None] * 5
    assert gauc(empty, empty, groups) == (None, 0, 0.0)
    assert auc(np.arange(3.0), zeros) is None
    assert calibration(np.arange(3.0), zeros) is None


def test_scores_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        auc(np.array([0.1, np.nan]), np.array([0, 1]))


def observed_rows(task: int, weighted: bool) -> tuple[np.ndarray, ...]:
    """Scores, labels, users and weights of a task of the scored log."""
    predicted, batch = scored_log(weighted=weighted)
    seen = batch.weight_BT[:, task].numpy() > 0
    columns = (predicted[:, task], batch.labels_BT[:, task], batch.group_B)
    arrays = (*(c.numpy()[seen] for c in columns), batch.weight_BT[:, task].numpy()[seen])
    return arrays


@pytest.mark.parametrize("weighted", [False, True])
def test_task_metrics_equal_the_functions_on_each_tasks_observed_rows(weighted: bool) -> None:
    metrics = TaskMetrics(TASKS, KINDS, exact_rows=10_000, num_bins=256)
    fed(metrics, 0, 1, weighted)
    found = metrics.compute()
    for task, name in enumerate(TASKS[:3]):
        scores, labels, users, weights = observed_rows(task, weighted)
        known = users >= 0
        expected, num_users, impressions = slow_gauc(
            scores[known], labels[known], users[known], weights[known]
        )
        assert found[f"{name}/auc"] == auc(scores, labels, weights)
        assert found[f"{name}/gauc"] == (None if expected is None else pytest.approx(expected))
        assert found[f"{name}/gauc_users"] == num_users
        assert found[f"{name}/gauc_impressions"] == impressions
        loss = log_loss(scores, labels, weights)
        assert found[f"{name}/log_loss"] == pytest.approx(loss, rel=1e-9)
        ratio = calibration(scores, labels, weights)
        assert found[f"{name}/calibration"] == (ratio and pytest.approx(ratio, rel=1e-9))
        assert found[f"{name}/rows"] == len(labels)
        assert found[f"{name}/positives"] == labels.sum()


def test_a_regression_has_errors_and_no_ranking() -> None:
    metrics = TaskMetrics(TASKS, KINDS, exact_rows=10_000, num_bins=256)
    fed(metrics, 0, 1, weighted=True)
    found = metrics.compute()
    predicted, labels, _, weights = observed_rows(3, weighted=True)
    assert found["watch/rmse"] == pytest.approx(rmse(predicted, labels, weights), rel=1e-7)
    assert found["watch/mae"] == pytest.approx(mae(predicted, labels, weights), rel=1e-7)
    assert {k for k in found if k.startswith("watch/")} == {"watch/rmse", "watch/mae", "watch/rows"}


def test_means_are_over_the_tasks_that_have_a_value() -> None:
    metrics = TaskMetrics(TASKS, KINDS, exact_rows=10_000, num_bins=256)
    fed(metrics, 0, 1, weighted=False)
    found = metrics.compute()
    click, like = found["click/auc"], found["like/auc"]
    assert click is not None and like is not None and found["never/auc"] is None
    assert (found["auc"], found["auc_tasks"]) == ((click + like) / 2, 2)
    assert found["log_loss_tasks"] == 3


def test_a_pass_without_rows_has_no_values() -> None:
    found = TaskMetrics(TASKS, KINDS, exact_rows=10, num_bins=8).compute()
    assert {v for v in found.values() if v not in (0, 0.0)} == {None}


def test_a_pass_over_a_log_without_users_has_no_gauc() -> None:
    predicted, batch = scored_log()
    metrics = TaskMetrics(TASKS, KINDS, exact_rows=100, num_bins=8)
    metrics.update(predicted, dataclasses.replace(batch, group_B=torch.full((len(batch),), -1)))
    found = metrics.compute()
    assert (found["click/gauc"], found["gauc"], metrics.num_held) == (None, None, 0)


def test_above_exact_rows_auc_is_off_by_at_most_its_bound_and_memory_stays(caplog) -> None:
    metrics = TaskMetrics(TASKS, KINDS, exact_rows=1000, num_bins=256)
    fed(metrics, 0, 1, weighted=False)
    assert metrics.num_held <= 1000
    found = metrics.compute()
    scores, labels, users, _ = observed_rows(0, weighted=False)
    exact, binned, bound = auc(scores, labels), found["click/auc"], found["click/auc_error"]
    assert exact is not None and binned is not None and bound is not None
    assert abs(binned - exact) <= bound < 0.01
    assert "AUC comes from histograms" in caplog.text
    share = found["gauc_user_share"]
    assert share in (0.25, 0.125)
    kept = (users >= 0) & (hash_groups(users) < np.uint64(int(2**64 * float(share))))
    assert found["click/gauc"] == pytest.approx(gauc(scores[kept], labels[kept], users[kept]).value)


@given(scored_rows(), st.integers(1, 64))
def test_the_binned_auc_is_within_its_bound_of_the_exact_one(rows, num_bins: int) -> None:
    scores, labels, _, weights = rows
    scores = (scores + 0.5) / 21
    cells = bins(scores.astype(np.float64), num_bins) + num_bins * labels
    histogram = np.bincount(cells, weights, minlength=2 * num_bins).reshape(2, num_bins)
    (binned, bound), exact = binned_auc(histogram), auc(scores, labels, weights)
    if exact is None:
        assert binned is None
    else:
        assert binned is not None and bound is not None
        assert abs(binned - exact) <= bound + 1e-12


def test_bins_rise_with_the_score_and_take_zero_and_one() -> None:
    cells = bins(np.array([0.0, 1e-9, 1e-4, 0.2, 0.5, 0.8, 1.0]), 100)
    assert (np.diff(cells) >= 0).all()
    assert (cells[0], cells[4], cells[-1]) == (0, 50, 99)


@given(st.integers(0, 3000), st.integers(0, 2**32 - 1))
def test_a_window_stopped_anywhere_and_taken_up_in_any_order_is_the_same_bit_for_bit(
    cut: int, seed: int
) -> None:
    predicted, batch = scored_log(weighted=True)
    whole = TrainingHistograms(TASKS, KINDS, num_bins=16)
    whole.update(predicted, batch)
    order = np.random.default_rng(seed).permutation(len(batch))
    shuffled = {
        k: v[order] for k, v in vars(batch).items() if isinstance(v, torch.Tensor | np.ndarray)
    }
    batch, predicted = dataclasses.replace(batch, **shuffled), predicted[order]
    first, second = (TrainingHistograms(TASKS, KINDS, num_bins=16) for _ in range(2))
    first.update(*rows_of(predicted, batch, slice(0, cut)))
    second.load_state(first.state())
    second.update(*rows_of(predicted, batch, slice(cut, None)))
    for name, tensor in whole.state().items():
        assert torch.equal(tensor, second.state()[name]), name


def test_a_reset_window_has_forgotten_all() -> None:
    window = TrainingHistograms(TASKS, KINDS, num_bins=16)
    fed(window, 0, 1, weighted=True)
    window.reset()
    assert all(not tensor.any() for tensor in window.state().values())


def test_a_prediction_that_is_not_finite_is_named_by_its_task() -> None:
    window = TrainingHistograms(("click",), ("binary",), num_bins=16)
    window.update(torch.tensor([[float("nan")], [0.5]]), labelled(torch.tensor([[1.0], [0.0]])))
    with pytest.raises(NonFinite, match="'click': 1"):
        window.compute()


def test_padding_may_hold_anything() -> None:
    window = TrainingHistograms(("click",), ("binary",), num_bins=16)
    batch = labelled(torch.tensor([[1.0], [0.0]]), weight_B=torch.tensor([1.0, 0.0]))
    window.update(torch.tensor([[0.5], [float("nan")]]), batch)
    assert window.compute()["click/rows"] == 1
