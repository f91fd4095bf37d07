"""A run in this process alone: the same training as on ranks, and scores in the log's order."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import raymtl
from helpers.logs import small_log
from helpers.training import bytes_of, read_lines, small_config, train_config, train_on_rank
from raymtl import alone
from raymtl.config import TrainConfig
from raymtl.errors import InputError
from raymtl.run import Run, choose


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("log")
    small_log(folder, rows=3000)
    return str(folder)


def _config(log: str, *overrides: str) -> TrainConfig:
    return train_config(log, "train.max_steps=14", *overrides)


def test_a_run_alone_is_the_run_of_one_rank(log: str) -> None:
    lines: list[dict] = []
    result = alone.train(_config(log, "name=alone"), line=lines.append)
    ranked = train_on_rank(small_config(log, "train.max_steps=14", "name=ranked"))
    assert bytes_of(result["run"]) == bytes_of(ranked["run"])
    assert result["state"]["stopped"] == "max_steps"
    assert [line["step"] for line in lines] == [5, 10, 10, 14, 14]
    assert read_lines(result["run"]) == lines


def test_each_validation_says_what_the_gates_take_from_where(log: str) -> None:
    run = alone.train(_config(log, "name=gates"))["run"]
    gates = [line for line in read_lines(run) if "valid/auc" in line]
    assert len(gates) == 2
    for line in gates:
        for task in ("click", "like", "share"):
            sources = ("click", "like", "share", "shared")
            shares = [line[f"gate/0/{task}/{source}"] for source in sources]
            assert min(shares) > 0 and sum(shares) == pytest.approx(1, abs=1e-5)


def test_a_run_alone_goes_on_where_it_was_left(log: str) -> None:
    whole = alone.train(_config(log, "name=whole", "train.max_steps=28"))
    alone.train(_config(log, "name=cut", "train.max_steps=11"))
    resumed = alone.train(_config(log, "name=cut", "train.max_steps=28"), resume=True)
    final = bytes_of(resumed["run"])
    wanted = bytes_of(whole["run"])
    assert final["dense.safetensors"] == wanted["dense.safetensors"]
    with pytest.raises(InputError, match="a run of this name is there already"):
        alone.train(_config(log, "name=cut"))


def test_scores_alone_are_the_loaded_models_with_each_rows_number(log: str, tmp_path: Path) -> None:
    result = alone.train(_config(log, "name=scored"))
    out = str(tmp_path / "scores")
    assert alone.predict(result["run"], f"{log}/test", out)["rows"] == 300
    scores = pq.read_table(next(Path(out).glob("*.parquet"))).sort_by("log_row")
    assert scores["log_row"].to_pylist() == list(range(300))
    rows = pq.read_table(sorted(Path(log, "test").glob("part-*.parquet")))
    model = raymtl.load(result["run"])
    for task, expected in model.predict(rows).items():
        np.testing.assert_allclose(scores[task].to_numpy(), expected, rtol=1e-5, atol=1e-6)
    assert Run(result["run"]).read_config().launch.num_workers == 1


def test_bf16_trains_close_to_fp32(log: str) -> None:
    losses = {}
    for precision in ("fp32", "bf16"):
        made = _config(log, f"name={precision}", f"train.precision={precision}")
        result = alone.train(made)
        lines = read_lines(result["run"])
        losses[precision] = [line["loss"] for line in lines if "loss" in line]
        dense = choose(result["run"], "last").tensors("dense.safetensors")
        assert {t.dtype for k, t in dense.items() if k.startswith("model/")} == {torch.float32}
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)
    assert losses["bf16"] != losses["fp32"]


def test_auto_precision_is_resolved_before_the_run_begins(log: str) -> None:
    able = torch.cpu.get_capabilities()
    native = able.get("avx512_bf16") or able.get("amx_bf16")
    result = alone.train(_config(log, "name=auto", "train.precision=auto", "train.max_steps=2"))
    stored = Run(result["run"]).read_config().train.precision
    assert stored == ("bf16" if native else "fp32")
