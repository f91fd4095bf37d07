"""What a conversion reads and writes: pieces, each one parquet file from one or more raw files."""

from collections.abc import Callable
from dataclasses import dataclass, field

from raymtl.data.convert.text import TextFile, Watch
from raymtl.errors import InputError


@dataclass(frozen=True)
class Piece:
    """One parquet file to write."""

    output: str
    """Its name."""
    inputs: tuple[TextFile, ...]
    """In the order their rows are taken, unless the form says otherwise."""


@dataclass(frozen=True)
class Plan:
    """All that will be written, checked as far as the files' heads tell."""

    pieces: tuple[Piece, ...]
    notes: tuple[str, ...] = ()
    """What a person should know before it runs."""


@dataclass(frozen=True)
class Options:
    """What a caller may choose, and who is told of progress."""

    max_values: int = 20
    """Values kept of a list that is joined from a common file (Ali-CCP only); 0 keeps all."""
    watch: Watch = lambda name, rows, share: None


@dataclass
class Tally:
    """What happened to the rows of a piece."""

    rows: int = 0
    """Rows written."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Why something was left out or changed -> how often; empty where nothing was."""

    def count(self, reason: str, times: int) -> None:
        """Adds to one reason."""
        if times:
            self.left_out[reason] = self.left_out.get(reason, 0) + times


Write = Callable[[Piece, str, Options], Tally]
"""Writes a piece below a folder's URL."""


def cut_notes(files: list[TextFile]) -> list[str]:
    """A note for each file whose last line has no end."""
    return [
        f"{f.url}: the last line has no line end; the file may be cut off"
        for f in files
        if not f.ends_in_a_line()
    ]


def require_rows(tally: Tally, piece: Piece) -> None:
    """Raises InputError unless the piece has rows."""
    if tally.rows == 0:
        raise InputError(
            "a raw file has no rows",
            ", ".join(f.url for f in piece.inputs),
            "at least one row",
            "use the official file; it may not have been copied whole",
        )
