"""Configs by name: a shipped one by its bare name, or any YAML file by its path."""

import difflib
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from raymtl.config import Section, override, parse, parse_yaml, read_yaml
from raymtl.errors import InputError

S = TypeVar("S", bound=Section)

KINDS = {"_synth": "synth", "_prepare": "prepare", "_study": "study"}
"""Ending of a shipped config's name -> the verb that takes it; all others are for `train`."""
PLACES = {"raymtl_jobs": "configs", "raymtl_tuning": "spaces"}
"""Package -> its folder of configs; all spaces are for `tune`."""


def shipped() -> list[str]:
    """Names of the shipped configs and spaces, sorted."""
    return sorted(name for package in PLACES for name in _names(package))


def verb_of(name: str) -> str:
    """The verb a shipped config is for."""
    if name in _names("raymtl_tuning"):
        return "tune"
    return next((verb for ending, verb in KINDS.items() if name.endswith(ending)), "train")


def _names(package: str) -> list[str]:
    found = (files(package) / PLACES[package]).iterdir()
    return [f.name.removesuffix(".yaml") for f in found if f.name.endswith(".yaml")]


def text_of(name: str) -> str:
    """A shipped config as it stands, comments included.

    Raises:
        InputError: there is none of this name; suggests the nearest.
    """
    if name not in shipped():
        raise unknown(name)
    package = next(package for package in PLACES if name in _names(package))
    return (files(package) / PLACES[package] / f"{name}.yaml").read_text(encoding="utf-8")


def read(name: str, verb: str) -> tuple[dict[str, Any], str]:
    """A config's plain values, and what messages call it.

    Args:
        name: a shipped name, or the path of a YAML file.
        verb: the one that asks; a shipped config of another verb is refused.
    """
    if name in shipped():
        if verb_of(name) != verb:
            raise InputError(
                f"{name} is a config for another command",
                f"raymtl {verb} {name}",
                f"one of {', '.join(n for n in shipped() if verb_of(n) == verb)}, or a file",
                f"run `raymtl {verb_of(name)} {name}`, or name another config",
            )
        return parse_yaml(text_of(name), name), name
    if not Path(name).exists() and "/" not in name and not name.endswith((".yaml", ".yml")):
        raise unknown(name)
    return read_yaml(name), name


def load(cls: type[S], name: str, overrides: list[str], verb: str) -> S:
    """A config by name or path, with dotted overrides, as a checked section."""
    values, source = read(name, verb)
    return parse(cls, override(values, overrides), source)


def unknown(name: str) -> InputError:
    """The error for a name that is neither shipped nor a file."""
    near = difflib.get_close_matches(name, shipped(), 1)
    return InputError(
        f"there is no config {name}",
        name,
        f"a shipped one ({', '.join(shipped())}) or the path of a YAML file",
        f"did you mean {near[0]}?" if near else "choose one, or check the path",
    )
