"""Transforms of an earlier `raymtl prepare`, taken over as they are or extended. No Ray."""

# pyarrow makes its compute functions at import.
# pyright: reportAttributeAccessIssue=false

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from raymtl.config import TrainConfig, parse, parse_yaml
from raymtl.data.carried import CARRIED, TRANSFORMS, beside, stored_name
from raymtl.data.fitted import digest_of, file_digest, vocabulary_path
from raymtl.data.prepare_config import PrepareConfig
from raymtl.differences import differences
from raymtl.errors import InputError
from raymtl.schema import LogSchema, NumericFeature
from raymtl.storage import Folder, filesystem


@dataclass(frozen=True)
class Frozen:
    """What one `raymtl prepare` fitted."""

    url: str
    """The folder with the vocabularies: a prepared log, a run's transforms, or a checkpoint."""
    values: dict[str, Any]
    """What transforms.yaml holds."""
    schema: LogSchema
    """The raw schema with all that was fitted."""
    extend: bool = False
    """Whether new values get rows behind those that are there."""

    @property
    def digest(self) -> str:
        """Names these transforms."""
        return self.values["digest"]

    @property
    def lineage(self) -> list[str]:
        """Digests of these transforms and of those they extend, newest first."""
        return [self.digest, *self.values.get("extends", [])]


def read_frozen(where: str, extend: bool = False) -> Frozen:
    """Reads the transforms of a prepared log, or of the log a run was trained on.

    Args:
        where: folder that `raymtl prepare` wrote, one of its splits, a run folder or a checkpoint;
            the log itself is not needed for the last two.

    Raises:
        InputError: there are none, or their file is not as `prepare` wrote it.
    """
    for url in _places(where.rstrip("/")):
        folder = Folder(url)
        if folder.size(TRANSFORMS) is not None:
            return _parsed(url, folder.read(TRANSFORMS), extend)
    raise InputError(
        "there are no transforms to take over",
        where,
        f"a folder that `raymtl prepare` wrote (with {TRANSFORMS}), or a run trained on one",
        "name the prepared log itself",
    )


def _places(where: str) -> Iterator[str]:
    yield f"{where}/{CARRIED}"
    yield where
    yield beside(where).url
    folder = Folder(where)
    if folder.size("config.yaml") is not None:
        source = f"{where}/config.yaml"
        text = folder.read("config.yaml").decode(errors="replace")
        train = parse(TrainConfig, parse_yaml(text, source), source).data.train
        yield beside(train).url


def _parsed(url: str, text: bytes, extend: bool) -> Frozen:
    source = f"{url}/{TRANSFORMS}"
    values = parse_yaml(text.decode(errors="replace"), source)
    known = [
        isinstance(values.get("digest"), str),
        isinstance(values.get("schema"), dict),
        all(isinstance(j, dict) and isinstance(j.get("name"), str) for j in _list(values, "joins")),
        all(isinstance(digest, str) for digest in _list(values, "extends")),
        isinstance(values.get("vocabularies", {}), dict),
    ]
    content = {key: value for key, value in values.items() if key != "digest"}
    if not all(known) or digest_of(content) != values["digest"]:
        raise InputError(
            "the transforms to take over cannot be read",
            source,
            f"the {TRANSFORMS} that `raymtl prepare` wrote",
            "restore the file, or prepare that log anew",
        )
    return Frozen(url, values, parse(LogSchema, values["schema"], source), extend)


def _list(values: dict[str, Any], key: str) -> list[Any]:
    """A list of the file; one that fits nothing where it is something else."""
    found = values.get(key, [])
    return found if isinstance(found, list) else [None]


def apply_frozen(config: PrepareConfig, frozen: Frozen) -> PrepareConfig:
    """The config with everything fitted taken over; its sources, split and `keep` stay its own.

    Raises:
        InputError: the config makes the log's columns in another way, naming where.
    """
    filled = _filled(config.log_schema, frozen.schema)
    now = {
        "schema": filled.model_dump(mode="json", exclude={"as_of"}),
        "joins": {j.name: j.model_dump(mode="json", exclude={"url"}) for j in config.joins},
        "derive": {name: d.model_dump(mode="json") for name, d in config.derive.items()},
        "sequences": config.sequences and config.sequences.model_dump(mode="json"),
        "rates": [rate.model_dump(mode="json") for rate in config.rates],
    }
    then = {key: frozen.values.get(key) for key in now}
    then["schema"] = frozen.schema.model_dump(mode="json", exclude={"as_of"})
    then["joins"] = {j["name"]: j for j in frozen.values.get("joins", [])}
    for part in (now, then):
        if part["sequences"]:  # its order names sources, which are new ones
            part["sequences"] = {k: v for k, v in part["sequences"].items() if k != "order"}
    if frozen.extend:
        _leave_new_parts(then, now)
    for place, wanted, got in differences("", then, now):
        raise InputError(
            "the config does not make the log whose transforms it takes over",
            f"{place} = {got}",
            f"{wanted}, as in {frozen.url}/{TRANSFORMS}",
            "use the config of that log, with other sources and another split",
        )
    check_written_out(config, frozen)
    if frozen.extend:  # tables are counted again
        known = {f.name: f for f in frozen.schema.features}
        features = [known.get(f.name, f) for f in config.log_schema.features]
        update = {"features": features}
        return config.model_copy(update={"log_schema": config.log_schema.model_copy(update=update)})
    schema = frozen.schema.model_copy(update={"as_of": config.log_schema.as_of})
    return config.model_copy(update={"log_schema": schema})


def _leave_new_parts(then: dict[str, Any], now: dict[str, Any]) -> None:
    """Takes out of `now` what an extension may add: features, tables, tasks and what they read."""
    for name in ("features", "tables", "tasks"):
        known = {part["name"] for part in then["schema"][name]}
        now["schema"][name] = [p for p in now["schema"][name] if p["name"] in known]
    for name in ("joins", "derive"):
        now[name] = {key: value for key, value in now[name].items() if key in (then[name] or {})}
    known = {rate["name"] for rate in then["rates"] or []}
    now["rates"] = [rate for rate in now["rates"] if rate["name"] in known]


def _filled(schema: LogSchema, fitted: LogSchema) -> LogSchema:
    """The schema with what is fitted, where it says nothing itself."""
    known = {f.name: f for f in fitted.features}
    features = []
    for f in schema.features:
        twin = known.get(f.name)
        if isinstance(f, NumericFeature) and isinstance(twin, NumericFeature):
            missing = {k: getattr(twin, k) for k in ("mean", "std", "boundaries")}
            f = f.model_copy(update={k: v for k, v in missing.items() if getattr(f, k) is None})
        features.append(f)
    tables = []
    for name in schema.table_names:
        table = schema.table(name)
        twin = next((t for t in fitted.tables if t.name == name), None)
        if twin is not None and table.rows is None:
            update = {"rows": twin.rows, "vocabulary": twin.vocabulary, "values": twin.values}
            table = table.model_copy(update=update)
        tables.append(table)
    return schema.model_copy(update={"features": features, "tables": tables})


def copy_vocabularies(frozen: Frozen, staging: str) -> None:
    """Puts the vocabulary files below the new log's folder, byte for byte.

    Raises:
        InputError: one is missing, or not the one that was fitted.
    """
    fs, root = filesystem(frozen.url)
    for name in frozen.schema.table_names:
        path = frozen.schema.table(name).vocabulary
        if path is None:
            continue
        place = checked_place(frozen, name)
        target, new = filesystem(f"{staging}/{path}")
        target.create_dir(new.rpartition("/")[0])
        pafs.copy_files(f"{root}/{place}", new, fs, target)


def checked_place(frozen: Frozen, table: str) -> str:
    """A vocabulary's file below `frozen.url`, its bytes checked.

    Raises:
        InputError: it is missing, or not the one that was fitted.
    """
    known, path = frozen.values.get("vocabularies", {}), frozen.schema.table(table).vocabulary
    fits = path is not None and path == vocabulary_path(table) and "/" not in table
    _require_whole(fits and path in known, frozen, str(path))
    fs, root = filesystem(frozen.url)
    plain = stored_name(list(known).index(path))
    place = plain if Folder(frozen.url).size(plain) is not None else str(path)
    try:
        _require_whole(file_digest(fs, f"{root}/{place}") == known[path], frozen, place)
    except OSError:
        _require_whole(False, frozen, place)
    return place


def read_vocabulary(frozen: Frozen, table: str) -> pa.Table:
    """A table's vocabulary: columns value and count; value i is row i + 1.

    Raises:
        InputError: it is missing, or not the one that was fitted.
    """
    fs, root = filesystem(frozen.url)
    return pq.ParquetFile(f"{root}/{checked_place(frozen, table)}", filesystem=fs).read()


def _require_whole(whole: bool, frozen: Frozen, path: str) -> None:
    if not whole:
        raise InputError(
            "a vocabulary to take over is not the one that was fitted",
            f"{frozen.url}/{path}",
            f"the file whose digest stands in {TRANSFORMS}",
            "restore the folder, or prepare that log anew",
        )


def extended(frozen: Frozen, table: str, counted: pa.Table) -> pa.Table:
    """A vocabulary with new values behind the old ones, in their own order.

    Args:
        counted: columns value and count, of the new training part; counts of old values stay those
            of the part they were first seen in.
    """
    if frozen.schema.table(table).vocabulary is None:
        return counted
    old = read_vocabulary(frozen, table)
    known = pc.is_in(counted.column("value"), value_set=old.column("value").combine_chunks())
    return pa.concat_tables([old, counted.filter(pc.invert(known))]).combine_chunks()


def check_written_out(config: PrepareConfig, frozen: Frozen) -> None:
    """Refuses a table whose written-out values are not those that were taken into its rows.

    With `extend` they may go on behind the old ones.

    Raises:
        InputError: naming the table and the first value that differs.
    """
    for name in config.log_schema.table_names:
        values = config.log_schema.table(name).values
        if name not in frozen.schema.table_names or frozen.schema.table(name).vocabulary is None:
            continue
        old = read_vocabulary(frozen, name)
        was_written_out = old.num_rows > 0 and old.column("count").null_count == old.num_rows
        if values is None and not (frozen.extend and was_written_out):
            continue
        then, now = [str(v) for v in old.column("value").to_pylist()], values or []
        extra = len(now) - len(then)
        if now[: len(then)] == then and (extra == 0 or (extra > 0 and frozen.extend)):
            continue
        at = next(
            (i for i, pair in enumerate(zip(then, now, strict=False)) if len({*pair}) > 1), -1
        )
        at = min(len(then), len(now)) if at < 0 else at
        raise InputError(
            f"the values of table {name} are not those whose rows are taken over",
            f"schema.tables.{name}.values[{at}] = {now[at] if at < len(now) else 'none'}",
            f"{then[at] if at < len(then) else 'none'}, as in {frozen.url}"
            + ("; new ones at the end" if frozen.extend else ""),
            "leave the old values as they are"
            + (" and add new ones behind them" if frozen.extend else ", or use --extend-vocab"),
        )


TRANSFORMING = ("schema", "joins", "derive", "sequences", "rates", "vocabularies")
"""Parts of transforms.yaml that a column of the log depends on."""
MOST_NAMED = 3


def named_difference(then: str, now: str) -> str:
    """Where two transforms differ, the first few places; empty where one cannot be read.

    Args:
        then: folder of the one: a log, one of its splits, a run or a checkpoint.
        now: that of the other.
    """
    try:
        both = [read_frozen(where).values for where in (then, now)]
    except (InputError, OSError):
        return ""
    parts = ({key: values.get(key) for key in TRANSFORMING} for values in both)
    found = [f"{place} = {_short(b)}, not {_short(a)}" for place, a, b in differences("", *parts)]
    more = f"; and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    return "; ".join(found[:MOST_NAMED]) + more


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
