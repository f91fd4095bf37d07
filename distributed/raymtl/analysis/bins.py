"""Comparable samples: a log's users by what feedback they gave in the training log.

The STEM paper splits samples "according to the relative amount of positive feedback among tasks";
its formula and thresholds could not be found. What stands here is ours. For tasks a and b, a user
with n_a and n_b positives in the training log, and N_a and N_b of all its users:

    q = N_a / (N_a + N_b)
    r = log((n_a + 2 q) / (n_b + 2 (1 - q))) - log(N_a / N_b)

so r is 0 for a user who gives a and b in the proportion of all users, and for N_a = N_b the two
pseudo-positives are the usual +1 on each side. A user is `a >> b` where r > log(ratio), `a << b`
where r < -log(ratio), else comparable; ratio 2 means twice what is usual. Users without a positive
of either task in the training log, or not in it at all, are a bin of their own: no history.
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from raymtl.analysis.cells import outcome_chunks
from raymtl.data.log import LogIndex
from raymtl.schema import LogSchema

NUM_BINS = 4
MORE_A, COMPARABLE, MORE_B, NO_HISTORY = range(NUM_BINS)


@dataclass(frozen=True)
class History:
    """What a training log says about some users, and about all."""

    positives_UT: np.ndarray
    """int64, positives of each user of interest."""
    seen_U: np.ndarray
    """bool, whether the training log has the user at all."""
    positives_T: np.ndarray
    """int64, positives of all rows."""


@dataclass(frozen=True)
class Pair:
    """Two tasks and the bin of each user."""

    a: int
    b: int
    bin_U: np.ndarray
    """int8"""

    def names(self, tasks: tuple[str, ...]) -> tuple[str, ...]:
        """The bins' names, in their order."""
        a, b = tasks[self.a], tasks[self.b]
        return f"{a} >> {b}", "comparable", f"{a} << {b}", "no history"


def read_history(index: LogIndex, schema: LogSchema, users_U: np.ndarray) -> History:
    """Counts positives of a training log, one row group at a time.

    Args:
        users_U: the users of interest, sorted; memory follows their number, not the log's.
    """
    num_tasks = len(schema.tasks)
    positives_UT = np.zeros((len(users_U), num_tasks), np.int64)
    seen_U, positives_T = np.zeros(len(users_U), bool), np.zeros(num_tasks, np.int64)
    for part in outcome_chunks(index, schema):
        positive_nT = (part["labels"] > 0.5) & (part["weights"] > 0)[:, None]
        positives_T += positive_nT.sum(axis=0)
        if not len(users_U):
            continue
        at = np.minimum(np.searchsorted(users_U, part["group"]), len(users_U) - 1)
        known = users_U[at] == part["group"]
        np.add.at(positives_UT, at[known], positive_nT[known])
        seen_U[at[known]] = True
    return History(positives_UT, seen_U, positives_T)


def pairs_of(history: History, kinds: tuple[str, ...], ratio: float) -> list[Pair]:
    """Every pair of binary tasks that both have positives, with its bins."""
    usable = [t for t, k in enumerate(kinds) if k == "binary" and history.positives_T[t]]
    return [Pair(a, b, _bins(history, a, b, ratio)) for a, b in combinations(usable, 2)]


def relative_feedback(a_U: np.ndarray, b_U: np.ndarray, all_a: int, all_b: int) -> np.ndarray:
    """The r of the module's docstring, float64 (U,)."""
    q = all_a / (all_a + all_b)
    return np.log((a_U + 2 * q) / (b_U + 2 * (1 - q))) - np.log(all_a / all_b)


def _bins(history: History, a: int, b: int, ratio: float) -> np.ndarray:
    a_U, b_U = history.positives_UT[:, a], history.positives_UT[:, b]
    r_U = relative_feedback(a_U, b_U, int(history.positives_T[a]), int(history.positives_T[b]))
    border = np.log(ratio)
    bin_U = np.select([r_U > border, r_U < -border], [MORE_A, MORE_B], COMPARABLE)
    return np.where(a_U + b_U == 0, NO_HISTORY, bin_U).astype(np.int8)
