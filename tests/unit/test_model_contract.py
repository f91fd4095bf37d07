"""What every registered model keeps to; a new model is in this suite by being registered."""

import pytest
import torch

from helpers.batches import labelled
from helpers.models import grad_of, random_inputs, rows_of, shape_of, small_model, small_section
from raymtl import losses
from raymtl.models import registry

every_model = pytest.mark.parametrize("name", registry.names())


def _labels(num_rows: int, num_tasks: int) -> torch.Tensor:
    return (torch.arange(num_rows * num_tasks).reshape(num_rows, num_tasks) % 3 == 0).float()


def _gradients(model, inputs, batch, num_tasks: int) -> dict[str, torch.Tensor]:
    model.zero_grad()
    logits = model(inputs)
    logits.retain_grad()
    losses.task_losses(logits, batch, ["binary"] * num_tasks).sum().backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {**grads, "logits": grad_of(logits)}


@every_model
@pytest.mark.parametrize("num_tasks", [1, 2, 4])
@pytest.mark.parametrize("num_rows", [0, 1, 9])
def test_logits_are_finite_float32_of_rows_by_tasks(name, num_tasks, num_rows):
    section = small_section(name)
    logits = small_model(section, num_tasks)(random_inputs(shape_of(section, num_tasks), num_rows))
    assert logits.shape == (num_rows, num_tasks)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


@every_model
def test_a_model_of_default_size_builds_and_runs(name):
    section = registry.ModelSection(name=name)
    assert small_model(section)(random_inputs(shape_of(section), 2)).isfinite().all()


@every_model
@pytest.mark.parametrize("num_tasks", [1, 2, 4])
def test_every_parameter_gets_a_gradient_when_all_tasks_are_observed(name, num_tasks):
    section = small_section(name)
    model = small_model(section, num_tasks)
    inputs = random_inputs(shape_of(section, num_tasks), 64)
    grads = _gradients(model, inputs, labelled(_labels(64, num_tasks)), num_tasks)
    still = [n for n, _ in model.named_parameters() if n not in grads or not grads[n].any()]
    assert still == []


@every_model
def test_ids_numbers_and_sequences_all_reach_the_output(name):
    section = small_section(name)
    inputs = random_inputs(shape_of(section), 12)
    small_model(section)(inputs).square().sum().backward()
    watched = inputs.sequences["watched"]
    for leaf in (inputs.views_BVFD, inputs.numeric_BN, watched.values_BSVD):
        assert grad_of(leaf).any()
    assert not grad_of(watched.values_BSVD)[~watched.mask_BS].any()


@every_model
def test_a_masked_label_moves_nothing_of_its_task(name):
    section = small_section(name)
    model, inputs = small_model(section, 3), random_inputs(shape_of(section, 3), 16)
    mask = torch.ones(16, 3, dtype=torch.bool)
    mask[:, 1] = False
    labels = _labels(16, 3)
    garbage = labels.clone()
    garbage[:, 1] = torch.nan
    grads = _gradients(model, inputs, labelled(labels, mask), 3)
    assert not grads["logits"][:, 1].any()
    assert grads["logits"][:, 0].all()
    for n, grad in _gradients(model, inputs, labelled(garbage, mask), 3).items():
        assert torch.equal(grad, grads[n]), n


@every_model
def test_the_seed_alone_decides_the_initial_weights(name):
    section = small_section(name)
    once, again, other = (small_model(section, seed=s).state_dict() for s in (5, 5, 6))
    assert all(torch.equal(once[k], again[k]) for k in once)
    assert any(not torch.equal(once[k], other[k]) for k in once)


@every_model
def test_two_passes_over_one_batch_are_bit_identical(name):
    section = small_section(name)
    model, inputs = small_model(section), random_inputs(shape_of(section), 9)
    assert torch.equal(model(inputs), model(inputs))


@every_model
def test_without_dropout_training_and_evaluation_agree(name):
    section = small_section(name)
    model, inputs = small_model(section), random_inputs(shape_of(section), 9)
    assert torch.equal(model.train()(inputs), model.eval()(inputs))


@every_model
def test_a_row_is_scored_alone_whatever_the_rows_beside_it(name):
    section = small_section(name)
    model, inputs = small_model(section), random_inputs(shape_of(section), 9)
    rows = torch.tensor([8, 0, 3, 3, 1])
    torch.testing.assert_close(model(rows_of(inputs, rows)), model(inputs)[rows])


@every_model
def test_a_model_says_which_views_it_reads(name):
    section = small_section(name)
    model, views = small_model(section, 3), shape_of(section, 3).num_views
    if model.task_specific:
        assert views == 3 + getattr(model, "shared_view", True)
    else:
        assert views == 1


@every_model
def test_the_docstring_names_its_source(name):
    text = type(small_model(small_section(name))).__doc__ or ""
    assert "ours" in text.lower()
    assert len(text) > 100
