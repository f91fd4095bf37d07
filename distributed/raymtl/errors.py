"""The errors raymtl raises for its users, each in four parts."""


class InputError(ValueError):
    """Something the user gave is wrong: says what, what was got, what was wanted, and what to do.

    Crosses process borders (Ray tasks, workers) unchanged.
    """

    def __init__(self, what: str, got: str, wanted: str, do: str):
        super().__init__(what, got, wanted, do)
        self.what, self.got, self.wanted, self.do = what, got, wanted, do

    @property
    def parts(self) -> tuple[str, str, str, str]:
        """All four; not `args`, to which Ray Data adds advice on its retries."""
        return self.what, self.got, self.wanted, self.do

    def __reduce__(self) -> tuple[type["InputError"], tuple[str, str, str, str]]:
        return type(self), self.parts

    def __str__(self) -> str:
        return f"{self.what}\n  got:    {self.got}\n  wanted: {self.wanted}\n  do:     {self.do}"


class IdOutOfRange(InputError):
    """An id lies past the rows of its feature's table."""


class UnreadableChunk(InputError):
    """A chunk of a log is damaged, in a file that is otherwise as it was indexed."""


class DamagedCheckpoint(InputError):
    """A checkpoint's file is missing, truncated or altered."""


class RankFailed(RuntimeError):
    """One rank failed; raised on every rank alike, with the failing ranks' messages."""


class NonFinite(RankFailed):
    """A loss or gradient is not finite; names the step, the rows and the last good checkpoint."""


def input_error_in(error: BaseException | None) -> InputError | None:
    """The InputError that Ray wrapped on its way here, if one is at the root of `error`."""
    while error is not None:
        # Ray's own class for a wrapped error derives from its cause's class too: not that one.
        if isinstance(error, InputError) and not hasattr(error, "cause"):
            return error
        error = getattr(error, "cause", None) or error.__cause__
    return None


def one_line(error: Exception) -> str:
    """An exception's text on one line of at most 300 characters, for the `got` of an InputError."""
    return " ".join(str(error).split())[:300]
