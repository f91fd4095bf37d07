"""Gives tensors of `Stem` the names and shapes of the authors' code: `stem_official` backwards."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from raymtl.models.stem_official import EMBEDDING, LINEAR, OfficialWeights, is_numeric


@dataclass(frozen=True)
class Place:
    """Where a tensor of the official code lies in ours."""

    source: str
    """A parameter of `Stem`, or `tables.<feature>`."""
    kind: Literal["table", "numeric", "weight", "bias"]
    index: int = 0
    """Its MLP in the bank, or its numeric column."""
    inputs: Tensor | None = None
    """For each input of the official layer its place in ours; null means the same."""

    def official(self, tensor: Tensor) -> Tensor:
        """A copy of this place's part of `source` (or of its gradient), in the official shape."""
        if self.kind == "table":
            return torch.cat([tensor.new_zeros(1, tensor.shape[1]), tensor])
        part = tensor[self.index]
        if self.inputs is not None:
            part = part[self.inputs.to(part.device)]
        if self.kind == "numeric":
            part = part.reshape(-1, 1)
        elif self.kind == "weight":
            part = part.t()
        return part.clone(memory_format=torch.contiguous_format)


def places(keys: Iterable[str], weights: OfficialWeights) -> dict[str, Place]:
    """The place of every key of a state dict, in its order, without those of `weights.ignored`.

    Args:
        keys: of the state dict that `weights` was read from.
    """
    keys = list(keys)
    numeric = [name for name, w in weights.embeddings.items() if is_numeric(w)]
    linears = _linears(keys)
    banks = {
        path: (bank, e) for bank, paths in weights.banks().items() for e, path in enumerate(paths)
    }
    first_inputs = weights.input_order().argsort()
    found: dict[str, Place] = {}
    for key in keys:
        if match := EMBEDDING.search(key):
            feature = match[1]
            if feature in numeric:
                column = numeric.index(feature)
                found[key] = Place("fields.numeric_weight_NVD", "numeric", column)
            else:
                found[key] = Place(f"tables.{feature}", "table")
        elif (match := LINEAR.search(key)) and match[1] in banks:
            bank, number = banks[match[1]]
            layer = linears[match[1]].index(int(match[2]))
            if match[3] == "bias":
                found[key] = Place(f"{bank}.biases.{layer}", "bias", number)
            else:
                reordered = layer == 0 and bank.startswith("layers.0.")
                inputs = first_inputs if reordered else None
                found[key] = Place(f"{bank}.weights.{layer}", "weight", number, inputs)
    return found


def _linears(keys: list[str]) -> dict[str, list[int]]:
    """For each MLP the places of its linear layers in its nn.Sequential, ascending."""
    numbers: defaultdict[str, set[int]] = defaultdict(set)
    for key in keys:
        if match := LINEAR.search(key):
            numbers[match[1]].add(int(match[2]))
    return {path: sorted(found) for path, found in numbers.items()}


def named(places: Mapping[str, Place], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies by official name.

    Args:
        tensors: `Stem`'s parameters by name and the tables as `tables.<feature>`, or their
            gradients.
    """
    return {key: place.official(tensors[place.source]) for key, place in places.items()}
