"""When a run stops, validates and saves; schedules, clipping and flat parameters."""

import math
from pathlib import Path

import pytest
import torch

from helpers.logs import small_log
from helpers.training import read_lines, small_config, train_on_rank
from raymtl.config import DenseOptimizerSection, ScheduleSection
from raymtl.dense import DenseParameters, clip_scale, groups_of, learning_rate_factor
from raymtl.timing import PHASES


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("log")
    small_log(folder, rows=2500)
    return str(folder)


def run(log: str, name: str, *overrides: str) -> dict:
    result = train_on_rank(small_config(log, f"name={name}", *overrides))
    assert result["error"] is None
    return result


def test_a_run_ends_at_its_steps_rows_epochs_or_time(log: str) -> None:
    assert run(log, "steps", "train.max_steps=3")["state"]["step"] == 3
    rows = run(log, "rows", "train.max_rows=600")["state"]
    assert (rows["step"], rows["rows"], rows["stopped"]) == (3, 768, "max_rows")
    epochs = run(log, "epochs")["state"]
    assert (epochs["step"], epochs["rows"], epochs["stopped"]) == (16, 4000, "num_epochs")
    late = run(log, "late", "train.max_time_s=0.000001")["state"]
    assert (late["step"], late["stopped"]) == (1, "max_time_s")


def test_a_run_stops_after_validations_without_gain_and_keeps_the_best(log: str) -> None:
    result = run(
        log,
        "patient",
        "validation.every_steps=2",
        "validation.patience=2",
        "validation.min_delta=1.0",
        "checkpoint.keep_last=1",
        "train.num_epochs=9",
    )
    state = result["state"]
    assert state["stopped"] == "no gain on validation"
    assert (state["best_step"], state["step"]) == (2, 6)
    kept = sorted(p.name for p in Path(result["run"], "checkpoints").iterdir())
    assert kept == sorted({"step-00000006", *kept}) and len(kept) == 2


def test_a_finished_run_is_left_as_it_is_and_goes_on_only_when_given_more(log: str) -> None:
    run(log, "more", "train.max_steps=4")
    assert run(log, "more", "train.max_steps=4")["losses"] == {}
    longer = run(log, "more", "train.max_steps=6")
    assert sorted(longer["losses"]) == [4, 5]


def test_metric_lines_hold_losses_rows_and_validation(log: str) -> None:
    result = run(log, "lines", "train.max_steps=8", "train.report_every_steps=4")
    lines = read_lines(result["run"])
    assert [line["step"] for line in lines if "loss" in line] == [4, 8]
    assert lines[0]["rows"] == 1024 and math.isfinite(lines[0]["loss"])
    assert any("valid/auc" in line for line in lines)


def test_metric_lines_say_where_the_time_went(log: str) -> None:
    result = run(log, "times", "train.max_steps=8", "train.report_every_steps=4")
    for line in (line for line in read_lines(result["run"]) if "loss" in line):
        shares = {key: share for key, share in line.items() if key.startswith("time/")}
        assert set(shares) == {f"time/{phase}" for phase in PHASES}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-3)
        assert min(shares["time/forward"], shares["time/backward"], shares["time/data"]) > 0


def test_the_observed_denominator_weighs_a_rare_label_as_its_own_mean(log: str) -> None:
    batch = run(log, "by-batch", "train.max_steps=1")["losses"][0]
    observed = run(log, "by-observed", "train.max_steps=1", "train.loss_denominator=observed")
    like_batch, like_observed = batch[2], observed["losses"][0][2]
    assert like_observed > 1.2 * like_batch, "30 % of the likes are unobserved"


def test_schedules_warm_up_and_decay() -> None:
    cosine = ScheduleSection(name="cosine", warmup_steps=2, final=0.1)
    factors = [learning_rate_factor(cosine, step, 12) for step in range(13)]
    assert factors[:3] == [0.5, 1.0, 1.0]
    assert factors[7] == pytest.approx(0.55)
    assert factors[12] == pytest.approx(0.1)
    linear = ScheduleSection(name="linear", decay_steps=4)
    assert [learning_rate_factor(linear, s, 99) for s in (0, 2, 4, 9)] == [1.0, 0.5, 0.0, 0.0]
    assert learning_rate_factor(ScheduleSection(), 5, 10) == 1.0


def test_clipping_is_torchs_own() -> None:
    gradient = torch.tensor([3.0, 4.0])
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = gradient.clone()
    torch.nn.utils.clip_grad_norm_([parameter], 1.0)
    scale = clip_scale(gradient.double().square().sum(), 1.0)
    torch.testing.assert_close(gradient * scale, parameter.grad)
    assert clip_scale(torch.tensor(4.0), 10.0) == 1.0
    assert clip_scale(torch.tensor(4.0), None) == 1.0


def _dense(model: torch.nn.Module, section: DenseOptimizerSection) -> DenseParameters:
    parameters = dict(model.named_parameters())
    return DenseParameters(parameters, groups_of(model, tuple(parameters), section), num_extra=2)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_one_flat_buffer_trains_as_torchs_optimizer_on_the_parameters(name: str) -> None:
    def model() -> torch.nn.Module:
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))

    flat, plain = model(), model()
    section = DenseOptimizerSection.model_validate({"name": name, "weight_decay": 0.01, "lr": 0.01})
    dense = _dense(flat, section)
    cls = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[name]
    optimizer = cls(plain.parameters(), lr=0.01, weight_decay=0.01)
    for step in range(5):
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        dense.zero_grad()
        flat(x).square().sum().backward()
        dense.step(1.0, 1.0)
        optimizer.zero_grad()
        plain(x).square().sum().backward()
        optimizer.step()
    for mine, theirs in zip(flat.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)
    other = _dense(model(), section)
    other.load_state({k: t.clone() for k, t in dense.state().items()})
    assert all(torch.equal(t, dense.state()[k]) for k, t in other.state().items())
