"""Storage that fails: tried again where waiting may mend it, at once an error where not."""

import errno
import os
from pathlib import Path

import pytest

from raymtl import storage
from raymtl.storage import START_FOLDER, Folder, absolute, persistently


class Failing:
    """Fails a number of times, then gives 7."""

    def __init__(self, *errors: OSError):
        self.errors, self.calls = list(errors), 0

    def __call__(self) -> int:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return 7


def test_storage_that_comes_back_is_written_to_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "PAUSES_S", (0.0, 0.0))
    action = Failing(OSError("AWS Error NETWORK_CONNECTION"), OSError(errno.EIO, "again"))
    assert persistently(action) == 7 and action.calls == 3
    with pytest.raises(OSError, match="third"):
        persistently(Failing(OSError("first"), OSError("second"), OSError("third")))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_full_or_forbidden_disk_is_an_error_at_once(number: int) -> None:
    action = Failing(OSError(number, os.strerror(number)))
    with pytest.raises(OSError, match=os.strerror(number)):
        persistently(action)
    assert action.calls == 1


def test_relative_paths_start_where_a_jobs_command_was_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(START_FOLDER, raising=False)
    assert absolute("runs/") == f"{tmp_path}/runs"
    monkeypatch.setenv(START_FOLDER, "/home/someone")
    assert absolute("runs") == "/home/someone/runs"
    assert absolute("/data") == "/data" and absolute("s3://b/runs/") == "s3://b/runs"


def test_a_folder_is_removed_though_its_files_come_and_go(tmp_path: Path) -> None:
    (tmp_path / "step").mkdir()
    (tmp_path / "step" / "file").write_text("of a worker that is not dead yet")
    folder = Folder(str(tmp_path))
    inner, refusals = folder.filesystem, [FileNotFoundError("it went away meanwhile")]

    class Racing:
        get_file_info = inner.get_file_info

        def delete_dir(self, path: str) -> None:
            if refusals:
                raise refusals.pop()
            inner.delete_dir(path)

    folder.filesystem = Racing()  # pyright: ignore[reportAttributeAccessIssue]
    folder.delete("step")
    assert not (tmp_path / "step").exists() and not refusals
