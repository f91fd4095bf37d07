"""The demo touches only what is its own: its folder, its workers."""

import os
import subprocess
import sys

from raymtl_jobs import demo


def test_the_demo_removes_the_folder_of_an_earlier_demo(tmp_path):
    folder = tmp_path / "demo"
    assert demo.fresh_folder(folder)
    (folder / "log").mkdir()
    assert demo.fresh_folder(folder)
    assert [f.name for f in folder.iterdir()] == [demo.MARKER]


def test_the_demo_leaves_a_folder_that_is_not_its_own(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("kept")
    assert not demo.fresh_folder(tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "kept"
    assert "is there already" in capsys.readouterr().err


def test_the_demo_kills_descendants_of_its_training_only():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert demo.ancestors(child.pid) >= {os.getpid(), os.getppid()}
        assert not demo.kill_worker(os.getppid(), ancestor=child.pid)
        assert child.poll() is None
        assert demo.kill_worker(child.pid, ancestor=os.getpid())
        assert child.wait() == -9
    finally:
        child.kill()
        child.communicate()


def test_the_demo_reads_the_ranks_processes_from_trainings_lines():
    found = demo.RANK.match("rank 1 of 2: process 1057 on 127.0.0.1")
    assert found is not None and found.groups() == ("1", "1057")
