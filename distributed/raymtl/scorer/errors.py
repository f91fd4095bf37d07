"""What the scorer raises for its users, and the checks that raise it."""

from typing import Any, NoReturn


class ScorerError(ValueError):
    """What the scorer raises, in four parts: what, got, wanted, do."""

    def __init__(self, what: str, got: str, wanted: str, do: str):
        super().__init__(what, got, wanted, do)
        self.what, self.got, self.wanted, self.do = what, got, wanted, do

    def __str__(self) -> str:
        return f"{self.what}\n  got:    {self.got}\n  wanted: {self.wanted}\n  do:     {self.do}"


class ArtifactError(ScorerError):
    """A file of the artifact is missing, altered or not what an export writes."""


class RequestError(ScorerError):
    """A request does not fit the schema."""


def damaged(path: str, got: str) -> ArtifactError:
    return ArtifactError(
        "an artifact cannot be used",
        f"{path}: {got}",
        "a folder as `raymtl export` wrote it",
        "copy the folder again, or export again",
    )


def require(holds: bool, got: str) -> None:
    if not holds:
        raise ValueError(got)


def refuse(what: str, got: str, wanted: str, do: str = "mend the request") -> NoReturn:
    raise RequestError(what, got, wanted, do)


def refuse_value(column: str, value: Any, wanted: str) -> NoReturn:
    got = f"{type(value).__name__} {one_line(value)}"
    refuse(f"{column} holds a value it cannot", got[:120], wanted)


def one_line(value: Any) -> str:
    """A value's text on one line of at most 200 characters."""
    if isinstance(value, int) and value.bit_length() > 600:
        return f"an integer of {value.bit_length()} bits"
    return " ".join(str(value)[:400].split())[:200]
