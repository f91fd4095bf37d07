"""No artifact runs code, whatever it holds and however well its manifest fits."""

import io
import json
import os
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from helpers.artifacts import copied, prepared_artifact, signed
from helpers.prepared import raw_columns
from raymtl.scorer import ArtifactError, RequestError, Scorer
from raymtl.scorer.files import FILES, MANIFEST

pytestmark = pytest.mark.timeout(400)  # tracing is slow on a busy machine
MEMBERS = [name for name in FILES if name not in ("schema.yaml", "scorer.py")]
"""What the scorer reads of an artifact besides the manifest; the two others it only hashes."""


class Payload:
    """Makes a file once it is unpickled."""

    def __init__(self, mark: str):
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.mark,)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield prepared_artifact(tmp_path_factory.mktemp("safety"), "shared_bottom")[1]


def payloads(mark: str) -> dict[str, bytes]:
    """The same payload in each form that some loader of torch would unpickle."""
    plain = pickle.dumps(Payload(mark))
    saved = io.BytesIO()
    torch.save({"weight": Payload(mark)}, saved)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as members:  # as torch.export's own archive is laid out
        members.writestr("model/archive_format", "pt2")
        members.writestr("model/archive_version", "0")
        members.writestr("model/models/model.json", "{}")
        for name in (
            "data/sample_inputs/model.pt",
            "data/constants/custom_obj_0",
            "data/weights/weight_0",
        ):
            members.writestr(f"model/{name}", plain)
    return {"pickle": plain, "torch.save": saved.getvalue(), "pt2": archive.getvalue()}


@pytest.mark.parametrize("kind", ["pickle", "torch.save", "pt2"])
def test_a_payload_in_every_member_with_a_right_manifest_never_runs(
    kind: str, artifact: Path, tmp_path: Path
) -> None:
    mark = tmp_path / "ran"
    content = payloads(str(mark))[kind]
    for names in [[name] for name in MEMBERS] + [list(FILES)]:
        folder = copied(artifact, tmp_path / "artifact")
        for name in names:
            (folder / name).write_bytes(content)
        with pytest.raises(ArtifactError):
            Scorer(signed(folder))
        assert not mark.exists(), names
    pickle.loads(payloads(str(mark))["pickle"])
    assert mark.exists()  # the payload does what the test fears


def test_the_scorer_beside_an_artifact_is_not_run_by_loading_it(
    artifact: Path, tmp_path: Path
) -> None:
    mark = tmp_path / "ran"
    folder = copied(artifact, tmp_path / "artifact")
    (folder / "scorer.py").write_text(f"import os; os.mkdir({str(mark)!r})", encoding="utf-8")
    Scorer(signed(folder))
    assert not mark.exists()


@pytest.mark.parametrize(
    "name",
    [
        *("os.system", "__import__", "eval", "from_file.default", "as_strided.default"),
        *("load.default", "torch.load", "save.default", "_operator.call", "../add.Tensor"),
        *("add", "getattr", "__class__.default", "add.__globals__", "normal_.default"),
    ],
)
def test_a_program_calls_nothing_that_is_not_listed(
    name: str, artifact: Path, tmp_path: Path
) -> None:
    mark = tmp_path / "ran"
    folder = copied(artifact, tmp_path / "artifact")
    program = json.loads((folder / "program.json").read_text(encoding="utf-8"))
    program["steps"].insert(0, [name, [f"mkdir {mark}"], {}, program["num_slots"] - 1])
    (folder / "program.json").write_text(json.dumps(program), encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"program\.json|golden\.json"):
        Scorer(signed(folder))
    assert not mark.exists()


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b", "", ".", "extra.bin"])
def test_a_manifest_names_the_exports_files_and_no_others(
    name: str, artifact: Path, tmp_path: Path
) -> None:
    folder = copied(artifact, tmp_path / "artifact")
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    for files in ({**manifest["files"], name: manifest["files"]["golden.json"]}, {name: {}}):
        (folder / MANIFEST).write_text(json.dumps(manifest | {"files": files}), encoding="utf-8")
        with pytest.raises(ArtifactError, match="with other files than an export's"):
            Scorer(folder)


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_link_in_place_of_a_file_is_refused_even_where_its_bytes_fit(
    name: str, artifact: Path, tmp_path: Path
) -> None:
    folder = copied(artifact, tmp_path / "artifact")
    (folder / name).unlink()
    (folder / name).symlink_to(artifact / name)
    with pytest.raises(ArtifactError, match=name):
        Scorer(folder)


def test_a_pipe_in_place_of_a_file_does_not_hang(artifact: Path, tmp_path: Path) -> None:
    folder = copied(artifact, tmp_path / "artifact")
    (folder / "golden.json").unlink()
    os.mkfifo(folder / "golden.json")
    with pytest.raises(ArtifactError, match="no plain file"):
        Scorer(folder)


@pytest.mark.parametrize("name", FILES)
def test_one_changed_byte_is_named_before_anything_is_loaded(
    name: str, artifact: Path, tmp_path: Path
) -> None:
    folder = copied(artifact, tmp_path / "artifact")
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ArtifactError, match="altered: its hash differs") as error:
        Scorer(folder)
    assert name in error.value.got


def test_scores_that_differ_from_the_golden_ones_are_refused(
    artifact: Path, tmp_path: Path
) -> None:
    folder = copied(artifact, tmp_path / "artifact")
    golden = json.loads((folder / "golden.json").read_text(encoding="utf-8"))
    golden[0]["scores"]["click"][0] += 0.001
    (folder / "golden.json").write_text(json.dumps(golden), encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"scores of click are off by 0\.001"):
        Scorer(signed(folder))


def test_a_refused_request_says_which_column_holds_what(artifact: Path) -> None:
    scorer = Scorer(artifact)
    good = {name: v.to_pylist() for name, v in raw_columns(2).items() if name in scorer.columns()}
    cases = {
        "city": ([1, 2], "integers|text"),
        "slot": ([6, 0], "0 to 5"),
        "item_id": ([1.5, 2], "whole numbers"),
        "age": ([float("inf"), 1], "finite numbers"),
        "seen_action": ([[1], [9]], "0 to 3"),
        "topic_share": ([[float("nan")] * 5] * 2, "equal lengths|finite weight"),
        "tags": (["ab", ["a"]], "a list"),
    }
    for column, (values, wanted) in cases.items():
        with pytest.raises(RequestError) as error:
            scorer.score(good | {column: values})
        assert column in error.value.what
        assert any(part in error.value.wanted for part in wanted.split("|")), error.value
