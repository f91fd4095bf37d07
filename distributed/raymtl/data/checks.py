"""The checks before heavy work: every column and type a config needs, against footers. No Ray."""

from dataclasses import replace

import pyarrow as pa

from raymtl.data.history import num_parts, with_made
from raymtl.data.join import check_names
from raymtl.data.prepare_config import PrepareConfig, SourceSplit
from raymtl.data.raw import Origin, RawFile, needed_columns, source_files, unify
from raymtl.data.rows import Recipe, enrich
from raymtl.data.split import split_of
from raymtl.errors import InputError
from raymtl.schema import LogSchema, NumericFeature

ROWS_PER_BUCKET = 4_000_000
"""Rows of all sources per part that values are counted in: bounds a counting process's memory."""
MAX_BUCKETS = 1024


def make_recipe(config: PrepareConfig, sides: dict[str, pa.Table], scratch: str) -> Recipe:
    """Reads all footers and checks them against the config.

    Args:
        sides: each join's columns and types, without rows.
        scratch: URL of the folder for intermediate files.

    Raises:
        InputError: a file is unreadable, a column is missing or has a type that does not do.
    """
    files = [f for source in config.sources for f in source_files(source, config.data_root)]
    joined = {name for side in sides.values() for name in side.column_names[1:]}
    needed = needed_columns(config, joined)
    known = sorted({n for f in files for n in f.schema.names})
    check_names(sides, known, list(config.derive), config.made_columns)
    types = unify([_with_defaults(f, config.log_schema, needed) for f in files], needed)
    where = "the sources after joins and derived columns"
    empty = enrich(types.empty_table(), config, sides, where)
    columns = with_made(empty.schema, config, where)
    _check_columns(columns, config, where)
    for source in config.sources:
        split_of(empty, Origin(source.name, where, 0, 0), config.split, 0)
    num_rows = sum(f.num_rows for f in files)
    return Recipe(
        config=config,
        files=[_with_defaults(f, config.log_schema, needed) for f in files],
        types=types,
        columns=columns,
        text_tables=_text_tables(columns, config.log_schema),
        num_buckets=min(MAX_BUCKETS, -(-num_rows // ROWS_PER_BUCKET)),
        num_parts=num_parts(config, num_rows),
        scratch=scratch,
    )


def _with_defaults(file: RawFile, schema: LogSchema, needed: list[str]) -> RawFile:
    """The file with features' defaults as constants where it lacks their columns."""
    defaults = {
        f.source: f.default
        for f in schema.features
        if f.default is not None and f.source in needed and f.source not in file.schema.names
    }
    if not defaults:
        return file
    fields = [pa.field(name, pa.scalar(value).type) for name, value in defaults.items()]
    return replace(
        file,
        constants={**file.constants, **defaults},
        schema=pa.schema([*file.schema, *fields]),
    )


def _check_columns(columns: pa.Schema, config: PrepareConfig, where: str) -> None:
    schema = config.log_schema
    missing = [n for n in config.raw_columns() if n not in columns.names]
    if missing:
        raise InputError(
            f"column {missing[0]} is missing",
            f"{where} have {', '.join(columns.names)}",
            f"columns {', '.join(missing)}",
            "mend the config",
        )
    ids = {f.source for f in schema.features if not isinstance(f, NumericFeature)}
    schema.check(pa.schema([_whole(f) if f.name in ids else f for f in columns]), where)
    _check_raw_names(config)
    for name in schema.table_names:
        _check_table(name, schema)


def _whole(field: pa.Field) -> pa.Field:
    """Floats pass as ids here; that they are whole numbers is checked when they are read."""
    if pa.types.is_floating(field.type):
        return field.with_type(pa.int64())
    if pa.types.is_list(field.type) and pa.types.is_floating(field.type.value_type):
        return field.with_type(pa.list_(pa.int64()))
    return field


def _check_raw_names(config: PrepareConfig) -> None:
    """Raw columns and features stand side by side in the log."""
    schema = config.log_schema
    features = {f"f_{f.name}" for f in schema.features}
    features |= {f"f_{f.name}_weights" for f in schema.features}
    clash = sorted(features & {*config.keep, *(t.label for t in schema.tasks), schema.group or ""})
    if clash:
        raise InputError(
            "a raw column has the name of a feature's column",
            ", ".join(clash),
            "names that do not start with f_ and a feature's name",
            "use `rename` in the source",
        )


def _check_table(name: str, schema: LogSchema) -> None:
    table = schema.table(name)
    users = [
        f for f in schema.features if f.table_name == name and not isinstance(f, NumericFeature)
    ]  # type: ignore[union-attr]
    encodings = sorted({f.encoding for f in users})
    if len(encodings) > 1:
        raise InputError(
            f"table {name} is looked up in different ways",
            f"encodings {', '.join(encodings)}",
            "one encoding for all features of a table",
            "give each its own table, or the same encoding",
        )
    if encodings and encodings[0] != "vocabulary" and table.rows is None and table.values is None:
        raise InputError(
            f"table {name} has no rows",
            f"encoding {encodings[0]}",
            "a row count",
            f"add `- {{name: {name}, rows: 100000}}` under schema.tables",
        )


def _text_tables(columns: pa.Schema, schema: LogSchema) -> frozenset[str]:
    """Tables of text; refuses a table that some features look up by text, some by number."""
    kinds: dict[str, set[bool]] = {}
    for f in schema.features:
        if not isinstance(f, NumericFeature):
            t = columns.field(f.source).type
            t = t.value_type if pa.types.is_list(t) else t
            if not pa.types.is_null(t):
                kinds.setdefault(f.table_name, set()).add(pa.types.is_string(t))
    mixed = sorted(name for name, found in kinds.items() if len(found) > 1)
    if mixed:
        raise InputError(
            f"table {mixed[0]} mixes text and numbers",
            ", ".join(f"{f.name}: {columns.field(f.source).type}" for f in schema.features),
            "features of one table all text, or all integers",
            "give them tables of their own",
        )
    return frozenset(name for name, found in kinds.items() if True in found)


def check_splits(rows: dict[str, int], config: PrepareConfig) -> None:
    """Refuses a split without rows.

    Args:
        rows: split -> rows it got.
    """
    for name in config.split_names:
        if not rows[name]:
            kind = "parts" if isinstance(config.split, SourceSplit) else "borders"
            raise InputError(
                f"the {name} split has no rows",
                ", ".join(f"{n} {rows[n]:,}" for n in (*config.split_names, "dropped")),
                f"at least one row in {', '.join(config.split_names)}",
                f"mend the split's {kind}",
            )
