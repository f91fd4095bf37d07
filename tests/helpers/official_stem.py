"""The official STEM forward, written anew as plain loops from its description.

One nn.Embedding per field with T + 1 views side by side, row 0 padding; other tasks' experts
detached in a task's gate, nothing detached in the shared gate; parameter names as there.
"""

import itertools

import torch
from torch import Tensor, nn


class MLP(nn.Module):
    def __init__(self, in_features: int, hidden: list[int], out_features: int | None = None):
        super().__init__()
        layers: list[nn.Module] = []
        for i, o in itertools.pairwise([in_features, *hidden]):
            layers += [nn.Linear(i, o), nn.ReLU()]
        if out_features:
            layers.append(nn.Linear([in_features, *hidden][-1], out_features))
        self.mlp = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x)


class Layer(nn.Module):
    def __init__(self, tasks: int, own: int, shared: int, in_features: int, hidden: list[int]):
        super().__init__()
        experts = tasks * own + shared
        self.shared_experts = nn.ModuleList(MLP(in_features, hidden) for _ in range(shared))
        self.specific_experts = nn.ModuleList(
            nn.ModuleList(MLP(in_features, hidden) for _ in range(own)) for _ in range(tasks)
        )
        self.gate = nn.ModuleList(MLP(in_features, [5], experts) for _ in range(tasks + 1))

    def forward(self, x: list[Tensor]) -> list[Tensor]:
        specific = [
            [expert(x[t]) for expert in experts]  # pyright: ignore
            for t, experts in enumerate(self.specific_experts)
        ]
        shared = [expert(x[-1]) for expert in self.shared_experts]
        outputs = []
        for i, gate in enumerate(self.gate):
            is_shared_gate = i == len(specific)
            seen = [
                e if t == i or is_shared_gate else e.detach()
                for t, experts in enumerate(specific)
                for e in experts
            ] + shared
            read = x[-1] if is_shared_gate else x[i] + x[-1]
            weights = torch.softmax(gate(read), dim=1)
            outputs.append(sum(weights[:, k : k + 1] * e for k, e in enumerate(seen)))
        return outputs


class FeatureEmbedding(nn.Module):
    def __init__(self, vocabulary: dict[str, int], columns: int):
        super().__init__()
        self.embedding_layers = nn.ModuleDict(
            {
                name: nn.Embedding(rows, columns, padding_idx=0)
                if rows
                else nn.Linear(1, columns, bias=False)
                for name, rows in vocabulary.items()
            }
        )


class OfficialStyleStem(nn.Module):
    """`vocabulary`: feature -> V_f with the padding row, or 0 for a numeric feature."""

    def __init__(
        self,
        vocabulary: dict[str, int],
        tasks: int = 2,
        own: int = 1,
        shared: int = 2,
        layers: int = 1,
        width: int = 3,
    ):
        super().__init__()
        hidden, self.width = [7, 6], width
        self.embedding_layer = nn.Module()
        self.embedding_layer.embedding_layer = FeatureEmbedding(vocabulary, width * (tasks + 1))
        sizes = [len(vocabulary) * width] + [hidden[-1]] * (layers - 1)
        self.stem_layers = nn.ModuleList(Layer(tasks, own, shared, i, hidden) for i in sizes)
        self.tower = nn.ModuleList(MLP(hidden[-1], [4], 1) for _ in range(tasks))

    @property
    def embeddings(self) -> nn.ModuleDict:
        return self.embedding_layer.embedding_layer.embedding_layers  # pyright: ignore

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """Logits (B, T) of ids (0 is padding) and numbers (B,) by feature."""
        fields = [
            layer(features[name] if isinstance(layer, nn.Embedding) else features[name][:, None])
            for name, layer in self.embeddings.items()
        ]
        views = torch.stack(fields, dim=1).split(self.width, dim=2)
        x = [view.flatten(1) for view in views]
        for layer in self.stem_layers:
            x = layer(x)
        return torch.cat([tower(x[t]) for t, tower in enumerate(self.tower)], dim=1)
