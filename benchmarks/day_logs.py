"""Logs day after day for seven_days.py: generated ones that grow, and KuaiRand's April days.

Each day is prepared as users would: the first fits the transforms, every later one extends them.
"""

from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from raymtl.config import parse
from raymtl.data.planted import Draw, World, block_table, power_law
from raymtl.data.prepare import prepare
from raymtl.data.prepare_config import PrepareConfig
from raymtl.data.synth_config import DEVICES, HOURS, SynthConfig
from raymtl.data.synthetic import plant
from raymtl_jobs import names
from raymtl_jobs.quiet import ray_session

FIRST_USERS, NEW_USERS = 5000, 700
FIRST_ITEMS, NEW_ITEMS = 1000, 150
"""There on the first day, and new ones on each day after it."""
NEWNESS = 0.5
"""Items are shown in proportion to their age's rank to the power of minus this."""


@dataclass(frozen=True)
class Days:
    """What seven_days.py trains on."""

    titles: tuple[str, ...]
    configs: tuple[PrepareConfig, ...]
    """How each day's log is made."""
    train: dict[str, Any]
    """Keys of every training config."""
    pretrain: dict[str, Any] = field(default_factory=dict)
    """Keys of a first training on the first log's split `pretrain`; empty: there is none."""
    epochs: int = 1
    """Passes of a model that sees one day alone."""

    def prepared(self, folder: Path) -> list[Path]:
        """Each day's log below a folder; those that are there already are kept."""
        logs = [folder / f"day-{number + 1}" for number in range(len(self.configs))]
        missing = [n for n, log in enumerate(logs) if not (log / "result.json").exists()]
        with ray_session(None) if missing else nullcontext():
            for number in missing:
                before = str(logs[number - 1]) if number else None
                prepare(self.configs[number], str(logs[number]), like=before, extend=number > 0)
        return logs


class Day(World):
    """A day on which users and items beyond those of the days before are met, newest items most."""

    def __init__(self, config: SynthConfig, day: int):
        super().__init__(config)
        self.num_users = FIRST_USERS + day * NEW_USERS
        self.num_items = FIRST_ITEMS + day * NEW_ITEMS

    def draw(self, rng: np.random.Generator, rows: int) -> Draw:
        """Users by how active they are, whenever they came; items by how new they are."""
        activity = np.exp(np.random.default_rng([self.seed, 7]).standard_normal(self.num_users))
        until = np.cumsum(activity)
        user = 1 + np.searchsorted(until, rng.random(rows) * until[-1], side="right")
        item = self.num_items + 1 - power_law(rng.random(rows), self.num_items, NEWNESS)
        hour, device = rng.integers(1, HOURS + 1, rows), rng.integers(0, len(DEVICES), rows)
        return Draw(np.minimum(user, self.num_users), item, hour, device)


def generated(folder: Path, num_days: int, rows: int) -> Days:
    """Days of a planted log whose users and items grow; the raw files are written here."""
    tasks = [{"name": "click", "positive_rate": 0.3}, {"name": "like", "positive_rate": 0.1}]
    values = {"num_users": FIRST_USERS, "num_items": FIRST_ITEMS, "history_length": 0}
    config = parse(SynthConfig, {**values, "tasks": tasks}, "the generated days")
    intercepts = np.array(plant(config).intercepts)
    folder.mkdir(parents=True, exist_ok=True)
    for day in range(num_days):
        path = folder / f"day-{day + 1}.parquet"
        if not path.exists():
            table = block_table(Day(config, day), intercepts, day, day * rows, rows)
            pq.write_table(table, path)
    configs = [
        parse(PrepareConfig, GENERATED | {"data_root": str(folder), "sources": [source]}, "a day")
        for source in ({"name": "day", "url": f"day-{n + 1}.parquet"} for n in range(num_days))
    ]
    titles = tuple(f"day {n + 1}" for n in range(num_days))
    return Days(titles, tuple(configs), TRAIN)


def kuairand(data: str) -> Days:
    """25 to 30 April 2022: ids and attributes of users, videos and context.

    Lists and rates of earlier rows are left out: they would carry the past into any model.
    """
    dates = range(20220425, 20220431)
    values, source = names.read("kuairand_prepare", "prepare")
    made = {part["name"] for part in (*values["sequences"]["lists"], *values["rates"])}
    made |= {f"{rate['name']}_count" for rate in values["rates"]}
    features = [f for f in values["schema"]["features"] if f["name"] not in made]
    values |= {"sequences": None, "rates": [], "schema": values["schema"] | {"features": features}}
    values["data_root"] = data
    configs = []
    for number, date in enumerate(dates):
        train = [{"source": "impressions", "column": "date", "equals": date}]
        split: dict[str, Any] = {"by": "source", "train": train}
        if number == 0:
            split["pretrain"] = [{"source": "history"}]
        sources = values["sources"] if number == 0 else values["sources"][1:]
        changed = {"split": split, "sources": sources}
        configs.append(parse(PrepareConfig, values | changed, source))
    titles = tuple(f"{date % 100} April" for date in dates)
    return Days(titles, tuple(configs), TRAIN | KUAIRAND, PRETRAIN, epochs=3)


GENERATED: dict[str, Any] = {
    "split": {"by": "source", "train": [{"source": "day"}]},
    "vocabularies": {"min_count": {"user": 2, "item": 2}},
    "chunk_rows": 1024,
    "schema": {
        "group": "user",
        "time": "time",
        "tasks": [{"name": "click", "label": "click"}, {"name": "like", "label": "like"}],
        "features": [
            *(
                {"name": name, "kind": "categorical", "encoding": "vocabulary"}
                for name in ("user", "item", "segment", "category", "hour", "device")
            ),
            {"name": "duration_s", "kind": "numeric", "log1p": True, "standardise": True},
            {"name": "tags", "kind": "bag", "encoding": "vocabulary", "max_length": 4},
        ],
    },
}
TRAIN: dict[str, Any] = {
    "data": {"num_lanes": 8, "chunk_rows": 1024},
    "model": {"name": "stem", "num_shared_experts": 2, "expert_hidden_units": [32]}
    | {"tower_hidden_units": [16], "gate_hidden_units": []},
    "embedding": {"width": 8},
    "optimizer": {"rows": {"lr": 0.05}},
    "train": {"global_batch_size": 512},
    "checkpoint": {"keep_last": 1},
}
KUAIRAND: dict[str, Any] = {
    "data": {"num_lanes": 8, "chunk_rows": 2048},
    "model": {"name": "shared_bottom", "bottom_hidden_units": [128, 64]}
    | {"tower_hidden_units": [32], "dropout": 0.2},
    "embedding": {"width": 16},
    "optimizer": {"rows": {"lr": 0.01}},
}
PRETRAIN: dict[str, Any] = {
    "optimizer": {"rows": {"lr": 0.03}, "schedule": {"name": "linear", "final": 0.1}},
    "train": {"global_batch_size": 2048},
}
