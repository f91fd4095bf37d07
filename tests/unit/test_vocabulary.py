"""Vocabularies: counted in parts, merged, ordered, looked up."""

import collections

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymtl.data import vocabulary
from raymtl.data.vocabulary import Counter, buckets_of, frequent, look_up, ordered, written_out


def counts_of(lists: dict[int, list]) -> pa.Table:
    counter = Counter()
    for number, values in lists.items():
        counter.add_values(number, pa.array(values))
    return counter.sum()


def as_dict(table: pa.Table) -> dict:
    rows = table.to_pylist()
    return {(r["list"], r["integer"], r["text"]): r["count"] for r in rows}


@given(st.lists(st.lists(st.integers(-5, 5)), max_size=6))
def test_counts_of_parts_add_up_to_the_counts_of_the_whole(parts: list[list[int]]) -> None:
    counter = Counter()
    for part in parts:
        counter.add_values(3, pa.array(part, pa.int64()))
    whole = collections.Counter(v for part in parts for v in part)
    assert as_dict(counter.sum()) == {(3, v, None): n for v, n in whole.items()}


def test_counts_added_up_on_the_way_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "PENDING_ROWS", 2)
    counter = Counter()
    for _ in range(10):
        counter.add_values(0, pa.array([1, 1, 2, 7]))
    assert as_dict(counter.sum()) == {(0, 1, None): 20, (0, 2, None): 10, (0, 7, None): 10}


def test_text_and_integers_of_different_lists_do_not_mix_and_nulls_do_not_count() -> None:
    counts = counts_of({0: [1, None, 1], 1: ["1", "1", None, "x"]})
    assert as_dict(counts) == {(0, 1, None): 2, (1, None, "1"): 2, (1, None, "x"): 1}


def test_a_value_is_in_the_same_bucket_whatever_stands_beside_it() -> None:
    many = counts_of({0: list(range(1000)), 1: [f"v{n}" for n in range(1000)]})
    one = counts_of({0: [17]})
    rows = many.to_pylist()
    place = next(i for i, r in enumerate(rows) if r["integer"] == 17)
    buckets = buckets_of(many, 8)
    assert buckets[place] == buckets_of(one, 8)[0]
    assert set(np.unique(buckets)) == set(range(8))


def test_a_vocabulary_is_ordered_by_falling_count_then_rising_value() -> None:
    counts = frequent(counts_of({0: [5, 9, 9, 2, 2, 7, 7, 7]}), 2)
    assert ordered([counts], is_text=False).to_pydict() == {"value": [7, 2, 9], "count": [3, 2, 2]}


def test_the_order_does_not_depend_on_which_part_a_value_was_in() -> None:
    a, b = counts_of({0: ["x", "y", "y"]}), counts_of({0: ["w", "z", "z"]})
    assert ordered([a, b], is_text=True).equals(ordered([b, a], is_text=True))


def test_unknown_values_are_row_0_and_null_stays_null() -> None:
    rows = look_up(pa.array(["b", "?", None, "a"]), pa.array(["a", "b"]))
    assert rows.to_pylist() == [2, 0, None, 1]
    assert rows.type == pa.int32()


def test_an_empty_vocabulary_knows_nothing() -> None:
    assert look_up(pa.array([3, None]), pa.array([], pa.int64())).to_pylist() == [0, None]


def test_values_written_out_keep_their_order() -> None:
    assert written_out(["20", "3"], is_text=False).column("value").to_pylist() == [20, 3]
