"""Ray Data writes the same generated log as one process does."""

from pathlib import Path

import pytest
import ray

from raymtl.data.synthetic import SynthConfig, synthesise, write_log


@pytest.fixture
def local_ray():
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20)
    yield
    ray.shutdown()


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_a_log_written_in_parallel_equals_one_written_in_this_process(tmp_path, local_ray):
    config = SynthConfig(rows=6000, block_rows=500, chunk_rows=200, num_users=500, num_items=100)
    truth = synthesise(config, str(tmp_path / "ray"))
    assert truth == write_log(config, str(tmp_path / "here"))
    assert files_of(tmp_path / "ray") == files_of(tmp_path / "here")
