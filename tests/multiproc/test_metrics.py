"""Metrics do not depend on the number of ranks."""

import numpy as np
import pytest

from helpers import metric_ranks
from helpers.procs import run_ranks


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("exact_rows", [10_000, 1000], ids=["exact", "histograms"])
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_metrics_of_many_ranks_are_those_of_one(
    num_ranks: int, exact_rows: int, weighted: bool
) -> None:
    alone = metric_ranks.computed_on_a_rank(exact_rows, weighted)
    on_ranks = run_ranks(metric_ranks.computed_on_a_rank, num_ranks, exact_rows, weighted)
    assert all(metrics == on_ranks[0] for metrics in on_ranks)
    assert on_ranks[0].keys() == alone.keys()
    for key, value in alone.items():
        assert on_ranks[0][key] == (value if value is None else pytest.approx(value, rel=1e-12))


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_a_training_window_is_the_same_bit_for_bit_on_any_number_of_ranks(num_ranks: int) -> None:
    metrics, state = metric_ranks.training_window_on_a_rank()
    for their_metrics, their_state in run_ranks(metric_ranks.training_window_on_a_rank, num_ranks):
        assert their_metrics == metrics
        assert all(np.array_equal(their_state[name], state[name]) for name in state)


def test_one_ranks_prediction_that_is_not_finite_ends_all_ranks_with_one_message() -> None:
    messages = run_ranks(metric_ranks.not_finite_on_the_last_rank, 2)
    assert messages == ["predictions are not finite, rows per task: {'click': 1}"] * 2
