"""Ray Data writes the same generated log as one process does."""

from pathlib import Path

import pytest

from raymtl.data.synthetic import SynthConfig, synthesise, write_log


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.mark.usefixtures("local_ray")
def test_a_log_written_in_parallel_equals_one_written_in_this_process(tmp_path):
    config = SynthConfig(rows=6000, block_rows=500, chunk_rows=200, num_users=500, num_items=100)
    truth = synthesise(config, str(tmp_path / "ray"))
    assert truth == write_log(config, str(tmp_path / "here"))
    assert files_of(tmp_path / "ray") == files_of(tmp_path / "here")
