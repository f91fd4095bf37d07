"""The space: where single keys are searched, and whole points drawn from all of them.

A point is dotted key -> value, of the keys that are searched there: one whose `when` does not hold
is no part of it.
"""

import difflib
import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from ray import tune
from ray.tune.search.sample import Domain

from raymtl.errors import InputError
from raymtl_tuning.config import Distribution

Space = Mapping[str, Distribution]
Point = dict[str, Any]
MOST_DRAWS = 1000
"""Draws for one point that was not drawn before; a space that yields none is used up."""
INSIDE = 0.381966
"""Where, between its bounds, a distribution of floats is tried besides at them: no round place."""


def domain(key: str, distribution: Distribution) -> Domain:
    """The distribution as Ray Tune's own.

    Raises:
        InputError: no choice, low not below high, or what else Ray Tune refuses.
    """
    kind, arguments = distribution.kind, distribution.arguments
    got = f"space.{key} = {kind}: {list(arguments)}"
    if kind == "choice":
        if not arguments[0]:
            raise InputError(
                "a choice is empty", got, "one value or more", "add some, or remove the key"
            )
        return tune.choice(arguments[0])
    low, high = arguments[:2]
    if low >= high:
        raise InputError(
            "a distribution's low end is not below its high one",
            got,
            f"low < high, not {low:g} and {high:g}",
            "turn them round; one value alone belongs into base",
        )
    if kind.removeprefix("q").startswith("log") and low <= 0:
        raise InputError(
            "a logarithmic distribution starts at 0 or below",
            got,
            "bounds above 0",
            f"raise {low:g}, or take the kind without log",
        )
    try:
        return getattr(tune, kind)(*arguments)
    except ValueError as error:
        raise InputError(
            "Ray Tune refuses a distribution", got, str(error), "mend its bounds or its step"
        ) from None


def ordered(space: Space) -> list[str]:
    """The keys, each after those that its `when` names.

    Raises:
        InputError: `when` names a key that is not searched, or keys that wait for each other.
    """
    for key, distribution in space.items():
        for parent in distribution.when:
            if parent not in space:
                near = difflib.get_close_matches(parent, space, 1)
                raise InputError(
                    "a condition names a key that is not searched",
                    f"space.{key}.when.{parent}",
                    f"one of {', '.join(space)}",
                    f"did you mean {near[0]}?" if near else "mend the name, or search that key too",
                )
    done: list[str] = []
    while left := [key for key in space if key not in done]:
        free = [key for key in left if set(space[key].when) <= set(done)]
        if not free:
            raise InputError(
                "conditions wait for each other",
                "; ".join(f"{key} for {', '.join(space[key].when)}" for key in left),
                "an order in which keys can be drawn",
                "remove one of the conditions",
            )
        done += free
    return done


def searched_at(space: Space, key: str, point: Mapping[str, Any]) -> bool:
    """Whether a key is searched, given the keys before it."""
    return all(
        parent in point and point[parent] in wanted_values(value)
        for parent, value in space[key].when.items()
    )


def wanted_values(value: Any) -> list[Any]:
    """A condition's value or values, as a list."""
    return value if isinstance(value, list) else [value]


def drawn(space: Space, seed: int, number: int) -> Point:
    """The draw of a number: a pure function of space, seed and number."""
    random = np.random.default_rng([seed, number])
    point: Point = {}
    for key in ordered(space):
        if searched_at(space, key, point):
            point[key] = _plain(domain(key, space[key]).sample(random_state=random))
    return point


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def random_points(space: Space, seed: int) -> Iterator[Point]:
    """Different points without end, or to the end of a space that has no more; always the same."""
    seen: set[str] = set()
    misses, number = 0, 0
    while misses < MOST_DRAWS:
        point = drawn(space, seed, number)
        number += 1
        misses += 1
        if (text := name_of(point)) not in seen:
            seen.add(text)
            misses = 0
            yield point


def grid_points(space: Space) -> list[Point]:
    """Every point of a space of choices and integers, the first key's values slowest.

    Raises:
        InputError: a distribution has no end of values.
    """
    points: list[Point] = [{}]
    for key in ordered(space):
        values = listed(key, space[key])
        points = [
            made
            for point in points
            for made in (
                [{**point, key: value} for value in values]
                if searched_at(space, key, point)
                else [point]
            )
        ]
    return points


def listed(key: str, distribution: Distribution) -> list[Any]:
    """All values of a distribution that has few: a choice, or integers."""
    kind, arguments = distribution.kind, distribution.arguments
    if kind == "choice":
        return list(arguments[0])
    if kind == "randint":
        return list(range(*arguments))
    if kind == "qrandint":
        low, high, step = arguments
        return list(range(low, high + 1, step))
    raise InputError(
        "a grid cannot hold a continuous distribution",
        f"space.{key} = {kind}: {list(arguments)}",
        "choice, randint or qrandint",
        "list values as a choice, or take search.method random or tpe",
    )


def tried(key: str, distribution: Distribution) -> list[Any]:
    """Values that show whether a config takes a distribution: its ends, one inside, each choice."""
    domain(key, distribution)
    if distribution.kind == "choice":
        return list(distribution.arguments[0])
    low, high, *step = distribution.arguments
    if "int" in distribution.kind:
        return [low, high if step else high - 1]
    inside = low + (high - low) * INSIDE
    return [low, round(inside / step[0]) * step[0] if step else inside, high]


def suggested(space: Space, trial: Any) -> Point:
    """A point by an Optuna trial's suggestions, key by key; choices go by their JSON text."""
    point: Point = {}
    for key in ordered(space):
        if searched_at(space, key, point):
            point[key] = _suggestion(trial, key, space[key])
    return point


def _suggestion(trial: Any, key: str, distribution: Distribution) -> Any:
    kind, arguments = distribution.kind, distribution.arguments
    if kind == "choice":
        return json.loads(trial.suggest_categorical(key, [json.dumps(v) for v in arguments[0]]))
    low, high, *step = arguments
    log = "log" in kind
    if "int" in kind:
        last = high if step else high - 1
        value = trial.suggest_int(key, low, last, step=1 if log or not step else step[0], log=log)
    else:
        value = trial.suggest_float(
            key, low, high, step=None if log or not step else step[0], log=log
        )
    return round(value / step[0]) * step[0] if log and step else value


def in_optuna(space: Space, point: Point) -> dict[str, Any]:
    """A point as Optuna holds it: choices as their JSON text."""
    return {
        key: json.dumps(value) if space[key].kind == "choice" else value
        for key, value in point.items()
    }


def name_of(point: Mapping[str, Any]) -> str:
    """A point as a line of text, the same for the same point."""
    return json.dumps(point, sort_keys=True)


def first(points: Iterator[Point], count: int) -> list[Point]:
    """The first points, or all where there are fewer."""
    return list(itertools.islice(points, count))
