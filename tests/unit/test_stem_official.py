"""Parity with the official STEM code, held against its forward written anew as plain loops."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.batches import labelled
from helpers.models import grad_of
from helpers.official_stem import OfficialStyleStem
from raymtl.batch import InputShape, Layout
from raymtl.config import EmbeddingSection, TrainConfig
from raymtl.embedding.fields import assemble
from raymtl.embedding.tables import LocalTables, table_specs
from raymtl.errors import IdOutOfRange, InputError
from raymtl.learner import Learner
from raymtl.losses import local_denominators
from raymtl.models.stem import OfficialStem, from_official

ROOT = Path(__file__).parents[2]
VOCABULARY = {"user": 9, "age": 0, "item": 12, "price": 0, "city": 4}
"""Numeric features stand between the others, as a feature map may have them."""
IDS, NUMERIC = ["user", "item", "city"], ["age", "price"]
NUM_ROWS = 20

sizes = pytest.mark.parametrize(
    "values",
    [
        {},
        {"tasks": 1},
        {"tasks": 3, "own": 2, "shared": 1, "width": 2},
        {"layers": 2},
        {"tasks": 3, "own": 2, "layers": 3},
    ],
    ids=str,
)


def _official(dtype: torch.dtype = torch.float64, **values) -> OfficialStyleStem:
    torch.manual_seed(7)
    return OfficialStyleStem(VOCABULARY, **values).to(dtype)


def _features(dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Ids with padding (0) among them, and numbers."""
    generator = torch.Generator().manual_seed(11)
    return {
        name: torch.randint(rows, (NUM_ROWS,), generator=generator)
        if rows
        else torch.randn(NUM_ROWS, generator=generator, dtype=dtype)
        for name, rows in VOCABULARY.items()
    }


def _ours(model: OfficialStem, features: dict[str, Tensor]) -> Tensor:
    ids = torch.stack([features[name] for name in IDS], dim=1)
    return model.logits(ids, torch.stack([features[name] for name in NUMERIC], dim=1))


def _labels(num_tasks: int) -> Tensor:
    torch.manual_seed(5)
    return (torch.rand(NUM_ROWS, num_tasks) < 0.4).double()


def _weights(reference: OfficialStyleStem, ours: OfficialStem) -> dict[str, Tensor]:
    return _kept(reference.state_dict(), ours)


def _gradients(reference: OfficialStyleStem, ours: OfficialStem) -> dict[str, Tensor]:
    gradients = {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in reference.named_parameters()
    }
    return _kept(gradients, ours)


def _kept(tensors: dict[str, Tensor], ours: OfficialStem) -> dict[str, Tensor]:
    """Without the parts that ours leaves out."""
    (gate,) = ours.ignored
    kept = {name: t for name, t in tensors.items() if f"{gate}.mlp." not in name}
    assert len(tensors) - len(kept) == 4, "weight and bias of two linear layers"
    return kept


def _key(feature: str) -> str:
    return f"embedding_layer.embedding_layer.embedding_layers.{feature}.weight"


@sizes
def test_outputs_are_the_official_ones(values):
    reference = _official(**values)
    ours = from_official(reference.state_dict())
    torch.testing.assert_close(_ours(ours, _features()), reference(_features()))


def test_outputs_in_float32_are_the_official_ones():
    reference, features = _official(torch.float32, layers=2), _features(torch.float32)
    logits = _ours(from_official(reference.state_dict()), features)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, reference(features))


@sizes
def test_gradients_are_the_official_ones(values):
    reference = _official(**values)
    ours = from_official(reference.state_dict())
    for logits in (reference(_features()), _ours(ours, _features())):
        F.binary_cross_entropy_with_logits(
            logits, _labels(logits.shape[1]), reduction="sum"
        ).backward()
    torch.testing.assert_close(ours.named_gradients(), _gradients(reference, ours))


@sizes
@pytest.mark.parametrize("scale", [1.0, 1000.0], ids=["unclipped", "clipped"])
def test_three_steps_of_the_official_training_end_in_the_same_weights(values, scale):
    reference = _official(**values)
    ours = from_official(reference.state_dict())
    tables = [layer.weight for layer in reference.embeddings.values()]
    _train(lambda: reference(_features()), list(reference.parameters()), tables, scale)
    numeric = ours.model.fields.numeric_weight_NVD
    assert numeric is not None
    tables = list(ours.tables.values())
    _train(
        lambda: _ours(ours, _features()),
        [*ours.model.parameters(), *tables],
        [*tables, numeric],
        scale,
    )
    torch.testing.assert_close(ours.named_weights(), _weights(reference, ours))


def _train(
    forward,
    parameters: list,
    embeddings: list,
    scale: float = 1.0,
    lr: float = 1e-2,
    l2: float = 1e-2,
) -> None:
    """Three steps as the official loop: mean BCE summed over tasks and L2 of whole tables."""
    adam = torch.optim.Adam(parameters, lr=lr)
    for _ in range(3):
        adam.zero_grad()
        logits = forward()
        labels = _labels(logits.shape[1]).to(logits.dtype)
        bce = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        squares = torch.stack([e.square().sum() for e in embeddings]).sum()
        (scale * bce.mean(0).sum() + l2 / 2 * squares).backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, 10.0)
        assert (norm > 10) == (scale > 1)
        adam.step()


def test_the_training_of_models_md_ends_in_the_official_weights():
    reference, features = _official(), _features()
    numeric_BN = torch.stack([features[name] for name in NUMERIC], dim=1)
    batch = torch.stack([features[name] for name in IDS], dim=1), numeric_BN, _labels(2)
    page = (ROOT / "docs" / "models.md").read_text()
    (text,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    state = dict(sorted(reference.state_dict().items()))
    given: dict[str, Any] = {"state_dict": state, "features": list(VOCABULARY)}
    given["batches"] = [batch] * 3
    exec(compile(text, "models.md", "exec"), given)
    tables = [layer.weight for layer in reference.embeddings.values()]
    _train(lambda: reference(features), list(reference.parameters()), tables, lr=1e-3, l2=1e-6)
    torch.testing.assert_close(given["weights"], _weights(reference, given["official"]))
    torch.testing.assert_close(given["gradients"], _gradients(reference, given["official"]))


@sizes
@pytest.mark.parametrize("vocabulary", [{"user": 9, "item": 12, "city": 4}, VOCABULARY], ids=len)
@pytest.mark.parametrize("scale", [1.0, 1000.0], ids=["unclipped", "clipped"])
def test_three_steps_of_the_learner_are_those_of_the_official_training(values, vocabulary, scale):
    torch.manual_seed(7)
    reference, features = OfficialStyleStem(vocabulary, **values), _features(torch.float32)
    start = from_official(reference.state_dict())
    learner = _learner(start, scale, lr=1e-3, l2=1e-6)
    # The L2 of numeric columns is the one part of that training the learner does not have.
    tables = [reference.embeddings[name].weight for name in start.tables]
    parameters = list(reference.parameters())
    _train(lambda: reference(features), parameters, tables, scale, lr=1e-3, l2=1e-6)
    batch = labelled(_labels(start.model.num_tasks).float())
    batch.ids_BC = torch.stack([features[name] for name in IDS], dim=1) - 1
    if vocabulary is VOCABULARY:
        batch.numeric_BN = torch.stack([features[name] for name in NUMERIC], dim=1)
    for step in range(3):
        assert learner.step(batch, local_denominators(batch), step, num_steps=3).finite
    end = from_official(reference.state_dict())
    tensors = learner.tables.state()
    rows_of_end = end.store_values(learner.tables.num_buckets)
    wanted = rows_of_end | dict(end.model.state_dict())
    moved = {name: tensors[name] for name in rows_of_end} | dict(learner.model.state_dict())
    torch.testing.assert_close(moved, wanted, rtol=1e-5, atol=1e-6)


def _learner(start: OfficialStem, scale: float, lr: float, l2: float) -> Learner:
    """One that stands at the official weights; the small table replicated, the others sharded."""
    config = TrainConfig.model_validate(
        {
            "data": {"train": "unread"},
            "model": start.config.model_dump(),
            "embedding": {
                "width": start.model.fields.width,
                "num_buckets": 4,
                "replicate_rows": 5,
            },
            "optimizer": {
                "dense": {"name": "adam", "lr": lr},
                "rows": {"name": "dense_adam", "lr": lr, "l2": l2},
                "clip_norm": 10.0,
            },
        }
    )
    tasks = [task.model_copy(update={"loss_weight": scale}) for task in start.schema.tasks]
    schema = start.schema.model_copy(update={"tasks": tasks})
    learner = Learner(config, schema, torch.device("cpu"))
    assert learner.tables.replicated_tables == ("city",)
    learner.model.load_state_dict(start.model.state_dict())
    store = learner.tables
    store.load_state({**store.state(), **start.store_values(store.num_buckets)})
    return learner


@sizes
@pytest.mark.parametrize("vocabulary", [{"user": 9, "city": 4}, VOCABULARY, {"age": 0}], ids=len)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_go_back_to_the_official_names_shapes_and_order(values, vocabulary, prefix):
    torch.manual_seed(7)
    state = {
        f"{prefix}{name}": weight
        for name, weight in OfficialStyleStem(vocabulary, **values).state_dict().items()
    }
    ours = from_official(state)
    kept = _kept(state, ours)
    named = ours.named_weights()
    assert list(named) == list(kept)
    torch.testing.assert_close(named, kept, rtol=0, atol=0)
    assert all(weight.is_contiguous() for weight in named.values())


def test_weights_of_a_state_dict_in_sorted_order_go_back_too():
    reference = _official()
    ours = from_official(dict(sorted(reference.state_dict().items())), features=list(VOCABULARY))
    kept = _weights(reference, ours)
    assert list(ours.named_weights()) == sorted(kept)
    torch.testing.assert_close(ours.named_weights(), kept, rtol=0, atol=0)


def test_named_weights_are_copies():
    reference = _official()
    ours = from_official(reference.state_dict())
    for weight in ours.named_weights().values():
        weight.zero_()
    torch.testing.assert_close(ours.named_weights(), _weights(reference, ours))


def test_gradients_are_zeros_before_any():
    reference = _official()
    ours = from_official(reference.state_dict())
    zeros = {name: torch.zeros_like(w) for name, w in _weights(reference, ours).items()}
    torch.testing.assert_close(ours.named_gradients(), zeros)


def test_sizes_and_the_order_of_features_follow_from_the_weights():
    reference = _official(tasks=3, own=2, shared=4, layers=2, width=5)
    ours = from_official(reference.state_dict(), num_tasks=3)
    config = ours.config
    assert (config.num_layers, config.num_specific_experts, config.num_shared_experts) == (2, 2, 4)
    assert config.expert_hidden_units == (7, 6)
    assert (config.gate_hidden_units, config.tower_hidden_units) == ((5,), (4,))
    assert [f.name for f in ours.schema.features] == list(VOCABULARY)
    assert {n: tuple(t.shape) for n, t in ours.tables.items()} == {
        "user": (8, 20),
        "item": (11, 20),
        "city": (3, 20),
    }
    assert ours.ignored == ("stem_layers.1.gate.3",)


def test_the_last_shared_gate_may_be_there_or_not():
    state = _official().state_dict()
    without = {k: v for k, v in state.items() if not k.startswith("stem_layers.0.gate.2")}
    assert len(without) < len(state)
    both = (_ours(from_official(s), _features()) for s in (state, without))
    torch.testing.assert_close(*both)


def test_a_state_dict_in_sorted_order_needs_the_features_order():
    reference = _official()
    state = dict(sorted(reference.state_dict().items()))
    ours = from_official(state, features=list(VOCABULARY))
    torch.testing.assert_close(_ours(ours, _features()), reference(_features()))


def test_padding_looks_up_nothing_and_moves_nothing():
    reference = _official()
    ours = from_official(reference.state_dict())
    ids = torch.zeros(2, 3, dtype=torch.int64)
    ours.logits(ids, torch.zeros(2, 2, dtype=torch.float64)).sum().backward()
    assert not any(grad_of(table).any() for table in ours.tables.values())


def test_tables_go_to_the_store_bucket_by_bucket():
    ours = from_official(_official().state_dict())
    values = ours.store_values(num_buckets=3)
    assert list(values) == ["user/values", "item/values", "city/values"]
    torch.testing.assert_close(
        values["user/values"], ours.tables["user"].detach()[[0, 3, 6, 1, 4, 7, 2, 5]]
    )


@pytest.mark.parametrize("num_buckets", [1, 4, 1024])
def test_tables_loaded_into_the_store_give_the_official_outputs(num_buckets):
    reference, features = _official(torch.float32), _features(torch.float32)
    ours = from_official(reference.state_dict())
    layout = Layout.of(ours.schema)
    shape = InputShape.of(layout, reference.width, task_specific=True)
    config = EmbeddingSection(width=reference.width, num_buckets=num_buckets)
    store = LocalTables(table_specs(ours.schema, shape), config, seed=0)
    store.load_state({**store.state(), **ours.store_values(store.num_buckets)})
    batch = labelled(torch.zeros(NUM_ROWS, 2))
    batch.ids_BC = torch.stack([features[name] for name in IDS], dim=1) - 1
    batch.numeric_BN = torch.stack([features[name] for name in NUMERIC], dim=1)
    rows = store.lookup(batch.ids_BC, layout)
    inputs = assemble(rows, batch, layout, shape.num_views, shape.width)
    torch.testing.assert_close(ours.model(inputs), reference(features))


def test_an_id_past_its_table_is_an_error_naming_the_feature():
    ours = from_official(_official().state_dict())
    ids = torch.tensor([[8, 11, 3], [1, 12, 1]])
    with pytest.raises(IdOutOfRange, match="an id of item is out of range"):
        ours.logits(ids, torch.zeros(2, 2, dtype=torch.float64))


def _without(name: str):
    return lambda state: state.pop(name)


def _with(name: str, *shape: int):
    return lambda state: state.update({name: torch.zeros(*shape)})


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (_without("tower.1.mlp.0.bias"), "tower.1"),
        (_without("stem_layers.0.gate.1.mlp.2.weight"), "stem_layers.0.gate.1"),
        (_without("stem_layers.0.specific_experts.1.0.mlp.2.weight"), "specific_experts"),
        (_with("tower.2.mlp.0.weight", 4, 6), "tower.2"),
        (_with("tower.0.mlp.1.weight", 4), "tower.0.mlp.1.weight"),
        (_with("tower.0.mlp.1.running_mean", 4), "running_mean"),
        (_with("stem_layers.0.shared_experts.0.mlp.0.weight", 7, 14), "shared_experts"),
        (_with(_key("user"), 9, 10), "embeddings"),
        (_with(_key("extra"), 9, 9), "reading 15 floats"),
        (_with("stem_layers.0.gate.0.mlp.2.weight", 9, 5), "gates"),
        (lambda state: state.clear(), "no experts"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(damage, named):
    state = dict(_official().state_dict())
    damage(state)
    with pytest.raises(InputError, match="not those of an official STEM model") as error:
        from_official(state)
    assert named in error.value.got


def test_another_number_of_tasks_than_said_is_refused():
    with pytest.raises(InputError, match="weights of 2 tasks"):
        from_official(_official().state_dict(), num_tasks=3)
