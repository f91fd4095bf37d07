"""The pool of rank processes itself."""

import time

import pytest

from helpers import table_training as tt
from helpers.procs import RanksFailed, run_ranks


def test_every_rank_answers_in_rank_order_and_the_pool_is_reused() -> None:
    assert run_ranks(tt.rank_and_sum, 3, 10) == [(0, 33), (1, 33), (2, 33)]
    assert run_ranks(tt.rank_and_sum, 2, 5) == [(0, 11), (1, 11)]


def test_the_traceback_of_the_rank_that_failed_is_shown_and_the_pool_recovers() -> None:
    with pytest.raises(RanksFailed, match="rank 1 has no bread") as caught:
        run_ranks(tt.fail_on_rank_1, 2)
    assert "in fail_on_rank_1" in str(caught.value)
    assert run_ranks(tt.rank_and_sum, 2, 0) == [(0, 1), (1, 1)]


def test_a_hanging_rank_is_ended_in_time_and_shown_where_it_was() -> None:
    run_ranks(tt.rank_and_sum, 2, 0)
    before = time.monotonic()
    with pytest.raises(RanksFailed, match="rank 0 of 2:\ndid not end in time") as caught:
        run_ranks(tt.hang_on_rank_0, 2, timeout_s=2)
    assert "in hang_on_rank_0" in str(caught.value)
    assert time.monotonic() - before < 20
