"""STEM-Net: tables per task, and gates that see other tasks' experts without training them.

`from_official` loads the weights of the authors' code and gives them back by their names there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from raymtl.batch import PAD, Inputs, InputShape, Layout
from raymtl.config import Section
from raymtl.errors import IdOutOfRange
from raymtl.models import stem_export, stem_official
from raymtl.models.blocks import Activation, BankOfMLPs, Dropout, FieldStack, HiddenUnits
from raymtl.schema import CategoricalFeature, Feature, LogSchema, NumericFeature, Table, Task


class StemConfig(Section):
    name: Literal["stem"] = "stem"
    num_layers: PositiveInt = 1
    """Layers of experts and gates; the authors ship 1."""
    num_specific_experts: PositiveInt = 1
    """K1, experts of each task; the authors ship 1 and search 1, 2, 4."""
    num_shared_experts: PositiveInt = 8
    """K2, experts of all tasks; the authors ship 8 and search 1, 2, 4, 8."""
    expert_hidden_units: Annotated[HiddenUnits, Field(min_length=1)] = (512, 512, 512)
    """Widths of every expert; the last one is the width of a layer's output."""
    gate_hidden_units: HiddenUnits = (128, 64)
    """Widths of every gate's MLP before its linear output; empty gives a linear gate."""
    tower_hidden_units: HiddenUnits = (128, 64)
    """Widths of each task's tower before its linear output."""
    activation: Activation = "relu"
    """Applied after every hidden layer of experts, gates and towers."""
    dropout: Dropout = 0.0
    """Dropout after every hidden layer, gates' too, while training; the authors ship 0."""
    gate_input: Literal["task+shared", "task"] = "task+shared"
    """What a task's gate reads: the sum of the task's and the shared vector, as in the official
    code, or the task's alone, as in the paper's figure."""
    isolation: Literal["official", "strict"] = "official"
    """`official` lets a task's loss reach other tasks' experts and tables through the shared
    stream of two or more layers, as the official code does; `strict` lets it nowhere, at the price
    of running the shared experts of later layers once per task. Equal for one layer, and equal in
    their outputs always (without dropout)."""
    gate_temperature: PositiveFloat = 1.0
    """Gate logits are divided by it before the softmax; above 1 mixes more evenly. Ours."""
    gate_dropout: Dropout = 0.0
    """Chance, while training, that an expert is left out of a row's mix, the others' weights
    growing to sum to 1 again. Ours."""


class Stem(nn.Module):
    """STEM-Net, after the official code (LiangcaiSu/STEM).

    Su et al., "STEM: Unleashing the Power of Embeddings for Multi-task Recommendation" (AAAI
    2024). The formulas as coded there:

        e_tk = MLP_tk(x_t), s_k = MLP_Sk(x_S)
        U_t  = [sg(e_1*), .., e_t* live, .., sg(e_T*), s_* live]      sg stops the gradient
        o_t  = sum_k softmax(MLP_gate_t(x_t + x_S))_k U_t[k]
        o_S  = sum_k softmax(MLP_gate_S(x_S))_k [e_**, s_*]_k         between layers
        y_t  = MLP_tower_t(o_t of the last layer)

    with x_1 .. x_T and x_S the views of the fields at first and o of the layer before later on.
    A gate is trained through the stopped experts too: they steer it, it does not move them.

    Ours: the experts, gates and mixes as batched products; no shared gate in the last layer, where
    the official code computes one that nothing reads; `strict` isolation, which carries the shared
    stream in T copies, copy t with every other task's experts stopped; gate temperature and gate
    dropout; numeric columns after the ids and sequences as their mean (`FieldStack`).
    """

    task_specific = True
    shared_view = True
    Config = StemConfig

    def __init__(self, config: StemConfig, shape: InputShape):
        super().__init__()
        assert shape.num_views == shape.num_tasks + 1, "STEM has one view per task and a shared one"
        self.num_tasks = shape.num_tasks
        self.num_shared_experts = config.num_shared_experts
        self.fields = FieldStack(shape)
        width = config.expert_hidden_units[-1]
        widths = [self.fields.out_features] + [width] * (config.num_layers - 1)
        self.layers = nn.ModuleList(
            StemLayer(config, shape.num_tasks, w, last=n == config.num_layers - 1)
            for n, w in enumerate(widths)
        )
        self.towers = BankOfMLPs(
            shape.num_tasks,
            width,
            config.tower_hidden_units,
            out_features=1,
            activation=config.activation,
            dropout=config.dropout,
        )

    def forward(self, inputs: Inputs) -> Tensor:
        """Returns logits_BT."""
        x_TBI, _ = self._run(inputs)
        return self.towers(x_TBI).squeeze(-1).t()

    @torch.no_grad()
    def gate_mass(self, inputs: Inputs, weight_B: Tensor | None = None) -> Tensor:
        """How much each task takes from each source, mean over rows.

        Args:
            weight_B: row weights, 0 for padding; null weighs all rows 1.

        Returns:
            (num_layers, T, T + 1): for each layer and task, the gate weight of each task's experts
            together and, last, of the shared experts; rows sum to 1 (to 0 without rows).
        """
        _, gates_TBK = self._run(inputs)
        weight = (
            inputs.views_BVFD.new_ones(len(inputs.views_BVFD)) if weight_B is None else weight_B
        )
        share_B = weight / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny)
        mass_LTK = torch.stack([torch.einsum("tbk,b->tk", g, share_B) for g in gates_TBK])
        num_specific = mass_LTK.shape[-1] - self.num_shared_experts
        specific = mass_LTK[..., :num_specific].unflatten(-1, (self.num_tasks, -1)).sum(-1)
        return torch.cat([specific, mass_LTK[..., num_specific:].sum(-1, keepdim=True)], dim=-1)

    def _run(self, inputs: Inputs) -> tuple[Tensor, list[Tensor]]:
        """The tasks' last outputs (T, B, H) and every layer's task gates (T, B, K)."""
        x_VBI = self.fields(inputs)
        x_TBI, shared_PBI = x_VBI[:-1], x_VBI[-1:]
        gates = []
        for layer in self.layers:
            x_TBI, shared_PBI, gate_TBK = layer(x_TBI, shared_PBI)
            gates.append(gate_TBK)
        return x_TBI, gates


class StemLayer(nn.Module):
    """One layer of experts, gates and mixes.

    C copies of the shared stream leave a layer: 1, or T with strict isolation; P copies enter it: 1
    in the first layer, C later. Each copy serves Q queries (gates): copy 0 all T tasks and the
    shared gate, or copy t task t and the shared gate; the last layer has no shared gate.
    """

    live_CQE: Tensor

    def __init__(self, config: StemConfig, num_tasks: int, in_features: int, last: bool):
        super().__init__()
        style = {"activation": config.activation, "dropout": config.dropout}
        num_own, num_shared = config.num_specific_experts, config.num_shared_experts
        num_specific = num_tasks * num_own
        experts, gates = config.expert_hidden_units, config.gate_hidden_units
        num = num_specific + num_shared
        self.specific_experts = BankOfMLPs(num_specific, in_features, experts, **style)
        """Task by task, K1 of each."""
        self.shared_experts = BankOfMLPs(num_shared, in_features, experts, **style)
        self.gates = BankOfMLPs(num_tasks, in_features, gates, num, **style)
        self.shared_gate = None if last else BankOfMLPs(1, in_features, gates, num, **style)
        self.gate_reads_shared = config.gate_input == "task+shared"
        self.temperature, self.gate_dropout = config.gate_temperature, config.gate_dropout
        self.num_copies = num_tasks if config.isolation == "strict" else 1
        live = _live(num_tasks, num_own, self.num_copies, shared_gate=not last)
        self.register_buffer("live_CQE", live, persistent=False)

    def forward(self, x_TBI: Tensor, shared_PBI: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Runs the layer.

        Returns:
            The tasks' outputs (T, B, H), the shared streams (C, B, H; none after the last layer)
            and the tasks' gates (T, B, K).
        """
        specific_EBH = self.specific_experts(x_TBI)
        shared_PKBH = _on_copies(self.shared_experts, shared_PBI)
        gate_CQBK = self._gates(x_TBI, shared_PBI)
        out_CQBH = self._mix(gate_CQBK, specific_EBH, shared_PKBH)
        num_own = len(x_TBI) // self.num_copies
        tasks_TBH = out_CQBH[:, :num_own].flatten(0, 1)
        copies_CBH = out_CQBH[:, num_own:].flatten(0, 1)
        return tasks_TBH, copies_CBH, gate_CQBK[:, :num_own].flatten(0, 1)

    def _gates(self, x_TBI: Tensor, shared_PBI: Tensor) -> Tensor:
        read_TBI = x_TBI + shared_PBI if self.gate_reads_shared else x_TBI
        logits_CQBK = self.gates(read_TBI).unflatten(0, (self.num_copies, -1))
        if self.shared_gate is not None:
            shared_PQBK = _on_copies(self.shared_gate, shared_PBI)
            shared_CQBK = shared_PQBK.expand(self.num_copies, -1, -1, -1)
            logits_CQBK = torch.cat([logits_CQBK, shared_CQBK], dim=1)
        if self.training and self.gate_dropout > 0:
            logits_CQBK = _drop_experts(logits_CQBK, self.gate_dropout)
        return torch.softmax(logits_CQBK / self.temperature, dim=-1)

    def _mix(self, gate_CQBK: Tensor, specific_EBH: Tensor, shared_PKBH: Tensor) -> Tensor:
        """Gated sums with the experts a query may not train detached; (C, Q, B, H)."""
        num_specific, live = len(specific_EBH), self.live_CQE.unsqueeze(2)
        gate_CQBE, gate_shared = gate_CQBK.split([num_specific, shared_PKBH.shape[1]], dim=-1)
        own = torch.einsum("cqbe,ebh->cqbh", gate_CQBE * live, specific_EBH)
        foreign = torch.einsum("cqbe,ebh->cqbh", gate_CQBE * (1 - live), specific_EBH.detach())
        # One copy may serve the queries of all: before the first layer the streams are the same.
        num_streams = len(shared_PKBH)
        gate_PQBK = gate_shared.flatten(0, 1).unflatten(0, (num_streams, -1))
        shared = torch.einsum("pqbk,pkbh->pqbh", gate_PQBK, shared_PKBH)
        return own + foreign + shared.reshape(own.shape)


def _live(num_tasks: int, num_own: int, num_copies: int, shared_gate: bool) -> Tensor:
    """live_CQE, 1 where a query may train a specific expert, else 0."""
    own_TE = torch.eye(num_tasks).repeat_interleave(num_own, dim=1)
    own_CQE = own_TE.unflatten(0, (num_copies, -1))
    if not shared_gate:
        return own_CQE
    # The shared gate of a copy trains whatever the tasks served by that copy may train.
    return torch.cat([own_CQE, own_CQE.sum(dim=1, keepdim=True)], dim=1)


def _on_copies(bank: BankOfMLPs, inputs_PBI: Tensor) -> Tensor:
    """Every MLP of the bank on every copy of the stream, as one product; (P, E, B, out)."""
    rows = bank(inputs_PBI.flatten(0, 1).unsqueeze(0))
    return rows.unflatten(1, inputs_PBI.shape[:2]).transpose(0, 1)


def _drop_experts(logits: Tensor, chance: float) -> Tensor:
    """Takes experts out of each row's softmax; a row that would lose all keeps all."""
    dropped = torch.rand_like(logits) < chance
    dropped &= ~dropped.all(dim=-1, keepdim=True)
    return logits.masked_fill(dropped, -torch.inf)


@dataclass(frozen=True)
class OfficialStem:
    """A model of the authors' code: the dense part as `Stem`, the tables apart."""

    model: Stem
    config: StemConfig
    schema: LogSchema
    """Features in the official order with `encoding: index`; tasks task_0, task_1, ..."""
    tables: dict[str, Tensor]
    """Categorical feature -> (V_f - 1, (T + 1) * d), leaves that require gradients. Official row r
    is row r - 1 here, so its out-of-vocabulary row is the last one, not row 0."""
    ignored: tuple[str, ...]
    """Parts that were left out: the last layer's shared gate, which no output reads."""
    places: dict[str, stem_export.Place]
    """Key of the state dict -> where its tensor lies here; none of `ignored`."""

    def logits(self, official_ids_BF: Tensor, numeric_BN: Tensor | None = None) -> Tensor:
        """Returns logits_BT, differentiable in `tables` and in the model's parameters.

        Args:
            official_ids_BF: as the official code counts them (0 is padding), one column per
                categorical feature, in the order of `tables`.
            numeric_BN: one column per numeric feature, in the order of `schema`.

        Raises:
            IdOutOfRange: naming the feature.
        """
        num_views, batch_size = self.model.num_tasks + 1, len(official_ids_BF)
        fields = [
            _rows(feature, table, official_ids_BF[:, f] - 1).unflatten(1, (num_views, -1))
            for f, (feature, table) in enumerate(self.tables.items())
        ]
        some = next(self.model.parameters())
        views_BVFD = (
            torch.stack(fields, dim=2)
            if fields
            else some.new_empty(batch_size, num_views, 0, self.model.fields.width)
        )
        if numeric_BN is None:
            numeric_BN = some.new_empty(batch_size, 0)
        return self.model(Inputs(views_BVFD, numeric_BN, {}))

    def store_values(self, num_buckets: int) -> dict[str, Tensor]:
        """The tables as a store's state holds them: `feature/values`, rows bucket by bucket.

        Row r lies in bucket r mod num_buckets; within a bucket rows ascend. To load them:
        `store.load_state({**store.state(), **official.store_values(store.num_buckets)})`.
        """
        values = {}
        for feature, table in self.tables.items():
            bucket = torch.arange(len(table)) % num_buckets
            values[f"{feature}/values"] = table.detach()[bucket.argsort(stable=True)]
        return values

    def named_weights(self) -> dict[str, Tensor]:
        """Copies of all weights by the keys of the state dict, in its order, shapes and layouts.

        Padding rows are zeros; keys of `ignored` parts are absent.
        """
        return stem_export.named(self.places, {k: p.detach() for k, p in self._leaves().items()})

    def named_gradients(self) -> dict[str, Tensor]:
        """Copies of all gradients as `named_weights`; zeros where there is none."""
        gradients = {
            name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            for name, leaf in self._leaves().items()
        }
        return stem_export.named(self.places, gradients)

    def _leaves(self) -> dict[str, Tensor]:
        tables = {f"tables.{feature}": table for feature, table in self.tables.items()}
        return {**dict(self.model.named_parameters()), **tables}


def from_official(
    state_dict: Mapping[str, Tensor],
    num_tasks: int | None = None,
    features: Sequence[str] | None = None,
) -> OfficialStem:
    """Loads weights named as in the official code; all sizes follow from names and shapes.

    What weights do not tell is taken as the authors ship it: ReLU, no dropout, gate input
    `task+shared`, `official` isolation. The last layer's shared gate is left out (`ignored`). Our
    numeric columns stand after the ids, so inputs of the first layer are put in that order.

    Args:
        num_tasks: T, to check; null infers it.
        features: their order in the official feature map, where the state dict has lost it
            (safetensors sorts its keys); null means the order of the embeddings in it.

    Raises:
        InputError: a weight is missing, unknown or of a shape that does not fit; so are those of
            batch normalisation.
    """
    weights = stem_official.read(state_dict, features)
    if num_tasks not in (None, weights.num_tasks):
        raise stem_official.refusal(f"weights of {weights.num_tasks} tasks", f"{num_tasks}")
    config = StemConfig(
        num_layers=weights.num_layers,
        num_specific_experts=weights.num_specific_experts,
        num_shared_experts=weights.num_shared_experts,
        expert_hidden_units=weights.hidden_units("layers.0.specific_experts", linear_output=False),
        gate_hidden_units=weights.hidden_units("layers.0.gates", linear_output=True),
        tower_hidden_units=weights.hidden_units("towers", linear_output=True),
    )
    schema = _official_schema(weights)
    model = Stem(config, InputShape.of(Layout.of(schema), weights.width, task_specific=True))
    embeddings = weights.embeddings.items()
    numeric = [w.view(-1, weights.width) for _, w in embeddings if stem_official.is_numeric(w)]
    dense = dict(weights.dense)
    if numeric:
        dense["fields.numeric_weight_NVD"] = torch.stack(numeric)
    try:
        model.to(dense["towers.biases.0"].dtype).load_state_dict(dense)
    except RuntimeError as error:
        raise stem_official.refusal(str(error), "layers of one shape that fit together") from None
    tables = {
        feature: weight[1:].clone().requires_grad_()
        for feature, weight in embeddings
        if not stem_official.is_numeric(weight)
    }
    places = stem_export.places(state_dict, weights)
    return OfficialStem(model, config, schema, tables, weights.ignored, places)


def _official_schema(weights: stem_official.OfficialWeights) -> LogSchema:
    features: list[Feature] = []
    tables = []
    for name, weight in weights.embeddings.items():
        if stem_official.is_numeric(weight):
            features.append(NumericFeature(kind="numeric", name=name))
        else:
            features.append(CategoricalFeature(kind="categorical", name=name, encoding="index"))
            tables.append(Table(name=name, rows=max(2, len(weight) - 1)))
    tasks = [Task(name=f"task_{t}", label=f"task_{t}") for t in range(weights.num_tasks)]
    return LogSchema(features=features, tables=tables, tasks=tasks)


def _rows(feature: str, table: Tensor, row_B: Tensor) -> Tensor:
    """Rows of a table, zeros for PAD."""
    if len(row_B) and not -1 <= int(row_B.min()) <= int(row_B.max()) < len(table):
        raise IdOutOfRange(
            f"an id of {feature} is out of range",
            f"official ids {int(row_B.min()) + 1} to {int(row_B.max()) + 1}",
            f"0 (padding) to {len(table)}",
            "index them as the official feature map does",
        )
    return table[row_B.clamp(min=0)] * (row_B != PAD).unsqueeze(1)
