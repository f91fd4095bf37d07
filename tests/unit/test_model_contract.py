"""What every registered model keeps to; a new model is in this suite by being registered.

That one rank trains like two is in tests/multiproc/test_models.py.
"""

import copy
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load, save

from helpers.batches import labelled
from helpers.models import (
    WIDTH,
    grad_of,
    random_inputs,
    rows_of,
    shape_of,
    small_model,
    small_section,
)
from raymtl import losses
from raymtl.batch import Inputs
from raymtl.config import DenseOptimizerSection
from raymtl.dense import DenseParameters, groups_of
from raymtl.errors import InputError
from raymtl.models import registry

every_model = pytest.mark.parametrize("name", registry.names())

AFTER_TOO = {"esmm"}
"""Models in which a task's tower is part of the output of every task after it."""
ALL_VIEWS = {"me_mmoe"}
"""Task-specific models that by design let every task's loss move every task's tables."""
BF16_SHARE = 0.03
"""How far bfloat16 may take a logit, as a share of the batch's largest. One rounding costs 0.002,
these small models 0.016 at most."""

_models = {name: small_model(small_section(name)) for name in registry.names()}


def _having(member: str):
    """The registered models that have an optional member."""
    return pytest.mark.parametrize("name", [n for n, m in _models.items() if hasattr(m, member)])


def _moved(model, inputs: Inputs, logits: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradients of a sum over some logits, each with a factor of its own; zeros where none."""
    leaves = dict(model.named_parameters()) | {"views": inputs.views_BVFD}
    factors = torch.linspace(0.5, 1.5, logits.numel()).view_as(logits)
    grads = torch.autograd.grad((logits * factors).sum(), list(leaves.values()), allow_unused=True)
    return {
        name: torch.zeros_like(leaf) if grad is None else grad
        for (name, leaf), grad in zip(leaves.items(), grads, strict=True)
    }


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
@pytest.mark.parametrize("num_tasks", [1, 2, 5])
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
@pytest.mark.parametrize("num_tasks", [1, 2, 5])
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
def test_what_a_masked_task_alone_reads_stands_exactly_still(name):
    section = small_section(name)
    model, inputs = small_model(section, 3), random_inputs(shape_of(section, 3), 16)
    others = _moved(model, inputs, model(inputs)[:, [0, 2]])
    mask = torch.ones(16, 3, dtype=torch.bool)
    mask[:, 1] = False
    masked = _gradients(model, inputs, labelled(_labels(16, 3), mask), 3)
    masked["views"] = grad_of(inputs.views_BVFD)
    for n, grad in others.items():
        assert not masked[n][grad == 0].any(), n


@every_model
def test_a_tower_is_moved_by_its_own_task_or_one_that_is_made_of_it(name):
    section = small_section(name)
    model, inputs = small_model(section, 3), random_inputs(shape_of(section, 3), 32)
    for task in range(3):
        grads = _moved(model, inputs, model(inputs)[:, task])
        towers = {n: g for n, g in grads.items() if "towers." in n}
        assert towers
        wanted = [t == task or (t < task and name in AFTER_TOO) for t in range(3)]
        for n, grad in towers.items():
            assert grad.flatten(1).any(1).tolist() == wanted, n


@every_model
def test_a_task_moves_its_own_tables_and_the_shared_ones(name):
    section = small_section(name)
    model, inputs = small_model(section, 3), random_inputs(shape_of(section, 3), 32)
    num_views = shape_of(section, 3).num_views
    for task in range(3):
        grad_BVFD = _moved(model, inputs, model(inputs)[:, task])["views"]
        every_one = not model.task_specific or name in ALL_VIEWS
        wanted = [every_one or v in (task, 3) for v in range(num_views)]
        assert grad_BVFD.transpose(0, 1).flatten(1).any(1).tolist() == wanted


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
def test_rows_in_another_order_give_their_outputs_in_that_order(name):
    section = small_section(name)
    model, inputs = small_model(section, 3), random_inputs(shape_of(section, 3), 17)
    order = torch.randperm(17, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(rows_of(inputs, order)), model(inputs)[order])


@every_model
def test_a_saved_model_is_loaded_bit_by_bit_and_trains_on_alike(name):
    section = small_section(name)
    inputs, labels = random_inputs(shape_of(section), 16), labelled(_labels(16, 2))
    one, other = ((m, _dense(m)) for m in (small_model(section, seed=s) for s in (1, 2)))
    _train(*one, inputs, labels)
    saved = save({key: tensor.clone() for key, tensor in one[1].state().items()})
    other[1].load_state(load(saved))
    for step in range(2):
        assert torch.equal(one[0](inputs), other[0](inputs)), step
        for key, tensor in one[1].state().items():
            assert torch.equal(tensor, other[1].state()[key]), (step, key)
        for model, dense in (one, other):
            _train(model, dense, inputs, labels)


def _dense(model) -> DenseParameters:
    section = DenseOptimizerSection(lr=0.01)
    parameters = dict(model.named_parameters())
    return DenseParameters(parameters, groups_of(model, tuple(parameters), section), num_extra=0)


def _train(model, dense: DenseParameters, inputs: Inputs, batch) -> None:
    dense.zero_grad()
    loss_T = losses.task_losses(model(inputs), batch, ["binary"] * batch.labels_BT.shape[1])
    loss_T.sum().backward()
    dense.step(1.0, 1.0)


@every_model
def test_bfloat16_comes_close_to_float32(name):
    section = small_section(name)
    model, inputs = small_model(section, 3), random_inputs(shape_of(section, 3), 33)
    wanted = model(inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(inputs)
    assert (logits.float() - wanted).abs().max() <= BF16_SHARE * wanted.abs().max()
    losses.task_losses(logits.float(), labelled(_labels(33, 3)), ["binary"] * 3).sum().backward()
    for n, p in model.named_parameters():
        assert grad_of(p).isfinite().all() and grad_of(p).any(), n


@every_model
@pytest.mark.parametrize("wrong", ["width", "fields", "views", "numbers", "length", "sequence"])
def test_inputs_of_other_sizes_are_refused_in_four_parts(name, wrong):
    section = small_section(name)
    model, shape = small_model(section), shape_of(section)
    change = {
        "width": {"width": WIDTH + 1},
        "fields": {"num_fields": shape.num_fields + 1},
        "views": {"num_views": shape.num_views + 1},
        "numbers": {"num_numeric": shape.num_numeric - 1},
        "length": {"sequence_lengths": {"watched": 6}},
        "sequence": {"sequence_lengths": {}},
    }[wrong]
    named = {"length": "watched", "sequence": "watched", "numbers": "numeric"}.get(wrong, "views")
    with pytest.raises(InputError, match="not of the sizes the model was built for") as error:
        model(random_inputs(replace(shape, **change), 3))
    assert named in error.value.got and named in error.value.wanted
    assert "schema" in error.value.do


@every_model
def test_a_model_is_copied_with_its_check(name):
    section = small_section(name)
    model, inputs = copy.deepcopy(small_model(section)), random_inputs(shape_of(section), 4)
    assert model(inputs).isfinite().all()
    with pytest.raises(InputError):
        model(random_inputs(replace(shape_of(section), width=WIDTH + 1), 4))


@_having("penalty")
@pytest.mark.parametrize("num_tasks", [1, 2, 5])
def test_a_penalty_is_one_number_or_one_a_row_and_never_negative(name, num_tasks):
    section = small_section(name)
    model, inputs = small_model(section, num_tasks), random_inputs(shape_of(section, num_tasks), 9)
    logits = model(inputs)
    penalty = model.penalty(logits)
    assert penalty.shape in ((), (9,))
    assert penalty.isfinite().all() and (penalty >= 0).all()
    if penalty.dim():
        rows = torch.tensor([4, 0, 7])
        torch.testing.assert_close(model.penalty(logits[rows]), penalty[rows])


@_having("statistics")
def test_statistics_of_parts_sum_up_to_those_of_the_whole_without_its_padding(name):
    model, labels = small_model(small_section(name), 3), _labels(12, 3)
    mask = torch.arange(36).reshape(12, 3) % 5 > 0
    weight = torch.arange(12) % 4 * 1.0  # rows 0, 4 and 8 are padding
    whole = model.statistics(labelled(labels, mask, weight))
    assert whole.dtype == torch.float64 and whole.shape == (model.num_statistics,)
    half = [labelled(labels[p], mask[p], weight[p]) for p in (slice(0, 5), slice(5, 12))]
    torch.testing.assert_close(sum(model.statistics(b) for b in half), whole)
    kept = weight > 0
    bare = model.statistics(labelled(labels[kept], mask[kept], weight[kept]))
    torch.testing.assert_close(bare, whole)


@_having("statistics")
def test_statistics_leave_evaluation_as_it_was(name):
    section = small_section(name)
    model, inputs = small_model(section, 3), random_inputs(shape_of(section, 3), 12)
    before = model.eval()(inputs)
    model.take_statistics(model.statistics(labelled(_labels(12, 3))))
    assert torch.equal(model(inputs), before)


@_having("optimizer_groups")
def test_an_optimizer_group_names_parameters_of_the_model_each_once(name):
    model = small_model(small_section(name))
    groups = model.optimizer_groups()
    named = [n for names, _ in groups for n in names]
    assert len(named) == len(set(named))
    assert set(named) <= {n for n, _ in model.named_parameters()}
    assert all(isinstance(section, DenseOptimizerSection) for _, section in groups)


@_having("gate_mass")
@pytest.mark.parametrize("num_tasks", [1, 3])
def test_gate_mass_shares_out_one_per_task_over_its_sources(name, num_tasks):
    section = small_section(name)
    model = small_model(section, num_tasks)
    inputs, weight = random_inputs(shape_of(section, num_tasks), 10), torch.ones(10)
    mass = model.gate_mass(inputs)
    assert mass.shape[1:] == (num_tasks, len(model.gate_sources))
    assert len(set(model.gate_sources)) == len(model.gate_sources)
    torch.testing.assert_close(mass.sum(-1), torch.ones(mass.shape[:2]))
    assert (mass >= 0).all() and not mass.requires_grad
    weight[6:] = 0
    torch.testing.assert_close(
        model.gate_mass(inputs, weight), model.gate_mass(rows_of(inputs, torch.arange(6)))
    )


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
