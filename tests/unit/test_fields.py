"""Fields of looked-up rows: pooling, padding, views, and their gradients."""

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers import table_training as tt
from raymtl.batch import PAD, Batch, Inputs
from raymtl.embedding.fields import assemble
from raymtl.embedding.pooling import row_gradients, row_gradients_and_squares
from raymtl.embedding.rows import Rows
from raymtl.embedding.sharded import ShardedTables
from raymtl.embedding.tables import LocalTables

STORES = pytest.mark.parametrize("make", [LocalTables, ShardedTables])
COLUMNS = {c.feature: c for c in tt.LAYOUT.id_columns}
FIELDS = [c.feature for c in tt.LAYOUT.fields]


def tables_and_rows(make: type) -> tuple:
    tables = make(tt.SPECS, tt.section(), seed=3)
    natural = {}
    for spec in tt.SPECS:
        local = LocalTables([spec], tt.section(), seed=3)
        natural[spec.name] = local.stores[0].values.view(spec.rows, spec.views, tt.WIDTH)
    return tables, natural


def inputs_of(tables: LocalTables | ShardedTables, batch: Batch) -> tuple[Inputs, Rows]:
    rows = tables.lookup(batch.ids_BC, tt.LAYOUT)
    return assemble(rows, batch, tt.LAYOUT, tt.NUM_VIEWS, tt.WIDTH), rows


def plain(natural: dict[str, Tensor], batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """The same by one loop over rows, features and ids; differentiable."""
    fields, sequences = [], {}
    for c in tt.LAYOUT.id_columns:
        out = []
        for b in range(len(batch)):
            vectors, weights = [], []
            for j in range(c.width):
                row = int(batch.ids_BC[b, c.start + j])
                vector = torch.zeros(1, tt.WIDTH) if row == PAD else natural[c.table][row]
                vectors.append(vector.expand(tt.NUM_VIEWS, tt.WIDTH))
                weight = 1.0 if c.weight_start is None else batch.bag_weights[b, c.weight_start + j]
                weights.append(torch.tensor(0.0 if row == PAD else float(weight)))
            if c.pooling == "none":
                out.append(torch.stack(vectors))
                continue
            total = sum(w * v for w, v in zip(weights, vectors, strict=True))
            size = float(sum(abs(w) for w in weights))
            out.append(total / size if c.pooling == "mean" and size > 0 else total)
        if c.pooling == "none":
            sequences[c.feature] = torch.stack(out)
        else:
            fields.append(torch.stack(out))
    return torch.stack(fields, dim=2), sequences


@STORES
def test_every_pooling_equals_a_plain_loop(make: type) -> None:
    tables, natural = tables_and_rows(make)
    batch = tt.random_batch(1)
    inputs, _ = inputs_of(tables, batch)
    views_BVFD, sequences = plain(natural, batch)
    assert inputs.views_BVFD.shape == (24, 3, 7, 4)
    torch.testing.assert_close(inputs.views_BVFD, views_BVFD, rtol=1e-5, atol=1e-6)
    for name, expected in sequences.items():
        assert torch.equal(inputs.sequences[name].values_BSVD, expected)
        ids = batch.ids_BC[:, COLUMNS[name].start : COLUMNS[name].stop]
        assert torch.equal(inputs.sequences[name].mask_BS, ids != PAD)


@STORES
def test_gradients_equal_those_of_a_plain_loop(make: type) -> None:
    tables, natural = tables_and_rows(make)
    for values in natural.values():
        values.requires_grad_()
    batch = tt.random_batch(2)
    inputs, rows = inputs_of(tables, batch)
    expected, sequences = plain(natural, batch)
    for views, whole in (
        (inputs.views_BVFD, {k: s.values_BSVD for k, s in inputs.sequences.items()}),
        (expected, sequences),
    ):
        (views.sin().sum() + sum((1 + x.square()).log().sum() for x in whole.values())).backward()
    got = [row_gradients_and_squares(group) for group in rows.groups]
    for c in tt.LAYOUT.id_columns:
        number = rows.group_of_table[c.table]
        (grads, squares), group = got[number], rows.groups[number]
        number_BC = group.runs.numbers(group.place_BC.numel()).view_as(group.place_BC)
        columns = [list(group.columns).index(i) for i in range(c.start, c.stop)]
        for row, place in zip(
            batch.ids_BC[:, c.start : c.stop].flatten().tolist(),
            number_BC[:, columns].flatten().tolist(),
            strict=True,
        ):
            if row != PAD:
                wanted = natural[c.table].grad[row]
                torch.testing.assert_close(grads[place], wanted.flatten(), rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(
                    squares[place], wanted.double().square().sum(1), rtol=1e-4, atol=1e-5
                )


@STORES
def test_gradients_are_summed_once_and_then_forgotten(make: type) -> None:
    tables, _ = tables_and_rows(make)
    inputs, rows = inputs_of(tables, tt.random_batch(2))
    inputs.views_BVFD.sum().backward(retain_graph=True)
    first = [row_gradients(group) for group in rows.groups]
    assert not any(row_gradients(group).any() for group in rows.groups)
    (2 * inputs.views_BVFD.sum()).backward()
    for group, grads in zip(rows.groups, first, strict=True):
        torch.testing.assert_close(row_gradients(group), 2 * grads)


@STORES
def test_padding_gives_exact_zeros_and_gets_no_gradient(make: type) -> None:
    tables, _ = tables_and_rows(make)
    batch = tt.make_batch(torch.full((3, tt.LAYOUT.num_id_columns), PAD))
    batch.ids_BC[0, COLUMNS["user"].start] = 5
    inputs, rows = inputs_of(tables, batch)
    assert (inputs.views_BVFD[1:] == 0).all()
    assert (inputs.views_BVFD[0, :, 1:] == 0).all()
    assert (inputs.views_BVFD[0, :, 0] != 0).all()
    assert all((s.values_BSVD == 0).all() for s in inputs.sequences.values())
    whole = sum(s.values_BSVD.sum() for s in inputs.sequences.values())
    (inputs.views_BVFD.sum() + whole).backward()
    grads = [row_gradients(group) for group in rows.groups]
    assert sum(len(g) for g in grads) == 1
    assert sum(float(g.sum()) for g in grads) == tt.NUM_VIEWS * tt.WIDTH


@STORES
def test_a_weighted_mean_divides_by_the_absolute_weights(make: type) -> None:
    tables, natural = tables_and_rows(make)
    batch = tt.make_batch(torch.full((2, tt.LAYOUT.num_id_columns), PAD), torch.zeros(2, 3))
    start = COLUMNS["liked"].start
    batch.ids_BC[0, start : start + 2] = torch.tensor([7, 8])
    batch.bag_weights[0] = torch.tensor([3.0, -1.0, 5.0])  # the 5 stands at PAD and counts nowhere
    batch.ids_BC[1, start] = 7  # weight 0: the mean over nothing is zero
    inputs, _ = inputs_of(tables, batch)
    got = inputs.views_BVFD[:, :, FIELDS.index("liked")]
    expected = (3 * natural["item"][7] - natural["item"][8]) / 4
    torch.testing.assert_close(got[0], expected)
    assert (got[1] == 0).all()


@STORES
def test_rows_of_one_view_are_shown_to_all_and_their_gradients_are_summed(make: type) -> None:
    tables, natural = tables_and_rows(make)
    batch = tt.make_batch(torch.full((1, tt.LAYOUT.num_id_columns), PAD))
    batch.ids_BC[0, COLUMNS["city"].start] = 4
    inputs, rows = inputs_of(tables, batch)
    shown = inputs.views_BVFD[0, :, FIELDS.index("city")]
    for v in range(tt.NUM_VIEWS):
        assert torch.equal(shown[v], natural["city"][4, 0])
    (shown * torch.tensor([[1.0], [10.0], [100.0]])).sum().backward()
    grads = row_gradients(rows.groups[rows.group_of_table["city"]])
    np.testing.assert_array_equal(grads[0].numpy(), [111.0] * tt.WIDTH)


@STORES
def test_an_empty_batch_has_inputs_of_no_rows(make: type) -> None:
    tables, _ = tables_and_rows(make)
    inputs, _ = inputs_of(tables, tt.take(tt.random_batch(0), torch.tensor([], dtype=torch.int64)))
    assert inputs.views_BVFD.shape == (0, 3, 7, 4)
    assert inputs.sequences["recent"].values_BSVD.shape == (0, 4, 3, 4)
    inputs.views_BVFD.sum().backward()
