"""Ranges of labels and ids, checked from the footers' statistics before anything is read.

Statistics are optional in parquet and tell only the extremes: `decode` checks every value again
when it is read.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pyarrow.parquet as pq

from raymtl.data.log import LogIndex
from raymtl.data.times import later, plain_time
from raymtl.errors import IdOutOfRange, InputError
from raymtl.schema import LogSchema, NumericFeature, Time
from raymtl.storage import filesystem

CHECKED_FILES = 256
"""Files whose statistics are looked at before the start; those past it are checked as read."""

Range = tuple[int, str, object, object]
"""Row group, column, smallest and largest value."""


def check_ranges(index: LogIndex, schema: LogSchema) -> None:
    """Checks labels of binary tasks and ids of `encoding: index` against the statistics.

    Raises:
        InputError: a binary label outside 0 and 1.
        IdOutOfRange: an id that is no row of its table.
    """
    if index.num_rows == 0 or not _checked_columns(schema):
        return
    numbers = range(min(len(index.files), CHECKED_FILES))
    with ThreadPoolExecutor(16) as pool:
        for number, ranges in zip(
            numbers, pool.map(lambda n: _ranges(index, n), numbers), strict=True
        ):
            for group, column, low, high in ranges:
                where = f"{index.name(number)}, row group {group}"
                _check_label(schema, column, low, high, where)
                _check_id(schema, column, low, high, where)


def dated(index: LogIndex, schema: LogSchema) -> LogIndex:
    """The index with the log's newest time, where rules ask for ages and `as_of` is not given.

    Raises:
        InputError: a row group does not tell its latest time.
    """
    if not schema.has_ages or schema.as_of is not None:
        return index
    return replace(index, newest=newest_time(index, schema))


def newest_time(index: LogIndex, schema: LogSchema) -> Time:
    """The latest time of a log, from the footers of all its files.

    Raises:
        InputError: a row group does not tell its latest time.
    """
    found: Time | None = None
    with ThreadPoolExecutor(16) as pool:
        for number, ranges in enumerate(
            pool.map(lambda n: _ranges(index, n), range(len(index.files)))
        ):
            latest = {group: high for group, column, _, high in ranges if column == schema.time}
            for group, rows in enumerate(index.files[number].row_group_rows):
                time = plain_time(latest.get(group))
                if rows and time is None:
                    raise InputError(
                        "the newest time of the log is not known",
                        f"{index.name(number)}, row group {group}: no statistics of {schema.time}",
                        "the time at which the labels were read, for rules with min_age_days",
                        "set as_of in the schema",
                    )
                found = later(found, time)
    assert found is not None, "a log has rows"
    return found


def column_range(index: LogIndex, column: str) -> tuple[object, object] | None:
    """Smallest and largest value of a column by the footers' statistics; null where they say none.

    Raises:
        OSError: a file cannot be read.
    """
    with ThreadPoolExecutor(16) as pool:
        files = pool.map(lambda n: _ranges(index, n), range(len(index.files)))
        found = [r[2:] for ranges in files for r in ranges if r[1] == column]
    lows, highs = zip(*found, strict=True) if found else ((), ())
    return (min(lows), max(highs)) if found else None


def _checked_columns(schema: LogSchema) -> set[str]:
    labels = {t.label for t in schema.tasks if t.kind == "binary"}
    ids = {f.source for f in schema.features if _is_index(f)}
    return labels | ids


def _is_index(feature: object) -> bool:
    return not isinstance(feature, NumericFeature) and getattr(feature, "encoding", "") == "index"


def _ranges(index: LogIndex, number: int) -> list[Range]:
    fs, _ = filesystem(index.url)
    with fs.open_input_file(index.location(number)) as source:
        return list(_statistics(pq.read_metadata(source)))


def _statistics(metadata: pq.FileMetaData) -> Iterator[Range]:
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        for i in range(row_group.num_columns):
            column = row_group.column(i)
            statistics = column.statistics
            if statistics is not None and statistics.has_min_max:
                name = column.path_in_schema.split(".")[0]
                yield group, name, statistics.min, statistics.max


def _check_label(schema: LogSchema, column: str, low: object, high: object, where: str) -> None:
    tasks = [t.name for t in schema.tasks if t.kind == "binary" and t.label == column]
    outside = [v for v in (low, high) if isinstance(v, int | float) and v not in (0, 1)]
    if tasks and outside:
        raise InputError(
            f"a label of task {tasks[0]} is outside {{0, 1}}",
            f"{column} = {outside[0]}   ({where})",
            "0, 1 or null",
            "mend the column, or make the task `kind: regression`",
        )


def _check_id(schema: LogSchema, column: str, low: object, high: object, where: str) -> None:
    if not (isinstance(low, int) and isinstance(high, int)):
        return
    for f in schema.features:
        if isinstance(f, NumericFeature) or not _is_index(f) or f.source != column:
            continue
        rows = schema.table(f.table_name).num_rows
        if low < -1 or high >= rows:
            raise IdOutOfRange(
                f"an id of feature {f.name} is not a row of its table",
                f"{low if low < -1 else high}   ({where})",
                f"0 to {rows - 1}, or -1 for none (table {f.table_name} has {rows} rows)",
                f"raise the rows of table {f.table_name} in the schema, or use `encoding: hash`",
            )
