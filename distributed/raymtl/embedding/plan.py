"""Where the rows of tables of one width lie on every rank; pure, made alike by each of them."""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from raymtl.batch import PAD
from raymtl.embedding.placement import (
    bucket_and_k,
    bucket_range,
    bucket_start,
    position,
    rows_in_range,
)
from raymtl.embedding.rows import compiled
from raymtl.embedding.tables import TableSpec


class Place(NamedTuple):
    """A table's rows in a rank's tensor: [start, stop), those of buckets [lo, hi)."""

    start: int
    stop: int
    lo: int
    hi: int


class KeyTerms(NamedTuple):
    """What makes keys of the ids of some columns."""

    rows_C: Tensor
    """Of each column's table."""
    whole_C: Tensor
    """rows // P."""
    rest_C: Tensor
    """rows % P."""
    shift_WC: Tensor
    """From a row's position in its table to its key, by the rank that owns the row."""


class GroupPlan:
    """Numbers the rows of all ranks.

    A rank's tensor holds the rows of its buckets, sharded table by table, then all rows of the
    replicated tables. A rank's keys number the sharded rows of the other ranks as they lie there,
    rank by rank, then its own, then the replicated rows once: sorted keys are sorted by owner, what
    comes from others first, and consecutive in memory. On one rank alone the key of a row is where
    it lies.
    """

    def __init__(
        self,
        specs: Sequence[TableSpec],
        num_buckets: int,
        replicate_rows: int,
        rank: int,
        world_size: int,
        device: torch.device | None = None,
    ):
        self.num_buckets = num_buckets
        self.sharded = tuple(s for s in specs if s.rows > replicate_rows)
        self.replicated = tuple(s for s in specs if s.rows <= replicate_rows)
        self.number = {s.name: i for i, s in enumerate(self.sharded + self.replicated)}
        self._ranges = [bucket_range(r, world_size, num_buckets) for r in range(world_size)]
        self.num_sharded = [
            sum(rows_in_range(s.rows, num_buckets, *r) for s in self.sharded) for r in self._ranges
        ]
        """Sharded rows of each rank; its replicated ones stand behind them."""
        self.owners = [*(r for r in range(world_size) if r != rank), rank]
        """All ranks in the order of their keys."""
        starts = [0, *accumulate(self.num_sharded[r] for r in self.owners)]
        self.first_key = dict(zip(self.owners, starts[:-1], strict=True))
        """Of each rank's sharded rows."""
        self._first_copy = starts[-1]
        self.pad_key = self._first_copy + sum(s.rows for s in self.replicated)
        """Key of PAD, behind all others; on one rank alone also the place of PAD's row of zeros."""
        shifts = [self._shifts(rank) for rank in range(world_size)]
        self._shift_WT = torch.tensor(shifts, dtype=torch.int64, device=device)
        counts = [s.rows for s in self.sharded + self.replicated]
        self._rows_T = torch.tensor(counts, dtype=torch.int64, device=device)
        owners = [torch.full((hi - lo,), r) for r, (lo, hi) in enumerate(self._ranges)]
        self._owner_P = torch.cat(owners).to(device)
        self._bounds = torch.tensor(starts, device=device)

    def num_rows(self, rank: int) -> int:
        """Rows of a rank's tensor."""
        return self.num_sharded[rank] + sum(s.rows for s in self.replicated)

    def places(self, rank: int) -> dict[str, Place]:
        """Where each table lies in a rank's tensor."""
        lo, hi = self._ranges[rank]
        places, start = {}, 0
        for spec in self.sharded:
            stop = start + rows_in_range(spec.rows, self.num_buckets, lo, hi)
            places[spec.name] = Place(start, stop, lo, hi)
            start = stop
        for spec in self.replicated:
            places[spec.name] = Place(start, start + spec.rows, 0, self.num_buckets)
            start += spec.rows
        return places

    def terms(self, table_C: Tensor) -> KeyTerms:
        """Of columns by `number` of their tables."""
        rows_C = self._rows_T[table_C]
        parts = rows_C // self.num_buckets, rows_C % self.num_buckets
        return KeyTerms(rows_C, *parts, self._shift_WT[:, table_C])

    def keys(self, ids_BC: Tensor, terms: KeyTerms) -> Tensor:
        """The keys of ids, `pad_key` for PAD.

        Args:
            ids_BC: integer rows within the columns' tables, in range.
            terms: of these columns.
        """
        if kernels := compiled(ids_BC):
            owners = self.num_buckets, self._owner_P, self.pad_key
            return kernels.keys(ids_BC, terms[1:], owners)
        shift = terms.shift_WC[0]
        if len(self._ranges) > 1:
            owner_BC = self._owner_P[bucket_and_k(ids_BC, self.num_buckets)[0]]
            shift = terms.shift_WC.gather(0, owner_BC)
        keys_BC = position(terms.rows_C, self.num_buckets, ids_BC) + shift
        return keys_BC.masked_fill_(ids_BC == PAD, self.pad_key)

    def cuts(self, keys_U: Tensor) -> list[int]:
        """Splits ascending keys (W + 1 cuts) by `owners`; behind the last are replicated ones."""
        return torch.searchsorted(keys_U, self._bounds).tolist()

    def local_index(self, keys_n: Tensor, owner: int) -> Tensor:
        """Indices in rank `owner`'s tensor of keys of its own sharded rows."""
        return keys_n - self.first_key[owner]

    def replicated_index(self, keys_n: Tensor, rank: int) -> Tensor:
        """Indices in a rank's tensor of keys of replicated rows."""
        return keys_n - (self._first_copy - self.num_sharded[rank])

    def _shifts(self, rank: int) -> list[int]:
        """What turns a row's position in its table into its key, per table."""
        places = self.places(rank)
        own = [
            self.first_key[rank]
            + places[s.name].start
            - bucket_start(s.rows, self.num_buckets, places[s.name].lo)
            for s in self.sharded
        ]
        behind = self._first_copy - self.num_sharded[rank]
        return own + [behind + places[s.name].start for s in self.replicated]
