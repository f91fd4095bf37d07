"""Bad requests and bad artifacts: the scorer answers with its own errors alone, or with scores.

A few hundred cases in `make test`, 10,000 of each kind by `make fuzz`.
"""

import contextlib
import json
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.artifacts import copied, prepared_artifact, signed
from helpers.prepared import raw_columns
from raymtl.scorer import ArtifactError, RequestError, Scorer, ScorerError
from raymtl.scorer.files import FILES, MANIFEST

fuzzed = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
JSONS = ("artifact.json", "golden.json", "program.json")
TENSORS = tuple(name for name in FILES if name.endswith(".safetensors"))

numbers = st.one_of(
    st.integers(-3, 9),
    st.sampled_from([2**31, 2**63, -(2**63) - 1, 2**64, 10**400, 2**53 + 1]),
    st.floats(),
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    numbers,
    st.text(max_size=8),
    st.sampled_from(["\ud800", "Bern", "a", b"bytes", 1j, object(), {1}, {"a": 1}, float]),
    st.sampled_from([np.int64(3), np.float32(0.5), np.str_("a"), np.datetime64("2026-01-01")]),
)
nested = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4), max_leaves=12)
arrays = st.sampled_from(
    [
        np.zeros(3),
        np.array([np.nan, np.inf, 1]),
        np.zeros((3, 2), np.int64),
        np.array(3),
        np.array(["a", "b", "c"]),
        np.array([b"a", b"b", b"c"]),
        np.array(["2026-01-01"] * 3, "datetime64[ns]"),
        np.array([1, None, "a"], object),
        np.zeros(3, [("a", int)]),
        np.zeros(3, complex),
        np.array([2**64 - 1, 1, 0], np.uint64),
    ]
)
columns = st.one_of(st.lists(nested, min_size=3, max_size=3), nested, arrays)
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 40), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield prepared_artifact(tmp_path_factory.mktemp("fuzz"))[1]


@pytest.fixture(scope="module")
def scorer(artifact: Path) -> Scorer:
    return Scorer(artifact)


@pytest.fixture(scope="module")
def requests(artifact: Path) -> dict[str, dict[str, list[Any]]]:
    """Three good rows of each form."""
    golden = json.loads((artifact / "golden.json").read_text(encoding="utf-8"))
    return {
        g["form"]: {name: values[:3] for name, values in g["columns"].items()}
        for g in reversed(golden)
    }


def answer(scorer: Scorer, request: Any, form: Any, calibrated: Any = None) -> None:
    """Scores of one length, all finite, or the scorer's own error."""
    try:
        scores = scorer.score(request, form, calibrated)
    except RequestError as error:
        assert all(isinstance(part, str) and part for part in error.args)
        assert len(str(error)) < 2000
        return
    assert set(scores) == {"click", "stay", "like"}
    lengths = {len(v) for v in request.values()}
    assert {s.shape for s in scores.values()} == {(n,) for n in lengths}
    assert all(s.dtype == np.float32 and np.isfinite(s).all() for s in scores.values())


@fuzzed
@given(st.data())
def test_a_request_with_bad_columns_is_refused_or_scored(
    scorer: Scorer, requests: dict[str, dict[str, list[Any]]], data: st.DataObject
) -> None:
    form = data.draw(st.sampled_from(scorer.forms))
    request: dict[Any, Any] = dict(requests[form])
    for name in data.draw(st.lists(st.sampled_from(sorted(request)), max_size=3, unique=True)):
        how = data.draw(st.sampled_from(["replaced", "one value", "left out", "length", "renamed"]))
        if how == "left out":
            del request[name]
        elif how == "length":
            request[name] = request[name][: data.draw(st.integers(0, 2))]
        elif how == "renamed":
            request[data.draw(scalars.filter(lambda s: s.__hash__ is not None))] = request.pop(name)
        elif how == "replaced":
            request[name] = data.draw(columns)
        else:
            values = list(request[name])
            values[data.draw(st.integers(0, 2))] = data.draw(nested)
            request[name] = values
    answer(scorer, request, form)


@fuzzed
@given(st.one_of(nested, st.dictionaries(st.text(max_size=4), columns, max_size=3)), scalars)
def test_anything_at_all_as_a_request_is_refused(scorer: Scorer, request: Any, form: Any) -> None:
    with pytest.raises(RequestError):
        scorer.score(request, form)


@fuzzed
@given(st.data())
def test_good_values_in_any_mix_are_scored(scorer: Scorer, data: st.DataObject) -> None:
    num_rows = data.draw(st.integers(0, 5))
    seed = data.draw(st.integers(0, 10**6))
    made = {n: v.to_pylist() for n, v in raw_columns(num_rows, seed).items()}
    scores = scorer.score({name: made[name] for name in scorer.columns()})
    assert all(s.shape == (num_rows,) and np.isfinite(s).all() for s in scores.values())


@fuzzed
@given(st.data())
def test_an_artifact_with_altered_bytes_is_refused(artifact: Path, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = copied(artifact, Path(place, "a"))
        name = data.draw(st.sampled_from([*FILES, MANIFEST]))
        spoil_bytes(folder / name, data)
        changed = not same(folder / name, artifact / name)
        linked = (folder / name).is_symlink()
        if data.draw(st.booleans()) and name != MANIFEST and (folder / name).is_file():
            load_and_score(signed(folder))
        elif changed or linked:
            with pytest.raises(ArtifactError):
                Scorer(folder)


def same(path: Path, original: Path) -> bool:
    """Of the same bytes; a manifest may have other blanks."""
    if not path.is_file():
        return False
    contents = [file.read_bytes() for file in (path, original)]
    if path.name == MANIFEST:
        with contextlib.suppress(ValueError):
            contents = [json.loads(content) for content in contents]
    return contents[0] == contents[1]


def spoil_bytes(path: Path, data: st.DataObject) -> None:
    content = path.read_bytes()
    how = data.draw(st.sampled_from(["cut", "flip", "longer", "garbage", "gone", "link", "folder"]))
    at = data.draw(st.integers(0, len(content) - 1))
    path.unlink()
    if how == "cut":
        path.write_bytes(content[:at])
    elif how == "flip":
        changed = content[at] ^ data.draw(st.integers(1, 255))
        path.write_bytes(content[:at] + bytes([changed]) + content[at + 1 :])
    elif how == "longer":
        path.write_bytes(content + data.draw(st.binary(min_size=1, max_size=9)))
    elif how == "garbage":
        path.write_bytes(data.draw(st.binary(max_size=200)))
    elif how == "link":
        path.symlink_to(data.draw(st.sampled_from(["/etc/passwd", "/dev/zero", "nowhere", "."])))
    elif how == "folder":
        path.mkdir()


def load_and_score(folder: Path) -> None:
    """What changed may matter or not: the scorer says so with its own errors alone."""
    try:
        scorer = Scorer(folder)
        for form in scorer.forms:
            for request in json.loads((folder / "golden.json").read_text(encoding="utf-8")):
                if request["form"] == form:
                    scorer.score(request["columns"], form)
    except ScorerError as error:
        assert all(isinstance(part, str) and part for part in error.args)


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """Every place within JSON, as keys to follow."""
    found = [path] if path else []
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        found += [place for key, inner in pairs for place in places(inner, (*path, key))]
    return found


def put(value: Any, path: tuple, new: Any) -> None:
    for key in path[:-1]:
        value = value[key]
    if new is ...:
        del value[path[-1]]
    else:
        value[path[-1]] = new


@fuzzed
@given(st.data())
def test_an_artifact_with_other_json_and_right_hashes_runs_nothing_but_the_scorer(
    artifact: Path, data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = copied(artifact, Path(place, "a"))
        path = folder / data.draw(st.sampled_from(JSONS))
        content = json.loads(path.read_text(encoding="utf-8"))
        spots = places(content)
        for spot in data.draw(st.lists(st.sampled_from(spots), min_size=1, max_size=2)):
            try:
                put(content, spot, data.draw(st.one_of(st.just(...), json_values)))
            except (KeyError, IndexError, TypeError):  # the first change took the place away
                continue
        path.write_text(json.dumps(content), encoding="utf-8")
        load_and_score(signed(folder))


@fuzzed
@given(json_values, st.sampled_from([*JSONS, MANIFEST]))
def test_json_of_any_other_shape_is_refused(artifact: Path, value: Any, name: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = copied(artifact, Path(place, "a"))
        (folder / name).write_text(json.dumps(value), encoding="utf-8")
        if name != MANIFEST:
            signed(folder)
        if name == "golden.json" and value in ([], {}, ""):
            return  # nothing to replay
        with pytest.raises(ArtifactError):
            Scorer(folder)


@fuzzed
@given(st.data())
def test_tensors_with_a_lying_header_are_refused_or_scored(
    artifact: Path, data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = copied(artifact, Path(place, "a"))
        path = folder / data.draw(st.sampled_from(TENSORS))
        content = path.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        spot = data.draw(st.sampled_from(places(header)))
        sizes = st.sampled_from([0, 1, 2**31, 2**63, 2**64, -1, "F64", "I64", "BOOL"])
        put(header, spot, data.draw(st.one_of(st.just(...), sizes, json_values)))
        text = json.dumps(header).encode()
        claimed = data.draw(st.sampled_from([len(text), 0, 2**63, len(text) - 1, len(content)]))
        path.write_bytes(struct.pack("<Q", claimed) + text + content[8 + length :])
        load_and_score(signed(folder))
