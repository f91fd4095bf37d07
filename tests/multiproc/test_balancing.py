"""Balancing on 1 and 2 ranks: the same losses and weights, also after a resume."""

import pytest
import torch

from helpers.logs import small_log
from helpers.procs import run_ranks
from helpers.training import (
    bytes_of,
    final_checkpoint,
    small_config,
    train_on_rank,
    weights_of,
)

BALANCING = ["uncertainty", "dwa", "pcgrad"]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("log")
    small_log(folder, rows=3000)
    return str(folder)


def _values(log: str, name: str, how: str) -> dict:
    settings = [f"name={name}", f"balancing.name={how}", "balancing.window_steps=3"]
    return small_config(log, *settings, "train.max_steps=12")


@pytest.mark.parametrize("how", BALANCING)
def test_one_and_two_ranks_balance_alike(log: str, how: str) -> None:
    runs = {w: run_ranks(train_on_rank, w, _values(log, f"{how}-{w}", how)) for w in (1, 2)}
    alone, several = runs[1][0], runs[2][0]
    assert alone["error"] is None and len(alone["losses"]) == 12
    for step, losses in alone["losses"].items():
        assert several["losses"][step] == pytest.approx(losses, rel=2e-4, abs=2e-6)
    weights = weights_of(final_checkpoint(alone["run"]))
    for key, tensor in weights_of(final_checkpoint(several["run"])).items():
        torch.testing.assert_close(tensor, weights[key], rtol=5e-3, atol=5e-4, msg=key)


@pytest.mark.parametrize("how", BALANCING)
def test_balancing_changes_the_training(log: str, how: str) -> None:
    fixed = run_ranks(train_on_rank, 1, _values(log, f"fixed-{how}", "fixed"))[0]
    other = run_ranks(train_on_rank, 1, _values(log, f"other-{how}", how))[0]
    assert other["losses"][0] == fixed["losses"][0]
    assert other["losses"][11] != fixed["losses"][11]


@pytest.mark.parametrize("how", BALANCING)
def test_a_resumed_run_balances_on_byte_for_byte(log: str, how: str) -> None:
    whole = run_ranks(train_on_rank, 2, _values(log, f"whole-{how}", how))[0]
    cut = {**_values(log, f"cut-{how}", how), "checkpoint": {"every_steps": 4}}
    run_ranks(train_on_rank, 2, cut, None, 9)
    resumed = run_ranks(train_on_rank, 2, cut)[0]
    assert resumed["start"] in (4, 8)  # the save at 8 may have been under way still
    for name in ("dense.safetensors", "replicated.safetensors"):
        assert bytes_of(resumed["run"])[name] == bytes_of(whole["run"])[name]
