"""metrics.jsonl where storage refuses for a while: no line is lost or doubled, and none stops."""

import json
from pathlib import Path
from typing import Any

import pytest

from raymtl import storage
from raymtl.run import METRICS, MetricLines, Run
from raymtl.tensorboard import EventWriter


class Refusing:
    """A folder that can stop taking files."""

    def __init__(self, folder: storage.Folder, is_local: bool):
        self._folder, self.is_local, self.path = folder, is_local, folder.path
        self.refuses = False

    def write(self, name: str, data: bytes) -> None:
        if self.refuses:
            raise OSError("storage is away")
        self._folder.write(name, data)


def steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / METRICS).read_text().splitlines()]


@pytest.fixture
def away(tmp_path: Path) -> tuple[MetricLines, Any]:
    lines = MetricLines(Run(str(tmp_path)))
    folder: Any = Refusing(storage.Folder(str(tmp_path)), is_local=False)
    lines._folder = folder
    return lines, folder


def test_lines_that_remote_storage_refuses_follow_when_it_is_back(away, tmp_path):
    lines, folder = away
    lines.add({"step": 1})
    lines.flush()
    folder.refuses = True
    lines.add({"step": 2})
    with pytest.raises(OSError, match="away"):
        lines.flush()
    assert steps(tmp_path) == [1]
    folder.refuses = False
    lines.add({"step": 3})
    lines.flush()
    assert steps(tmp_path) == [1, 2, 3]


def test_a_line_torn_by_a_full_disk_is_written_whole_later(tmp_path, monkeypatch):
    lines = MetricLines(Run(str(tmp_path)))
    lines.add({"step": 1})

    def torn(path: Path, mode: str, encoding: str) -> Any:
        with open(path, mode, encoding=encoding) as stream:
            stream.write('{"ste')
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("raymtl.run.open", torn, raising=False)
    lines.add({"step": 2})
    assert (tmp_path / METRICS).read_text().endswith('{"ste')
    monkeypatch.undo()
    lines.add({"step": 3})
    lines.flush()
    assert steps(tmp_path) == [1, 2, 3]


def test_events_that_cannot_be_written_end_with_a_warning(tmp_path):
    (tmp_path / "tensorboard").write_text("a file where the folder would be")
    events = EventWriter(storage.Folder(str(tmp_path)))
    with pytest.warns(UserWarning, match="TensorBoard events end here"):
        events.add({"step": 1, "loss": 0.5})
    events.add({"step": 2, "loss": 0.4})
