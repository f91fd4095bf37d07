"""Row optimizers against slow references and against torch."""

import numpy as np
import pytest
import torch

from raymtl.config import RowOptimizerSection
from raymtl.embedding import optimizers
from raymtl.embedding.rows import RowGradients, RowPart, RowStore

ROWS, V, D = 7, 3, 4


class OneStore:
    """The least an optimizer needs: one store."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.width = D
        self.stores = (RowStore.of(ROWS, V, D, {}),)
        self.stores[0].values.normal_(generator=generator)

    def gradients(self, index: list[int], grads_nVD: np.ndarray) -> RowGradients:
        grads = torch.from_numpy(grads_nVD).float().reshape(len(index), V * D).clone()
        return [
            RowPart(
                self.stores[0], 0, ROWS, torch.tensor(index, dtype=torch.int64), grads, counted=True
            )
        ]


def random_gradients(step: int) -> tuple[list[int], np.ndarray]:
    """Some rows; about a third of their views untouched."""
    rng = np.random.default_rng(step)
    index = sorted(rng.choice(ROWS, size=int(rng.integers(0, 5)), replace=False).tolist())
    grads = rng.normal(size=(len(index), V, D)) * (rng.random((len(index), V, 1)) < 0.66)
    return index, grads.astype(np.float32)


def run(name: str, num_steps: int, l2: float = 0.0, scale: float = 1.0) -> tuple[dict, list]:
    tables = OneStore()
    section = RowOptimizerSection.model_validate(
        {
            "name": name,
            "lr": 0.1,
            "l2": l2,
            "initial_accumulator": 0.2,
            "eps": 1e-3,
            "betas": (0.8, 0.95),
        }
    )
    optimizer = optimizers.build(section, tables)
    norms = []
    for step in range(num_steps):
        grads = tables.gradients(*random_gradients(step))
        optimizer.add_l2(grads)
        norms.append(optimizer.squared_norm(grads).item())
        optimizer.step(grads, scale=scale, factor=1.0)
    return {k: t.numpy() for k, t in tables.stores[0].tensors.items()}, norms


def slow_rowwise_adagrad(num_steps: int, l2: float, scale: float) -> tuple:
    w = OneStore().stores[0].values.double().numpy().reshape(ROWS, V, D).copy()
    total, norms = np.full((ROWS, V), 0.2), []
    for step in range(num_steps):
        norm = 0.0
        for row, grads in zip(*random_gradients(step), strict=True):
            for v in range(V):
                if not grads[v].any():
                    continue
                g = grads[v] + l2 * w[row, v]
                norm += (g * g).sum()
                g = g * scale
                total[row, v] += (g * g).mean()
                w[row, v] -= 0.1 * g / (np.sqrt(total[row, v]) + 1e-3)
        norms.append(norm)
    return w, total, norms


def slow_lazy_adam(num_steps: int, l2: float, scale: float) -> tuple:
    w = OneStore().stores[0].values.double().numpy().reshape(ROWS, V, D).copy()
    m, s, count = np.zeros_like(w), np.zeros_like(w), np.zeros((ROWS, V), dtype=int)
    for step in range(num_steps):
        for row, grads in zip(*random_gradients(step), strict=True):
            for v in range(V):
                if not grads[v].any():
                    continue
                g = (grads[v] + l2 * w[row, v]) * scale
                count[row, v] += 1
                m[row, v] = 0.8 * m[row, v] + 0.2 * g
                s[row, v] = 0.95 * s[row, v] + 0.05 * g * g
                mean = m[row, v] / (1 - 0.8 ** count[row, v])
                square = s[row, v] / (1 - 0.95 ** count[row, v])
                w[row, v] -= 0.1 * mean / (np.sqrt(square) + 1e-3)
    return w, m, s, count


@pytest.mark.parametrize(("l2", "scale"), [(0.0, 1.0), (0.03, 0.5)])
def test_rowwise_adagrad_equals_a_slow_reference(l2: float, scale: float) -> None:
    got, norms = run("rowwise_adagrad", 12, l2, scale)
    w, total, expected_norms = slow_rowwise_adagrad(12, l2, scale)
    np.testing.assert_allclose(got["values"].reshape(ROWS, V, D), w, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got["sum_of_squares"], total, rtol=1e-5)
    np.testing.assert_allclose(norms, expected_norms, rtol=1e-5)


@pytest.mark.parametrize(("l2", "scale"), [(0.0, 1.0), (0.03, 0.5)])
def test_lazy_adam_equals_a_slow_reference(l2: float, scale: float) -> None:
    got, _ = run("lazy_adam", 12, l2, scale)
    w, m, s, count = slow_lazy_adam(12, l2, scale)
    np.testing.assert_allclose(got["values"].reshape(ROWS, V, D), w, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got["exp_avg"].reshape(ROWS, V, D), m, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(got["exp_avg_sq"].reshape(ROWS, V, D), s, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(got["num_updates"], count)


@pytest.mark.parametrize("l2", [0.0, 0.03])
def test_dense_adam_is_torch_adam_bit_for_bit(l2: float) -> None:
    got, norms = run("dense_adam", 12, l2, scale=0.5)
    w = torch.nn.Parameter(OneStore().stores[0].values.clone())
    adam = torch.optim.Adam([w], lr=0.1, betas=(0.8, 0.95), eps=1e-3, foreach=False)
    for step in range(12):
        index, grads = random_gradients(step)
        gradient = torch.zeros(ROWS, V * D)
        gradient[index] = torch.from_numpy(grads).reshape(len(index), V * D)
        w.grad = gradient.add(w.detach(), alpha=l2)
        np.testing.assert_allclose(norms[step], float(w.grad.double().square().sum()), rtol=1e-6)
        w.grad *= 0.5
        adam.step()
    assert np.array_equal(got["values"], w.detach().numpy())
    assert np.array_equal(got["exp_avg"], adam.state[w]["exp_avg"].numpy())
    assert np.array_equal(got["exp_avg_sq"], adam.state[w]["exp_avg_sq"].numpy())


def test_dense_adam_moves_a_row_that_no_batch_holds_and_the_others_do_not() -> None:
    never = next(r for r in range(ROWS) if all(r not in random_gradients(s)[0] for s in range(2)))
    start = OneStore().stores[0].values[never].numpy()
    for name in ("rowwise_adagrad", "lazy_adam"):
        got, _ = run(name, 2, l2=0.03)
        np.testing.assert_array_equal(got["values"][never], start)
    got, _ = run("dense_adam", 2, l2=0.03)
    assert (np.abs(got["values"][never]) < np.abs(start)).all()


@pytest.mark.parametrize("name", ["rowwise_adagrad", "lazy_adam"])
def test_an_untouched_view_of_a_touched_row_keeps_its_values_and_state(name: str) -> None:
    tables = OneStore()
    section = RowOptimizerSection.model_validate({"name": name, "lr": 0.1, "l2": 0.1})
    optimizer = optimizers.build(section, tables)
    warm = tables.gradients([2], np.ones((1, V, D)))
    optimizer.step(warm, scale=1.0, factor=1.0)
    before = {k: t.clone() for k, t in tables.stores[0].tensors.items()}
    grads_nVD = np.ones((1, V, D))
    grads_nVD[0, 1] = 0
    grads = tables.gradients([2], grads_nVD)
    optimizer.add_l2(grads)
    optimizer.step(grads, scale=1.0, factor=1.0)
    for key, tensor in tables.stores[0].tensors.items():
        views, was = (t[2].view(V, -1) for t in (tensor, before[key]))
        assert torch.equal(views[1], was[1]), key
        assert (views[0] != was[0]).all(), key
        assert (views[2] != was[2]).all(), key


@pytest.mark.parametrize("name", ["rowwise_adagrad", "lazy_adam", "dense_adam"])
def test_a_gradient_that_is_not_finite_shows_in_the_norm(name: str) -> None:
    tables = OneStore()
    optimizer = optimizers.build(RowOptimizerSection.model_validate({"name": name}), tables)
    grads_nVD = np.zeros((1, V, D))
    grads_nVD[0, 1, 2] = np.nan
    grads = tables.gradients([4], grads_nVD)
    optimizer.add_l2(grads)
    assert not np.isfinite(optimizer.squared_norm(grads).item())


def test_copies_of_replicated_rows_do_not_count_in_the_norm() -> None:
    tables = OneStore()
    optimizer = optimizers.RowwiseAdagrad(RowOptimizerSection(), tables)
    (part,) = tables.gradients([1], np.ones((1, V, D)))
    part.counted = False
    assert optimizer.squared_norm([part]).item() == 0
    part.counted = True
    assert optimizer.squared_norm([part]).item() == V * D
