"""Optuna under Ray Tune's own searcher: a study rebuilt from records, and samplers that repeat."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.samplers import BaseSampler, NSGAIISampler, TPESampler
from optuna.storages import InMemoryStorage
from optuna.study import Study
from optuna.trial import FixedTrial, FrozenTrial, TrialState, create_trial
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from raymtl_tuning.config import SearchSection, TuneConfig
from raymtl_tuning.records import Record
from raymtl_tuning.search import COST, VALUE
from raymtl_tuning.space import Point, Space, in_optuna, suggested

STUDY = "tuning"
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
    _tell(study, config.space, records, begun or {})
    modes = ["max" if more else "min" for more in maximised]
    two = len(modes) > 1
    searcher = OptunaSearch(
        space=Points(config.space),
        metric=[VALUE, COST] if two else VALUE,
        mode=modes if two else modes[0],
        sampler=Repeatable(config.search, config.seed),
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


def _tell(
    study: Study, space: Space, records: Sequence[Record], begun: Mapping[int, Point]
) -> None:
    """Adds trials in the order of their numbers, so that Optuna counts them alike."""
    ended = {record.number: record for record in records}
    for number in range(max([*ended, *begun], default=-1) + 1):
        if number in ended:
            study.add_trial(_as_optuna(study, space, ended[number]))
        else:
            study.enqueue_trial(in_optuna(space, begun.get(number, {})))


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

    def __init__(self, section: SearchSection, seed: int):
        self._section, self._seed = section, seed
        self._now = sampler(section, seed)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Takes a new sampler with the trial's own seed."""
        text = f"{self._seed} {trial.number}".encode()
        seed = int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "little")
        self._now = sampler(self._section, seed)
        self._now.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, Any]:
        """As the sampler in use."""
        return self._now.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, Any]
    ) -> dict[str, Any]:
        """As the sampler in use."""
        return self._now.sample_relative(study, trial, search_space)

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


def sampler(section: SearchSection, seed: int) -> BaseSampler:
    """Optuna's sampler of a method, its random numbers from a seed."""
    if section.method == "nsga2":
        return NSGAIISampler(population_size=max(2, section.startup), seed=seed)
    # A running trial counts as a bad one, so that trials side by side are not all alike.
    return TPESampler(n_startup_trials=section.startup, constant_liar=True, seed=seed)
