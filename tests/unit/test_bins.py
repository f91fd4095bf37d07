"""Comparable samples: counts from a training log, the formula by hand, who lands in which bin."""

import math
from pathlib import Path

import numpy as np
import pytest

from helpers.comparison import schema_of, write_log
from raymtl.analysis.bins import (
    COMPARABLE,
    MORE_A,
    MORE_B,
    NO_HISTORY,
    History,
    pairs_of,
    read_history,
    relative_feedback,
)
from raymtl.analysis.cells import Outcomes
from raymtl.analysis.views import Units, views_of
from raymtl.data.log import read_index


def test_with_equal_totals_the_formula_is_the_ratio_of_counts_plus_one() -> None:
    found = relative_feedback(np.array([3, 0, 5]), np.array([1, 0, 5]), 100, 100)
    assert found.tolist() == pytest.approx([math.log(4 / 2), 0.0, 0.0])


def test_the_usual_proportion_of_all_users_is_the_middle() -> None:
    """90 clicks and 10 likes in all: q = .9, so 9 and 1 add pseudo-positives 1.8 and .2."""
    a, b = np.array([9, 9, 0, 0]), np.array([1, 0, 1, 0])
    wanted = [0.0, math.log(10.8 / 0.2 / 9), math.log(1.8 / 1.2 / 9), 0.0]
    assert relative_feedback(a, b, 90, 10).tolist() == pytest.approx(wanted)


def test_swapping_the_tasks_changes_the_sign() -> None:
    a, b = np.array([4, 0, 2]), np.array([1, 3, 0])
    one, other = relative_feedback(a, b, 60, 20), relative_feedback(b, a, 20, 60)
    assert one.tolist() == pytest.approx((-other).tolist())


def test_users_land_in_the_bins_a_hand_finds() -> None:
    """N = 10 and 10: r = log((a + 1) / (b + 1)); the borders are log 2, excluded."""
    positives_UT = np.array([[4, 1], [1, 0], [2, 2], [0, 2], [0, 0], [0, 1]])
    history = History(positives_UT, np.ones(6, bool), np.array([10, 10]))
    (pair,) = pairs_of(history, ("binary", "binary"), ratio=2.0)
    wanted = [MORE_A, COMPARABLE, COMPARABLE, MORE_B, NO_HISTORY, COMPARABLE]
    assert pair.bin_U.tolist() == wanted
    assert pair.names(("click", "like")) == (
        "click >> like",
        "comparable",
        "click << like",
        "no history",
    )


def test_regressions_and_tasks_without_a_positive_make_no_pair() -> None:
    history = History(np.ones((1, 4), int), np.ones(1, bool), np.array([3, 0, 3, 3]))
    pairs = pairs_of(history, ("binary", "binary", "regression", "binary"), 2.0)
    assert [(p.a, p.b) for p in pairs] == [(0, 3)]


def test_positives_are_counted_over_files_and_row_groups_and_unobserved_ones_are_not(
    tmp_path: Path,
) -> None:
    users = [3, 3, 5, None, 8, 3, 5, 8, 3, 3]
    click = [1, None, 0, 1, 1, 1, 0, 0, 1, 0]
    like = [0, 1, 1, 1, None, 0, 0, 1, 0, 0]
    log = write_log(tmp_path, {"user": users, "click": click, "like": like}, rows_per_file=4)
    history = read_history(read_index(log), schema_of(), np.array([3, 4, 8]))
    assert history.positives_UT.tolist() == [[3, 1], [0, 0], [1, 1]]
    assert history.seen_U.tolist() == [True, False, True]
    assert history.positives_T.tolist() == [5, 4]


def test_each_row_of_a_pairs_tasks_is_in_exactly_one_bin() -> None:
    group = np.array([1, 1, 2, 3, -1, 4])
    outcomes = Outcomes(
        ("click", "like"), ("binary", "binary"), group, np.zeros((6, 2)), np.ones((6, 2))
    )
    units = Units.of(group)
    positives = np.array([[5, 0], [0, 5], [1, 1], [0, 0]])
    history = History(positives, np.array([True, True, True, False]), np.array([6, 6]))
    views = views_of(outcomes, units, pairs_of(history, outcomes.kinds, 2.0))
    rows = {(v.task, v.bin): v.row_n.tolist() for v in views}
    assert rows[0, "all"] == [0, 1, 2, 3, 4, 5]
    assert rows[1, "click >> like"] == [0, 1]
    assert rows[1, "click << like"] == [2]
    assert rows[0, "comparable"] == [3]
    assert rows[0, "no history"] == [4, 5]
