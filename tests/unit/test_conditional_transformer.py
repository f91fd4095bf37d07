"""Norms from a hypernetwork, and the Transformer they condition."""

from typing import Any

import torch
from torch import nn

from raymtl.models.conditional_transformer import (
    ConditionalTransformer,
    HyperNorms,
    SharedNorms,
    conditional_norm,
)

WIDTH = 8


def _hypernetwork(widths: tuple[int, int] = (5, 4), num_norms: int = 2) -> HyperNorms:
    """Of 3 tasks and 2 behaviour types."""
    torch.manual_seed(0)
    return HyperNorms((3, 2), widths, hidden=16, num_norms=num_norms, width=WIDTH)


def _events(num_rows: int = 6, length: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    held = torch.arange(num_rows) % length + 1
    events = torch.randn(num_rows, length, WIDTH, generator=generator)
    return events, torch.arange(length) < held[:, None]


def _ordinary(num_norms: int) -> torch.Tensor:
    return SharedNorms(1, num_norms, WIDTH)()[:, 0].detach()


def _torch_layer(block, num_heads: int) -> nn.TransformerEncoderLayer:
    layer = nn.TransformerEncoderLayer(WIDTH, num_heads, 4 * WIDTH, dropout=0, batch_first=True)
    with torch.no_grad():
        layer.self_attn.in_proj_weight.copy_(block.in_projection.weight)
        layer.self_attn.out_proj.weight.copy_(block.out_projection.weight)
        for mine, theirs in ((block.ffn_inner, layer.linear1), (block.ffn_outer, layer.linear2)):
            theirs.weight.copy_(mine.weight)
            theirs.bias.copy_(mine.bias)
    return layer


def test_with_ordinary_norms_it_is_torchs_transformer_encoder():
    events, mask = _events()
    torch.manual_seed(2)
    ours = ConditionalTransformer(WIDTH, num_heads=2, num_blocks=2, ffn_factor=4, dropout=0)
    wanted = events
    for block in ours.blocks:
        wanted = _torch_layer(block, 2)(wanted, src_key_padding_mask=~mask)
    encoded = ours(events, mask, _ordinary(4).expand(3, -1, -1, -1))
    for task in range(3):
        torch.testing.assert_close(encoded[task][mask], wanted[mask], atol=1e-5, rtol=1e-5)


def test_the_last_place_alone_is_what_the_whole_output_holds_there():
    events, mask = _events()
    mask[:, -1] = True
    norms = _hypernetwork()()[:, 0]
    ours = ConditionalTransformer(WIDTH, num_heads=2, num_blocks=1, ffn_factor=2, dropout=0)
    whole = ours(events, mask, norms)
    torch.testing.assert_close(ours(events, mask, norms, last_only=True), whole[:, :, -1:])


def test_the_first_attention_runs_once_whatever_the_number_of_tasks():
    events, mask = _events()
    ours = ConditionalTransformer(WIDTH, num_heads=2, num_blocks=2, ffn_factor=2, dropout=0)
    blocks: Any = ours.blocks
    seen: list[list[int]] = []
    for block in blocks:
        block.in_projection.register_forward_hook(lambda _, x, y: seen.append(list(x[0].shape)))
    assert ours(events, mask, _ordinary(4).expand(3, -1, -1, -1)).shape == (3, 6, 5, WIDTH)
    assert seen == [[6, 5, WIDTH], [18, 5, WIDTH]]


def test_values_at_empty_places_change_nothing():
    events, mask = _events()
    garbage = torch.where(mask[:, :, None], events, 1e6)
    norms = _hypernetwork(num_norms=4)()[:, 1]
    ours = ConditionalTransformer(WIDTH, num_heads=2, num_blocks=2, ffn_factor=2, dropout=0)
    once, again = ours(events, mask, norms), ours(garbage, mask, norms)
    torch.testing.assert_close(once[:, mask], again[:, mask])
    assert again.isfinite().all()


def test_a_hypernetwork_without_output_weights_gives_ordinary_norms_to_all():
    hyper = _hypernetwork()
    nn.init.zeros_(hyper.outer.weight)
    norms = hyper()
    assert norms.shape == (3, 2, 2, 2, WIDTH)
    assert norms[..., 0, :].eq(1).all()
    assert not norms[..., 1, :].any()


def test_training_starts_near_ordinary_norms_but_tells_tasks_and_behaviours_apart():
    norms = _hypernetwork()()
    torch.testing.assert_close(norms, _ordinary(2).expand_as(norms), atol=0.3, rtol=0)
    assert not torch.equal(norms[0, 0], norms[1, 0])
    assert not torch.equal(norms[0, 0], norms[0, 1])


def test_norms_are_those_written_out_from_the_formula():
    hyper = _hypernetwork()
    assert hyper.task_KI is not None and hyper.behaviour_MI is not None
    norms = hyper()
    for t in range(3):
        for m in range(2):
            q = torch.cat([hyper.task_KI[t], hyper.behaviour_MI[m]])
            h = (hyper.inner.weight @ q + hyper.inner.bias).clamp(min=0)
            flat = hyper.outer.weight @ h + hyper.outer.bias
            for n in range(2):
                scale, shift = flat[2 * n * WIDTH :][: 2 * WIDTH].split(WIDTH)
                torch.testing.assert_close(norms[t, m, n], torch.stack([1 + scale, shift]))


def test_changing_one_embedding_changes_the_norms_of_its_task_or_behaviour_only():
    hyper = _hypernetwork()
    assert hyper.task_KI is not None and hyper.behaviour_MI is not None
    before = hyper()
    with torch.no_grad():
        hyper.task_KI[1] += 1
    changed = (hyper() != before).flatten(2).any(-1)
    assert changed.tolist() == [[False, False], [True, True], [False, False]]
    before = hyper()
    with torch.no_grad():
        hyper.behaviour_MI[0] += 1
    changed = (hyper() != before).flatten(2).any(-1)
    assert changed.tolist() == [[True, False]] * 3


def test_pairs_with_equal_embeddings_have_equal_norms():
    hyper = _hypernetwork()
    assert hyper.task_KI is not None and hyper.behaviour_MI is not None
    with torch.no_grad():
        hyper.task_KI[2] = hyper.task_KI[0]
        hyper.behaviour_MI[1] = hyper.behaviour_MI[0]
    norms = hyper()
    assert torch.equal(norms[2, 1], norms[0, 0])


def test_a_hypernetwork_told_nothing_of_the_task_makes_one_set_for_all():
    assert _hypernetwork(widths=(0, 4))().shape == (1, 2, 2, 2, WIDTH)
    norms = _hypernetwork(widths=(5, 0))()
    assert norms.shape == (3, 2, 2, 2, WIDTH)
    assert torch.equal(norms[:, 0], norms[:, 1])


def test_a_conditional_norm_by_hand():
    # (1, 3): mean 2, variance 1, so the normed vector is (-1, 1).
    norm = torch.tensor([[[2.0, 3.0], [10.0, 20.0]], [[1.0, 1.0], [0.0, 0.0]]])
    out = conditional_norm(torch.tensor([[[[1.0, 3.0]]]]), norm)
    wanted = torch.tensor([[8.0, 23.0], [-1.0, 1.0]]).view(2, 1, 1, 2)
    torch.testing.assert_close(out, wanted, atol=2e-4, rtol=0)


def test_a_conditional_norm_has_the_mean_of_its_shift_and_is_linear_in_scale_and_shift():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1, 4, 5, WIDTH, generator=generator)
    norm = torch.randn(2, 2, WIDTH, generator=generator)
    out = conditional_norm(x, norm)
    torch.testing.assert_close(conditional_norm(x, 2 * norm), 2 * out)
    plain = conditional_norm(x, _ordinary(1)[:, 0])
    torch.testing.assert_close(plain.mean(-1), torch.zeros(1, 4, 5), atol=1e-6, rtol=0)
    unit = plain.var(-1, correction=0)
    torch.testing.assert_close(unit, torch.ones(1, 4, 5), atol=1e-3, rtol=0)
    # With one scale for all floats the mean is the shift's.
    even = norm.clone()
    even[:, 0] = 1.5
    means = conditional_norm(x, even).mean(-1)
    wanted = norm[:, 1].mean(-1)[:, None, None].expand(2, 4, 5)
    torch.testing.assert_close(means, wanted)
