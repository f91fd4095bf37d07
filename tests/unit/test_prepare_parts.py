"""The parts of `raymtl prepare` that need no Ray."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymtl.config import parse
from raymtl.data import values
from raymtl.data.derive import derive
from raymtl.data.fit import Moments, quantile_borders
from raymtl.data.join import left_join
from raymtl.data.prepare_config import Derived, OrderSplit, PrepareConfig
from raymtl.data.raw import RawFile, cut
from raymtl.data.split import Places, borders
from raymtl.data.vocabulary import Counter
from raymtl.errors import InputError

NUMBERS = st.lists(st.floats(-1e6, 1e6), max_size=20)


def config_of(**changes) -> PrepareConfig:
    values = {
        "sources": [{"name": "log", "url": "log"}],
        "split": {"by": "order"},
        "schema": {
            "features": [{"name": "user", "kind": "categorical", "encoding": "vocabulary"}],
            "tasks": [{"name": "click", "label": "is_click"}],
        },
    }
    return parse(PrepareConfig, values | changes, "test")


@given(st.lists(NUMBERS, min_size=1, max_size=5))
def test_moments_of_parts_merge_to_those_of_the_whole(parts: list[list[float]]) -> None:
    merged = Moments()
    for part in parts:
        merged.add(Moments.of(np.array([*part, np.nan])))
    whole = np.array([v for part in parts for v in part])
    assert merged.count == len(whole)
    if len(whole):
        assert merged.mean == pytest.approx(whole.mean(), rel=1e-9, abs=1e-6)
        assert merged.std == pytest.approx(whole.std() or 1.0, rel=1e-6, abs=1e-3)


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=60), st.integers(2, 8))
def test_borders_are_the_values_at_equal_ranks(numbers: list[float], buckets: int) -> None:
    counter = Counter()
    counter.add_values(0, pa.array((np.array(numbers) + 0.0).view(np.int64)))
    n, rising = len(numbers), sorted(numbers)
    wanted = {rising[int(np.floor(i / buckets * n))] for i in range(1, buckets)}
    assert quantile_borders([counter.sum()], buckets) == sorted(wanted)


def test_rows_of_each_user_are_numbered_through_over_the_tables_of_a_share() -> None:
    places = Places(pa.array(["a", "b"]), np.array([5, 0]), np.array([9, 2]))
    first, _ = places.take(pa.array(["b", "a", "a"]))
    second, totals = places.take(pa.array(["a", "b"]))
    assert first.tolist() == [0, 5, 6]
    assert second.tolist() == [7, 1]
    assert totals.tolist() == [9, 2]


def test_a_user_with_one_row_has_it_in_the_training_part() -> None:
    train, valid = borders(np.array([1, 2, 10]), OrderSplit(by="order", valid=0.1, test=0.1))
    assert train.tolist() == [1, 2, 8]
    assert valid.tolist() == [1, 2, 9]


@pytest.mark.parametrize(
    ("column", "step", "wanted"),
    [
        ([1359, 0, None], {"divide": 100}, [13, 0, None]),
        (["1,22", "3", None], {"split": ","}, [["1", "22"], ["3"], None]),
        ([0.0, 5.0, None], {"null_if": 0}, [None, 5.0, None]),
        ([20220501, None], {"days_since": "since"}, [2, None]),
        (["2022-05-01", None], {"days_since": "since"}, [2, None]),
    ],
)
def test_a_derived_column_is(column: list, step: dict, wanted: list) -> None:
    table = pa.table({"c": column, "since": ["2022-04-29"] * len(column)})
    made = derive(table, "new", Derived(column="c", **step), "here")
    assert made.column("new").to_pylist() == wanted


def test_a_derived_column_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match=r"derive\.new does not fit column c"):
        derive(pa.table({"c": ["x"]}), "new", Derived(column="c", divide=2), "here")


def test_whole_floats_are_ids_and_others_are_refused() -> None:
    column = pa.chunked_array([[2.0, None, float("nan")]])
    assert values.ids(column, "level", "here").to_pylist() == [2, None, None]
    with pytest.raises(InputError, match="no ids"):
        values.ids(pa.chunked_array([[2.5]]), "level", "here")


def test_lists_keep_their_shape_and_their_nulls_even_when_sliced() -> None:
    column = pa.chunked_array([pa.array([[9.0], None, [1.0, None], []]).slice(1)])
    assert values.ids(column, "tags", "here").to_pylist() == [None, [1, None], []]


def test_a_left_join_keeps_rows_without_a_match_and_widens_integers() -> None:
    log = pa.table({"user": pa.array([2, None, 7], pa.int32())})
    side = pa.table({"key of users": pa.array([1, 2], pa.int64()), "city": ["x", "y"]})
    joined = left_join(log, "user", side, "users")
    assert joined.column("city").to_pylist() == ["y", None, None]


@given(st.lists(st.lists(st.integers(0, 50), max_size=4), min_size=1, max_size=4))
def test_shares_cover_every_row_once_and_in_order(groups: list[list[int]]) -> None:
    files = [
        RawFile(f"source {n // 2}", "", f"{n}", tuple(rows), pa.schema([]), {}, {})
        for n, rows in enumerate(groups)
    ]
    shares = cut(files, 16)
    seen = [
        (span.file, span.row_group, row)
        for share in shares
        for span in share.spans
        for row in range(span.start, span.stop)
    ]
    assert seen == [
        (n, g, row) for n, rows in enumerate(groups) for g, r in enumerate(rows) for row in range(r)
    ]
    assert all(0 < share.num_rows <= 16 for share in shares)
    starts = np.cumsum([0, *(share.num_rows for share in shares)])
    assert [share.first_row for share in shares] == starts[:-1].tolist()


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"outcomes": ["user"]}, "feature user reads an outcome"),
        ({"derive": {"user": {"column": "is_click", "null_if": 0}}}, "user reads an outcome"),
        ({"derive": {"x": {"column": "c", "divide": 2, "split": ","}}}, "has 2 steps"),
        ({"vocabularies": {"min_count": {"usr": 2}}}, "names a table that is not there"),
        (
            {"split": {"by": "source", "train": [{"source": "lag"}]}},
            "names a source that is not there",
        ),
        ({"split": {"by": "order", "valid": 0.6, "test": 0.5}}, "leaves no training rows"),
        ({"source": []}, "unknown key source"),
    ],
)
def test_a_config_is_refused(changes: dict, what: str) -> None:
    with pytest.raises(InputError, match=what):
        config_of(**changes)
