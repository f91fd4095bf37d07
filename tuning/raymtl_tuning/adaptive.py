"""Optuna under Ray Tune's own searcher: a study rebuilt from records, and samplers that repeat."""

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, NSGAIISampler, TPESampler
from optuna.storages import InMemoryStorage
from optuna.study import Study
from optuna.trial import FixedTrial, FrozenTrial, TrialState, create_trial
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from raymtl_tuning.config import SearchSection, TuneConfig
from raymtl_tuning.records import Record
from raymtl_tuning.search import COST, VALUE
from raymtl_tuning.space import Point, Space, first, in_optuna, name_of, random_points, suggested

STUDY = "tuning"
FEWER_DRAWS = (*range(23, 1, -1), *[1] * 50)
"""Of TPE, one after the other, until they give a point that was not tried."""
ENQUEUED = "fixed_params"
"""Where Optuna notes the point of a trial that was begun before."""


def optuna_search(
    config: TuneConfig, records: Sequence[Record] = (), begun: Mapping[int, Point] | None = None
) -> tuple[Searcher, Study]:
    """Ray Tune's searcher on an Optuna study that knows the ended trials, and that study.

    Trials that were begun and have not ended are handed out again, under their numbers.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = InMemoryStorage()
    objective = config.objective
    maximised = [objective.maximised]
    if objective.cost is not None:
        maximised.append(objective.cost_maximised)
    study = optuna.create_study(
        storage=storage,
        study_name=STUDY,
        directions=["maximize" if more else "minimize" for more in maximised],
    )
    _tell(study, config.space, _startup(config), records, begun or {})
    modes = ["max" if more else "min" for more in maximised]
    two = len(modes) > 1
    searcher = OptunaSearch(
        space=Points(config.space),
        metric=[VALUE, COST] if two else VALUE,
        mode=modes if two else modes[0],
        sampler=Repeatable(config.search, config.space, config.seed),
        storage=storage,
        study_name=STUDY,
    )
    return searcher, study


def noted(study: Study, number: int) -> dict[str, Any]:
    """What the sampler noted about a trial (its generation, say), as JSON holds it."""
    attrs = study.trials[number].system_attrs
    return {key: value for key, value in attrs.items() if key != ENQUEUED}


class Points:
    """A trial's number and point by Optuna's suggestions; Ray Tune calls it."""

    def __init__(self, space: Space):
        self._space = space

    def __call__(self, trial: Any) -> dict[str, Any]:
        """Asks for one value of each key that is searched there."""
        return {"number": trial.number, "point": suggested(self._space, trial)}


def _startup(config: TuneConfig) -> list[Point]:
    """The points before TPE learns: those that random search would begin with, all different."""
    if config.search.method != "tpe":
        return []
    return first(random_points(config.space, config.seed), config.search.startup)


def _tell(
    study: Study,
    space: Space,
    startup: Sequence[Point],
    records: Sequence[Record],
    begun: Mapping[int, Point],
) -> None:
    """Adds trials in the order of their numbers, so that Optuna counts them alike."""
    ended = {record.number: record for record in records}
    given = dict(enumerate(startup)) | dict(begun)
    for number in range(max([*ended, *given], default=-1) + 1):
        if number in ended:
            study.add_trial(_as_optuna(study, space, ended[number]))
        else:
            study.enqueue_trial(in_optuna(space, given.get(number, {})))


def _as_optuna(study: Study, space: Space, record: Record) -> FrozenTrial:
    asked = FixedTrial(in_optuna(space, record.point))
    suggested(space, asked)
    wanted = [record.value, record.cost][: len(study.directions)]
    values = [value for value in wanted if value is not None]
    whole = len(values) == len(wanted)
    return create_trial(
        state=TrialState.COMPLETE if whole else TrialState.FAIL,
        values=values if whole else None,
        params=asked.params,
        distributions=asked.distributions,
        system_attrs=record.attrs,
    )


class Repeatable(BaseSampler):
    """A sampler whose n-th suggestion follows from the study's seed, n and the trials before it.

    So a study that was killed goes on as it would have; Optuna's own samplers begin their random
    numbers anew with each process.
    """

    def __init__(self, section: SearchSection, space: Space, seed: int):
        self._section, self._space, self._seed = section, space, seed
        self._now = sampler(section, seed)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Takes a new sampler with the trial's own seed."""
        self._now = sampler(self._section, self._seed_of(trial))
        self._now.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, Any]:
        """As the sampler in use."""
        return self._now.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, Any]
    ) -> dict[str, Any]:
        """As the sampler in use, but not a point again: its training would come out the same.

        TPE takes the best of many draws, which in a small space is the same one whenever it is
        asked; where that was tried, it takes the best of fewer.
        """
        params = self._now.sample_relative(study, trial, search_space)
        if self._section.method != "tpe":
            return params
        others = (t.params for t in study.get_trials(deepcopy=False) if t.number != trial.number)
        tried = {self._point(other) for other in others} - {None}
        for number, num_draws in enumerate(FEWER_DRAWS, start=1):
            if self._point(params) not in tried:
                break
            seed = (self._seed_of(trial) + number) % 2**32
            again = sampler(self._section, seed, num_draws)
            again.infer_relative_search_space(study, trial)
            params = again.sample_relative(study, trial, search_space)
        return params

    def _seed_of(self, trial: FrozenTrial) -> int:
        text = f"{self._seed} {trial.number}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "little")

    def _point(self, params: dict[str, Any]) -> str | None:
        """The point's name, keys left out that are not searched there; null of a part of one."""
        try:
            return name_of(suggested(self._space, FixedTrial(params)))
        except ValueError:
            return None

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: Any
    ) -> Any:
        """As the sampler in use."""
        return self._now.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """As the sampler in use."""
        self._now.after_trial(study, trial, state, values)


def sampler(section: SearchSection, seed: int, num_draws: int = 24) -> BaseSampler:
    """Optuna's sampler of a method, its random numbers from a seed.

    Args:
        num_draws: of which TPE takes the best; the default is Optuna's.
    """
    if section.method == "nsga2":
        return NSGAIISampler(population_size=max(2, section.startup), seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # of `multivariate` and `group`
        return TPESampler(
            n_startup_trials=section.startup,
            multivariate=True,  # keys together, not one by one
            group=True,  # with conditional keys too
            # A running trial counts as a bad one, so that trials side by side are not all alike.
            constant_liar=True,
            n_ei_candidates=num_draws,
            seed=seed,
        )
