"""DTRN: whom a task's loss moves, what a task costs, its ablations, and its numbers by loops."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.models import grad_of, mixed_schema, random_inputs
from raymtl.batch import Inputs, InputShape, Layout, Sequence
from raymtl.config import ModelSection
from raymtl.errors import InputError
from raymtl.models import registry
from raymtl.models.dtrn import Dtrn, DtrnConfig
from raymtl.models.heads import build_head

WIDTH, LENGTH = 4, 6
SMALL: dict[str, dict[str, Any]] = {
    "adatt": {"expert_hidden_units": [8]},
    "aitm": {"bottom_hidden_units": [8]},
    "cgc": {"expert_hidden_units": [8]},
    "mmoe": {"num_experts": 3, "expert_hidden_units": [8]},
    "omoe": {"num_experts": 3, "expert_hidden_units": [8]},
    "ple": {"expert_hidden_units": [8]},
    "shared_bottom": {"bottom_hidden_units": [8], "tower_hidden_units": [6]},
    "single_task": {"hidden_units": [8]},
    "stem": {"expert_hidden_units": [8]},
}


def _shape(num_tasks: int = 2, num_behaviours: int = 2) -> InputShape:
    names = [f"s{m}" for m in range(num_behaviours)]
    return InputShape(
        num_tasks=num_tasks,
        num_views=1,
        num_fields=3,
        width=WIDTH,
        num_numeric=1,
        task_names=tuple(f"task_{t}" for t in range(num_tasks)),
        sequence_lengths={name: LENGTH - m for m, name in enumerate(names)},
        field_names=("user", "item", "hour"),
        field_tables=("user", "item", "hour"),
        sequence_tables=dict.fromkeys(names, "item"),
    )


def _dtrn(shape: InputShape | None = None, head: str = "shared_bottom", **values) -> Any:
    torch.manual_seed(1)
    section = {"head": {"name": head, **SMALL[head]}, **values}
    model = Dtrn(DtrnConfig.model_validate(section), shape or _shape())
    if model.interests is not None and model.interests.positions_SD is not None:
        torch.nn.init.normal_(model.interests.positions_SD)
    return model


def _num(module: Any) -> int:
    return sum(p.numel() for p in module.parameters())


def test_a_tasks_loss_moves_its_own_representation_and_what_all_share():
    model, inputs = _dtrn(_shape(3)), random_inputs(_shape(3), 20)
    kept: list[Tensor] = []
    model.head.register_forward_pre_hook(lambda _, x: (x[0].retain_grad(), kept.append(x[0]))[1])
    model(inputs)[:, 1].square().sum().backward()
    own = [grad_of(kept[0]), grad_of(model.interests.norms.task_KI)]
    own += [grad_of(p) for p in model.refinement.parameters()]
    for grad in own:
        assert grad.flatten(1).any(1).tolist() == [False, True, False]
    norms = model.interests.norms
    shared = [norms.behaviour_MI, norms.outer.weight, norms.inner.weight, inputs.views_BVFD]
    shared += list(model.interests.transformer.parameters())
    shared += [s.values_BSVD for s in inputs.sequences.values()]
    assert all(grad_of(tensor).any() for tensor in shared)


def test_without_output_weights_of_the_hypernetwork_all_tasks_have_equal_interests():
    model, inputs = _dtrn(), random_inputs(_shape(), 20)
    assert not torch.equal(*model.interests(inputs))
    torch.nn.init.zeros_(model.interests.norms.outer.weight)
    assert torch.equal(*model.interests(inputs))


def test_a_task_more_costs_its_embedding_and_its_refinement():
    two, three = _dtrn(_shape(2), task_width=5), _dtrn(_shape(3), task_width=5)
    num_features = 3 + 1 + 2
    hidden = num_features // 4
    refinement = num_features * WIDTH * hidden + hidden + hidden * num_features + num_features
    below_heads = [_num(m) - _num(m.head) for m in (two, three)]
    assert below_heads[1] - below_heads[0] == 5 + refinement


def test_a_behaviour_type_more_costs_its_embedding_and_a_feature_of_the_refinement():
    two, three = (_dtrn(_shape(2, m), behaviour_width=7) for m in (2, 3))
    assert _num(three.interests) - _num(two.interests) == 7
    assert three.feature_names == ("user", "item", "hour", "number 0", "s0", "s1", "s2")


def _by_loops(model: Any, inputs: Inputs, task: int, row: int) -> Tensor:
    """One row's x_t from the formulas, event by event; one block of two heads, target attention."""
    interests, numbers = model.interests, model.fields.numeric_weight_NVD[:, 0]
    fields = list(inputs.views_BVFD[row, 0])
    features = [*fields, *(inputs.numeric_BN[row, n] * numbers[n] for n in range(len(numbers)))]
    for m, name in enumerate(interests.names):
        sequence = inputs.sequences[name]
        events = list(sequence.values_BSVD[row, sequence.mask_BS[row], 0])
        q = torch.cat([interests.norms.task_KI[task], interests.norms.behaviour_MI[m]])
        made = interests.norms.outer(F.relu(interests.norms.inner(q))).view(2, 2, WIDTH)
        features.append(_interest_by_loops(interests, events, fields[1], made))
    w1, w2 = (w[task] for w in model.refinement.networks.weights)
    b1, b2 = (b[task] for b in model.refinement.networks.biases)
    w = torch.sigmoid((torch.cat(features) @ w1 + b1).relu() @ w2 + b2)
    return torch.cat([w[f] * feature for f, feature in enumerate(features)])


def _interest_by_loops(
    interests: Any, events: list[Tensor], target: Tensor, made: Tensor
) -> Tensor:
    if not events:
        return torch.zeros(WIDTH)
    block = interests.transformer.blocks[0]
    num = len(events)
    x = [e + interests.positions_SD[num - 1 - s] for s, e in enumerate(events)]
    q, k, v = ([w @ e for e in x] for w in block.in_projection.weight.split(WIDTH))
    out = []
    for s in range(num):
        heads = []
        for h in (slice(0, 2), slice(2, 4)):
            scores = torch.stack([q[s][h] @ k[o][h] / 2**0.5 for o in range(num)]).softmax(0)
            heads.append(sum(scores[o] * v[o][h] for o in range(num)))
        y = _norm(x[s] + block.out_projection.weight @ torch.cat(heads), made[0])
        out.append(_norm(y + block.ffn_outer(F.relu(block.ffn_inner(y))), made[1]))
    query = interests.attention.query.weight @ target
    scores = [query @ (interests.attention.key.weight @ o) / WIDTH**0.5 for o in out]
    weights = torch.stack(scores).softmax(0)
    return sum((w * o for w, o in zip(weights, out, strict=True)), torch.zeros(WIDTH))


def _norm(x: Tensor, made: Tensor) -> Tensor:
    normed = (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt()
    return (1 + made[0]) * normed + made[1]


def test_every_tasks_representation_is_what_loops_over_the_formulas_give():
    model, inputs = _dtrn(), random_inputs(_shape(), 9)
    x_TBI = model.represent(inputs)
    for task in range(2):
        for row in range(9):
            wanted = _by_loops(model, inputs, task, row)
            torch.testing.assert_close(x_TBI[task, row], wanted, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model(inputs), model.head(x_TBI))


@pytest.mark.parametrize("values", [{}, {"pooling": "append"}, {"pooling": "mean"}])
def test_rows_without_events_are_finite_in_values_and_gradients(values):
    model, inputs = _dtrn(**values), random_inputs(_shape(), 6)
    for sequence in inputs.sequences.values():
        sequence.mask_BS[:] = False
    logits = model(inputs)
    assert logits.isfinite().all()
    logits.sum().backward()
    assert all(grad_of(p).isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("head", SMALL)
@pytest.mark.parametrize("ablation", [{}, {"interest": False, "refinement": False}])
def test_any_head_reads_the_representation_of_its_task(head, ablation):
    model, inputs = _dtrn(_shape(3), head, **ablation), random_inputs(_shape(3), 20)
    x_VBI = model.represent(inputs)
    assert len(x_VBI) == (1 if ablation else 3)
    logits = model(inputs)
    assert logits.shape == (20, 3)
    logits.square().sum().backward()
    assert [n for n, p in model.named_parameters() if not grad_of(p).any()] == []
    assert hasattr(model, "gate_mass") is hasattr(model.head, "gate_mass")
    assert hasattr(model, "penalty") is hasattr(model.head, "penalty")
    if hasattr(model, "gate_mass"):
        mass = model.gate_mass(inputs)
        assert mass.shape[1:] == (3, len(model.gate_sources))
        torch.testing.assert_close(mass.sum(-1), torch.ones(mass.shape[:2]))


@pytest.mark.parametrize("head", ["mmoe", "single_task"])
def test_without_both_modules_it_is_the_head_on_what_the_batch_holds(head):
    model, inputs = _dtrn(None, head, interest=False, refinement=False), random_inputs(_shape(), 9)
    alone = build_head({"name": head, **SMALL[head]}, 2, (3 + 1 + 2) * WIDTH)
    alone.load_state_dict(model.head.state_dict())
    together = torch.cat([model.fields(inputs), model.interests(inputs).flatten(2)], dim=-1)
    assert torch.equal(model(inputs), alone(together))


def test_without_interest_modules_norms_all_tasks_share_one_transformer_but_not_the_refinement():
    model, inputs = _dtrn(interest=False), random_inputs(_shape(), 9)
    assert len(model.interests(inputs)) == 1
    assert not torch.equal(*model.represent(inputs))


def test_a_log_without_whole_sequences_has_the_refinement_only():
    shape = _shape(2, 0)
    model, inputs = _dtrn(shape), random_inputs(shape, 9)
    assert model.interests is None
    assert not torch.equal(*model.represent(inputs))
    assert _dtrn(shape, refinement=False).represent(inputs).shape == (1, 9, 16)
    assert model(inputs).shape == (9, 2)


def test_refinement_weights_are_means_over_weighted_rows_by_feature():
    model, inputs = _dtrn(), random_inputs(_shape(), 9)
    weights = model.refinement_weights(inputs)
    assert weights.shape == (2, len(model.feature_names))
    weights_TBF1 = model.refinement.weights(model._features(inputs))
    torch.testing.assert_close(weights, weights_TBF1.mean((1, 3)))
    one = torch.zeros(9)
    one[4] = 0.5
    torch.testing.assert_close(model.refinement_weights(inputs, one), weights_TBF1[:, 4, :, 0])
    plain = _dtrn(refinement=False)
    assert plain.refinement_weights(inputs).tolist() == [[1.0] * 6] * 2


@pytest.mark.parametrize(
    ("head", "what", "got"),
    [
        ({"name": "mmmoe"}, "there is no head mmmoe", "model.head.name = mmmoe"),
        ({"name": "mmoe", "num_expert": 3}, "unknown key", "model.head.num_expert = 3"),
        ({"name": "mmoe", "num_experts": 0}, "is not valid", "model.head.num_experts = 0"),
    ],
)
def test_a_heads_mistake_is_named_by_its_key(head, what, got):
    with pytest.raises(InputError, match=what) as caught:
        registry.parse(ModelSection.model_validate({"name": "dtrn", "head": head}))
    assert got in caught.value.got


def test_the_target_of_a_log_is_found_in_its_schema():
    section = ModelSection(name="dtrn")
    model: Any = registry.build(section, Layout.of(mixed_schema(2)), WIDTH)
    (watched,) = model.interests.behaviours
    # user, item, tags, clicked: of the two that look up items the categorical one.
    assert (watched.name, watched.target_fields) == ("watched", (1,))
    assert model.interests.poolings == ["target"]


def test_bfloat16_is_close_to_float32():
    model, inputs = _dtrn(), random_inputs(_shape(), 16)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(inputs)
    torch.testing.assert_close(half.float(), model(inputs), atol=0.03, rtol=0.03)


def _planted(relevant: list[int], generator: torch.Generator) -> tuple[Inputs, Tensor]:
    """Task t's label is the sign of what all events of behaviour relevant[t] hold beside noise."""
    signs = torch.randint(0, 2, (128, 2), generator=generator) * 2.0 - 1
    direction = torch.tensor([1.0, -1.0, 1.0, -1.0])
    sequences = {}
    for m in range(2):
        noise = torch.randn(128, 3, 1, WIDTH, generator=generator)
        values = noise + signs[:, m, None, None, None] * direction
        sequences[f"s{m}"] = Sequence(values, torch.ones(128, 3, dtype=torch.bool))
    views = torch.randn(128, 1, 3, WIDTH, generator=generator)
    numeric = torch.randn(128, 1, generator=generator)
    return Inputs(views, numeric, sequences), (signs[:, relevant] > 0).float()


@pytest.mark.parametrize("relevant", [[0, 1], [1, 0]])
def test_a_task_comes_to_weigh_its_own_behaviour_above_the_others(relevant):
    generator = torch.Generator().manual_seed(1)
    # A hidden layer of F / 4 = 1 unit could not weigh one behaviour up and the other down.
    model = _dtrn(pooling="mean", refine_activation="2sigmoid", refine_reduction=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        inputs, labels = _planted(relevant, generator)
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(model(inputs), labels).backward()
        optimizer.step()
    inputs, _ = _planted(relevant, generator)
    weights = model.refinement_weights(inputs)[:, -2:]
    for task in range(2):
        assert weights[task, relevant[task]] > weights[task, 1 - relevant[task]]
