"""Tables whose rows are split over ranks, with the interface of `LocalTables`.

Tables of one row width form a group, so there are at most two: rows of V views and rows of one. A
lookup brings each distinct row of a batch that another rank has here once, by one exchange of ids
(`ask`, which reads no row and may run beside the step before) and one of rows (`fetch`) a group;
`collect` takes gradients back the way the rows came. Rows that lie here do not travel. Gradients of
replicated ones go to every rank; all sum them in rank order and so keep bit-identical copies.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from raymtl import collectives
from raymtl.batch import Layout
from raymtl.collectives import Group
from raymtl.config import EmbeddingSection
from raymtl.embedding.initial import fill_initial
from raymtl.embedding.placement import bucket_range, bucket_start
from raymtl.embedding.plan import GroupPlan, KeyTerms
from raymtl.embedding.pooling import row_gradients, row_gradients_and_squares, sum_runs
from raymtl.embedding.rows import (
    GroupRows,
    RowGradients,
    RowPart,
    Rows,
    RowStore,
    Runs,
    find_runs,
    gather_rows,
)
from raymtl.embedding.tables import (
    Columns,
    StateSource,
    TableSpec,
    check_ids,
    columns_of,
    load_rows,
)


@dataclass
class _Route:
    """How a group's distinct rows travel between ranks; this rank's own and replicated ones stay.

    Lists are per rank, with 0 for this one.
    """

    owned: list[int]
    """How many of my sharded rows it owns; they come first, in rank order."""
    sent: list[int]
    """Indices I sent: of its sharded rows, then of all my replicated ones."""
    wanted: list[int]
    """How many of my rows it asks for."""
    received: list[int]
    """Indices I got: rows of mine that it asks for, then those that will get its gradients."""
    wanted_n: Tensor
    """The rows that others ask for, in rank order."""
    num_copies: int
    """Of my replicated rows."""
    kept_n: Tensor
    """Where the rows that stay lie here: my sharded ones, then the replicated ones, PAD's last."""
    runs: Runs
    """Of the indices I got and of those that stay, in rank order; as places among gradients: first
    come those that others send, then mine, of all my rows."""


@dataclass
class Asked:
    """A batch's distinct rows and who sends them; none has been read. Each list is by group."""

    columns: list[list[int]]
    """The layout's."""
    places: list[Tensor]
    """As in `GroupRows`."""
    runs: list[Runs]
    routes: list[_Route | None]
    """Null on one rank alone, where nothing travels."""


class ShardedTables:
    """This rank's rows of all tables. Without a process group it holds them all."""

    def __init__(
        self,
        specs: Sequence[TableSpec],
        config: EmbeddingSection,
        seed: int,
        device: torch.device | None = None,
    ):
        self.specs = tuple(specs)
        self.width = specs[0].width if specs else 0
        self.num_buckets = config.num_buckets
        self.rank, self.world_size = collectives.rank(), collectives.world_size()
        self.bucket_range = bucket_range(self.rank, self.world_size, self.num_buckets)
        self._device = device
        self._wire = torch.bfloat16 if config.wire_precision == "bf16" else torch.float32
        groups = [[s for s in specs if s.views == v] for v in sorted({s.views for s in specs})]
        self._plans = tuple(
            GroupPlan(
                g, self.num_buckets, config.replicate_rows, self.rank, self.world_size, device
            )
            for g in groups
        )
        self.stores = tuple(
            RowStore.of(
                p.num_rows(self.rank),
                g[0].views,
                g[0].width,
                {name: place.start for name, place in p.places(self.rank).items()},
                device,
            )
            for p, g in zip(self._plans, groups, strict=True)
        )
        self.replicated_tables = tuple(s.name for p in self._plans for s in p.replicated)
        self._columns: dict[Layout, list[tuple[list[int], KeyTerms]]] = {}
        self._initialise(seed, config.init_std)

    def lookup(self, ids_BC: Tensor, layout: Layout) -> Rows:
        """Collective. Fetches every distinct row of a batch from the ranks that own them.

        Args:
            ids_BC: rows within each column's table, PAD where empty; B may be 0.
            layout: which columns belong to which table; the same on all ranks.

        Raises:
            IdOutOfRange: naming the feature, on this rank alone and before any exchange; call
                `check_ids` and agree on its outcome first.
        """
        check_ids(ids_BC, layout, self.specs)
        return self.fetch(self.ask(ids_BC, layout))

    def ask(self, ids_BC: Tensor, layout: Layout, group: Group | None = None) -> Asked:
        """Collective. The half of a lookup that reads no row; of checked ids.

        Args:
            group: the process group to ask over; null for the first one.
        """
        asked = Asked([], [], [], [])
        for plan, (columns, terms) in zip(self._plans, self._columns_of(layout), strict=True):
            ids = ids_BC if len(columns) == layout.num_id_columns else ids_BC[:, columns]
            keys_BC = plan.keys(ids, terms)
            runs = find_runs(keys_BC.flatten()).below(plan.pad_key)
            alone = self.world_size == 1
            asked.columns.append(columns)
            asked.places.append(keys_BC if alone else runs.numbers(ids.numel()).view(ids.shape))
            asked.runs.append(runs)
            asked.routes.append(None if alone else self._ask(plan, runs.unique_U, group))
        return asked

    def fetch(self, asked: Asked) -> Rows:
        """Collective. The other half: the rows as they are now, after all steps before."""
        groups = []
        for store, place_BC, columns, runs, route in zip(
            self.stores, asked.places, asked.columns, asked.runs, asked.routes, strict=True
        ):
            values = self._fetch(store, route)
            groups.append(GroupRows(values, store.views, place_BC, columns, runs, route))
        of_table = {name: g for g, plan in enumerate(self._plans) for name in plan.number}
        return Rows(tuple(groups), of_table)

    def collect(self, rows: Rows) -> RowGradients:
        """Collective. After backward: brings row gradients to their owners, summed in rank order.

        Returns:
            A part of each group's sharded rows, and one of its replicated ones where it has any.
            A row that was looked up appears even where its gradient is zero.
        """
        parts = []
        for plan, store, group in zip(self._plans, self.stores, rows.groups, strict=True):
            index, grads, squares = self._bring(group)
            middle, stop = plan.num_sharded[self.rank], plan.num_rows(self.rank)
            cut = int(torch.searchsorted(index, middle))
            parts.append(RowPart(store, 0, middle, index[:cut], grads[:cut], True, squares[:cut]))
            if plan.replicated:
                copies = index[cut:], grads[cut:], self.rank == 0, squares[cut:]
                parts.append(RowPart(store, middle, stop, *copies))
        return parts

    def distinct(self, rows: Rows) -> list[tuple[int, int, int]]:
        """Of each width of rows: floats of a row, this batch's split and its replicated rows."""
        found = []
        for plan, store, group in zip(self._plans, self.stores, rows.groups, strict=True):
            cut = plan.cuts(group.runs.unique_U)[-1]
            found.append((store.values.shape[1], cut, group.num_rows - cut))
        return found

    def state(self) -> dict[str, Tensor]:
        """This rank's rows, `<table>/values` and `<table>/<state>`, in (bucket, k) order.

        They are views, not copies: rows of `bucket_range`, all rows for `replicated_tables`.
        """
        return {
            f"{name}/{kind}": tensor[place.start : place.stop]
            for plan, store in zip(self._plans, self.stores, strict=True)
            for name, place in plan.places(self.rank).items()
            for kind, tensor in store.tensors.items()
        }

    def load_state(
        self,
        source: StateSource,
        saved_rows: Mapping[str, int] | None = None,
        columns: Columns | None = None,
    ) -> None:
        """Overwrites this rank's rows; arguments as in `load_rows`."""
        state = self.state()
        for plan in self._plans:
            places = plan.places(self.rank)
            for spec in plan.sharded + plan.replicated:
                buckets = (places[spec.name].lo, places[spec.name].hi, self.num_buckets)
                load_rows(state, spec, buckets, source, saved_rows, columns)

    def _initialise(self, seed: int, std: float) -> None:
        for plan, store in zip(self._plans, self.stores, strict=True):
            places = plan.places(self.rank)
            for spec in plan.sharded + plan.replicated:
                place = places[spec.name]
                first = bucket_start(spec.rows, self.num_buckets, place.lo)
                out = store.values[place.start : place.stop]
                fill_initial(out, spec, first, self.num_buckets, seed, std)

    def _columns_of(self, layout: Layout) -> list[tuple[list[int], KeyTerms]]:
        """Per group: its columns, and what makes keys of their ids."""
        found = self._columns.get(layout)
        if found is None:
            tables, found = [c.table for c in layout.id_columns for _ in range(c.width)], []
            for plan in self._plans:
                columns = columns_of(layout, set(plan.number))
                numbers = [plan.number[tables[i]] for i in columns]
                table_C = torch.tensor(numbers, dtype=torch.int64, device=self._device)
                found.append((columns, plan.terms(table_C)))
            self._columns[layout] = found
        return found

    def _ask(self, plan: GroupPlan, keys_U: Tensor, group: Group | None) -> _Route:
        """Collective. Sends other ranks the indices of their rows, and of the replicated ones."""
        cuts = plan.cuts(keys_U)
        replicated = keys_U[cuts[-1] :]
        pieces, owned, sent = [], [0] * self.world_size, [0] * self.world_size
        for owner, start, stop in zip(plan.owners[:-1], cuts, cuts[1:], strict=False):
            pieces.append(plan.local_index(keys_U[start:stop], owner))
            pieces.append(plan.replicated_index(replicated, owner))
            owned[owner], sent[owner] = stop - start, stop - start + len(replicated)
        wanted, received = collectives.exchange_sizes(owned, sent, device=self._device, group=group)
        asked_n = collectives.exchange(torch.cat(pieces), sent, received, group)
        own_n = plan.local_index(keys_U[cuts[-2] : cuts[-1]], self.rank)
        stay_n = torch.cat([own_n, plan.replicated_index(replicated, self.rank)])
        parts = asked_n.split(received)
        wanted_n = torch.cat([part[:num] for part, num in zip(parts, wanted, strict=True)])
        runs = self._runs_of(parts, stay_n, len(keys_U))
        kept_n = F.pad(stay_n, (0, 1), value=plan.num_rows(self.rank))
        return _Route(owned, sent, wanted, received, wanted_n, len(replicated), kept_n, runs)

    def _runs_of(self, parts: Sequence[Tensor], stay_n: Tensor, num_rows: int) -> Runs:
        """`_Route.runs`.

        Args:
            parts: what each rank asked for.
            num_rows: my distinct rows, of which the last stay.
        """
        before, got = (sum(map(len, some)) for some in (parts[: self.rank], parts))
        runs = find_runs(torch.cat([*parts[: self.rank], stay_n, *parts[self.rank :]]))
        all_n = torch.arange(got + num_rows, dtype=runs.order_n.dtype, device=stay_n.device)
        stay = all_n[got + num_rows - len(stay_n) :]
        place_n = torch.cat([all_n[:before], stay, all_n[before:got]])
        return Runs(runs.unique_U, place_n.index_select(0, runs.order_n), runs.starts_U)

    def _fetch(self, store: RowStore, route: _Route | None) -> Tensor:
        """Collective. Answers what was asked of this rank; others' rows, its own, and PAD's."""
        if route is None:
            return store.padded
        width, num_came = store.padded.shape[1], sum(route.owned)
        reply = store.padded.new_empty(len(route.wanted_n), width, dtype=self._wire)
        gather_rows(store.values, route.wanted_n, reply)
        rows = store.padded.new_empty(num_came + len(route.kept_n), width)
        came, kept = rows[:num_came], rows[num_came:]
        begun = collectives.begin_exchange(reply, route.wanted, route.owned, into=came)
        gather_rows(store.padded, route.kept_n, kept)
        begun.wait()
        return rows

    def _bring(self, group: GroupRows) -> tuple[Tensor, Tensor, Tensor]:
        """Collective. The distinct local rows, ascending, and their gradients summed over ranks.

        Squares of the sums are the third.
        """
        route = group.route
        if route is None:
            return group.runs.unique_U, *row_gradients_and_squares(group)
        num_came, num_got = sum(route.owned), sum(route.received)
        grads = group.values.new_empty(num_got + group.num_rows, group.values.shape[1])
        got, mine = grads[:num_got], grads[num_got:]
        row_gradients(group, mine)
        send = mine[:num_came]
        if route.num_copies:
            copies = mine[-route.num_copies :]
            # As the others get them, so that all sum the same.
            copies.copy_(copies.to(self._wire))
            parts = [part for r, part in enumerate(send.split(route.owned)) if r != self.rank]
            send = torch.cat([piece for part in parts for piece in (part, copies)])
        send = send.to(self._wire)
        collectives.begin_exchange(send, route.sent, route.received, into=got).wait()
        return route.runs.unique_U, *sum_runs(grads, route.runs, group.views)
