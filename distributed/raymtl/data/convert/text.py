"""Delimited text as a stream of blocks of raw values, each row with its line number. No Ray."""

# pyarrow makes its compute functions at import.
# pyright: reportAttributeAccessIssue=false

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv
import pyarrow.fs as pafs

from raymtl.errors import InputError, one_line
from raymtl.storage import filesystem

BLOCK_BYTES = 4 << 20
"""Bytes of text in a block, and the longest line that can be read. pyarrow reads up to 32 blocks
ahead, so that a file takes 128 MB."""
HEADER_BYTES = 1 << 16
GZIP_RATIO = 10
"""Bytes of text per compressed byte, where sizes must be guessed."""

Watch = Callable[[str, int, float | None], None]
"""Is told the file's name, the rows read of it, and the share of it that is done, if known."""


@dataclass(frozen=True)
class TextFile:
    """A file of delimited text; gzip where its name ends in .gz."""

    url: str
    size_bytes: int

    @property
    def name(self) -> str:
        """Its bare name."""
        return self.url.rsplit("/", 1)[-1]

    @property
    def is_gzip(self) -> bool:
        return self.url.endswith(".gz")

    @property
    def text_bytes(self) -> int:
        """Bytes of text; an estimate for gzip."""
        return self.size_bytes * (GZIP_RATIO if self.is_gzip else 1)

    def open(self) -> pa.NativeFile:
        """Its text as a stream of bytes."""
        fs, path = filesystem(self.url)
        return fs.open_input_stream(path, compression="gzip" if self.is_gzip else None)

    def ends_in_a_line(self) -> bool:
        """False where the last line has no line end, so that it may be cut; gzip is not looked at.

        An empty file has no such line.
        """
        if self.is_gzip or not self.size_bytes:
            return True
        fs, path = filesystem(self.url)
        with fs.open_input_file(path) as file:
            file.seek(self.size_bytes - 1)
            return file.read(1) == b"\n"


@dataclass(frozen=True)
class Form:
    """How a file's lines are written."""

    columns: tuple[str, ...]
    """Names of the columns, in the file's order where it has no header."""
    has_header: bool = True
    quotes: bool = True
    """Whether values may stand in double quotes."""


@dataclass(frozen=True)
class Block:
    """Successive lines of a file, blank ones left out."""

    url: str
    table: pa.Table
    """A binary column per column of the form."""
    lines: np.ndarray
    """int64, each row's line in the file, from 1."""

    def where(self, row: int) -> str:
        """A row, for errors."""
        return f"{self.url}, line {self.lines[row]}"

    def keep(self, chosen: np.ndarray) -> "Block":
        """Only the chosen rows; bool (n,)."""
        if chosen.all():
            return self
        table = self.table.filter(pa.array(chosen))
        return replace(self, table=table, lines=self.lines[chosen])


def files_in(url: str) -> dict[str, TextFile]:
    """The files that lie directly in a folder, by name.

    Raises:
        InputError: there is no such folder.
    """
    fs, root = filesystem(url)
    info = fs.get_file_info(root)
    if info.type != pafs.FileType.Directory:
        raise InputError(
            "the folder of raw files is not there",
            f"{url}: " + ("a file" if info.type == pafs.FileType.File else "not found"),
            "the folder that the data set was unpacked to",
            "check the path",
        )
    found = sorted(fs.get_file_info(pafs.FileSelector(root)), key=lambda i: i.base_name)
    place = url.rstrip("/")
    return {
        i.base_name: TextFile(f"{place}/{i.base_name}", i.size or 0)
        for i in found
        if i.type == pafs.FileType.File
    }


def check_header(file: TextFile, form: Form) -> list[str]:
    """Reads a header; returns the columns it has beyond the form's.

    Raises:
        InputError: the file is empty or no text, a column is missing or there twice.
    """
    names = _header(file)
    missing = [c for c in form.columns if c not in names]
    if missing:
        raise InputError(
            "a file lacks columns of its form",
            f"{file.url}, line 1: {', '.join(names)[:300]}",
            f"columns {', '.join(missing)}, in a header separated by commas",
            "use the official file, and name the right data set",
        )
    doubles = sorted({c for c in names if names.count(c) > 1})
    if doubles:
        raise InputError(
            "a header names a column twice",
            f"{file.url}, line 1: {', '.join(doubles)}",
            "each column once",
            "use the official file",
        )
    return [c for c in names if c not in form.columns]


def _header(file: TextFile) -> list[str]:
    try:
        with file.open() as stream:
            head = stream.read(HEADER_BYTES)
        line, end, _ = head.decode("utf-8-sig", errors="surrogateescape").partition("\n")
        line.encode()
    except (OSError, pa.ArrowException, UnicodeEncodeError) as error:
        raise unreadable(file.url, 1, error) from None
    if not line.strip() or (not end and len(head) == HEADER_BYTES):
        raise InputError(
            "a file has no header",
            f"{file.url}: " + ("empty" if not head else "no names in its first line"),
            "the names of its columns in the first line",
            "use the official file; it may not have been copied whole",
        )
    return next(csv.reader([line.rstrip("\r")]))


def blocks(file: TextFile, form: Form, watch: Watch) -> Iterator[Block]:
    """A file's lines, a bounded number of bytes at once. Blank lines are left out.

    Raises:
        InputError: naming the line, where it has another number of fields than the form; or the
            file cannot be read to its end.
    """
    wrong: list[pcsv.InvalidRow] = []
    line = 1 + form.has_header
    done_bytes = rows = 0
    try:
        with file.open() as stream, _open_csv(stream, form, wrong) as reader:
            for batch in reader:
                table = pa.Table.from_batches([batch]).select(form.columns)
                lines = np.arange(line, line + table.num_rows)
                line += table.num_rows
                done_bytes += _text_bytes(table)
                block = Block(file.url, table, lines).keep(~_blank(table))
                rows += block.table.num_rows
                share = None if file.is_gzip else min(1.0, done_bytes / max(1, file.size_bytes))
                watch(file.name, rows, share)
                yield block
    except (OSError, pa.ArrowException) as error:
        if wrong:
            raise _wrong_fields(file.url, wrong[0]) from None
        if rows == 0 and "Empty CSV" in str(error):
            return
        raise unreadable(file.url, line, error) from None


def _open_csv(
    stream: pa.NativeFile, form: Form, wrong: list[pcsv.InvalidRow]
) -> pcsv.CSVStreamingReader:
    """Blank lines come as rows of empty values, so that rows count lines."""

    def refuse(row: pcsv.InvalidRow) -> str:
        wrong.append(row)
        return "error"

    names = None if form.has_header else list(form.columns)
    return pcsv.open_csv(
        stream,
        read_options=pcsv.ReadOptions(
            use_threads=False, block_size=BLOCK_BYTES, column_names=names
        ),
        parse_options=pcsv.ParseOptions(
            quote_char='"' if form.quotes else False,
            ignore_empty_lines=False,
            invalid_row_handler=refuse,
        ),
        convert_options=pcsv.ConvertOptions(
            column_types={c: pa.binary() for c in form.columns},
            include_columns=list(form.columns),
        ),
    )


def _blank(table: pa.Table) -> np.ndarray:
    """Boolean (n,), rows without any value."""
    empty = [pc.equal(pc.binary_length(c), 0) for c in table.columns]
    return reduce(pc.and_, empty).to_numpy()


def _text_bytes(table: pa.Table) -> int:
    """Bytes of the lines that a table of binary columns came from, quotes aside."""
    values = sum(int(pc.sum(pc.binary_length(c)).as_py() or 0) for c in table.columns)
    return values + table.num_rows * table.num_columns


def _wrong_fields(url: str, row: pcsv.InvalidRow) -> InputError:
    line = "?" if row.number is None else row.number
    return InputError(
        "a line has the wrong number of fields",
        f"{url}, line {line}: {row.actual_columns} fields: {row.text[:120]!r}",
        f"{row.expected_columns} fields separated by commas",
        "use the official file; it may be cut off, or of another separator",
    )


def unreadable(url: str, line: int, error: Exception) -> InputError:
    """The error of a file that is no text of the form, or damaged."""
    reason = one_line(error)
    if "straddling" in reason:
        reason = f"a line is longer than {BLOCK_BYTES:,} bytes"
    return InputError(
        "a raw file cannot be read",
        f"{url}, from line {line}: {reason}",
        "a whole text file in UTF-8, as the data set's authors publish it",
        "unpack or copy the file again",
    )
