"""Behaviour types, their buckets, and the vectors they become."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.models import grad_of, random_inputs, rows_of
from raymtl.batch import Inputs, InputShape, Sequence
from raymtl.errors import InputError
from raymtl.models.behaviours import behaviours_of
from raymtl.models.interest import Interests, InterestSection, TargetAttention, num_newer
from raymtl.models.length_buckets import LengthBuckets, bucket_widths

WIDTH = 4


def _shape(**values) -> InputShape:
    """Items clicked and bought; clicks with their shops; a pooled sequence of items besides."""
    base: dict[str, Any] = {
        "num_tasks": 2,
        "num_views": 1,
        "num_fields": 4,
        "width": WIDTH,
        "num_numeric": 0,
        "task_names": ("a", "b"),
        "sequence_lengths": {"clicked": 20, "bought": 5, "clicked_shop": 20},
        "field_names": ("user", "item", "shop", "seen"),
        "field_tables": ("user", "item", "shop", "item"),
        "field_poolings": ("one", "one", "one", "mean"),
        "sequence_tables": {"clicked": "item", "bought": "item", "clicked_shop": "shop"},
        "sequence_aligned": {"clicked_shop": "clicked"},
    }
    return InputShape(**{**base, **values})


def _interests(shape: InputShape | None = None, **values) -> Any:
    torch.manual_seed(0)
    return Interests(InterestSection.model_validate(values), shape or _shape())


def _full(inputs: Inputs, rows: int) -> Inputs:
    """The first rows, with every sequence full."""
    generator = torch.Generator().manual_seed(7)
    sequences = {}
    for name, sequence in inputs.sequences.items():
        size = sequence.values_BSVD[:rows].shape
        values = torch.randn(size, generator=generator)
        sequences[name] = Sequence(values, torch.ones(size[:2], dtype=torch.bool))
    return Inputs(inputs.views_BVFD[:rows], inputs.numeric_BN[:rows], sequences)


def test_aligned_sequences_are_one_behaviour_and_their_target_has_its_items_and_shops():
    clicked, bought = behaviours_of(_shape())
    assert (clicked.sequences, clicked.length) == (("clicked", "clicked_shop"), 20)
    assert (bought.sequences, bought.length) == (("bought",), 5)
    # The pooled sequence `seen` looks up items too and is no part of the impression's item.
    assert (clicked.target_fields, bought.target_fields) == ((1, 2), (1,))


@pytest.mark.parametrize(
    "aligned", [{"a": "b", "b": "c"}, {"c": "a", "b": "a"}, {"a": "b", "b": "a", "c": "b"}]
)
def test_chains_and_rings_of_alignment_are_one_behaviour(aligned):
    lengths = {"a": 3, "x": 3, "b": 3, "c": 3}
    found = behaviours_of(_shape(sequence_lengths=lengths, sequence_aligned=aligned))
    assert [b.sequences for b in found] == [("a", "b", "c"), ("x",)]


def test_an_event_is_the_sum_over_its_sequences():
    (both,) = behaviours_of(
        _shape(sequence_lengths={"clicked": 3, "clicked_shop": 3}, num_fields=2, width=1)
    )

    def sequence(*values: float) -> Sequence:
        held = torch.tensor([[v == v for v in values]])
        return Sequence(torch.tensor(values).view(1, 3, 1, 1), held)

    nan = float("nan")
    inputs = Inputs(
        torch.tensor([1.0, 2.0, 3.0]).view(1, 1, 3, 1),
        torch.empty(1, 0),
        {"clicked": sequence(1, 2, nan), "clicked_shop": sequence(10, nan, nan)},
    )
    events, mask = both.events(inputs)
    assert events.flatten().tolist() == [11, 2, 0]
    assert mask.tolist() == [[True, True, False]]
    target = both.target(inputs)
    assert target is not None
    assert target.tolist() == [[5.0]]


def test_a_target_that_is_no_field_is_refused_with_the_nearest_name():
    with pytest.raises(InputError, match="did you mean shop") as caught:
        behaviours_of(_shape(), ["shopp"])
    assert "model.target" in caught.value.got


def test_named_targets_serve_every_behaviour():
    assert [b.target_fields for b in behaviours_of(_shape(), ["shop"])] == [(2,), (2,)]


def test_a_behaviour_without_a_target_is_averaged_unless_a_target_is_asked_for():
    shape = _shape(field_tables=("user", "other", "shop", "item"))
    assert _interests(shape).poolings == ["target", "mean"]
    assert _interests(shape, pooling="mean").poolings == ["mean", "mean"]
    for pooling in ("target", "append"):
        with pytest.raises(InputError, match="bought has no target"):
            _interests(shape, pooling=pooling)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(InputError, match=r"model\.num_heads = 3, embedding\.width = 4"):
        _interests(num_heads=3)


def test_buckets_halve_the_length():
    assert bucket_widths(50) == [0, 7, 13, 25, 50]
    assert bucket_widths(5) == [0, 5]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(st.booleans(), min_size=19, max_size=19), max_size=12))
def test_every_row_is_in_the_narrowest_bucket_that_holds_it_and_comes_back_to_its_place(rows):
    mask = torch.tensor(rows, dtype=torch.bool).view(len(rows), 19)
    buckets = LengthBuckets.of(mask)
    number = torch.arange(len(rows))
    for part, width in zip(buckets.split(number), buckets.widths, strict=True):
        for row in part.tolist():
            length = max((s + 1 for s in range(19) if rows[row][s]), default=0)
            assert width == min(w for w in bucket_widths(19) if w >= length)
    parts = [part.view(1, -1, 1) for part in buckets.split(number)]
    assert torch.equal(buckets.join(parts).flatten(), number)


def test_positions_count_from_the_newest_event():
    mask = torch.tensor([[True, True, True, False], [True, False, False, False]])
    assert num_newer(mask)[mask].tolist() == [2, 1, 0, 0]


@pytest.mark.parametrize("pooling", ["target", "append", "mean"])
@pytest.mark.parametrize("num_blocks", [1, 2])
def test_buckets_change_nothing(pooling, num_blocks, monkeypatch):
    interests = _interests(pooling=pooling, num_blocks=num_blocks)
    torch.nn.init.normal_(interests.positions_SD)
    inputs = random_inputs(_shape(), 43)
    bucketed = interests(inputs)
    monkeypatch.setattr("raymtl.models.length_buckets.MIN_WIDTH", 1000)
    torch.testing.assert_close(interests(inputs), bucketed)


@pytest.mark.parametrize("pooling", ["target", "append", "mean"])
def test_rows_without_events_have_no_interest_and_finite_gradients(pooling):
    interests = _interests(pooling=pooling)
    inputs = random_inputs(_shape(), 8)
    for sequence in inputs.sequences.values():
        sequence.mask_BS[:] = False
    out = interests(inputs)
    assert out.shape == (2, 8, 2, WIDTH)
    assert not out.any()
    out.sum().backward()
    for parameter in interests.parameters():
        assert grad_of(parameter).isfinite().all()
    for sequence in inputs.sequences.values():
        assert not grad_of(sequence.values_BSVD).any()
    some = rows_of(random_inputs(_shape(), 8), torch.tensor([0, 4]))
    out = interests(some)
    assert out[:, :1].eq(0).all()
    assert out[:, 1:].ne(0).all()


def test_garbage_at_empty_places_changes_nothing():
    interests, inputs = _interests(), random_inputs(_shape(), 30)
    spoiled = {
        name: Sequence(s.values_BSVD.masked_fill(~s.mask_BS[:, :, None, None], 1e9), s.mask_BS)
        for name, s in inputs.sequences.items()
    }
    torch.testing.assert_close(
        interests(Inputs(inputs.views_BVFD, inputs.numeric_BN, spoiled)), interests(inputs)
    )


@pytest.mark.parametrize("pooling", ["target", "mean"])
@pytest.mark.parametrize("positions", [False, True])
def test_order_matters_with_positions_only(pooling, positions):
    interests = _interests(pooling=pooling, positions=positions)
    if positions:
        torch.nn.init.normal_(interests.positions_SD)
    inputs = _full(random_inputs(_shape(), 4), 4)
    turned = {n: Sequence(s.values_BSVD.flip(1), s.mask_BS) for n, s in inputs.sequences.items()}
    mixed = interests(Inputs(inputs.views_BVFD, inputs.numeric_BN, turned))
    close = torch.isclose(mixed, interests(inputs), atol=1e-5).all()
    assert bool(close) is not positions


def test_an_appended_target_is_the_newest_event_and_its_output_the_interest():
    interests = _interests(pooling="append")
    torch.nn.init.normal_(interests.positions_SD)
    inputs = random_inputs(_shape(), 3)
    values, item = inputs.sequences["bought"].values_BSVD[2, :2, 0], inputs.views_BVFD[2, 0, 1]
    events = torch.stack([values[0], values[1], item]) + interests.positions_SD[[2, 1, 0]]
    mask = torch.ones(1, 3, dtype=torch.bool)
    encoded = interests.transformer(events[None], mask, interests.norms()[:, 1])
    torch.testing.assert_close(interests(inputs)[:, 2, 1], encoded[:, 0, -1])


def test_target_attention_is_the_formula_written_out():
    torch.manual_seed(0)
    attention = TargetAttention(WIDTH)
    encoded, target = torch.randn(2, 3, 5, WIDTH), torch.randn(3, WIDTH)
    held = [5, 1, 3]
    mask = torch.arange(5) < torch.tensor(held)[:, None]
    out = attention(encoded, mask, target)
    for k in range(2):
        for r in range(3):
            query = attention.query.weight @ target[r]
            keys = [attention.key.weight @ encoded[k, r, s] for s in range(held[r])]
            scores = torch.stack([(query * key).sum() / WIDTH**0.5 for key in keys])
            weights = scores.exp() / scores.exp().sum()
            wanted = sum(w * encoded[k, r, s] for s, w in enumerate(weights))
            torch.testing.assert_close(out[k, r], wanted)


@pytest.mark.parametrize(
    ("values", "num"),
    [
        ({}, 2),
        ({"conditions": "task"}, 2),
        ({"conditions": "behaviour"}, 1),
        ({"interest": False}, 1),
    ],
)
def test_interests_are_made_once_where_nothing_depends_on_the_task(values, num):
    inputs = random_inputs(_shape(), 6)
    interests = _interests(**values)
    assert interests(inputs).shape == (num, 6, 2, WIDTH)


def test_changing_an_embedding_changes_the_interests_of_its_task_or_behaviour_only():
    interests, inputs = _interests(), _full(random_inputs(_shape(), 6), 6)
    before = interests(inputs)
    with torch.no_grad():
        interests.norms.task_KI[1] += 1
    changed = (interests(inputs) != before).any(1).any(-1)
    assert changed.tolist() == [[False, False], [True, True]]
    before = interests(inputs)
    with torch.no_grad():
        interests.norms.behaviour_MI[0] += 1
    changed = (interests(inputs) != before).any(1).any(-1)
    assert changed.tolist() == [[True, False], [True, False]]
