"""STEM-Net trained as the official code trains it, in plain PyTorch: what `step.py` compares with.

One `nn.Embedding` of (T + 1) * D floats a row for each field, dense gradients, L2 over all rows in
the loss, clipping over everything, Adam (fused) over everything, experts one after the other.
Written from the description in the documents; no code of the authors.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

L2, LR, CLIP_NORM = 1e-6, 1e-3, 10.0


class DenseStem(nn.Module):
    """One layer of K1 experts a task and K2 shared ones; its unused shared gate is run, too."""

    def __init__(
        self,
        rows: list[int],
        width: int,
        num_tasks: int,
        num_experts: tuple[int, int],
        expert: list[int],
        gate: list[int],
        tower: list[int],
    ):
        super().__init__()
        num_specific, num_shared = num_experts
        self.num_tasks, self.width, self.num_specific = num_tasks, width, num_specific
        self.tables = nn.ModuleList(nn.Embedding(n, width * (num_tasks + 1)) for n in rows)
        for weight in self.tables.parameters():
            nn.init.normal_(weight, std=1e-4)
        inputs = len(rows) * width
        num_all = num_tasks * num_specific + num_shared
        self.specific = nn.ModuleList(mlp(inputs, expert) for _ in range(num_tasks * num_specific))
        self.shared = nn.ModuleList(mlp(inputs, expert) for _ in range(num_shared))
        self.gates = nn.ModuleList(mlp(inputs, gate, num_all) for _ in range(num_tasks + 1))
        self.towers = nn.ModuleList(mlp(expert[-1], tower, 1) for _ in range(num_tasks))

    def forward(self, ids_BF: Tensor) -> list[Tensor]:
        """Probabilities of each task, (B, 1) each."""
        fields = [table(ids_BF[:, f]) for f, table in enumerate(self.tables)]
        views = torch.stack(fields, dim=1).split(self.width, dim=2)
        x = [view.flatten(1) for view in views]
        specific = [
            [self.specific[t * self.num_specific + k](x[t]) for k in range(self.num_specific)]
            for t in range(self.num_tasks)
        ]
        shared = [expert(x[-1]) for expert in self.shared]
        outputs = []
        for t in range(self.num_tasks + 1):
            mine = [
                e if u == t or t == self.num_tasks else e.detach()
                for u, experts in enumerate(specific)
                for e in experts
            ]
            stacked = torch.stack([*mine, *shared], dim=1)
            gate_input = x[t] + x[-1] if t < self.num_tasks else x[-1]
            weights = self.gates[t](gate_input).softmax(dim=1)
            outputs.append((weights.unsqueeze(2) * stacked).sum(1))
        return [tower(o).sigmoid() for tower, o in zip(self.towers, outputs, strict=False)]


def mlp(inputs: int, hidden: list[int], output: int | None = None) -> nn.Sequential:
    layers: list[nn.Module] = []
    for units in hidden:
        layers += [nn.Linear(inputs, units), nn.ReLU()]
        inputs = units
    if output is not None:
        layers.append(nn.Linear(inputs, output))
    made = nn.Sequential(*layers)
    for layer in made:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
    return made


class DenseTraining:
    """A model with its optimizer; `step` is one of the official loop's."""

    def __init__(self, model: DenseStem, bf16: bool):
        self.model, self.bf16 = model, bf16
        self.optimizer = torch.optim.Adam(model.parameters(), lr=LR, fused=True)

    def step(self, ids_BF: Tensor, labels_BT: Tensor) -> float:
        self.optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            found = self.model(ids_BF)
        loss = torch.stack(
            [
                F.binary_cross_entropy(p.float().squeeze(1), labels_BT[:, t])
                for t, p in enumerate(found)
            ]
        ).sum()
        for weight in self.model.tables.parameters():
            loss = loss + L2 / 2 * weight.square().sum()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
        self.optimizer.step()
        return loss.item()
