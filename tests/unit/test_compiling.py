"""The training forward compiled by torch: the same function, and off where it cannot be."""

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor

from helpers.logs import small_log
from helpers.models import grad_of, random_inputs, shape_of, small_model, small_section
from helpers.training import small_config, train_config, train_on_rank
from raymtl import compiling
from raymtl.compiling import LEAST_STEPS, CompiledForward, resolved
from raymtl.errors import InputError
from raymtl.preflight import check_run

STEM = small_section("stem")


def results(call: compiling.Forward, model: torch.nn.Module, num_rows: int) -> list[Tensor]:
    """Logits and the gradients of inputs and parameters."""
    inputs = random_inputs(shape_of(STEM), num_rows)
    model.zero_grad()
    logits_BT = call(inputs)
    (logits_BT * torch.arange(1.0, 3.0)).square().sum().backward()
    parameters = [p.grad for p in model.parameters() if p.grad is not None]
    return [logits_BT.detach(), grad_of(inputs.views_BVFD), *(p.clone() for p in parameters)]


@pytest.mark.timeout(300)  # compiling takes half a minute on a quiet machine
def test_a_compiled_forward_is_the_model_and_is_compiled_once_for_all_numbers_of_rows() -> None:
    model = small_model(STEM).train()
    compiled = CompiledForward(model)
    compiled(random_inputs(shape_of(STEM), 40))
    assert compiled.call is not model, "not compiled"
    for num_rows in (40, 7, 64):
        with torch.compiler.set_stance("fail_on_recompile"):
            got = results(compiled, model, num_rows)
        for one, wanted in zip(got, results(model, model, num_rows), strict=True):
            torch.testing.assert_close(one, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.timeout(300)
def test_a_compiled_run_has_the_losses_of_a_plain_one(tmp_path: Path) -> None:
    small_log(tmp_path, rows=2500)
    plain, compiled = (
        train_on_rank(
            small_config(
                str(tmp_path), f"train.compile={on}", f"name=compile_{on}", "train.max_steps=8"
            )
        )
        for on in ("false", "true")
    )
    assert plain["error"] is compiled["error"] is None
    assert len(plain["losses"]) == 8
    for step, losses in plain["losses"].items():
        assert compiled["losses"][step] == pytest.approx(losses, rel=1e-4), f"step {step}"


def test_a_node_that_cannot_compile_says_so_and_runs_the_model_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: object) -> Tensor:
        raise RuntimeError("no compiler\nmany more lines")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: refuse)
    model = small_model(STEM)
    compiled = CompiledForward(model)
    with caplog.at_level(logging.WARNING):
        got = [compiled(random_inputs(shape_of(STEM), 5)) for _ in range(2)]
    wanted = model(random_inputs(shape_of(STEM), 5))
    assert torch.equal(got[0], wanted) and torch.equal(got[1], wanted)
    said = [r.getMessage() for r in caplog.records]
    assert said == ["the model is not compiled on this node: RuntimeError: no compiler"]


def test_auto_compiles_long_runs_of_models_that_gain(tmp_path: Path) -> None:
    config = train_config(str(tmp_path))
    assert resolved(config, LEAST_STEPS)
    assert not resolved(config, LEAST_STEPS - 1)
    assert not resolved(train_config(str(tmp_path), "launch.use_gpu=true"), LEAST_STEPS)
    assert not resolved(train_config(str(tmp_path), "balancing.name=pcgrad"), LEAST_STEPS)
    others = small_section("dephn")
    assert not resolved(
        train_config(str(tmp_path)).model_copy(update={"model": others}), LEAST_STEPS
    )


def test_asked_for_where_it_cannot_be_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = train_config(str(tmp_path), "train.compile=true")
    assert resolved(asked, 1)
    both = train_config(str(tmp_path), "train.compile=true", "balancing.name=pcgrad")
    with pytest.raises(InputError, match="pcgrad"):
        resolved(both, 1)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(InputError, match="no no-such-compiler here"):
        resolved(asked, 1)
    assert not resolved(train_config(str(tmp_path)), LEAST_STEPS)


def test_a_run_goes_on_where_auto_means_another_thing_by_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_log(tmp_path, rows=1500)
    config = train_config(str(tmp_path), "name=longer")
    job, run = check_run(config, resume=False)
    assert job.config.train.compile is False
    run.begin(job.config, job.schema, job.train)
    monkeypatch.setattr(compiling, "LEAST_STEPS", 1)
    assert check_run(config, resume=True)[0].config.train.compile is True
