"""Small studies for tests."""

from typing import Any

from raymtl.config import parse
from raymtl.study.config import StudyConfig


def small_study(folder: str, **values: Any) -> StudyConfig:
    """Two small models on `small_log(folder)`, one setting searched."""
    base = {
        "data": {"train": f"{folder}/train", "valid": f"{folder}/valid", "num_lanes": 4},
        "train": {"global_batch_size": 256, "num_epochs": 1},
        "embedding": {"width": 4},
    }
    single = {"name": "single_task", "hidden_units": [8]}
    bottom = {"name": "shared_bottom", "bottom_hidden_units": [8], "tower_hidden_units": [4]}
    defaults = {
        "storage": f"{folder}/studies",
        "test": f"{folder}/test",
        "seeds": [1, 2],
        "search": {"optimizer.rows.lr": [0.02, 0.1]},
        "models": [
            {"label": "single_task", "values": {"model": single}},
            {"label": "bottom", "values": {"model": bottom}, "search": {}},
        ],
        "base": base,
        "compare": {"draws": 20},
    }
    return parse(StudyConfig, {**defaults, **values}, "a study")
