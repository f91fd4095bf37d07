"""Ray Tune's searchers and schedulers for a study, gone on with from its records."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.search import Searcher

from raymtl.errors import InputError
from raymtl_tuning.config import SchedulerSection, TuneConfig
from raymtl_tuning.records import Record
from raymtl_tuning.space import Point, first, grid_points, random_points

VALUE, COST, STEP, ROWS = "value", "cost", "step", "rows"
"""Keys of what a trial reports."""
NO_LIMIT = 8
"""Rungs of ASHA beyond what any trial reaches: grace times reduction to this power."""


@dataclass(frozen=True)
class Search:
    """What Ray Tune is given to find points by."""

    count: int
    """Trials that are still to be made."""
    total: int
    """Trials of the study, the ended ones included."""
    param_space: dict[str, Any]
    searcher: Searcher | None = None
    attrs: Callable[[int], dict[str, Any]] = lambda number: {}
    """What the searcher noted about a trial; goes into its record."""


def search(config: TuneConfig, records: Sequence[Record], begun: Mapping[int, Point]) -> Search:
    """The rest of a study: trials that have not ended, first those that were begun.

    A trial is handed out as {"number", "point"}.

    Args:
        begun: points of all trials that were begun, ended ones included.
    """
    if config.search.method in ("tpe", "nsga2"):
        return _adaptive(config, records, begun)
    points = (
        grid_points(config.space)
        if config.search.method == "grid"
        else first(random_points(config.space, config.seed), config.trials)
    )
    ended = {record.number for record in records}
    rest = [{"number": n, "point": p} for n, p in enumerate(points) if n not in ended]
    # `trial` is resolved by Ray Tune's own generator of variants, in this order.
    return Search(len(rest), len(points), {"trial": tune.grid_search(rest)})


def _adaptive(config: TuneConfig, records: Sequence[Record], begun: Mapping[int, Point]) -> Search:
    try:
        from raymtl_tuning.adaptive import noted, optuna_search
    except ImportError as error:
        raise InputError(
            f"search.method {config.search.method} needs Optuna",
            str(error),
            "the package optuna",
            "pip install 'raymtl[tune]', or take search.method random or grid",
        ) from None
    searcher, study = optuna_search(config, records, begun)
    count = max(0, config.trials - len(records))
    return Search(count, config.trials, {}, searcher, lambda n: noted(study, n))


def scheduler(section: SchedulerSection, mode: str) -> TrialScheduler:
    """Ray Tune's scheduler.

    Args:
        mode: `max` or `min`, of the objective.
    """
    if section.name == "none":
        return FIFOScheduler()
    unit = STEP if section.by == "steps" else ROWS
    assert section.grace is not None, "checked with the config"
    if section.name == "median":
        return MedianStoppingRule(
            time_attr=unit, metric=VALUE, mode=mode, grace_period=section.grace, hard_stop=True
        )
    return ASHAScheduler(
        time_attr=unit,
        metric=VALUE,
        mode=mode,
        grace_period=section.grace,
        max_t=section.grace * section.reduction**NO_LIMIT,
        reduction_factor=section.reduction,
    )
