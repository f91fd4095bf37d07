"""Small models and inputs for tests."""

from typing import Any

import torch
from torch import Tensor

from raymtl.batch import Inputs, InputShape, Layout, Sequence
from raymtl.config import ModelSection
from raymtl.models import registry
from raymtl.schema import (
    BagFeature,
    CategoricalFeature,
    LogSchema,
    NumericFeature,
    SequenceFeature,
    Table,
    Task,
)

WIDTH = 4


def mixed_schema(num_tasks: int) -> LogSchema:
    """Two categorical features, a bag, a pooled and a whole sequence, two numeric columns."""
    return LogSchema(
        features=[
            CategoricalFeature(kind="categorical", name="user"),
            NumericFeature(kind="numeric", name="age", missing_indicator=True),
            CategoricalFeature(kind="categorical", name="item"),
            BagFeature(kind="bag", name="tags", max_length=3),
            SequenceFeature(kind="sequence", name="clicked", table="item", max_length=3),
            SequenceFeature(
                kind="sequence", name="watched", table="item", max_length=5, pooling="none"
            ),
        ],
        tables=[Table(name=name, rows=10) for name in ("user", "item", "tags")],
        tasks=[Task(name=f"task_{t}", label=f"label_{t}") for t in range(num_tasks)],
    )


def small_section(name: str, **values) -> ModelSection:
    """A model section with every `*hidden_units` field cut down to (8, 6), those of its head too.

    And without noise, so that training is a function of weights and batch; dropout is 0 by default.
    """
    parsed: Any = registry.parse(ModelSection(name=name))
    fields = type(parsed).model_fields
    small: dict[str, Any] = {f: [8, 6] for f in fields if f.endswith("hidden_units")}
    small |= {f: False for f in fields if f.endswith("noise")}
    if "head" in fields:
        small["head"] = small_section(parsed.head["name"]).model_dump()
    return ModelSection.model_validate({"name": name, **small, **values})


def small_model(section: ModelSection, num_tasks: int = 2, seed: int = 1) -> Any:
    """Builds it over `mixed_schema`; Any, so that tests may look into its parts."""
    torch.manual_seed(seed)
    return registry.build(section, Layout.of(mixed_schema(num_tasks)), WIDTH)


def shape_of(section: ModelSection, num_tasks: int = 2) -> InputShape:
    """The shape `small_model` is built from."""
    return registry.shape(section, Layout.of(mixed_schema(num_tasks)), WIDTH)


def random_inputs(shape: InputShape, num_rows: int, seed: int = 0) -> Inputs:
    """Standard normal inputs, leaves of autograd; row b of a sequence holds b mod (S + 1) items."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    sequences = {}
    for name, length in shape.sequence_lengths.items():
        held = torch.arange(num_rows) % (length + 1)
        mask_BS = torch.arange(length) < held[:, None]
        values = normal(num_rows, length, shape.num_views, shape.width) * mask_BS[:, :, None, None]
        sequences[name] = Sequence(values.requires_grad_(), mask_BS)
    views = normal(num_rows, shape.num_views, shape.num_fields, shape.width)
    return Inputs(
        views.requires_grad_(), normal(num_rows, shape.num_numeric).requires_grad_(), sequences
    )


def grad_of(tensor: Tensor) -> Tensor:
    """Its gradient, which must be there."""
    assert tensor.grad is not None
    return tensor.grad


def rows_of(inputs: Inputs, rows: Tensor) -> Inputs:
    """The inputs of some rows, in that order."""
    return Inputs(
        inputs.views_BVFD[rows],
        inputs.numeric_BN[rows],
        {n: Sequence(s.values_BSVD[rows], s.mask_BS[rows]) for n, s in inputs.sequences.items()},
    )
