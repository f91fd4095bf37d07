"""DTRN: a representation per task from behaviour sequences and refined features, under any head."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import field_validator
from torch import Tensor, nn

from raymtl.batch import Inputs, InputShape
from raymtl.models import chains
from raymtl.models.blocks import FieldStack, mean_gates
from raymtl.models.heads import build_head, parse_head
from raymtl.models.interest import Interests, InterestSection
from raymtl.models.refinement import Refinement, RefinementSection


class DtrnConfig(InterestSection, RefinementSection):
    name: Literal["dtrn"] = "dtrn"
    head: Mapping[str, Any] = {"name": "mmoe"}
    """The head that turns one vector per task into logits: `name` and that head's own keys, which
    are those of the model of the same name (see `heads`)."""

    @field_validator("head")
    @classmethod
    def _is_a_head(cls, head: Mapping[str, Any]) -> Mapping[str, Any]:
        parse_head(head)
        return head


class Dtrn(nn.Module):
    """DTRN: every task has its own bottom representation, then any multi-task head.

    "Deep Task-specific Bottom Representation Network for Multi-Task Recommendation" (CIKM 2023,
    arXiv 2308.05996). Only its abstract and public summaries were at hand. Found there: the
    Task-specific Interest Module, whose hypernetwork turns embeddings of task and behaviour type
    into scale and shift of a Transformer's LayerNorms; the Task-specific Representation Refinement
    Module, a SENet-like network per task that weighs the embeddings of all features, interests
    among them; the branches of any multi-task method on top. Reconstructed, so ours:

        z_tm = pool(Transformer with norms CLN_tm, on the events of behaviour type m)
        E_t  = [embeddings of the fields; z_t1 .. z_tM]
        x_t  = flatten(w_t * E_t),  w_t = sigmoid(MLP_t(flatten(E_t)))
        y    = head(x_1 .. x_T)

    that is, all formulas, sizes and starting values; see `conditional_transformer`, `interest` and
    `refinement`. Tables are shared by all tasks (one view). A log without whole sequences has no
    z_tm. Streams that a head's tasks share read the mean of x_1 .. x_T, and by that path a task's
    loss reaches the others' x; with heads without such streams it does not.
    """

    task_specific = False
    shared_view = True
    Config = DtrnConfig

    def __init__(self, config: DtrnConfig, shape: InputShape):
        super().__init__()
        self.num_tasks, self.width = shape.num_tasks, shape.width
        self.fields = FieldStack(shape, sequences=False)
        self.interests = Interests(config, shape) if shape.sequence_lengths else None
        behaviours = self.interests.names if self.interests is not None else ()
        self.feature_names = (*_field_names(shape), *behaviours)
        """The F embeddings that are refined: ids, numeric columns, behaviours."""
        num = len(self.feature_names)
        self.refinement = (
            Refinement(config, shape.num_tasks, num, shape.width) if config.refinement else None
        )
        self.head = build_head(config.head, shape.num_tasks, num * shape.width, shape.given)
        if getattr(self.head, "chained", False):
            chains.require_binary(f"dtrn with the head {config.head['name']}", shape)
        self._offer_what_the_head_offers(shape)

    def forward(self, inputs: Inputs) -> Tensor:
        """Returns logits_BT."""
        return self.head(self.represent(inputs))

    def represent(self, inputs: Inputs) -> Tensor:
        """x_VBI: V is T, or 1 where nothing in it depends on the task."""
        fields_KBFD = self._features(inputs)
        if self.refinement is None:
            return fields_KBFD.flatten(2)
        return self.refinement(fields_KBFD)

    @torch.no_grad()
    def refinement_weights(self, inputs: Inputs, weight_B: Tensor | None = None) -> Tensor:
        """What each task multiplies each feature by, mean over rows; (T, F), by `feature_names`.

        With a weight per float, their mean. Ones without refinement.

        Args:
            weight_B: row weights, 0 for padding; null weighs all rows 1.
        """
        if self.refinement is None:
            return inputs.views_BVFD.new_ones(self.num_tasks, len(self.feature_names))
        weights_TBF = self.refinement.weights(self._features(inputs)).mean(dim=-1)
        return mean_gates([weights_TBF], weight_B)[0]

    def _features(self, inputs: Inputs) -> Tensor:
        """E_t, (K, B, F, D); K is 1 where it is the same for all tasks."""
        x_1BI = self.fields(inputs)
        fields_1BFD = x_1BI.reshape(*x_1BI.shape[:2], self.fields.num_fields, self.width)
        if self.interests is None:
            return fields_1BFD
        interest_KBMD = self.interests(inputs)
        fields_KBFD = fields_1BFD.expand(len(interest_KBMD), -1, -1, -1)
        return torch.cat([fields_KBFD, interest_KBMD], dim=2)

    def _offer_what_the_head_offers(self, shape: InputShape) -> None:
        """Gates and penalty of a model are those of its head, and absent with a head without."""
        head: Any = self.head
        if hasattr(head, "gate_mass"):
            self.gate_sources: tuple[str, ...] = head.gate_sources(shape.task_names)
            self.gate_mass = self._gate_mass
        if hasattr(head, "penalty"):
            self.penalty = head.penalty

    def _gate_mass(self, inputs: Inputs, weight_B: Tensor | None = None) -> Tensor:
        """How much each task takes from each source; see `GatedHeadModel.gate_mass`."""
        head: Any = self.head
        with torch.no_grad():
            return head.gate_mass(self.represent(inputs), None, weight_B)


def _field_names(shape: InputShape) -> tuple[str, ...]:
    ids = shape.field_names or tuple(f"field {n}" for n in range(shape.num_fields))
    return (*ids, *(f"number {n}" for n in range(shape.num_numeric)))
