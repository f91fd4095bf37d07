"""The time split counts every second once."""

import pytest

from raymtl import timing
from raymtl.timing import PHASES, TimeSplit


def test_laps_add_up_and_shares_begin_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 10.0, 11.0, 14.0, 15.0])
    monkeypatch.setattr(timing.time, "monotonic", lambda: next(now))
    times = TimeSplit()
    times.begin()
    for phase in ("data", "forward"):
        times.lap(phase)
    assert times.seconds["data"] == 1 and times.seconds["forward"] == 3
    shares = times.shares()
    assert shares["time/data"] == 0.25 and set(shares) == {f"time/{p}" for p in PHASES}
    assert times.shares() == {}
    times.lap("data")
    assert times.shares()["time/data"] == 1 and times.seconds["data"] == 2
