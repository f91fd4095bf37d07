"""Random batches over awkward tables, and a few steps of training them, locally or on ranks."""

import threading
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from raymtl import collectives
from raymtl.batch import PAD, Batch, InputShape, Layout
from raymtl.config import EmbeddingSection, RowOptimizerSection
from raymtl.embedding import optimizers
from raymtl.embedding.fields import assemble
from raymtl.embedding.sharded import ShardedTables
from raymtl.embedding.tables import LocalTables, table_specs
from raymtl.schema import LogSchema

NUM_VIEWS, WIDTH = 3, 4
SCHEMA = LogSchema.model_validate(
    {
        "features": [
            {"name": "user", "kind": "categorical"},
            {"name": "city", "kind": "categorical"},
            {"name": "item", "kind": "categorical"},
            {"name": "liked", "kind": "bag", "table": "item", "max_length": 3, "weights": "w"},
            {"name": "tags", "kind": "bag", "max_length": 4, "pooling": "sum"},
            {"name": "areas", "kind": "bag", "table": "city", "max_length": 2},
            {"name": "seen", "kind": "sequence", "table": "item", "max_length": 5},
            {
                "name": "recent",
                "kind": "sequence",
                "table": "item",
                "max_length": 4,
                "pooling": "none",
            },
            {
                "name": "places",
                "kind": "sequence",
                "table": "city",
                "max_length": 2,
                "pooling": "none",
            },
        ],
        "tables": [
            {"name": "user", "rows": 61},
            {"name": "item", "rows": 37},
            {"name": "tags", "rows": 2},
            {"name": "city", "rows": 9, "task_specific": False},
        ],
        "tasks": [{"name": "a", "label": "a"}, {"name": "b", "label": "b"}],
    }
)
"""Tables of more and of fewer rows than buckets, wide and narrow, shared by features."""
LAYOUT = Layout.of(SCHEMA)
SPECS = table_specs(SCHEMA, InputShape.of(LAYOUT, WIDTH, task_specific=True))


def section(
    replicate_rows: int = 0, num_buckets: int = 8, wire: Literal["fp32", "bf16"] = "fp32"
) -> EmbeddingSection:
    return EmbeddingSection(
        width=WIDTH,
        init_std=0.5,
        num_buckets=num_buckets,
        replicate_rows=replicate_rows,
        wire_precision=wire,
    )


def make_batch(ids_BC: Tensor, bag_weights: Tensor | None = None, layout: Layout = LAYOUT) -> Batch:
    """A batch of ids; all else is empty."""
    rows, tasks = len(ids_BC), len(layout.task_names)
    if bag_weights is None:
        bag_weights = torch.ones(rows, layout.num_bag_weights)
    return Batch(
        step=0,
        ids_BC=ids_BC,
        bag_weights=bag_weights,
        numeric_BN=torch.zeros(rows, len(layout.numeric_names)),
        labels_BT=torch.zeros(rows, tasks),
        mask_BT=torch.ones(rows, tasks, dtype=torch.bool),
        weight_B=torch.ones(rows),
        weight_BT=torch.ones(rows, tasks),
        group_B=torch.full((rows,), -1),
        file_B=np.zeros(rows, dtype=np.int32),
        row_B=np.arange(rows, dtype=np.int64),
    )


def random_batch(step: int, num_rows: int = 24) -> Batch:
    """Skewed ids, a fifth of them PAD; some rows hold nothing else."""
    rng = np.random.default_rng(step)
    rows = {spec.name: spec.rows for spec in SPECS}
    ids = np.full((num_rows, LAYOUT.num_id_columns), PAD)
    for c in LAYOUT.id_columns:
        skewed = rows[c.table] * rng.random((num_rows, c.width)) ** 3
        ids[:, c.start : c.stop] = np.where(rng.random(skewed.shape) < 0.2, PAD, skewed)
    ids[:2] = PAD
    weights = torch.from_numpy(rng.normal(size=(num_rows, LAYOUT.num_bag_weights)))
    return make_batch(torch.from_numpy(ids), weights.float())


def take(batch: Batch, index: Tensor) -> Batch:
    return make_batch(batch.ids_BC[index], batch.bag_weights[index])


def owner_of_rows(step: int, num_rows: int, world_size: int) -> Tensor:
    """Deals rows to ranks unevenly; every third step the last rank gets all of them."""
    if step % 3 == 2:
        return torch.full((num_rows,), world_size - 1)
    return torch.from_numpy(np.random.default_rng(step + 999).integers(0, world_size, num_rows))


def loss_of(tables: Any, rows: Any, batch: Batch, step: int, index: Tensor, total: int) -> Tensor:
    """Sum over rows of some function of every input; task 0 is masked in half of the rows."""
    inputs = assemble(rows, batch, LAYOUT, NUM_VIEWS, tables.width)
    rng = torch.Generator().manual_seed(step)
    parts = [inputs.views_BVFD, *(s.values_BSVD.transpose(1, 2) for s in inputs.sequences.values())]
    loss = torch.zeros(())
    for x_BVKD in parts:
        coefficients = torch.randn(total, *x_BVKD.shape[1:], generator=rng)
        coefficients[::2, 0] = 0
        c = coefficients[index]
        loss = loss + (c * x_BVKD + c.abs() * x_BVKD.square()).sum()
    return loss


def train(
    tables: Any, optimizer: optimizers.RowOptimizer, num_steps: int, clip: float
) -> list[float]:
    """Trains on this rank's rows of random batches; returns the squared norms of all ranks."""
    norms = []
    for step in range(num_steps):
        batch = random_batch(step)
        owners = owner_of_rows(step, len(batch), collectives.world_size())
        index = (owners == collectives.rank()).nonzero().squeeze(1)
        mine = take(batch, index)
        rows = tables.lookup(mine.ids_BC, LAYOUT)
        loss_of(tables, rows, mine, step, index, len(batch)).backward()
        grads = tables.collect(rows)
        optimizer.add_l2(grads)
        norms.append(float(collectives.sum_(optimizer.squared_norm(grads))))
        optimizer.step(grads, scale=min(1.0, clip / norms[-1] ** 0.5), factor=1.0)
    return norms


def trained(
    kind: str,
    rows: dict[str, Any],
    replicate_rows: int,
    num_steps: int,
    wire: Literal["fp32", "bf16"] = "fp32",
) -> dict[str, np.ndarray]:
    """Final state of tables trained with an optimizer section, plus "norms"."""
    make = LocalTables if kind == "local" else ShardedTables
    tables = make(SPECS, section(replicate_rows, wire=wire), seed=3)
    optimizer = optimizers.build(RowOptimizerSection.model_validate({"lr": 0.05} | rows), tables)
    norms = train(tables, optimizer, num_steps, clip=5.0)
    state = {key: tensor.numpy().copy() for key, tensor in tables.state().items()}
    return state | {"norms": np.array(norms)}


def looked_up(
    replicate_rows: int, steps: list[int], wire: Literal["fp32", "bf16"] = "fp32"
) -> list[dict[str, np.ndarray]]:
    """What each rank's model would see of its rows of some batches, and which rows those are."""
    tables = ShardedTables(SPECS, section(replicate_rows, wire=wire), seed=3)
    return [seen(tables, step, collectives.rank(), collectives.world_size()) for step in steps]


def seen(tables: Any, step: int, rank: int, world_size: int) -> dict[str, np.ndarray]:
    batch = random_batch(step)
    index = (owner_of_rows(step, len(batch), world_size) == rank).nonzero().squeeze(1)
    mine = take(batch, index)
    rows = tables.lookup(mine.ids_BC, LAYOUT)
    inputs = assemble(rows, mine, LAYOUT, NUM_VIEWS, tables.width)
    arrays = {"views": inputs.views_BVFD, "recent": inputs.sequences["recent"].values_BSVD}
    arrays["places"] = inputs.sequences["places"].values_BSVD
    return {key: value.detach().numpy() for key, value in arrays.items()}


ONE_ITEM = LogSchema.model_validate(
    {
        "features": [{"name": "item", "kind": "categorical"}],
        "tables": [{"name": "item", "rows": 5}],
        "tasks": [{"name": "a", "label": "a"}],
    }
)


def update_row_3_once(optimizer: str, replicate_rows: int) -> dict[str, np.ndarray]:
    """Both ranks look up row 3 of a table of ones (V 1, D 2); rank r's gradient is (r + 1, 0)."""
    layout = Layout.of(ONE_ITEM)
    specs = table_specs(ONE_ITEM, InputShape.of(layout, 2, task_specific=False))
    tables = ShardedTables(specs, section(replicate_rows, num_buckets=2), seed=0)
    rows_optimizer = optimizers.build(
        RowOptimizerSection.model_validate({"name": optimizer, "lr": 0.5}), tables
    )
    for store in tables.stores:
        store.values.fill_(1)
    batch = make_batch(torch.tensor([[3]]), layout=layout)
    rows = tables.lookup(batch.ids_BC, layout)
    views = assemble(rows, batch, layout, 1, 2).views_BVFD
    ((collectives.rank() + 1.0) * views[..., 0].sum()).backward()
    grads = tables.collect(rows)
    rows_optimizer.step(grads, scale=1.0, factor=1.0)
    return {key: tensor.numpy().copy() for key, tensor in tables.state().items()}


def trained_state_and_reload(replicate_rows: int) -> dict[str, np.ndarray]:
    """Trains, loads the state into fresh tables of another seed, returns the fresh ones' state."""
    section_ = RowOptimizerSection.model_validate({"name": "lazy_adam", "lr": 0.05})
    tables = ShardedTables(SPECS, section(replicate_rows), seed=3)
    train(tables, optimizers.build(section_, tables), 3, clip=5.0)
    fresh = ShardedTables(SPECS, section(replicate_rows), seed=4)
    optimizers.build(section_, fresh)
    fresh.load_state(tables.state())
    return {key: tensor.numpy().copy() for key, tensor in fresh.state().items()}


def fail_on_rank_1() -> None:
    if collectives.rank() == 1:
        raise KeyError("rank 1 has no bread")
    collectives.barrier()


def hang_on_rank_0() -> None:
    if collectives.rank() == 0:
        threading.Event().wait()


def rank_and_sum(number: int) -> tuple[int, int]:
    return collectives.rank(), int(collectives.sum_(torch.tensor(number + collectives.rank())))
