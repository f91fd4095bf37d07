"""TaskMetrics: metrics of a log over all ranks' rows.

The functions they rest on stand in scores.py, the fixed-size ones of training in histograms.py.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raymtl import collectives
from raymtl.batch import Batch
from raymtl.histograms import Metrics, TrainingHistograms, with_means
from raymtl.scores import Gauc, auc, calibration, gauc, log_loss, mae, ratio, rmse

__all__ = [
    "Gauc",
    "Metrics",
    "TaskMetrics",
    "TrainingHistograms",
    "auc",
    "calibration",
    "gauc",
    "log_loss",
    "mae",
    "rmse",
]

NO_GROUP = -1
"""Group of a row that has no user; GAUC leaves it out."""

logger = logging.getLogger(__name__)


@dataclass
class _Rows:
    """Scored rows as arrays."""

    group_B: np.ndarray
    """int64"""
    score_BT: np.ndarray
    """float32"""
    signed_BT: np.ndarray
    """float32, weight of a positive, minus the weight of a negative, 0 where unobserved."""

    def where(self, kept_B: np.ndarray) -> "_Rows":
        return _Rows(self.group_B[kept_B], self.score_BT[kept_B], self.signed_BT[kept_B])

    def observed(self, task: int) -> "_Rows":
        """The task's observed rows, its columns only."""
        found = self.where(self.signed_BT[:, task] != 0)
        return _Rows(found.group_B, found.score_BT[:, task], found.signed_BT[:, task])


class TaskMetrics:
    """Metrics of one pass over a log; each rank adds its rows, `compute` joins them.

    AUC is exact up to `exact_rows` rows over all ranks, and from histograms above. GAUC is always
    exact for the users it covers: above `exact_rows` rows a share of all users, picked by hash.

    Args:
        kinds: `binary` or `regression` per task.
        exact_rows: also the most rows a rank holds, 8 + 8 T bytes each.
        num_bins: bins of the histograms.
    """

    def __init__(
        self, task_names: Sequence[str], kinds: Sequence[str], exact_rows: int, num_bins: int
    ):
        self.histograms = TrainingHistograms(task_names, kinds, num_bins)
        self.is_binary_T = np.array([kind == "binary" for kind in kinds])
        self.exact_rows = exact_rows
        self.num_rows = self.num_held = self.halvings = 0
        """Rows seen; rows held; how often the users held were halved."""
        self.held: list[_Rows] = []

    def update(self, probs_BT: Tensor, batch: Batch) -> None:
        """Adds a batch; rows of weight 0 count nowhere. `probs_BT` are predictions, (B, T)."""
        self.histograms.update(probs_BT, batch)
        sign_BT = np.where(batch.labels_BT.cpu().numpy() > 0.5, np.float32(1), np.float32(-1))
        rows = _Rows(
            batch.group_B.cpu().numpy(),
            probs_BT.detach().cpu().float().numpy(),
            batch.weight_BT.cpu().numpy() * sign_BT * self.is_binary_T,
        ).where(batch.weight_B.cpu().numpy() > 0)
        self.num_rows += len(rows.group_B)
        self._hold(_sampled(rows, self.halvings))
        while self.num_held > self.exact_rows:
            self._halve(self.halvings + 1)

    def _hold(self, rows: _Rows) -> None:
        self.held.append(rows)
        self.num_held += len(rows.group_B)

    def _halve(self, halvings: int) -> None:
        self.halvings = halvings
        self.held = [_sampled(rows, halvings) for rows in self.held]
        self.num_held = sum(len(rows.group_B) for rows in self.held)

    def compute(self, device: torch.device | None = None) -> Metrics:
        """Collective. Metrics over all ranks' rows; equal on every rank.

        Returns:
            Per binary task `NAME/auc`, `gauc`, `gauc_users`, `gauc_impressions`, `log_loss`,
            `calibration`, `rows`, `positives`; per regression task `NAME/rmse`, `mae`, `rows`;
            means over tasks as `with_means`. Above `exact_rows` rows also `NAME/auc_error`, the
            most the AUC can be off, and `gauc_user_share`.

        Raises:
            NonFinite: on all ranks alike, when any rank met a prediction that is not finite.
        """
        metrics = self.histograms.merged(device).values()
        seen = sum(_of_all_ranks(self.num_rows, device))
        halvings = max(_of_all_ranks(self.halvings, device))
        if seen <= self.exact_rows:
            rows = self._joined()
            metrics = {k: v for k, v in metrics.items() if not k.endswith("/auc_error")}
            metrics |= self._exact_auc(rows, device)
        else:
            self._halve(max(halvings, math.ceil(math.log2(seen / self.exact_rows))))
            rows = self._joined()
            metrics["gauc_user_share"] = 0.5**self.halvings
            self._tell_errors(metrics, seen)
        return with_means(metrics | self._gauc(rows, device))

    def _joined(self) -> _Rows:
        """The rows held, as one."""
        num_tasks = len(self.is_binary_T)
        nothing = np.zeros((0, num_tasks), np.float32)
        held = [_Rows(np.zeros(0, np.int64), nothing, nothing), *self.held]
        return _Rows(
            np.concatenate([rows.group_B for rows in held]),
            np.concatenate([rows.score_BT for rows in held]),
            np.concatenate([rows.signed_BT for rows in held]),
        )

    def _binary_tasks(self) -> list[tuple[int, str]]:
        names = enumerate(self.histograms.task_names)
        return [(task, name) for task, name in names if self.is_binary_T[task]]

    def _exact_auc(self, rows: _Rows, device: torch.device | None) -> Metrics:
        """Collective. Task t's rows go to rank t mod W, which sorts them."""
        found = np.zeros((len(self.is_binary_T), 2))
        for task, _ in self._binary_tasks():
            owner = task % collectives.world_size()
            mine = rows.observed(task)
            there = _routed(mine, np.full(len(mine.group_B), owner), device)
            value = auc(there.score_BT, there.signed_BT > 0, np.abs(there.signed_BT))
            found[task] = (0, 0) if value is None else (value, 1)
        area, exists = _summed(found, device).T
        return {
            f"{name}/auc": float(area[task]) if exists[task] else None
            for task, name in self._binary_tasks()
        }

    def _gauc(self, rows: _Rows, device: torch.device | None) -> Metrics:
        """Collective. A user's rows go to the rank its hash names."""
        rows = rows.where(rows.group_B != NO_GROUP)
        owner = hash_groups(rows.group_B) % np.uint64(collectives.world_size())
        rows = _routed(rows, owner.astype(np.int64), device)
        found = np.zeros((len(self.is_binary_T), 3))
        for task, _ in self._binary_tasks():
            mine = rows.observed(task)
            weight = np.abs(mine.signed_BT)
            part = gauc(mine.score_BT, mine.signed_BT > 0, mine.group_B, weight)
            found[task] = (part.value or 0.0) * part.impressions, *part[1:]
        total, users, impressions = _summed(found, device).T
        metrics: Metrics = {}
        for task, name in self._binary_tasks():
            metrics[f"{name}/gauc"] = ratio(total[task], impressions[task])
            metrics[f"{name}/gauc_users"] = int(users[task])
            metrics[f"{name}/gauc_impressions"] = float(impressions[task])
        return metrics

    def _tell_errors(self, metrics: Metrics, num_rows: int) -> None:
        if collectives.rank() == 0:
            errors = {k: v for k, v in metrics.items() if k.endswith("/auc_error")}
            logger.warning(
                "%d rows are more than metrics.exact_rows = %d: AUC comes from histograms and is "
                "off by at most %s; GAUC covers 1 / %d of the users",
                *(num_rows, self.exact_rows, errors, 2**self.halvings),
            )


def hash_groups(group_B: np.ndarray) -> np.ndarray:
    """uint64 hash of int64 groups: splitmix64 (Steele, Lea, Flood 2014)."""
    x = group_B.astype(np.int64).view(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _sampled(rows: _Rows, halvings: int) -> _Rows:
    """The rows of a 2^-halvings share of the users."""
    if halvings == 0:
        return rows
    chosen_B = hash_groups(rows.group_B) < np.uint64(2**64 >> halvings)
    return rows.where(chosen_B & (rows.group_B != NO_GROUP))


def _of_all_ranks(number: int, device: torch.device | None) -> list[int]:
    """Collective. Every rank's number, in rank order."""
    return collectives.exchange_sizes([number] * collectives.world_size(), device=device)[0]


def _summed(numbers: np.ndarray, device: torch.device | None) -> np.ndarray:
    """Collective. Sum over ranks."""
    return collectives.sum_(torch.from_numpy(numbers).to(device)).cpu().numpy()


def _routed(rows: _Rows, rank_B: np.ndarray, device: torch.device | None) -> _Rows:
    """Collective. Sends each row to a rank; returns what came, in rank order."""
    num_ranks = collectives.world_size()
    if num_ranks == 1:
        return rows
    order = np.argsort(rank_B, kind="stable")
    sizes = np.bincount(rank_B, minlength=num_ranks).tolist()
    [receive] = collectives.exchange_sizes(sizes, device=device)
    parts = (rows.group_B, rows.score_BT, rows.signed_BT)
    sent = (torch.from_numpy(part[order]).to(device) for part in parts)
    return _Rows(*(collectives.exchange(part, sizes, receive).cpu().numpy() for part in sent))
