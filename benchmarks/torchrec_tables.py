"""TorchRec's lookup and fused row-wise Adagrad on CPU: what `tables.py` stands beside.

One process uses fbgemm's operator itself, without TorchRec around it; several use row-wise sharding
by a plan made by hand, which is what TorchRec can do with row-wise Adagrad on CPU.
"""

# pyright: reportMissingImports=false
from collections.abc import Callable

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor

from raymtl import collectives

EPS = 1e-8
Call = Callable[[], object]


def torchrec_call(
    rows: int, num_tables: int, width: int, lr: float, batches: list[Tensor], gradient: Tensor
) -> Call:
    """A call that looks up the next batch and updates the tables.

    Args:
        batches: int64 (B, F) ids; feature f is looked up in the F-th, 2 F-th, ... table as well.
        gradient: (B, num_tables * width).
    """
    repeated = num_tables // batches[0].shape[1]
    ids = [ids_BF.repeat(1, repeated).t().flatten() for ids_BF in batches]
    lengths = torch.ones_like(ids[0])
    if collectives.world_size() > 1:
        return _sharded(rows, num_tables, width, lr, (ids, lengths), gradient)
    offsets = torch.arange(len(ids[0]) + 1)
    tables = SplitTableBatchedEmbeddingBagsCodegen(
        [(rows, width, EmbeddingLocation.HOST, ComputeDevice.CPU)] * num_tables,
        optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        learning_rate=lr,
        eps=EPS,
        device=torch.device("cpu"),
    )
    turn = iter(range(10**9))

    def call() -> None:
        tables(ids[next(turn) % len(ids)], offsets).backward(gradient)

    return call


def _sharded(
    rows: int,
    num_tables: int,
    width: int,
    lr: float,
    inputs: tuple[list[Tensor], Tensor],
    gradient: Tensor,
) -> Call:
    """Collective. The same on ranks."""
    from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
    from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
    from torchrec.distributed.model_parallel import DistributedModelParallel
    from torchrec.distributed.sharding_plan import construct_module_sharding_plan, row_wise
    from torchrec.distributed.types import ModuleSharder, ShardingPlan
    from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
    from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

    names = [f"t{n}" for n in range(num_tables)]
    module = EmbeddingBagCollection(
        device=torch.device("meta"),
        tables=[
            EmbeddingBagConfig(name=n, embedding_dim=width, num_embeddings=rows, feature_names=[n])
            for n in names
        ],
    )
    apply_optimizer_in_backward(RowWiseAdagrad, module.parameters(), {"lr": lr, "eps": EPS})
    sharder = EmbeddingBagCollectionSharder()
    made = construct_module_sharding_plan(
        module,
        {n: row_wise(compute_kernel="fused") for n in names},
        sharder=sharder,
        local_size=collectives.world_size(),
        world_size=collectives.world_size(),
        device_type="cpu",
    )
    sharders: list[ModuleSharder] = [sharder]
    tables = DistributedModelParallel(
        module, device=torch.device("cpu"), plan=ShardingPlan({"": made}), sharders=sharders
    )
    ids, lengths = inputs
    turn = iter(range(10**9))

    def call() -> None:
        found = KeyedJaggedTensor(names, ids[next(turn) % len(ids)], lengths=lengths.int())
        tables(found).wait().values().backward(gradient)

    return call
