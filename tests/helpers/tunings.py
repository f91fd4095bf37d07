"""Small tuning studies for tests."""

from typing import Any

from raymtl.config import parse
from raymtl_tuning.config import TuneConfig

SPACE: dict[str, Any] = {
    "model.num_shared_experts": {"choice": [1, 2, 4]},
    "model.num_layers": {"randint": [1, 3]},
    "model.isolation": {"choice": ["official", "strict"], "when": {"model.num_layers": 2}},
    "optimizer.rows.lr": {"loguniform": [0.01, 0.3]},
}


def small_tuning(folder: str, **values: Any) -> TuneConfig:
    """STEM's experts, layers and rate on `small_log(folder)`."""
    base = {
        "data": {
            "train": f"{folder}/train",
            "valid": f"{folder}/valid",
            "num_lanes": 4,
            "chunk_rows": 256,
        },
        "train": {"global_batch_size": 256, "num_epochs": 1},
        "validation": {"every_steps": 2},
        "embedding": {"width": 4},
        "model": {
            "name": "stem",
            "expert_hidden_units": [8],
            "gate_hidden_units": [],
            "tower_hidden_units": [4],
        },
    }
    defaults = {
        "storage": f"{folder}/tunings",
        "base": {**base, **values.pop("base", {})},
        "space": SPACE,
        "search": {"method": "random"},
        "trials": 4,
    }
    return parse(TuneConfig, {**defaults, **values}, "a tuning study")
