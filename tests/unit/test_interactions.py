"""DEPHN's parts below the gates, each against the formula written out."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from raymtl.models.interactions import CrossLayers, DeepExperts, FieldInteraction, SoftSelection


def randomised(module: torch.nn.Module) -> Any:
    """Every parameter standard normal; Any, so that tests may look into its parts."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    return module


def set_to(parameters, value: float) -> None:
    with torch.no_grad():
        for parameter in parameters:
            parameter.fill_(value)


@pytest.mark.parametrize("num_heads", [1, 2])
def test_attention_is_the_formula_field_by_field(num_heads):
    selection = randomised(SoftSelection(2, 3, 4, num_heads, "attention"))
    fields_BFD = torch.randn(5, 3, 4)
    got = selection(fields_BFD)
    size = 4 // num_heads
    for owner in range(2):
        q, k, v = (fields_BFD @ selection.projections[n, owner] for n in range(3))
        for row in range(5):
            for head in range(num_heads):
                part = slice(head * size, (head + 1) * size)
                for field in range(3):
                    scores = k[row, :, part] @ q[row, field, part] / size**0.5
                    wanted = torch.softmax(scores, dim=0) @ v[row, :, part]
                    torch.testing.assert_close(got[owner, row, field, part], wanted)


def test_selection_goes_from_the_fields_themselves_to_their_attention():
    selection = randomised(SoftSelection(1, 3, 4, 1, "gated"))
    plain: Any = SoftSelection(1, 3, 4, 1, "attention")
    plain.load_state_dict({"projections": selection.projections.data})
    fields_BFD = torch.randn(5, 3, 4)
    set_to([selection.gate_OFD], -200.0)
    assert torch.equal(selection(fields_BFD)[0], fields_BFD)
    set_to([selection.gate_OFD], 200.0)
    torch.testing.assert_close(selection(fields_BFD), plain(fields_BFD))
    with torch.no_grad():
        selection.gate_OFD.normal_()
    share = torch.sigmoid(selection.gate_OFD[0])
    wanted = share * plain(fields_BFD)[0] + (1 - share) * fields_BFD
    torch.testing.assert_close(selection(fields_BFD)[0], wanted)
    between = (selection(fields_BFD)[0] - fields_BFD) / (plain(fields_BFD)[0] - fields_BFD)
    assert between.min() > 0 and between.max() < 1


def test_without_selection_every_owner_reads_the_fields():
    selection = SoftSelection(3, 2, 4, 1, "none")
    fields_BFD = torch.randn(5, 2, 4)
    assert list(selection.parameters()) == []
    assert torch.equal(selection(fields_BFD), fields_BFD.expand(3, -1, -1, -1))


@pytest.mark.parametrize("residual", ["trainable", "plain", "none"])
def test_cross_layers_are_the_formula_owner_by_owner(residual):
    cross = randomised(CrossLayers((2, 3, 4), 2, residual))
    x_OBI = torch.randn(2, 5, 4)
    got = cross(x_OBI)
    assert got.shape == (2, 3, 5, 4)
    for owner in range(2):
        for expert in range(3):
            for row in range(5):
                first = x = x_OBI[owner, row]
                for n in range(2):
                    omega = cross.matrices[n][owner, expert].t()
                    vector = cross.vectors[n][owner, expert, :, 0]
                    new = first * (omega @ x) + first * (vector @ x)
                    new = new + cross.biases[n][owner, expert, 0]
                    if residual == "trainable":
                        new = new + cross.links[n].weight[owner, expert, 0] * x
                    x = new + x if residual == "plain" else new
                torch.testing.assert_close(got[owner, expert, row], x, rtol=1e-4, atol=1e-4)


def test_cross_layers_hold_dcn_and_dcn_v2():
    x = torch.randn(1, 5, 4)
    cross = randomised(CrossLayers((1, 1, 4), 1, "none"))
    matrix, vector = cross.matrices[0][0, 0].clone(), cross.vectors[0][0, 0].clone()
    bias = cross.biases[0][0, 0]
    set_to(cross.matrices, 0.0)
    dcn = x[0] * (x[0] @ vector) + bias  # x0 x' w + b
    torch.testing.assert_close(cross(x)[0, 0], dcn)
    with torch.no_grad():
        cross.matrices[0][0, 0] = matrix
    set_to(cross.vectors, 0.0)
    dcn_v2 = x[0] * (x[0] @ matrix) + bias  # x0 * (W x) + b, without its residual
    torch.testing.assert_close(cross(x)[0, 0], dcn_v2)


@pytest.mark.parametrize("residual", ["trainable", "plain", "none"])
def test_field_interaction_is_the_formula_owner_by_owner(residual):
    field = randomised(FieldInteraction((2, 3, 4), 2, residual))
    v_OBFD = torch.randn(2, 5, 4, 3)
    got = field(v_OBFD)
    assert got.shape == (2, 3, 5, 4, 3)
    for owner in range(2):
        for expert in range(3):
            for row in range(5):
                first = v = v_OBFD[owner, row]
                for n in range(2):
                    new = first * (field.matrices[n][owner, expert].t() @ v)
                    if residual == "trainable":
                        new = new + field.links[n].weight[owner, expert, 0, 0, :, None] * v
                    v = new + v if residual == "plain" else new
                torch.testing.assert_close(got[owner, expert, row], v, rtol=1e-4, atol=1e-4)


def test_field_interaction_with_a_matrix_of_0_and_links_of_1_changes_nothing():
    field: Any = FieldInteraction((1, 2, 4), 3, "trainable")
    set_to(field.matrices, 0.0)
    v_OBFD = torch.randn(1, 5, 4, 3)
    assert torch.equal(field(v_OBFD), v_OBFD.unsqueeze(1).expand(1, 2, -1, -1, -1))


@pytest.mark.parametrize("residual", ["trainable", "plain", "none"])
def test_deep_experts_link_only_layers_of_equal_width(residual):
    deep = randomised(DeepExperts((2, 3, 4), (6, 6), residual, dropout=0.0))
    x_OBI = torch.randn(2, 5, 4)
    got = deep(x_OBI)
    for owner in range(2):
        for expert in range(3):
            x = x_OBI[owner]
            for n in range(2):
                weight, bias = deep.weights[n][owner, expert], deep.biases[n][owner, expert]
                new = F.leaky_relu(x @ weight + bias)
                if n == 1 and residual == "trainable":
                    new = new + deep.links[1].weight[owner, expert] * x
                x = new + x if n == 1 and residual == "plain" else new
            torch.testing.assert_close(got[owner, expert], x, rtol=1e-4, atol=1e-4)
    assert deep.links[0].weight is None


def test_deep_experts_drop_hidden_units_only_while_training():
    deep = DeepExperts((1, 1, 4), (50,), "none", dropout=0.5)
    x = torch.randn(1, 8, 4)
    assert (deep.train()(x) == 0).float().mean() == pytest.approx(0.5, abs=0.12)
    assert torch.equal(deep.eval()(x), deep(x)) and (deep(x) != 0).all()
