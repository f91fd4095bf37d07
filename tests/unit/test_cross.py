"""DCN-V2's cross network and FINT's interaction against their formulas; single_task on them."""

from typing import Any

import pytest
import torch

from helpers.models import grad_of, random_inputs, shape_of, small_model, small_section
from raymtl.config import ModelSection
from raymtl.errors import InputError
from raymtl.models import registry
from raymtl.models.cross import CrossNetwork, FintInteraction

bottoms = pytest.mark.parametrize("bottom", ["dcn_v2", "fint"])


def _shaken(module: Any) -> Any:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.5)
    return module


@torch.no_grad()
def test_a_cross_layer_is_x0_times_a_linear_map_plus_x():
    network, x = _shaken(CrossNetwork(2, 5, 3)), torch.randn(2, 4, 5)
    out = network(x)
    for n in range(2):
        for b in range(4):
            wanted = x[n, b].tolist()
            for layer in range(3):
                weight, bias = network.weight_LNIO[layer, n], network.bias_LNO[layer, n]
                linear = [
                    sum(float(weight[i, o]) * wanted[i] for i in range(5)) + float(bias[o])
                    for o in range(5)
                ]
                wanted = [float(x[n, b, o]) * linear[o] + wanted[o] for o in range(5)]
            torch.testing.assert_close(out[n, b], torch.tensor(wanted))


@torch.no_grad()
def test_an_interaction_layer_is_each_field_times_a_mix_of_all_and_one():
    network, x = _shaken(FintInteraction(2, 3, 2)), torch.randn(2, 4, 6)
    out = network(x)
    for n in range(2):
        for b in range(4):
            first = x[n, b].view(3, 2)
            fields = first
            with_ones = torch.cat([first, torch.ones(1, 2)])
            for layer in range(2):
                carry = network.carry_LNG[layer, n].unsqueeze(1)
                weight = torch.cat([network.weight_LNGF[layer, n], carry], dim=1)
                fields = fields * (weight @ with_ones)
            torch.testing.assert_close(out[n, b], fields.flatten())


def test_a_new_interaction_of_tiny_embeddings_gives_them_back():
    torch.manual_seed(0)
    x = 1e-4 * torch.randn(1, 8, 12)
    torch.testing.assert_close(FintInteraction(1, 3, 2)(x), x, rtol=1e-2, atol=1e-7)


@bottoms
def test_single_task_reads_what_its_bottom_made_of_its_own_view(bottom):
    section = small_section("single_task", bottom=bottom, num_bottom_layers=2)
    model, inputs = small_model(section, 3), random_inputs(shape_of(section, 3), 9)
    x_TBI = model.fields(inputs)
    torch.testing.assert_close(model(inputs), model.head(model.bottom(x_TBI)))
    assert len(next(model.bottom.parameters())) == 2
    for task in range(3):
        model.zero_grad()
        inputs.views_BVFD.grad = None
        model(inputs)[:, task].sum().backward()
        wanted = [t == task for t in range(3)]
        assert grad_of(inputs.views_BVFD).abs().sum((0, 2, 3)).gt(0).tolist() == wanted
        for parameter in model.bottom.parameters():
            assert grad_of(parameter).transpose(0, 1).flatten(1).any(1).tolist() == wanted


@bottoms
@pytest.mark.parametrize("num_tasks", [1, 5])
def test_every_parameter_of_a_bottom_learns(bottom, num_tasks):
    section = small_section("single_task", bottom=bottom)
    model = small_model(section, num_tasks)
    model(random_inputs(shape_of(section, num_tasks), 16)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert grad_of(parameter).flatten(1).any(), name


def test_layers_of_a_bottom_that_is_not_there_are_refused():
    section = ModelSection.model_validate({"name": "single_task", "num_bottom_layers": 2})
    with pytest.raises(InputError, match="dnn has no layers below its MLP"):
        registry.parse(section)
