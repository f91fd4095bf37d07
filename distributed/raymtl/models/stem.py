"""STEM-Net: tables per task, and gates that see other tasks' experts without training them.

`from_official` loads the weights of the authors' code and gives them back by their names there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raymtl.batch import PAD, Inputs, InputShape, Layout
from raymtl.errors import IdOutOfRange
from raymtl.models import stem_export, stem_official
from raymtl.models.blocks import FieldStack, mass_by_owner, mean_gates
from raymtl.models.stem_head import StemConfig, StemHead, run_layers
from raymtl.schema import CategoricalFeature, Feature, LogSchema, NumericFeature, Table, Task


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
    whole_sequences = False
    gains_compiled = True
    Config = StemConfig

    def __init__(self, config: StemConfig, shape: InputShape):
        super().__init__()
        assert shape.num_views == shape.num_tasks + 1, "STEM has one view per task and a shared one"
        self.num_tasks = shape.num_tasks
        self.num_shared_experts = config.num_shared_experts
        self.gate_sources = (*shape.task_names, "shared")
        self.fields = FieldStack(shape)
        head = StemHead(config, shape.num_tasks, self.fields.out_features)
        # Not as `self.head`: checkpoints and weights of the authors' code know them by these names.
        self.layers, self.towers = head.layers, head.towers

    def forward(self, inputs: Inputs) -> Tensor:
        """Returns logits_BT."""
        x_TBH, _ = self._run(inputs)
        return self.towers(x_TBH).squeeze(-1).t()

    @torch.no_grad()
    def gate_mass(self, inputs: Inputs, weight_B: Tensor | None = None) -> Tensor:
        """How much each task takes from each source, mean over rows.

        Args:
            weight_B: row weights, 0 for padding; null weighs all rows 1.

        Returns:
            (num_layers, T, T + 1): for each layer and task, the gate weight of each task's experts
            together and, last, of the shared experts; rows sum to 1 (to 0 without rows).
        """
        _, gates = self._run(inputs)
        return mass_by_owner(mean_gates(gates, weight_B), self.num_tasks, self.num_shared_experts)

    def _run(self, inputs: Inputs) -> tuple[Tensor, list[Tensor]]:
        """The tasks' last outputs (T, B, H) and every layer's task gates (T, B, K)."""
        x_VBI = self.fields(inputs)
        own_TBI, shared_1BI = x_VBI.split([self.num_tasks, 1])
        return run_layers(self.layers, own_TBI, shared_1BI)


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
