"""Every registered model trains alike on one rank and on two."""

import pytest
import torch

from helpers.logs import small_log
from helpers.models import small_section
from helpers.procs import run_ranks
from helpers.training import final_checkpoint, small_config, train_on_rank, weights_of
from raymtl.models import registry

STEPS = 4


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("log")
    small_log(folder, rows=1500)
    return str(folder)


@pytest.mark.parametrize("name", registry.names())
def test_one_rank_and_two_train_a_model_alike(log: str, name: str) -> None:
    runs = {}
    for world_size in (1, 2):
        values = small_config(
            log,
            f"name={name}-{world_size}",
            f"train.max_steps={STEPS}",
            "data.valid=null",
            model=small_section(name).model_dump(),
        )
        runs[world_size] = run_ranks(train_on_rank, world_size, values)
    (one, *_), (two, *_) = runs[1], runs[2]
    assert one["error"] is None and two["error"] is None
    assert len(one["losses"]) == STEPS
    for step, losses in one["losses"].items():
        assert two["losses"][step] == pytest.approx(losses, rel=2e-4, abs=2e-6)
    weights, others = (weights_of(final_checkpoint(run["run"])) for run in (one, two))
    assert others.keys() == weights.keys()
    for key, tensor in weights.items():
        torch.testing.assert_close(others[key], tensor, rtol=5e-3, atol=5e-4, msg=key)
