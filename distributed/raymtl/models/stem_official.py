"""Reads a state dict of the authors' STEM code (LiangcaiSu/STEM) into raymtl's names and shapes.

There, a field's embedding is one table whose columns are the T tasks' and the shared view side by
side, every MLP is a list of nn.Linear, and gate T of a layer is the shared gate.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raymtl.errors import InputError

Linear = tuple[Tensor, Tensor]
"""Weight (in, out) and bias (out)."""

EMBEDDING = re.compile(r"embedding_layers\.(.+)\.weight$")
LINEAR = re.compile(r"(?:^|\.)((?:stem_layers|tower)\..+)\.mlp\.(\d+)\.(weight|bias)$")


@dataclass(frozen=True)
class OfficialWeights:
    """What a state dict holds."""

    embeddings: dict[str, Tensor]
    """Feature -> (V_f, (T + 1) * d) as in the official code; numeric ones ((T + 1) * d, 1)."""
    dense: dict[str, Tensor]
    """Stem's parameters by their names, but for the numeric columns' weight."""
    num_tasks: int
    num_layers: int
    num_specific_experts: int
    num_shared_experts: int
    width: int
    """d, floats of one view."""
    ignored: tuple[str, ...]
    """MLPs no output reads: the last layer's shared gate."""

    def hidden_units(self, bank: str, linear_output: bool) -> tuple[int, ...]:
        """Widths of a bank's hidden layers, its linear output left out."""
        weights = [w for name, w in self.dense.items() if name.startswith(f"{bank}.weights.")]
        widths = tuple(w.shape[2] for w in weights)
        return widths[:-1] if linear_output else widths

    def banks(self) -> dict[str, list[str]]:
        """Our bank -> the official MLPs it stacks, in order."""
        return _banks(
            self.num_layers, self.num_tasks, self.num_specific_experts, self.num_shared_experts
        )

    def input_order(self) -> Tensor:
        """For each input of our first layer its place in the official one."""
        return _input_order(self.embeddings, self.width)


def is_numeric(embedding: Tensor) -> bool:
    """Whether an official embedding is the nn.Linear(1, d * (T + 1)) of a numeric feature."""
    return embedding.shape[1] == 1


def refusal(got: str, wanted: str) -> InputError:
    """The error of every state dict that does not fit."""
    return InputError(
        "weights are not those of an official STEM model",
        got,
        wanted,
        "give the whole state_dict() of a STEM model of the official code, without batch norm",
    )


def read(state_dict: Mapping[str, Tensor], features: Sequence[str] | None) -> OfficialWeights:
    """Reads all of a state dict.

    Args:
        features: the official order of the features; null means that of the state dict.

    Raises:
        InputError: a weight is missing, unknown or of a shape that does not fit.
    """
    embeddings, mlps = _split(state_dict)
    embeddings = _in_order(embeddings, features)
    layers = _count(mlps, "stem_layers.{}.shared_experts.0")
    tasks = _count(mlps, "stem_layers.0.specific_experts.{}.0")
    own = _count(mlps, "stem_layers.0.specific_experts.0.{}")
    shared = _count(mlps, "stem_layers.0.shared_experts.{}")
    if not (layers and tasks):
        raise refusal("no experts in it", "stem_layers.0.specific_experts.0.0.mlp.0.weight, ...")
    width = _width(embeddings, tasks)
    banks = _banks(layers, tasks, own, shared)
    ignored = f"stem_layers.{layers - 1}.gate.{tasks}"
    unknown = set(mlps) - {p for paths in banks.values() for p in paths} - {ignored}
    if unknown:
        raise refusal(", ".join(sorted(unknown)[:5]), f"parts of {layers} layers, {tasks} tasks")
    dense: dict[str, Tensor] = {}
    order = _input_order(embeddings, width)
    for bank, paths in banks.items():
        columns = order if bank.startswith("layers.0.") else None
        dense |= _stack(bank, [_mlp(mlps, path) for path in paths], columns)
    return OfficialWeights(embeddings, dense, tasks, layers, own, shared, width, (ignored,))


def _split(state_dict: Mapping[str, Tensor]):
    """Embeddings by feature, and the linear layers' tensors by MLP and place in it."""
    embeddings: dict[str, Tensor] = {}
    mlps: dict[str, dict[int, dict[str, Tensor]]] = {}
    for name, tensor in state_dict.items():
        if found := EMBEDDING.search(name):
            if tensor.dim() != 2:
                raise refusal(f"{name} of shape {tuple(tensor.shape)}", "two dimensions")
            embeddings[found[1]] = tensor.detach()
        elif found := LINEAR.search(name):
            if tensor.dim() != {"weight": 2, "bias": 1}[found[3]]:
                raise refusal(f"{name} of shape {tuple(tensor.shape)}", "linear layers only")
            mlps.setdefault(found[1], {}).setdefault(int(found[2]), {})[found[3]] = tensor.detach()
        else:
            raise refusal(name, "embedding_layers, stem_layers and tower of linear layers only")
    return embeddings, mlps


def _in_order(embeddings: dict[str, Tensor], features: Sequence[str] | None) -> dict[str, Tensor]:
    if features is None:
        return embeddings
    if sorted(features) != sorted(embeddings):
        raise refusal(f"embeddings of {', '.join(embeddings)}", f"of {', '.join(features)}")
    return {name: embeddings[name] for name in features}


def _count(mlps: Mapping[str, object], pattern: str) -> int:
    return next(n for n in itertools.count() if pattern.format(n) not in mlps)


def _width(embeddings: dict[str, Tensor], num_tasks: int) -> int:
    columns = {w.shape[0] if is_numeric(w) else w.shape[1] for w in embeddings.values()}
    if len(columns) != 1 or (total := columns.pop()) % (num_tasks + 1):
        got = {name: tuple(w.shape) for name, w in embeddings.items()}
        raise refusal(f"embeddings {got}", f"one width, a multiple of T + 1 = {num_tasks + 1}")
    return total // (num_tasks + 1)


def _banks(layers: int, tasks: int, own: int, shared: int) -> dict[str, list[str]]:
    """Our bank -> the official MLPs it stacks, in order."""
    banks: dict[str, list[str]] = {}
    for n in range(layers):
        theirs = f"stem_layers.{n}"
        banks[f"layers.{n}.specific_experts"] = [
            f"{theirs}.specific_experts.{t}.{k}" for t in range(tasks) for k in range(own)
        ]
        banks[f"layers.{n}.shared_experts"] = [
            f"{theirs}.shared_experts.{k}" for k in range(shared)
        ]
        banks[f"layers.{n}.gates"] = [f"{theirs}.gate.{t}" for t in range(tasks)]
        if n < layers - 1:
            banks[f"layers.{n}.shared_gate"] = [f"{theirs}.gate.{tasks}"]
    banks["towers"] = [f"tower.{t}" for t in range(tasks)]
    return banks


def _mlp(mlps: dict[str, dict[int, dict[str, Tensor]]], path: str) -> list[Linear]:
    try:
        parts = [mlps[path][n] for n in sorted(mlps[path])]
        return [(part["weight"].t(), part["bias"]) for part in parts]
    except KeyError as error:
        raise refusal(f"{path} without {error.args[0]}", "a weight and a bias each") from None


def _stack(bank: str, mlps: list[list[Linear]], columns: Tensor | None) -> dict[str, Tensor]:
    shapes = {tuple(w.shape for w, _ in mlp) for mlp in mlps}
    if len(shapes) != 1:
        raise refusal(f"{bank} of shapes {sorted(shapes)}", "one shape for all MLPs of a kind")
    if columns is not None:
        inputs = mlps[0][0][0].shape[0]
        if inputs != len(columns):
            raise refusal(f"{bank} reading {inputs} floats", f"{len(columns)}, the embeddings'")
        mlps = [[(mlp[0][0][columns], mlp[0][1]), *mlp[1:]] for mlp in mlps]
    dense: dict[str, Tensor] = {}
    for n, linears in enumerate(zip(*mlps, strict=True)):
        dense[f"{bank}.weights.{n}"] = torch.stack([weight for weight, _ in linears])
        dense[f"{bank}.biases.{n}"] = torch.stack([bias for _, bias in linears])
    return dense


def _input_order(embeddings: dict[str, Tensor], width: int) -> Tensor:
    """For each input of ours its place in the official one: numeric fields stand last here."""
    places = sorted(enumerate(embeddings.values()), key=lambda item: is_numeric(item[1]))
    starts = torch.tensor([field * width for field, _ in places])
    return (starts[:, None] + torch.arange(width)).flatten()
