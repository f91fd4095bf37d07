"""Drafts a schema for a log nobody has described, from footers and a sample, with its doubts."""

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import yaml

from raymtl.config import Section
from raymtl.data.draft_features import bag_or_sequence, categorical, numeric, share_and_align
from raymtl.data.facts import Column, common_columns, sample
from raymtl.data.log import read_index
from raymtl.errors import InputError
from raymtl.schema import Feature, LogSchema, Table, Task

LABEL = re.compile(
    r"^(is_.*|.*label.*|(long_?)?view(ed)?|click(ed)?|like(d)?|follow(ed)?|share(d)?|comment(ed)?"
    r"|forward(ed)?|hate(d)?|purchase(d)?|buy|bought|order(ed)?|conver(sion|ted)|install(ed)?"
    r"|favou?rite(d)?|add(ed)?_to_cart|cart|finish(ed)?|dislike(d)?|read|target|y)$"
)
OUTCOME = re.compile(
    r"(play|watch|view|dwell|stay|read|listen|consum\w*)(ed|ing)?_?(time|duration|ms|sec\w*|ratio)"
    r"|(^|_)(revenue|gmv|payment|rating_given)($|_)"
)
USER = re.compile(r"^(user|uid|user_?id|member(_?id)?|customer(_?id)?|visitor(_?id)?)$")
TIME = re.compile(r"(^|_)(time|timestamp|ts|date|datetime|dt|day)(_(s|ms|us|ns))?$")
PLAIN_TIMES = {"time", "time_ms", "timestamp", "timestamp_ms", "ts", "event_time", "datetime"}
WEIGHT = re.compile(r"^((sample|row|instance|example)_)?weight$")
NUMBER = re.compile(
    r"(^|_)(duration|length|size|price|amount|cost|count|cnt|num|number|age|days|hours|seconds|sec|ms"
    r"|score|rate|ratio|width|height|wage|gains?|losses|dividends|worked)(_|$)"
)
FEWEST_NUMBERS = 50
"""Whole numbers with fewer distinct values are read as ids whatever their name is."""


@dataclass
class Draft:
    """A schema in the making. `doubts` are (column, sentence); `left_out` names columns."""

    features: list[Feature] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    tasks: list[Task] = field(default_factory=list)
    roles: dict[str, str] = field(default_factory=dict)
    doubts: list[tuple[str, str]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def doubt(self, column: str, text: str) -> None:
        self.doubts.append((column, text))

    def leave_out(self, column: str, why: str) -> None:
        self.left_out.append(column)
        self.doubt(column, f"left out: {why}")

    @property
    def schema(self) -> LogSchema:
        return LogSchema(
            features=self.features,
            tables=self.tables,
            tasks=self.tasks,
            **self.roles,  # pyright: ignore[reportArgumentType]  # columns of group, time, weight
        )


def draft_schema(
    url: str, sample_rows: int = 100_000, labels: list[str] | None = None
) -> tuple[LogSchema, list[str]]:
    """Drafts a schema that could train on the log as it is, ids hashed.

    Args:
        url: the log.
        sample_rows: most rows that are looked at, spread over the log.
        labels: label columns; null finds them by name and values.

    Returns:
        The schema, and a sentence for each thing a person should look at.

    Raises:
        InputError: there is no log, or nothing in it looks like a label or a feature.
    """
    draft = _draft(url, sample_rows, labels)
    return draft.schema, [f"{column}: {text}" for column, text in draft.doubts]


def draft_yaml(url: str, sample_rows: int = 100_000, labels: list[str] | None = None) -> str:
    """The drafted schema as YAML, each doubt a comment beside the thing it is about."""
    draft = _draft(url, sample_rows, labels)
    told: set[str] = set()
    schema = draft.schema
    lines = [f"# Drafted from a sample of {url}. Look at every DOUBT."]
    for key in ("features", "tables", "tasks"):
        lines.append(f"{key}:")
        for part in getattr(schema, key):
            item = _shown(part)
            column = item.get("label", item["name"])
            if key != "tables":
                lines += _comments(draft, column, told, "  ")
            lines.append(f"  - {_flow(item)}")
    for role, column in draft.roles.items():
        lines += _comments(draft, role, told, "")
        lines.append(f"{role}: {_flow(column)}")
    rest = [column for column, _ in draft.doubts if column not in told]
    for column in dict.fromkeys(rest):
        lines += _comments(draft, column, told, "", named=True)
    return "\n".join(lines) + "\n"


def _comments(
    draft: Draft, column: str, told: set[str], indent: str, named: bool = False
) -> list[str]:
    if column in told:
        return []
    told.add(column)
    name = f"{column}: " if named else ""
    return [f"{indent}# DOUBT: {name}{' '.join(t.split())}" for c, t in draft.doubts if c == column]


def _shown(part: Section) -> dict[str, Any]:
    """What a reader wants to see of a part: kind, name and encoding first, no other defaults."""
    values = part.model_dump(mode="json")
    unlike = part.model_dump(mode="json", exclude_defaults=True)
    first = [key for key in ("kind", "name", "encoding", "rows") if key in values]
    return {key: values[key] for key in first} | unlike


def _flow(value: object) -> str:
    text = yaml.safe_dump(
        value, default_flow_style=True, sort_keys=False, width=10**9, allow_unicode=True
    )
    return text.removesuffix("\n").removesuffix("\n...")


def _draft(url: str, sample_rows: int, labels: list[str] | None) -> Draft:
    index = read_index(url)
    draft, table = Draft(), sample(index, sample_rows)
    columns = {n: Column.of(table, n, index.num_rows) for n in table.column_names}
    for name in dict.fromkeys(n for s in index.schemas for n in s.names):
        if name not in common_columns(index):
            draft.leave_out(name, "some files do not have it; a feature needs a `default` for that")
    rest = _take_labels(draft, columns, labels, url)
    rest = _take_roles(draft, _without_useless(draft, rest))
    rest = _without_sources_of_labels(draft, columns, rest)
    _take_features(draft, rest)
    for file, arrow in enumerate(index.schemas):
        draft.schema.check(arrow, f"{url} (column set {file})")
    draft.schema.require_ready()
    return draft


def _take_labels(
    draft: Draft, columns: dict[str, Column], labels: list[str] | None, url: str
) -> dict[str, Column]:
    found = [n for n in columns if columns[n].is_binary and LABEL.match(n.lower())]
    missing = [n for n in labels or [] if n not in columns]
    chosen = found if labels is None else labels
    wanted = f"column {missing[0]}" if missing else "a column of 0 and 1 named like click, is_like"
    if missing or not chosen:
        raise InputError(
            "the log has no label to draft a task from",
            f"{url}: columns {', '.join(columns)}",
            wanted,
            "name the label columns (labels=…), or write the schema by hand",
        )
    for name in chosen:
        column = columns[name]
        draft.tasks.append(
            Task(name=name, label=name, kind="binary" if column.is_binary else "regression")
        )
        if labels is None and name.lower().startswith("is_"):
            draft.doubt(name, "taken as a label by its name; a feature if known before the event")
        if len(column.numbers) and column.is_binary and column.numbers.sum() < 100:
            draft.doubt(name, f"only {int(column.numbers.sum())} positives in the sample")
    return {n: c for n, c in columns.items() if n not in chosen}


def _without_useless(draft: Draft, columns: dict[str, Column]) -> dict[str, Column]:
    kept = {}
    for name, column in columns.items():
        empty = not len(column.values) or (column.kind == "number" and not len(column.numbers))
        if column.kind in ("other", "null") or empty:
            draft.leave_out(name, f"no values that could be read ({column.values.type})")
        elif column.distinct == 1 and (not column.num_nulls or column.kind == "number"):
            draft.leave_out(name, f"always {column.values[0].as_py()} in the sample")
        elif OUTCOME.search(name.lower()):
            draft.leave_out(name, "by its name an outcome, not known before the event")
        else:
            kept[name] = column
    return kept


def _take_roles(draft: Draft, columns: dict[str, Column]) -> dict[str, Column]:
    """Group, time and weight; only the group's column stays a feature."""
    users = [n for n, c in columns.items() if USER.match(n.lower()) and c.is_ids]
    times = [c.name for c in sorted(columns.values(), key=_time_rank) if _is_time(c)]
    weights = [n for n, c in columns.items() if WEIGHT.match(n.lower()) and _is_weight(c)]
    if users:
        draft.roles["group"] = users[0]
    else:
        draft.doubt("group", "no user column was recognised; GAUC needs `group`")
    if times:
        draft.roles["time"] = times[0]
        if times[0].lower() not in PLAIN_TIMES:
            draft.doubt("time", "taken as the time of the impression by its name or type")
    if weights:
        draft.roles["weight"] = weights[0]
        draft.doubt("weight", "taken as the row weight by its name")
    for name in times[1:]:
        draft.leave_out(name, "a time or date; derive hour or weekday from it if they matter")
    taken = {*times, *weights[:1]}
    return {n: c for n, c in columns.items() if n not in taken}


def _is_time(column: Column) -> bool:
    if column.kind == "time":
        return True
    if not TIME.search(column.name.lower()):
        return False
    return column.kind == "text" or (column.kind == "integer" and column.numbers.min() > 1e7)


def _time_rank(column: Column) -> tuple[bool, bool, int]:
    """Exact times before dates, whole names before parts of names."""
    name = column.name.lower()
    return column.kind == "text", "time" not in name and name != "ts", len(name)


def _is_weight(column: Column) -> bool:
    if column.kind not in ("integer", "number") or column.has_missing:
        return False
    return bool(column.numbers.min() >= 0)


def _without_sources_of_labels(
    draft: Draft, columns: dict[str, Column], rest: dict[str, Column]
) -> dict[str, Column]:
    """Leaves out columns whose every value goes with one value of some label."""
    kept = {}
    for name, column in rest.items():
        told = [t.label for t in draft.tasks if _determines(column, columns[t.label])]
        if told:
            draft.leave_out(name, f"it decides {told[0]} completely; the label was made from it?")
        else:
            kept[name] = column
    return kept


def _determines(column: Column, label: Column) -> bool:
    """Whether a column of few values holds the label; False where that could be chance."""
    few = 1 < column.distinct <= min(1000, column.num_rows // 20)
    whole = column.lengths is None and not column.num_nulls and not label.has_missing
    if not few or not whole or not label.is_binary:
        return False
    y = label.numbers
    if min(y.sum(), len(y) - y.sum()) < 20:
        return False
    codes = column.values.dictionary_encode().indices.to_numpy()
    positives, seen = np.bincount(codes, weights=y), np.bincount(codes)
    return bool(((positives == 0) | (positives == seen)).all())


def _take_features(draft: Draft, columns: dict[str, Column]) -> None:
    lists = {n: c for n, c in columns.items() if c.lengths is not None}
    for name, column in columns.items():
        if column.lengths is not None:
            continue
        if column.kind == "number" or (_named_number(column) and name not in draft.roles.values()):
            draft.features.append(numeric(column, draft.doubt))
        elif _is_row_key(column) and name not in draft.roles.values():
            draft.leave_out(name, "nearly every row has its own value; a row key or free text?")
        else:
            feature, table = categorical(column, draft.doubt)
            draft.features.append(feature)
            draft.tables.append(table)
    for column in lists.values():
        bag_or_sequence(column, lists, draft)
    share_and_align(draft, columns)
    if not draft.features:
        raise InputError(
            "the log has no column to draft a feature from",
            f"left out: {', '.join(draft.left_out)}",
            "ids, numbers or lists besides the labels",
            "write the schema by hand",
        )


def _named_number(column: Column) -> bool:
    named = column.kind == "integer" and NUMBER.search(column.name.lower())
    return bool(named) and column.distinct >= FEWEST_NUMBERS


def _is_row_key(column: Column) -> bool:
    return column.distinct > max(1000, 0.95 * column.num_rows)
