"""Decoding, against values a person can check and against a slow reference, row by row."""

import hashlib
import math
import re

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymtl.batch import PAD, Layout
from raymtl.data.decode import decode, hash_rows
from raymtl.errors import IdOutOfRange, InputError
from raymtl.schema import LogSchema

GOLDEN = {"42": 727987339546950915, "0": 13878215301362151913, "käse": 11112163723142647957}
TASK = {"name": "click", "label": "click"}


def digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode()).digest()[:8], "little")


def run(columns, features: list[dict], tables=(), tasks=(), labels=None, **schema):
    """Decodes columns with a schema whose label is all null unless given."""
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    if not tasks:
        table = table.append_column("click", pa.nulls(table.num_rows, pa.int8()))
    made = LogSchema.model_validate(
        {"features": features, "tables": list(tables), "tasks": list(tasks) or [TASK], **schema}
    )
    return decode(table, made, Layout.of(made), "part-0.parquet, row group 3")


def ids(columns: dict, feature: dict, rows: int = 1000, **table) -> list:
    size = {} if "values" in table else {"rows": rows}
    out = run(columns, [feature], [{"name": feature["name"], **size, **table}])
    return out["ids"].tolist()


def index(name="x", kind="categorical", **more) -> dict:
    return {"kind": kind, "name": name, "encoding": "index", **more}


def test_hashes_are_the_pinned_ones():
    for text, value in GOLDEN.items():
        assert digest(text) == value
        assert hash_rows([text], 1000).tolist() == [value % 999 + 1]
    assert hash_rows([], 7).tolist() == []


def test_integers_hash_as_their_decimal_string_and_booleans_as_0_and_1():
    feature = {"kind": "categorical", "name": "x"}
    texts = ["-7", "0", "42", str(2**63 - 1), str(-(2**63))]
    wanted = [[digest(t) % 999 + 1] for t in texts]
    assert ids({"x": [int(t) for t in texts]}, feature) == wanted
    assert ids({"x": texts}, feature) == wanted
    assert ids({"x": [True, False]}, feature) == [[digest(t) % 999 + 1] for t in "10"]
    big = pa.array([2**64 - 1], pa.uint64())
    assert ids({"x": big}, feature) == [[digest(str(2**64 - 1)) % 999 + 1]]


def test_a_hash_does_not_depend_on_what_was_hashed_before():
    feature = {"kind": "categorical", "name": "x"}
    rng = np.random.default_rng(0)
    for _ in range(3):
        values = rng.integers(-(2**40), 2**40, 3000)
        got = ids({"x": np.concatenate([values, values])}, feature, rows=10**6)
        wanted = hash_rows([str(v) for v in values], 10**6)[:, None].tolist()
        assert got == wanted + wanted


def test_a_null_categorical_is_padding_in_every_encoding():
    assert ids({"x": [None, 3]}, index()) == [[PAD], [3]]
    assert ids({"x": [None, "a"]}, {"kind": "categorical", "name": "x"})[0] == [PAD]
    vocabulary = {"kind": "categorical", "name": "x", "encoding": "vocabulary"}
    got = ids({"x": [None, "b", "z", "a"]}, vocabulary, values=["a", "b"])
    assert got == [[PAD], [2], [0], [1]]
    assert ids({"x": pa.nulls(2)}, index()) == [[PAD], [PAD]]


@pytest.mark.parametrize("value", [1000, -2, 2**40])
def test_an_index_outside_the_table_names_feature_value_and_place(value):
    with pytest.raises(IdOutOfRange) as caught:
        ids({"x": [1, value]}, index(), rows=1000)
    text = str(caught.value)
    assert "feature x" in text and f"{value} " in text and "0 to 999" in text
    assert "part-0.parquet, row group 3" in text


def test_an_index_past_int64_is_out_of_range_too():
    with pytest.raises(IdOutOfRange):
        ids({"x": pa.array([None, 2**64 - 1], pa.uint64())}, index())


def test_floats_are_no_ids():
    for encoding in ("index", "hash"):
        with pytest.raises(InputError, match="holds no ids"):
            ids({"x": [1.5]}, {"kind": "categorical", "name": "x", "encoding": encoding})


def test_a_missing_column_is_its_default():
    table = {"other": [1, 2]}
    assert ids(table, index(default=5)) == [[5], [5]]
    with pytest.raises(InputError, match="column x is missing"):
        ids(table, index())
    columns = {"a": [[1, 2], [], None], "w": [[0.5, 2.0], [], None]}
    assert ids(columns, index(kind="sequence", default=7, max_length=2))[0] == [7, PAD]
    pair = [
        index("a", "sequence", max_length=2),
        index("b", "sequence", max_length=2, aligned_with="a", default=7),
    ]
    tables = [{"name": n, "rows": 9} for n in "ab"]
    got = run(columns, pair, tables)["ids"].tolist()
    assert got == [[1, 2, 7, 7], [PAD] * 4, [PAD] * 4]


def test_a_bag_keeps_its_first_ids_and_drops_nulls_with_their_weights():
    columns = {
        "x": [[1, None, 2, 3], [], None, [4, -1]],
        "w": [[1.0, 9.0, 2.0, 3.0], [], [], [-1.0, 5.0]],
    }
    feature = index(kind="bag", max_length=2, weights="w")
    out = run(columns, [feature], [{"name": "x", "rows": 9}])
    assert out["ids"].tolist() == [[1, 2], [PAD, PAD], [PAD, PAD], [4, PAD]]
    assert out["bag_weights"].tolist() == [[1, 2], [0, 0], [0, 0], [-1, 0]]


@pytest.mark.parametrize("weight", [None, float("nan"), float("inf")])
def test_a_bag_weight_that_is_not_finite_is_refused(weight):
    feature = index(kind="bag", weights="w")
    with pytest.raises(InputError, match=r"(?s)weight of bag x.*row 1 of it"):
        run({"x": [[1], [2]], "w": [[1.0], [weight]]}, [feature], [{"name": "x", "rows": 9}])


def test_weights_and_ids_of_different_length_are_refused():
    feature = index(kind="bag", weights="w")
    with pytest.raises(InputError, match=r"(?s)x and weights w differ.*2 and 1 .*row 1 of it"):
        run({"x": [[1], [2, 3]], "w": [[1.0], [1.0]]}, [feature], [{"name": "x", "rows": 9}])


def test_a_sequence_keeps_its_last_ids_oldest_first_and_null_ids_are_row_0():
    columns = {"x": [[1, 2, 3, 4], [5, None], [], None]}
    got = ids(columns, index(kind="sequence", max_length=3))
    assert got == [[2, 3, 4], [5, 0, PAD], [PAD] * 3, [PAD] * 3]


def test_padding_written_into_an_index_sequence_is_no_item():
    columns = {"x": [[1, 2, -1], [-1, -1, -1]]}
    got = ids(columns, index(kind="sequence", max_length=3))
    assert got == [[1, 2, PAD], [PAD] * 3]


def test_aligned_sequences_of_different_length_are_refused():
    features = [index("a", "sequence"), index("b", "sequence", aligned_with="a")]
    tables = [{"name": n, "rows": 9} for n in "ab"]
    with pytest.raises(InputError, match=r"(?s)lists of b and a differ.*1 and 2 .*row 1 of it"):
        run({"a": [[1], [1, 2]], "b": [[3], [3]]}, features, tables)


LISTS = [[1, 2], None, [], [3, None, 4], [5]]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(LISTS, pa.list_(pa.int32())),
        pa.array(LISTS, pa.large_list(pa.int64())),
        pa.array([[9], *LISTS, [9]], pa.list_(pa.int16())).slice(1, 5),
        pa.chunked_array([pa.array(LISTS[:2]), pa.array([[9], *LISTS[2:]]).slice(1)]),
        pa.array(LISTS, pa.list_(pa.dictionary(pa.int8(), pa.int64()))),
    ],
    ids=["list", "large_list", "sliced", "chunked", "dictionary elements"],
)
def test_every_kind_of_list_column_reads_the_same(column):
    got = ids({"x": column}, index(kind="bag", max_length=3))
    assert got == [[1, 2, PAD], [PAD] * 3, [PAD] * 3, [3, 4, PAD], [5, PAD, PAD]]


def test_fixed_size_lists_read_like_others():
    column = pa.array([[8, 8], [1, 2], None, [3, -1]], pa.list_(pa.int32(), 2)).slice(1)
    assert ids({"x": column}, index(kind="bag", max_length=2)) == [[1, 2], [PAD] * 2, [3, PAD]]


def test_dictionary_columns_read_like_plain_ones():
    text = pa.chunked_array([pa.array(["a", None]), pa.array(["b", "a"])])
    feature = {"kind": "categorical", "name": "x"}
    assert ids({"x": text.dictionary_encode()}, feature) == ids({"x": text}, feature)
    view = pa.array(["a", None, "b", "a"], pa.string_view())
    assert ids({"x": view}, feature) == ids({"x": text}, feature)


def test_numbers_are_transformed_in_the_stated_order():
    columns = {"x": pa.array([0.0, math.e - 1, None, 1 - math.e, float("nan")])}
    feature = {"kind": "numeric", "name": "x", "log1p": True, "standardise": True}
    feature |= {"mean": 1.0, "std": 0.5, "missing_indicator": True, "fill": -9.0}
    got = run(columns, [feature])["numeric"]
    wanted = [[-2, 0], [0, 0], [-9, 1], [-4, 0], [-9, 1]]
    np.testing.assert_allclose(got, wanted, atol=1e-6)


def test_a_bucketed_number_is_one_plus_the_borders_at_or_below_it():
    columns = {"x": [-1.0, 1.0, 1.5, 2.0, 99.0, None, float("nan")]}
    out = run(columns, [{"kind": "numeric", "name": "x", "boundaries": [1.0, 2.0]}])
    assert out["ids"].ravel().tolist() == [1, 2, 2, 3, 3, 0, 0]
    assert out["numeric"].shape == (7, 0)


def test_an_infinite_number_is_refused_by_name_and_row():
    with pytest.raises(InputError, match=r"(?s)feature x is not finite.*x = -inf .*row 1 of it"):
        run({"x": [1.0, -math.inf]}, [{"kind": "numeric", "name": "x"}])
    with pytest.raises(InputError, match="too large for float32"):
        run({"x": [1e39]}, [{"kind": "numeric", "name": "x"}])


def test_a_missing_number_column_is_its_raw_default():
    feature = {"kind": "numeric", "name": "x", "log1p": True, "default": math.e - 1}
    np.testing.assert_allclose(run({"y": [1, 2]}, [feature])["numeric"], [[1], [1]])


X = {"kind": "categorical", "name": "x", "encoding": "index"}
X_TABLE = {"name": "x", "rows": 9}


def labels_of(columns: dict, *tasks: dict, **schema) -> dict[str, np.ndarray]:
    size = len(next(iter(columns.values())))
    return run({"x": [1] * size, **columns}, [X], [X_TABLE], tasks, **schema)


def test_null_labels_and_broken_rules_are_unobserved():
    columns = {"click": [True, False, None, True], "buy": [None] * 4, "stay": [0.5, -9, None, 7]}
    rule = {"column": "stay", "at_least": 0, "at_most": 6}
    out = labels_of(
        columns,
        {"name": "click", "label": "click"},
        {"name": "buy", "label": "buy"},
        {"name": "stay", "label": "stay", "kind": "regression", "observed_if": rule},
    )
    nan = math.nan
    wanted = [[1, nan, 0.5], [0, nan, nan], [nan, nan, nan], [1, nan, nan]]
    np.testing.assert_array_equal(out["labels"], wanted)
    np.testing.assert_array_equal(out["task_weights"], ~np.isnan(wanted))


def test_a_label_may_be_anything_where_its_rule_makes_it_unobserved():
    rule = {"column": "click", "at_least": 0}
    out = labels_of({"click": [-1, 0, 1]}, {**TASK, "observed_if": rule})
    np.testing.assert_array_equal(out["labels"], [[math.nan], [0], [1]])


@pytest.mark.parametrize("value", [2, -1, 0.5, math.nan])
def test_a_binary_label_that_is_not_0_or_1_names_column_value_row_and_place(value):
    with pytest.raises(InputError) as caught:
        labels_of({"y": [0, None, value]}, {"name": "t", "label": "y"})
    wanted = rf"(?s)task t.*y = {re.escape(f'{value:g}')} .*part-0.*row 2 of it"
    assert re.search(wanted, str(caught.value))


def test_a_regression_label_must_be_finite():
    task = {"name": "t", "label": "y", "kind": "regression"}
    for value in (math.nan, math.inf):
        with pytest.raises(InputError, match="not a finite number"):
            labels_of({"y": [0.0, value]}, task)


def test_weights_are_read_and_checked_where_they_count():
    task = {**TASK, "weight": "tw"}
    columns = {"click": [1, None, 0], "tw": [2.0, None, 0.0], "w": [1, 2, 3]}
    out = labels_of(columns, task, weight="w")
    assert out["weights"].tolist() == [1, 2, 3]
    assert out["task_weights"].tolist() == [[2], [0], [0]]
    for wrong in (None, -1.0, math.inf, math.nan):
        for bad in ({"w": [wrong, 1, 1]}, {"tw": [wrong, 1, 1]}):
            with pytest.raises(InputError, match="null, negative or not finite"):
                labels_of({**columns, **bad}, task, weight="w")


def test_groups_are_integers_as_themselves_text_hashed_and_null_minus_one():
    columns = {"click": [1, 1], "g": [2**40, None]}
    assert labels_of(columns, TASK, group="g")["group"].tolist() == [2**40, -1]
    columns["g"] = ["42", None]
    wanted = GOLDEN["42"] - 2**64 if GOLDEN["42"] >= 2**63 else GOLDEN["42"]
    assert labels_of(columns, TASK, group="g")["group"].tolist() == [wanted, -1]
    assert labels_of(columns, TASK)["group"].tolist() == [-1, -1]


def test_keys_come_along_as_they_are():
    table = pa.table({"x": [1, 2], "k": ["a", None], "n": [2**60 + 1, 3], "click": [1, 0]})
    schema = LogSchema.model_validate({"features": [X], "tables": [X_TABLE], "tasks": [TASK]})
    out = decode(table, schema, Layout.of(schema), "here", keys=("k", "n"))
    assert out["key:k"].tolist() == ["a", None]
    assert out["key:n"].tolist() == [2**60 + 1, 3]
    with pytest.raises(InputError, match="column z is missing"):
        decode(table, schema, Layout.of(schema), "here", keys=("z",))


def test_without_labels_their_columns_may_be_missing():
    schema = LogSchema.model_validate(
        {"features": [X], "tables": [X_TABLE], "tasks": [TASK], "weight": "w", "group": "g"}
    )
    out = decode(pa.table({"x": [1, 2]}), schema, Layout.of(schema), "here", labels=False)
    assert np.isnan(out["labels"]).all() and out["weights"].tolist() == [1, 1]
    assert out["group"].tolist() == [-1, -1]


def test_no_rows_decode_to_no_rows():
    table = {"x": pa.array([], pa.list_(pa.int64())), "w": pa.array([], pa.list_(pa.float32()))}
    out = run(table, [index(kind="bag", max_length=2, weights="w")], [X_TABLE])
    assert out["ids"].shape == (0, 2) and out["bag_weights"].shape == (0, 2)


def slow_row(value, encoding: str, rows: int) -> int:
    """One id's row by the plainest code; null is PAD."""
    if value is None:
        return PAD
    if encoding == "hash":
        return digest(str(value)) % (rows - 1) + 1
    return value if encoding == "index" else ([str(v) for v in range(3)].index(str(value)) + 1)


def slow_bag(values, weights, encoding, rows, length):
    """One row's ids and weights by the plainest code."""
    kept = [
        (slow_row(v, encoding, rows), w) for v, w in zip(values or [], weights or [], strict=True)
    ]
    kept = [(i, w) for i, w in kept if i != PAD][:length]
    kept += [(PAD, 0.0)] * (length - len(kept))
    return [i for i, _ in kept], [w for _, w in kept]


def slow_sequence(values, encoding, rows, length):
    kept = [max(0, slow_row(v, encoding, rows)) for v in values or []][-length:]
    return kept + [PAD] * (length - len(kept))


element = st.one_of(st.none(), st.integers(0, 2))
weighted = st.one_of(st.none(), st.lists(st.tuples(element, st.integers(-4, 4)), max_size=6))


@settings(max_examples=150, deadline=None)
@given(
    bags=st.lists(weighted, max_size=8),
    encoding=st.sampled_from(["index", "hash", "vocabulary"]),
    length=st.integers(1, 4),
    large=st.booleans(),
    cut=st.integers(0, 8),
)
def test_lists_decode_like_the_slow_reference(bags, encoding, length, large, cut):
    values = [None if b is None else [v for v, _ in b] for b in bags]
    weights = [None if b is None else [float(w) for _, w in b] for b in bags]
    kind = (pa.large_list if large else pa.list_)(pa.int32())
    weight_kind = pa.list_(pa.float32())
    column = pa.chunked_array([pa.array(values[:cut], kind), pa.array(values[cut:], kind)])
    table = pa.table({"x": column, "w": pa.array(weights, weight_kind)})
    common = {"encoding": encoding, "column": "x", "table": "t", "max_length": length}
    features = [
        {"kind": "bag", "name": "bag", "weights": "w", **common},
        {"kind": "sequence", "name": "sequence", **common},
    ]
    store = {"name": "t", **({"values": list("012")} if encoding == "vocabulary" else {"rows": 7})}
    out = run(table, features, [store])
    for row, (v, w) in enumerate(zip(values, weights, strict=True)):
        ids_, weights_ = slow_bag(v, w, encoding, 7, length)
        assert out["ids"][row, :length].tolist() == ids_
        assert out["bag_weights"][row].tolist() == weights_
        assert out["ids"][row, length:].tolist() == slow_sequence(v, encoding, 7, length)
