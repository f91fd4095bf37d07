"""Raw parquet: its files and their footers, cut into reading tasks, read as a stream. No Ray."""

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from raymtl.data.log import LogIndex, read_index
from raymtl.data.prepare_config import PrepareConfig, Source
from raymtl.errors import InputError
from raymtl.storage import absolute, filesystem

BATCH_ROWS = 65_536
"""Rows in memory at once in a reading task, whatever the size of a row group."""
BUFFER_BYTES = 1 << 20
"""Read-ahead per column; with it pyarrow holds pages, not whole row groups."""


@dataclass(frozen=True)
class RawFile:
    """One file of a source, by its footer."""

    source: str
    root: str
    """URL that leads to the file's filesystem."""
    path: str
    row_group_rows: tuple[int, ...]
    schema: pa.Schema
    """Under the config's names: renamed, with constants and hive partitions, plain types."""
    columns: dict[str, str]
    """Name in the config -> column of the file."""
    constants: dict[str, int | float | str | None]

    @property
    def num_rows(self) -> int:
        return sum(self.row_group_rows)


@dataclass(frozen=True)
class Span:
    """Rows start..stop of one row group."""

    file: int
    row_group: int
    start: int
    stop: int
    file_row: int
    """Row within the file of the row group's first row."""


@dataclass(frozen=True)
class Share:
    """What one reading task reads: successive spans of one source."""

    number: int
    first_row: int
    """Row within all sources together of the share's first row."""
    spans: tuple[Span, ...]

    @property
    def num_rows(self) -> int:
        return sum(s.stop - s.start for s in self.spans)


@dataclass(frozen=True)
class Origin:
    """Where a table's first row comes from."""

    source: str
    path: str
    file_row: int
    first_row: int
    """Row within all sources together."""

    def row(self, n: int) -> str:
        """Row n of the table, for errors."""
        return f"{self.path}, row {self.file_row + n}"

    @property
    def where(self) -> str:
        """The table, for errors."""
        return f"{self.path}, from row {self.file_row}"


def resolve(url: str, data_root: str) -> str:
    """The URL itself if it is absolute, else below data_root; the same from any process."""
    if "://" not in url and not url.startswith(("/", "~")):
        url = f"{data_root.rstrip('/')}/{url}"
    return absolute(url)


def indexes(urls: str | list[str], data_root: str) -> list[LogIndex]:
    """The index of the files under each URL.

    Raises:
        InputError: no such path, no parquet below it, no rows, or an unreadable file.
    """
    return [read_index(resolve(u, data_root)) for u in ([urls] if isinstance(urls, str) else urls)]


def source_files(source: Source, data_root: str) -> list[RawFile]:
    """Reads the footers of a source's files, in reading order.

    Raises:
        InputError: as `indexes`, or the source's renames and constants do not fit its columns.
    """
    found = []
    for index in indexes(source.url, data_root):
        for number, file in enumerate(index.files):
            schema = index.schemas[file.schema]
            constants = {
                key: int(value) if value and index.partition_types[key] == pa.int64() else value
                for key, value in file.partitions.items()
                if key not in schema.names
            }
            _check_names(source, schema.names, index.name(number))
            columns = {source.rename.get(c) or c: c for c in schema.names}
            constants |= source.constants
            types = {name: plain_type(schema.field(c).type) for name, c in columns.items()}
            types |= {name: pa.scalar(value).type for name, value in constants.items()}
            found.append(
                RawFile(
                    source=source.name,
                    root=index.url,
                    path=index.location(number),
                    row_group_rows=file.row_group_rows,
                    schema=pa.schema(list(types.items())),
                    columns=columns,
                    constants=constants,
                )
            )
    return found


def _check_names(source: Source, names: list[str], path: str) -> None:
    clash = sorted((set(names) - source.rename.keys()) & source.constants.keys())
    unknown = sorted(source.rename.keys() - set(names))
    if clash or unknown:
        raise InputError(
            f"source {source.name} does not fit its files",
            f"{path} " + (f"has {clash} already" if clash else f"has no {unknown} to rename"),
            "constants for columns the files lack, renames of columns they have",
            "mend `constants` or `rename`",
        )


def unreadable(path: str, error: Exception) -> InputError:
    """The error of a file that is no parquet, or cut off."""
    return InputError(
        "a file cannot be read",
        f"{path}: {' '.join(str(error).split())[:200]}",
        "a whole parquet file",
        "write or copy the file again",
    )


def plain_type(t: pa.DataType) -> pa.DataType:
    """One type per meaning: no dictionaries, one kind of text, one kind of list."""
    if pa.types.is_dictionary(t):
        return plain_type(t.value_type)
    if pa.types.is_large_string(t) or pa.types.is_string_view(t):
        return pa.string()
    if pa.types.is_list(t) or pa.types.is_large_list(t) or pa.types.is_fixed_size_list(t):
        return pa.list_(plain_type(t.value_type))
    return t


def unify(files: list[RawFile], needed: list[str]) -> pa.Schema:
    """The needed columns with types that hold every file's.

    Raises:
        InputError: a file lacks one, or types have nothing in common.
    """
    known = pa.schema([])
    for file in files:
        missing = [c for c in needed if c not in file.schema.names]
        if missing:
            raise InputError(
                f"column {missing[0]} is missing",
                f"{file.path} (source {file.source}) has {', '.join(file.schema.names)}",
                f"columns {', '.join(missing)}",
                "mend the config, or say `constants: {NAME: null}` for a column this source lacks",
            )
        mine = pa.schema([file.schema.field(c) for c in needed])
        try:
            known = pa.unify_schemas([known, mine], promote_options="permissive")
        except pa.ArrowException as error:
            raise InputError(
                "a column has two types that do not go together",
                f"{file.path}: {' '.join(str(error).split())}",
                "the same type in all files (integers of any width)",
                "mend the files, or use `rename` to keep the columns apart",
            ) from None
    return known


def cut(files: list[RawFile], share_rows: int) -> list[Share]:
    """Deals all rows, in order, to reading tasks of at most `share_rows` rows.

    A row group stays whole unless it is larger; small ones go together within a source.
    """
    shares: list[Share] = []
    spans: list[Span] = []
    first = held = 0

    def close() -> None:
        nonlocal spans, first, held
        if spans:
            shares.append(Share(len(shares), first, tuple(spans)))
        spans, first, held = [], first + held, 0

    for number, file in enumerate(files):
        if number and file.source != files[number - 1].source:
            close()
        file_row = 0
        for group, rows in enumerate(file.row_group_rows):
            for start in range(0, rows, share_rows):
                stop = min(start + share_rows, rows)
                if held + stop - start > share_rows:
                    close()
                spans.append(Span(number, group, start, stop, file_row))
                held += stop - start
            file_row += rows
    close()
    return shares


def read(
    share: Share, files: list[RawFile], types: pa.Schema, batch_rows: int = BATCH_ROWS
) -> Iterator[tuple[pa.Table, Origin]]:
    """Streams a share's rows, at most `batch_rows` at once, cast to `types`.

    Raises:
        InputError: a file cannot be read.
    """
    first_row = share.first_row
    for span in share.spans:
        file = files[span.file]
        wanted = [file.columns[n] for n in types.names if n in file.columns]
        for start, batch in _batches(file, span, wanted, batch_rows):
            by_column = dict(zip(batch.schema.names, batch.columns, strict=True))
            arrays = [
                by_column[file.columns[f.name]].cast(f.type)
                if f.name in file.columns
                else pa.repeat(pa.scalar(file.constants[f.name]), len(batch)).cast(f.type)
                for f in types
            ]
            origin = Origin(file.source, file.path, span.file_row + start, first_row)
            yield pa.Table.from_arrays(arrays, schema=types), origin
            first_row += len(batch)


def _batches(
    file: RawFile, span: Span, columns: list[str], batch_rows: int
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The span's rows with the row within the row group that each batch starts at."""
    fs, _ = filesystem(file.root)
    at = 0
    try:
        with fs.open_input_file(file.path) as handle:
            parquet = pq.ParquetFile(handle, pre_buffer=False, buffer_size=BUFFER_BYTES)
            for batch in parquet.iter_batches(
                batch_rows, [span.row_group], columns, use_threads=False
            ):
                start, stop = max(span.start - at, 0), min(span.stop - at, len(batch))
                if start < stop:
                    yield at + start, batch.slice(start, stop - start)
                at += len(batch)
                if at >= span.stop:
                    return
    except (OSError, pa.ArrowException) as error:
        raise unreadable(file.path, error) from None


def needed_columns(config: PrepareConfig, joined: set[str]) -> list[str]:
    """Columns the sources must have: all that is used and neither joined nor derived nor made."""
    names, wanted = [], [*config.raw_columns(), *config.history_columns()]
    made = {*joined, *config.derive, *config.made_columns}
    for derived in config.derive.values():
        wanted += [derived.column, derived.days_since or derived.column]
    for name in [*wanted, *(j.column for j in config.joins)]:
        if name not in made:
            names.append(name)
    return list(dict.fromkeys(names))
