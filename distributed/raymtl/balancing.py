"""How the tasks' losses are weighed against each other while training.

- `fixed`: the schema's loss weights alone.
- `uncertainty`: weights learnt as noise of each task; Kendall, Gal, Cipolla, "Multi-Task Learning
  Using Uncertainty to Weigh Losses" (CVPR 2018).
- `dwa`: Dynamic Weight Average; Liu, Johns, Davison, "End-to-End Multi-Task Learning with
  Attention" (CVPR 2019), eq. 7.
- `pcgrad`: conflicting gradients projected; Yu et al., "Gradient Surgery for Multi-Task Learning"
  (NeurIPS 2020), algorithm 1. `projection` has its arithmetic, learner.py its backward passes.

The schema's loss weights multiply the losses in all of them, before.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from raymtl.config import BalancingSection

LOG_VARIANCE = "balancing.log_variance_T"
"""Name of the trained parameter among the dense ones."""


class Balancer:
    """Weights of the tasks at the present step, and what they are found from."""

    def __init__(self, section: BalancingSection, kinds: tuple[str, ...], device: torch.device):
        self.section, self.num_tasks = section, len(kinds)
        self.log_variance_T: nn.Parameter | None = None
        if section.name == "uncertainty":
            self.log_variance_T = nn.Parameter(torch.zeros(self.num_tasks, device=device))
        halves = [0.5 if kind == "regression" else 1.0 for kind in kinds]
        self._factor_T = torch.tensor(halves, device=device)
        self._sums_3T = torch.zeros(3, self.num_tasks, dtype=torch.float64, device=device)
        """Loss sums: of the window before last, of the last one, of the one under way."""
        self._steps = torch.zeros((), dtype=torch.int64)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Trained beside the model's own, by name."""
        return {} if self.log_variance_T is None else {LOG_VARIANCE: self.log_variance_T}

    def weights_T(self) -> Tensor:
        """What each task's loss is multiplied with, besides its loss weight."""
        if self.log_variance_T is not None:
            return self._factor_T * torch.exp(-self.log_variance_T)
        if self.section.name == "dwa" and int(self._steps) >= 2 * self.section.window_steps:
            before, last = self._sums_3T[0], self._sums_3T[1]
            known = (before > 0) & (last > 0)
            ratio = torch.where(known, last / torch.where(known, before, 1.0), 1.0)
            share = torch.softmax(ratio / self.section.temperature, dim=0)
            return (self.num_tasks * share).to(self._factor_T.dtype)
        return torch.ones_like(self._factor_T)

    def penalty(self) -> Tensor | None:
        """Term added to the loss once, so that `uncertainty` cannot weigh all tasks to nothing."""
        return None if self.log_variance_T is None else 0.5 * self.log_variance_T.sum()

    def record(self, loss_T: Tensor) -> None:
        """Takes the global losses of a step that was made."""
        if self.section.name != "dwa":
            return
        self._sums_3T[2] += loss_T.double()
        self._steps += 1
        if int(self._steps) % self.section.window_steps == 0:
            self._sums_3T[:2] = self._sums_3T[1:].clone()
            self._sums_3T[2] = 0

    def state(self) -> dict[str, Tensor]:
        """`balancing/<name>`; the trained parameter is among the dense ones."""
        return {"balancing/loss_sums": self._sums_3T, "balancing/steps": self._steps}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes what `state` gave."""
        self._sums_3T.copy_(tensors["balancing/loss_sums"])
        self._steps.copy_(tensors["balancing/steps"])


def projection(gram_TT: Tensor, seed: int) -> Tensor:
    """PCGrad's combined gradient as weights of the tasks' gradients.

    Each task's gradient is projected onto the normal plane of every other one it conflicts with, in
    random order; all projected gradients lie in the span of the given ones, so their inner
    products are all that is needed, and the gradients themselves are read once.

    Args:
        gram_TT: inner products of the tasks' gradients, float64.
        seed: of the random orders; equal on all ranks.

    Returns:
        a_T on the CPU: the sum of the projected gradients is sum_t a_t g_t.
    """
    gram, num_tasks = gram_TT.cpu(), len(gram_TT)
    generator = torch.Generator().manual_seed(seed)
    weight_TT = torch.eye(num_tasks, dtype=gram.dtype)
    for task, own in enumerate(weight_TT.unbind(0)):
        for other in torch.randperm(num_tasks, generator=generator).tolist():
            inner = own @ gram[:, other]
            if other != task and inner < 0:
                own[other] -= inner / gram[other, other]
    return weight_TT.sum(dim=0)
