"""Each task's weights of the features."""

import pytest
import torch
import torch.nn.functional as F

from raymtl.models.refinement import Refinement, RefinementSection

T, B, NUM_FIELDS, D = 3, 5, 6, 4


def _refinement(**values) -> Refinement:
    torch.manual_seed(0)
    section = RefinementSection.model_validate({"refine_reduction": 2, **values})
    return Refinement(section, T, NUM_FIELDS, D)


def _fields(num: int = T) -> torch.Tensor:
    return torch.randn(num, B, NUM_FIELDS, D, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("squeeze", ["flatten", "mean"])
@pytest.mark.parametrize("granularity", ["field", "dim"])
@pytest.mark.parametrize("activation", ["sigmoid", "2sigmoid", "relu"])
def test_it_is_the_formula_written_out(squeeze, granularity, activation):
    module = _refinement(squeeze=squeeze, granularity=granularity, refine_activation=activation)
    bank, fields = module.networks, _fields()
    x = module(fields)
    assert x.shape == (T, B, NUM_FIELDS * D)
    for t in range(T):
        for b in range(B):
            s = fields[t, b].flatten() if squeeze == "flatten" else fields[t, b].mean(1)
            h = (s @ bank.weights[0][t] + bank.biases[0][t]).clamp(min=0)
            assert h.shape == (3,)
            o = h @ bank.weights[1][t] + bank.biases[1][t]
            if activation == "relu":
                w = o.clamp(min=0)
            else:
                w = {"sigmoid": 1, "2sigmoid": 2}[activation] / (1 + (-o).exp())
            scaled = fields[t, b] * (w[:, None] if granularity == "field" else w.view(-1, D))
            torch.testing.assert_close(x[t, b], scaled.flatten())


@pytest.mark.parametrize(("activation", "most"), [("sigmoid", 1), ("2sigmoid", 2)])
def test_a_feature_keeps_its_direction_and_its_weight_its_range(activation, most):
    module = _refinement(refine_activation=activation)
    weights = module.weights(_fields() * 3)
    assert weights.gt(0).all()
    assert weights.lt(most).all()
    refined = module(_fields()).view(T, B, NUM_FIELDS, D)
    cosine = F.cosine_similarity(refined, _fields(), dim=-1)
    torch.testing.assert_close(cosine, torch.ones(T, B, NUM_FIELDS))


def test_weights_of_one_leave_the_features_as_they_are():
    module = _refinement(refine_activation="2sigmoid")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    torch.testing.assert_close(module(_fields()), _fields().flatten(2))


def test_features_all_tasks_share_are_weighed_by_each_task_on_its_own():
    module = _refinement()
    together = module(_fields(1))
    apart = module(_fields(1).expand(T, -1, -1, -1))
    torch.testing.assert_close(together, apart)
    assert not torch.equal(together[0], together[1])


def test_a_tasks_output_moves_its_own_network_only():
    module = _refinement()
    module(_fields())[1].square().sum().backward()
    for parameter in module.parameters():
        assert parameter.grad is not None
        assert parameter.grad.flatten(1).any(1).tolist() == [False, True, False]


def test_a_hidden_layer_has_at_least_one_unit():
    module = Refinement(RefinementSection(refine_reduction=50), T, NUM_FIELDS, D)
    assert module.networks.weights[0].shape == (T, NUM_FIELDS * D, 1)
