"""A model that is a FieldStack and a head: most baselines."""

from typing import Any

from torch import Tensor, nn

from raymtl.batch import Inputs, InputShape
from raymtl.config import Section
from raymtl.models.blocks import FieldStack


class HeadModel(nn.Module):
    """Flat vectors of all fields, and a head on them (`heads` says what one is).

    With one view per task and a shared one the head gets them apart, else what there is.
    """

    task_specific: bool = False
    shared_view: bool = True
    whole_sequences = False
    Config: type[Section]
    Head: type[nn.Module]

    def __init__(self, config: Any, shape: InputShape):
        super().__init__()
        self.fields = FieldStack(shape)
        self.head: Any = self.Head(config, shape.num_tasks, self.fields.out_features, shape.given)

    def forward(self, inputs: Inputs) -> Tensor:
        """Returns logits_BT."""
        return self.head(*self._streams(inputs))

    def _streams(self, inputs: Inputs) -> tuple[Tensor, Tensor | None]:
        """x_VBI and shared_1BI, as a head takes them."""
        x_VBI = self.fields(inputs)
        if self.task_specific and self.shared_view:
            own_TBI, shared_1BI = x_VBI.split([len(x_VBI) - 1, 1])
            return own_TBI, shared_1BI
        return x_VBI, None


class GatedHeadModel(HeadModel):
    """A HeadModel whose head mixes experts by gates."""

    def __init__(self, config: Any, shape: InputShape):
        super().__init__(config, shape)
        self.gate_sources: tuple[str, ...] = self.head.gate_sources(shape.task_names)
        """Whose experts each column of `gate_mass` is."""

    def gate_mass(self, inputs: Inputs, weight_B: Tensor | None = None) -> Tensor:
        """How much each task takes from each source, mean over rows, without gradient.

        Args:
            weight_B: row weights, 0 for padding; null weighs all rows 1.

        Returns:
            (num_layers, T, len(gate_sources)); rows sum to 1 (to 0 without rows).
        """
        return self.head.gate_mass(*self._streams(inputs), weight_B)
