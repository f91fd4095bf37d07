"""Behaviour sequences against a reference that looks at every row, with leaks planted."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.history_logs import (
    LISTS,
    Row,
    assert_lists_are_those_before,
    config_of,
    config_values,
    list_before,
    made,
    random_log,
    whole,
    write_log,
)
from raymtl.config import parse
from raymtl.data import sequences
from raymtl.data.checks import make_recipe
from raymtl.data.ordinals import FIRST, ordinals, ranges
from raymtl.data.prepare_config import PrepareConfig
from raymtl.data.shuffle import dealt, parts_of
from raymtl.errors import InputError


@pytest.mark.parametrize("size", [(1, 60), (60, 1), (50, 90)])
@pytest.mark.parametrize("num_parts", [1, 4])
def test_every_list_holds_the_last_items_strictly_before_its_row(
    tmp_path: Path, size: tuple[int, int], num_parts: int
) -> None:
    rows = random_log(num_parts, *size)
    write_log(tmp_path, rows)
    found = made(config_of(tmp_path), share_rows=20, num_parts=num_parts)
    assert [row["item"] for row in found] == [row["item"] for row in rows]
    assert_lists_are_those_before(found, rows)


def planted() -> list[Row]:
    """One user; every row is viewed, each time has two rows, so any leak shows."""
    return [
        {
            **{"source": "new", "user": 1, "item": n, "shop": "a", "view": 1, "like": 1},
            **{"time": n // 2, "day": 1 + n // 4},
        }
        for n in range(12)
    ] + [{"source": "old", "user": 2, "item": 1, "place": 0, "day": None, "view": 1, "like": 0}]


def log_of(folder: Path, rows: list[Row]) -> list[Row]:
    """The rows in the order of the sources, written."""
    rows = [{"place": None, "time": None, "like": None, "shop": None, **row} for row in rows]
    rows.sort(key=lambda row: row["source"] == "new")
    write_log(folder, rows)
    return rows


def test_the_row_itself_and_rows_of_its_time_are_not_in_its_lists(tmp_path: Path) -> None:
    rows = log_of(tmp_path, planted())
    found = made(config_of(tmp_path))
    assert [row["viewed"] for row in found][1:6] == [[], [], [0, 1], [0, 1], [1, 2, 3]]
    assert_lists_are_those_before(found, rows)
    viewed, news = LISTS[0], range(1, len(rows))
    leaky = [list_before(rows, rows[n], viewed, strictly=False) for n in news]
    assert all(found[n]["viewed"] != other for n, other in zip(news, leaky, strict=True))


def leak_equals(*keys: np.ndarray) -> np.ndarray:
    """A wrong `changes_of`: rows of one time count as before each other."""
    changes = np.zeros(len(keys[0]), bool)
    changes[0] = True
    changes[1:] = keys[0][1:] != keys[0][:-1] if len(keys) == 1 else True
    return changes


def test_the_check_catches_an_order_in_which_equal_rows_see_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = log_of(tmp_path, planted())
    monkeypatch.setattr(sequences, "changes_of", leak_equals)
    with pytest.raises(AssertionError, match="viewed of row 2"):
        assert_lists_are_those_before(made(config_of(tmp_path)), rows)


@pytest.mark.parametrize("changed", [3, 4, 9])
def test_a_changed_row_changes_the_lists_of_later_rows_only(tmp_path: Path, changed: int) -> None:
    rows = log_of(tmp_path, planted())
    before = made(config_of(tmp_path))
    rows[changed] |= {"item": 99, "view": 0, "shop": "z"}
    write_log(tmp_path, rows)
    after = made(config_of(tmp_path))
    names = [item["name"] for item in LISTS]
    differs = [
        any(one[n] != other[n] for n in names) for one, other in zip(before, after, strict=True)
    ]
    assert not any(differs[n] for n in range(len(rows)) if rows[n]["time"] is None)
    later = [row["time"] is not None and row["time"] > rows[changed]["time"] for row in rows]
    assert not any(d and not is_later for d, is_later in zip(differs, later, strict=True))
    assert any(differs)


def test_aligned_lists_hold_the_same_events_and_keep_their_nulls(tmp_path: Path) -> None:
    common = {"source": "new", "user": 1, "day": 1}
    items = [(10, "a", 1), (None, "b", 1), (12, None, 0), (13, "c", 1), (14, "d", None)]
    rows = [
        {**common, "item": i, "shop": s, "view": v, "time": n} for n, (i, s, v) in enumerate(items)
    ]
    log_of(tmp_path, [*rows, {"source": "old", "user": 1, "item": 9, "place": 5, "view": None}])
    last = made(config_of(tmp_path, rates=[]))[-1]
    assert last["viewed"] == [10, None, 13]
    assert last["viewed_shop"] == ["a", "b", "c"]
    assert last["shown"] == [10, None, 12, 13]
    assert last["shown_view"] == [1, 1, 0, 1]


def test_text_users_have_lists_too(tmp_path: Path) -> None:
    rows = [{"source": "new", "shop": s, "item": n, "time": n} for n, s in enumerate("abaabb")]
    log_of(
        tmp_path,
        [{"user": 1, "view": 1, "day": 1, **row} for row in rows]
        + [{"source": "old", "user": 1, "item": 9, "place": 5, "shop": "b", "view": 0}],
    )
    values = config_values(tmp_path, rates=[])
    values["sequences"] = values["sequences"] | {"user": "shop"}
    found = made(parse(PrepareConfig, values, "test"))
    assert [row["shown"] for row in found] == [[], [], [9], [0], [0, 2], [9, 1], [9, 1, 4]]


def test_a_row_without_a_place_among_its_users_rows_is_named(tmp_path: Path) -> None:
    rows = planted()
    rows[6]["time"] = None
    log_of(tmp_path, rows)
    with pytest.raises(InputError, match=r"(?s)no place among.*time = null.*new\.parquet, row 6"):
        made(config_of(tmp_path))


def test_a_shared_vocabulary_counts_rows_and_not_lists(tmp_path: Path) -> None:
    features = [
        {"name": "item", "kind": "categorical"},
        {"name": "viewed", "kind": "sequence", "table": "item"},
        {"name": "viewed_shop", "kind": "sequence"},
        {"name": "shops", "column": "viewed_shop", "kind": "bag", "table": "viewed_shop"},
    ]
    schema = {
        "features": [{**f, "encoding": "vocabulary"} for f in features],
        "tasks": [{"name": "view", "label": "view"}],
    }
    config = config_of(tmp_path, schema=schema)
    assert config.fitted_tables() == ["item", "viewed_shop"]
    assert config.counted_columns("item") == ["item"]
    assert config.counted_columns("viewed_shop") == ["shop"]


def change(key: str, value: Any, number: int | None = None) -> dict[str, Any]:
    """The sequences of the config with one key changed, of a list if numbered."""
    found = config_values(Path("x"))["sequences"]
    if number is None:
        return {"sequences": found | {key: value}}
    lists = [{**item, **({key: value} if n == number else {})} for n, item in enumerate(LISTS)]
    return {"sequences": found | {"lists": lists}}


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        (change("order", {"old": "place"}), "order does not fit the sources"),
        (change("order", {"old": "place", "nwe": "time"}), r"(?s)does not fit.*nwe"),
        (change("order", {"old": "place", "new": "like"}), "order of sequences reads an outcome"),
        (change("user", "view"), "user of sequences reads an outcome"),
        (change("length", 5, 1), "says twice which rows it takes"),
        (change("like", "seen", 1), "is like a list that is not there"),
        (change("name", "shown", 1), "two lists or rates make one column"),
        (change("name", "user_rate", 1), "two lists or rates make one column"),
        (change("item", "itme", 0), "column itme is missing"),
        (change("name", "shop", 1), "makes columns that are there already"),
        (change("name", "f", 1), None),
        (change("where", {"column": "shop", "equals": 1}, 0), "viewed cannot use column shop"),
        (change("order", {"old": "place", "new": "shop"}), "order of new cannot use column shop"),
        (change("lists", []), "lists is not valid"),
        (change("length", 0, 0), "length is not valid"),
        ({"derive": {"l": {"column": "shop", "split": ","}}, **change("item", "l", 0)}, "use colu"),
    ],
)
def test_wrong_sequences_are_named(tmp_path: Path, changes: dict, what: str | None) -> None:
    log_of(tmp_path, planted())
    if what is None:
        make_recipe(config_of(tmp_path, **changes), {}, "scratch")
        return
    with pytest.raises(InputError, match=what):
        make_recipe(config_of(tmp_path, **changes), {}, "scratch")


def test_a_feature_may_read_earlier_outcomes_but_not_its_own(tmp_path: Path) -> None:
    feature = {"name": "shown_view", "kind": "sequence", "encoding": "vocabulary"}
    tasks = [{"name": "view", "label": "view"}]
    config_of(tmp_path, schema={"features": [feature], "tasks": tasks})
    for column in ("view", "twice"):
        wrong = {**feature, "kind": "categorical", "column": column}
        derive = {
            "once": {"column": "like", "null_if": 0},
            "twice": {"column": "once", "divide": 2},
        }
        with pytest.raises(InputError, match="reads an outcome"):
            config_of(tmp_path, derive=derive, schema={"features": [wrong], "tasks": tasks})


@given(st.lists(st.one_of(st.none(), st.floats(allow_nan=True)), max_size=20))
def test_ordinals_stand_in_the_order_of_the_numbers(numbers: list[float | None]) -> None:
    found, known = ordinals(pa.chunked_array([pa.array(numbers, pa.float64())]))
    assert known.tolist() == [x is not None and x == x for x in numbers]
    assert all(found[~known] == FIRST)
    given = zip(numbers, found.tolist(), strict=True)
    pairs = [(x, y) for x, y in given if x is not None and x == x]
    assert all((a < b) == (m < n) and (a == b) == (m == n) for a, m in pairs for b, n in pairs)


def test_ranges_follow_one_another() -> None:
    assert ranges(np.array([5, 0, 9]), np.array([2, 0, 3])).tolist() == [5, 6, 9, 10, 11]
    assert ranges(np.zeros(0, int), np.zeros(0, int)).tolist() == []


def test_a_value_has_one_part_whatever_its_width_and_its_neighbours() -> None:
    narrow = parts_of([pa.array([3, 1, None, 2], pa.int8())], 5)
    wide = parts_of([pa.array([None, 2, 3], pa.int64())], 5)
    assert wide.tolist() == [narrow[2], narrow[3], narrow[0]]
    text = parts_of([pa.array(["a", None, "b"]), pa.array([1, 1, 1])], 7)
    assert text[0] == parts_of([pa.array(["a"]), pa.array([1])], 7)[0]
    spread = np.bincount(parts_of([pa.array(range(9000))], 3))
    assert spread.min() > 2800
    table = pa.table({"n": range(5)})
    pieces = {n: piece["n"].to_pylist() for n, piece in dealt(table, np.array([2, 0, 2, 0, 2]))}
    assert pieces == {0: [1, 3], 2: [0, 2, 4]}


def test_references_agree_on_what_a_like_list_takes() -> None:
    assert whole(LISTS[1]) == {**LISTS[1], "where": LISTS[0]["where"], "length": 3}
