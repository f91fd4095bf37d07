"""What a comparison is asked for and what it finds, as values."""

from dataclasses import dataclass

from raymtl.analysis.cells import Outcomes
from raymtl.analysis.curves import Reliability
from raymtl.analysis.gains import Difference, Measured
from raymtl.analysis.runs import Training
from raymtl.analysis.views import View


@dataclass(frozen=True)
class Options:
    """How to compare."""

    baseline: str | None = None
    """Label that gains are taken against; null means the single-task model, or the first label."""
    num_draws: int = 1000
    """Draws of the bootstrap; below 200 the ends of an interval are rough."""
    seed: int = 0
    """Of the draws."""
    ratio: float = 2.0
    """Borders of the bins: how many times the usual relative feedback; see bins.py."""


@dataclass(frozen=True)
class BinCount:
    """One bin of one pair of tasks: its users, and their rows in the log."""

    pair: tuple[int, int]
    bin: str
    users: int
    users_seen: int
    """Those of them that the training log has at all."""
    rows: int
    positives: tuple[int, int]
    """Observed positives in the compared log, of the pair's two tasks."""


@dataclass(frozen=True)
class Comparison:
    """Everything that was found, as values."""

    log: str
    train_log: str | None
    outcomes: Outcomes
    num_users: int
    options: Options
    baseline: str
    baseline_is_single_task: bool
    views: list[View]
    measured: list[Measured]
    gains: list[Difference]
    """Each other model against the baseline, all rows and each bin."""
    pairs: list[Difference]
    """Each model against each one before it, all rows."""
    bins: list[BinCount]
    training_positives: tuple[int, ...]
    reliability: list[list[Reliability | None]]
    """For each cell, for each task its curve; null for a regression."""
    training: list[Training | None]
    """For each cell what its run adds."""

    @property
    def labels(self) -> list[str]:
        """The models, in the order given."""
        return list(dict.fromkeys(m.cell.label for m in self.measured))

    def of(self, label: str) -> list[Measured]:
        """The cells of a model."""
        return [m for m in self.measured if m.cell.label == label]

    def trained(self, label: str) -> list[Training]:
        """What the runs of a model add; nothing for cells without a run."""
        both = zip(self.measured, self.training, strict=True)
        return [t for m, t in both if m.cell.label == label and t is not None]
