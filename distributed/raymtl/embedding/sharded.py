"""Tables whose rows are split over ranks: the interface of `LocalTables`, with all ranks' rows.

Tables of one row width form a group, at most two (V views and one view). A group is one 2-D tensor
of this rank's rows: its buckets' rows of the sharded tables in their order, then all rows of the
replicated tables. A lookup brings each distinct row of a batch here once, in one exchange of ids
and one of rows a group; `collect` takes gradients back the same way. Replicated rows are read here,
and their gradients go to every rank, which all sum them in rank order and so keep equal copies.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from raymtl import collectives
from raymtl.batch import PAD, Layout
from raymtl.config import EmbeddingSection
from raymtl.embedding.initial import fill_initial
from raymtl.embedding.placement import bucket_range, bucket_start, position, rows_in_range
from raymtl.embedding.rows import (
    GroupRows,
    RowGradients,
    RowPart,
    Rows,
    RowStore,
    find_runs,
    gather_rows,
    sum_bags,
)
from raymtl.embedding.tables import (
    StateSource,
    TableSpec,
    check_ids,
    columns_of,
    leaf_gradient,
    load_rows,
)

_NO_KEY = torch.iinfo(torch.int64).max


@dataclass
class _Route:
    """How a group's rows travelled."""

    owned: list[int]
    """Per rank, how many of my distinct sharded rows it owns; they stand first, in rank order."""
    sent: list[int]
    """Per rank, ids I sent: its sharded rows, then all my replicated ones."""
    received: list[int]
    asked_n: Tensor
    """My rows that ranks asked for or will send gradients of, in rank order."""


class _Group:
    """The tables of one row width: where their rows lie on every rank, and this rank's rows.

    A key numbers every row alike on all ranks: rank 0's sharded rows as they lie there, rank 1's,
    and so on, then the replicated rows. Sorted keys are therefore sorted by owner.
    """

    def __init__(self, specs: Sequence[TableSpec], config: EmbeddingSection, device):
        self.num_buckets, self.device = config.num_buckets, device
        self.rank, world_size = collectives.rank(), collectives.world_size()
        self.replicated = [s for s in specs if s.rows <= config.replicate_rows]
        self.specs = [s for s in specs if s not in self.replicated] + self.replicated
        ranges = [bucket_range(r, world_size, self.num_buckets) for r in range(world_size)]
        self.num_sharded = [sum(self._count(s, *b) for s in self._sharded) for b in ranges]
        self.first_key = [0, *accumulate(self.num_sharded)]
        shifts = [self._shifts(*b, first) for b, first in zip(ranges, self.first_key, strict=False)]
        self.shift_WT = torch.tensor(shifts, dtype=torch.int64, device=device)
        self.rows_T = torch.tensor([s.rows for s in self.specs], device=device)
        owners = [torch.full((hi - lo,), r) for r, (lo, hi) in enumerate(ranges)]
        self.owner_P = torch.cat(owners).to(device)
        self.bounds_W1 = torch.tensor(self.first_key, device=device)
        self.first_key_W = self.bounds_W1[:-1]

    @property
    def _sharded(self) -> list[TableSpec]:
        return self.specs[: len(self.specs) - len(self.replicated)]
