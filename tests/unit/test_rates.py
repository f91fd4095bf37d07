"""Prior rates against a reference that looks at every row, with leaks planted."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.history_logs import (
    RATES,
    Row,
    assert_rates_are_those_before,
    config_of,
    made,
    random_log,
    rate_before,
    write_log,
)
from raymtl.data import rates
from raymtl.data.checks import make_recipe
from raymtl.errors import InputError


@pytest.mark.parametrize("size", [(1, 60), (60, 1), (50, 90)])
@pytest.mark.parametrize("num_parts", [1, 4])
def test_every_rate_is_that_of_strictly_earlier_periods(
    tmp_path: Path, size: tuple[int, int], num_parts: int
) -> None:
    rows = random_log(num_parts, *size)
    write_log(tmp_path, rows)
    found = made(config_of(tmp_path, sequences=None), share_rows=20, num_parts=num_parts)
    assert_rates_are_those_before(found, rows)


def by_hand() -> list[Row]:
    """User 1: old 1, 0; day 1: 1, 1; day 2: unobserved. User 2: day 1: 0; day 2: 1."""
    labels = [("old", 1, None, 1), ("old", 1, None, 0), ("new", 1, 1, 1), ("new", 1, 1, 1)]
    labels += [("new", 2, 1, 0), ("new", 1, 2, None), ("new", 2, 2, 1)]
    return [
        {
            **{"source": source, "user": user, "day": day, "view": view, "item": n, "like": 0},
            **{"place": n, "time": n, "shop": "s"},
        }
        for n, (source, user, day, view) in enumerate(labels)
    ]


def test_a_rate_by_hand(tmp_path: Path) -> None:
    write_log(tmp_path, by_hand())
    rate = {**RATES[0], "smoothing": 2}
    found = made(config_of(tmp_path, sequences=None, rates=[rate]))
    # Before day 1: prior 1/2; user 1 has 1 of 2. Before day 2: prior 3/5; user 1 has 3 of 4.
    wanted = [None, None, 0.5, 0.5, 0.5, (3 + 1.2) / 6, (0 + 1.2) / 3]
    assert [row["user_rate"] for row in found] == [
        w if w is None else pytest.approx(w) for w in wanted
    ]
    counts = [None, None, 2, 2, 0, 4, 1]
    assert [row["user_rate_count"] for row in found] == [
        c if c is None else pytest.approx(math.log1p(c)) for c in counts
    ]


def test_without_a_label_a_rate_is_how_often_the_key_was_seen_before(tmp_path: Path) -> None:
    write_log(tmp_path, by_hand())
    seen = {"name": "seen", "key": ["user", "shop"], "period": "day"}
    found = made(config_of(tmp_path, sequences=None, rates=[seen]))
    wanted = [0, 0, 2, 2, 0, 4, 1]  # the unobserved view was seen all the same
    assert [row["seen"] for row in found] == [pytest.approx(math.log1p(n)) for n in wanted]
    assert "seen_count" not in found[0]


def test_a_log_in_which_the_own_day_would_tell_shows_the_leak(tmp_path: Path) -> None:
    rows = by_hand()
    write_log(tmp_path, rows)
    found = made(config_of(tmp_path, sequences=None))
    assert_rates_are_those_before(found, rows)
    for n in (2, 3, 4, 6):
        leaky, _ = rate_before(rows, rows[n], RATES[0], strictly=False)
        assert leaky is not None and abs(found[n]["user_rate"] - leaky) > 1e-3


def with_own_period(
    key: np.ndarray, period: np.ndarray, label: np.ndarray, observed: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A wrong `earlier`: the key's rows of the same period count."""
    mine = (key[:, None] == key) & (period <= period[:, None])
    return mine @ label, mine @ observed


def test_the_check_catches_rates_that_know_their_own_period(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = by_hand()
    write_log(tmp_path, rows)
    monkeypatch.setattr(rates, "earlier", with_own_period)
    with pytest.raises(AssertionError, match="user_rate"):
        assert_rates_are_those_before(made(config_of(tmp_path, sequences=None)), rows)


@pytest.mark.parametrize("changed", [0, 2, 4, 6])
def test_a_changed_label_changes_the_rates_of_later_periods_only(
    tmp_path: Path, changed: int
) -> None:
    rows = by_hand()
    write_log(tmp_path, rows)
    before = made(config_of(tmp_path, sequences=None))
    rows[changed]["view"] = 1 - rows[changed]["view"]
    write_log(tmp_path, rows)
    after = made(config_of(tmp_path, sequences=None))
    day = [-1 if row["day"] is None else row["day"] for row in rows]
    for n in range(len(rows)):
        same = before[n]["user_rate"] == after[n]["user_rate"]
        assert same == (day[n] <= day[changed]), n


def test_keys_of_several_columns_do_not_run_together(tmp_path: Path) -> None:
    rows = by_hand()
    rows[0] |= {"user": 1, "shop": "11", "like": 1}
    rows[1] |= {"user": 11, "shop": "1", "like": 0}
    rows[2] |= {"user": 1, "shop": "11"}
    rows[3] |= {"user": 11, "shop": "1"}
    write_log(tmp_path, rows)
    rate = {**RATES[2], "smoothing": 1}
    found = made(config_of(tmp_path, sequences=None, rates=[rate]))
    assert found[2]["pair_rate"] == pytest.approx((1 + 0.5) / 2)
    assert found[3]["pair_rate"] == pytest.approx((0 + 0.5) / 2)


def test_rows_without_a_period_after_rows_with_one_are_refused(tmp_path: Path) -> None:
    rows = by_hand()
    rows[-1]["day"] = None
    write_log(tmp_path, rows)
    with pytest.raises(
        InputError, match=r"(?s)without a period.*day is null in rows of source new"
    ):
        made(config_of(tmp_path, sequences=None))
    sources = [{"name": n, "url": f"{n}.parquet"} for n in ("new", "old")]
    write_log(tmp_path, by_hand())
    with pytest.raises(InputError, match=r"(?s)without a period.*source old"):
        made(config_of(tmp_path, sequences=None, sources=sources))


def test_rows_without_a_period_are_refused_late_without_a_label_too(tmp_path: Path) -> None:
    rows = by_hand()
    write_log(tmp_path, [{**rows[0], "source": "new"}, *rows[1:]])
    seen = {"name": "seen", "key": "user", "period": "day"}
    with pytest.raises(InputError, match="rows without a period"):
        made(config_of(tmp_path, sequences=None, rates=[seen]))


def test_priors_are_the_rates_of_all_earlier_periods() -> None:
    shares = [[[1, 1.0, 2], [3, 5.0, 5]], [[1, 0.0, 2], [2, 3.0, 4]]]
    periods, before = rates.priors(shares)
    assert periods == [1, 2, 3]
    assert before == [None, 0.25, 0.5]


def change(**values: Any) -> dict[str, Any]:
    return {"rates": [{**RATES[0], **values}]}


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        (change(key=["user", "view"]), "key or period of rate user_rate reads an outcome"),
        (change(period="like"), "key or period of rate user_rate reads an outcome"),
        (change(key=[]), "user_rate has no key"),
        (change(label=None, count=True), "user_rate counts twice"),
        (change(key="usr"), "column usr is missing"),
        (change(label="shop"), "rate user_rate cannot use column shop"),
        (change(period="shop"), "rate user_rate cannot use column shop"),
        (change(name="item"), "makes columns that are there already"),
        (change(smoothing=-1), "smoothing is not valid"),
        ({"rates": [RATES[0], {**RATES[1], "name": "user_rate_count"}]}, "make one column"),
    ],
)
def test_wrong_rates_are_named(tmp_path: Path, changes: dict, what: str) -> None:
    write_log(tmp_path, by_hand())
    with pytest.raises(InputError, match=what):
        make_recipe(config_of(tmp_path, **changes), {}, "scratch")
