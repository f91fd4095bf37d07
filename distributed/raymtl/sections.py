"""What all configs have in common: frozen sections, read from YAML with dotted overrides.

Every config of the project (training, prepare, synth, a model's own section) derives from `Section`
and is read by `load`, so all of them refuse, name and suggest in the same way.
"""

import difflib
import json
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from raymtl.errors import InputError, one_line

S = TypeVar("S", bound="Section")


class Section(BaseModel):
    """A part of a config: frozen, extra keys refused, docstrings under the fields."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )


def load(cls: type[S], path: str | Path, overrides: list[str] | None = None) -> S:
    """Reads a YAML file and dotted overrides into a section.

    Args:
        path: local path of a YAML file.
        overrides: `key.sub=value` strings; values are read as YAML.

    Raises:
        InputError: the file is missing or no mapping, a key is unknown, or a value is refused.
    """
    return parse(cls, override(read_yaml(path), overrides or []), str(path))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Reads a YAML mapping with the safe loader; refuses anything else by an InputError."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            "a config cannot be read",
            f"{path}: {error}",
            "a YAML file",
            "check the path; `raymtl init` lists the shipped ones",
        ) from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """Parses a YAML mapping; `source` names it in errors."""
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InputError(
            "a config is not YAML",
            f"{source}: {' '.join(str(error).split())}",
            "a YAML mapping",
            "mend the line it names",
        ) from None
    if not isinstance(value, dict):
        raise InputError(
            "a config is not a mapping",
            f"{source}: {type(value).__name__}",
            "`key: value` lines",
            "compare with a shipped config (`raymtl init NAME`)",
        )
    return value


def override(values: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Returns `values` with each `a.b=value` set; the input is left as it was.

    Raises:
        InputError: an item is not of this form, or its value no YAML.
    """
    values = json.loads(json.dumps(values, default=str))
    for item in overrides:
        key, found, text = item.partition("=")
        if not found or not all(key.split(".")):
            raise InputError(
                "an override is not key=value",
                item,
                "a dotted key, an equals sign and a value",
                "write it like train.num_epochs=2",
            )
        *parents, last = key.split(".")
        node = values
        for parent in parents:
            if not isinstance(node.get(parent), dict):
                node[parent] = {}
            node = node[parent]
        node[last] = _value(text, item)
    return values


def _value(text: str, item: str) -> Any:
    """An override's value, read as YAML."""
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InputError(
            "an override's value is not YAML",
            f"{item}: {one_line(error)}",
            "a number, text, [a list] or {a: mapping}",
            "put text with special characters into quotes: key='\"text\"'",
        ) from None


def parse(cls: type[S], values: dict[str, Any], source: str, prefix: str = "") -> S:
    """Builds a section from plain values; turns pydantic's first complaint into an InputError."""
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise _explain(cls, error, source, prefix) from None


def dump(section: Section, include: set[str] | None = None) -> str:
    """The section (or the named fields of it) as YAML, every default written out."""
    values = section.model_dump(mode="json", include=include)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _explain(
    cls: type[Section], error: ValidationError, source: str, prefix: str = ""
) -> InputError:
    first = error.errors()[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, InputError):
        return InputError(cause.what, f"{cause.got}   ({source})", cause.wanted, cause.do)
    key = ".".join(str(part) for part in (*filter(None, [prefix]), *first["loc"]))
    rest = len(error.errors()) - 1
    more = f"; {rest} more complaint{'s' if rest > 1 else ''} after this one" if rest else ""
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(first["loc"][-1]), _known_keys(cls, first["loc"]), 1)
        return InputError(
            f"unknown key {key}",
            f"{key} = {first['input']!r}   ({source})",
            "a key this config has",
            (f"did you mean {near[0]}?" if near else "remove it") + more,
        )
    return InputError(
        f"{key or 'the config'} is not valid",
        f"{key} = {first['input']!r}   ({source})",
        first["msg"].removeprefix("Value error, "),
        f"change {key or 'it'}{more}",
    )


def _known_keys(cls: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    """The field names at the place `loc` points to, unions of sections included."""
    classes: list[Any] = [cls]
    for part in loc[:-1]:
        nested: list[Any] = []
        for known in classes:
            field = known.model_fields.get(part) if isinstance(part, str) else None
            nested += _sections_in(field.annotation) if field else [known]
        classes = nested or classes
    return [name for known in classes for name in known.model_fields]


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [s for arg in getattr(annotation, "__args__", ()) for s in _sections_in(arg)]
