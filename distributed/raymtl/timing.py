"""Where a run's time goes: seconds by phase, read from the monotonic clock."""

import time

PHASES = (
    "data",
    "exchange",
    "forward",
    "backward",
    "optimizer",
    "checkpoint",
    "validation",
    "rest",
)
"""`data`: waiting for the next batch, until all ranks have theirs. `exchange`: table rows and their
gradients, dense gradients, and waiting for the other ranks in each. `checkpoint`: the snapshot and
completing the save before it; the writing itself goes on beside training. `rest`: metrics and
reports."""


class TimeSplit:
    """Seconds of each phase on this rank.

    No device is waited for: on a GPU a phase is the time to enqueue its work, and what is then
    still to be computed shows where a value is read first, in `optimizer`.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        self._at_last_share = dict(self.seconds)
        self._since = time.monotonic()

    def begin(self) -> None:
        """Leaves out the time since the last lap."""
        self._since = time.monotonic()

    def lap(self, phase: str) -> None:
        """Counts the time since the last lap as this phase's."""
        now = time.monotonic()
        self.seconds[phase] += now - self._since
        self._since = now

    def shares(self) -> dict[str, float]:
        """`time/<phase>` -> share of the time since this was called last; empty without any."""
        spent = {p: s - self._at_last_share[p] for p, s in self.seconds.items()}
        self._at_last_share = dict(self.seconds)
        total = sum(spent.values())
        return {f"time/{p}": round(s / total, 4) for p, s in spent.items()} if total else {}
