"""Where two plain values differ: what errors name."""

from collections.abc import Iterator
from typing import Any


def differences(place: str, then: Any, now: Any) -> Iterator[tuple[str, Any, Any]]:
    """Where two plain values differ: the place, what was there and what is there now."""
    if isinstance(then, dict) and isinstance(now, dict):
        for key in [*then, *(k for k in now if k not in then)]:
            below = f"{place}.{key}" if place else str(key)
            yield from differences(below, then.get(key, "none"), now.get(key, "none"))
    elif isinstance(then, list) and isinstance(now, list) and _named(then) and _named(now):
        yield from differences(place, _by_name(then), _by_name(now))
        before, after = ([item["name"] for item in values] for values in (then, now))
        if before != after:
            yield f"order of {place}", before, after
    elif then != now:
        yield place, then, now


def _named(values: list[Any]) -> bool:
    return all(isinstance(item, dict) and "name" in item for item in values)


def _by_name(values: list[Any]) -> dict[str, Any]:
    return {item["name"]: item for item in values}
