"""The truth behind a generated log. Pure numpy; every number follows from (seed, what it is of).

True logit of task t, with unit-variance parts:
    intercept_t + signal * (sqrt(.60) u_t . v / sqrt(d) + sqrt(.25) b_t + sqrt(.10) c_t
                            + sqrt(.05) x)
u_t is the user's vector for the task, v the item's, b_t and c_t an item's and a user's bias, x the
standardised log duration. u, b and c of two tasks correlate by 1 - conflict * T / (T - 1).
Half the variance of u comes from the user's segment, half of v's from the item's category.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from raymtl.data.synth_config import DEVICES, HOURS, SynthConfig

START_MS = 1_650_000_000_000
STEP_MS = 50
"""Time between two impressions."""
SAMPLE_ROWS = 32_768
"""Rows the intercepts and the Bayes AUC are estimated on."""
MISSING_DURATIONS = 0.02

STREAMS = ("user", "segment", "item", "category", "item bias", "user bias", "of user", "of item")
STREAMS += ("duration", "tags", "history", "history length")


def uniforms(seed: int, stream: str, ids: np.ndarray, width: int) -> np.ndarray:
    """Counter-based uniforms in (0, 1), float64 (*ids.shape, width); splitmix64 (Steele 2014)."""
    start = _mix(np.array([seed * len(STREAMS) + STREAMS.index(stream)], np.uint64))
    keys = _mix(ids.astype(np.uint64) ^ start)[..., None]
    with np.errstate(over="ignore"):
        steps = np.arange(1, width + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        bits = _mix(keys + steps)
    return ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def normals(seed: int, stream: str, ids: np.ndarray, width: int) -> np.ndarray:
    """Counter-based standard normals, float32 (*ids.shape, width), by Box and Muller."""
    half = (width + 1) // 2
    u = uniforms(seed, stream, ids, 2 * half)
    radius, angle = np.sqrt(-2 * np.log(u[..., :half])), 2 * np.pi * u[..., half:]
    both = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    return both[..., :width].astype(np.float32)


def power_law(u: np.ndarray, size: int, power: float) -> np.ndarray:
    """Uniforms to ids 1..size, id k in proportion to about k^-power; int64 of u's shape."""
    if abs(power - 1) < 1e-9:
        x = (size + 1.0) ** u
    else:
        x = (1 + u * ((size + 1.0) ** (1 - power) - 1)) ** (1 / (1 - power))
    return np.clip(x.astype(np.int64), 1, size)


def _mix(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@dataclass(frozen=True)
class Draw:
    """The rows of one block before their labels."""

    user: np.ndarray
    item: np.ndarray
    hour: np.ndarray
    device: np.ndarray


class World:
    """Users, items and their true preferences; holds nothing but the config."""

    def __init__(self, config: SynthConfig):
        self.config, self.seed = config, config.seed
        self.num_tasks = len(config.tasks)

    @property
    def correlation(self) -> float:
        """Between two tasks' preferences; 1 with a single task."""
        t = self.num_tasks
        return 1 - self.config.conflict * t / (t - 1) if t > 1 else 1.0

    @cached_property
    def mixing(self) -> np.ndarray:
        """Float32 (T, T): rows of unit length whose inner products are the correlation.

        The square root in closed form, so that no LAPACK build shows in the bytes.
        """
        t, apart = self.num_tasks, np.sqrt(1 - self.correlation)
        together = np.sqrt(max(0.0, 1 + (t - 1) * self.correlation))
        mixing = np.full((t, t), (together - apart) / t) + apart * np.eye(t)
        return mixing.astype(np.float32)

    def segment(self, users: np.ndarray) -> np.ndarray:
        """int64, 1..num_segments."""
        u = uniforms(self.seed, "of user", users, 1)[..., 0]
        return 1 + _floor(u, self.config.num_segments)

    def category(self, items: np.ndarray) -> np.ndarray:
        """int64, 1..num_categories."""
        u = uniforms(self.seed, "of item", items, 1)[..., 0]
        return 1 + _floor(u, self.config.num_categories)

    def user_vectors(self, users: np.ndarray) -> np.ndarray:
        """float32 (n, T, d)."""
        size = self.num_tasks * self.config.latent_width
        own = normals(self.seed, "user", users, size)
        shared = normals(self.seed, "segment", self.segment(users), size)
        both = ((own + shared) / np.sqrt(np.float32(2))).reshape(len(users), self.num_tasks, -1)
        return np.einsum("tk,nkd->ntd", self.mixing, both)

    def item_vectors(self, items: np.ndarray) -> np.ndarray:
        """float32 (n, d)."""
        width = self.config.latent_width
        own = normals(self.seed, "item", items, width)
        return (own + normals(self.seed, "category", self.category(items), width)) / np.sqrt(
            np.float32(2)
        )

    def durations(self, items: np.ndarray) -> np.ndarray:
        """Standard normal z per item; the duration is exp(3 + z) seconds."""
        return normals(self.seed, "duration", items, 1)[..., 0]

    def preferences(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """float32 (n, T), about unit variance: the logit without intercept and signal."""
        user_ids, user_at = np.unique(users, return_inverse=True)
        item_ids, item_at = np.unique(items, return_inverse=True)
        u, v = self.user_vectors(user_ids)[user_at], self.item_vectors(item_ids)[item_at]
        taste = np.einsum("ntd,nd->nt", u, v) / np.sqrt(np.float32(self.config.latent_width))
        b = self._biases("item bias", item_ids)[item_at]
        c = self._biases("user bias", user_ids)[user_at]
        x = self.durations(item_ids)[item_at, None]
        total = 0.60**0.5 * taste + 0.25**0.5 * b + 0.10**0.5 * c + 0.05**0.5 * x
        return total.astype(np.float32)

    def _biases(self, stream: str, ids: np.ndarray) -> np.ndarray:
        """float32 (n, T); by einsum, whose sums do not depend on threads as BLAS's may."""
        return np.einsum("tk,nk->nt", self.mixing, normals(self.seed, stream, ids, self.num_tasks))

    def draw(self, rng: np.random.Generator, rows: int) -> Draw:
        """Who is shown what, by chance."""
        c = self.config
        return Draw(
            power_law(rng.random(rows), c.num_users, c.power),
            power_law(rng.random(rows), c.num_items, c.power),
            rng.integers(1, HOURS + 1, rows),
            rng.integers(0, len(DEVICES), rows),
        )

    def history(self, users: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Each user's earlier items that some task prefers, and which task does most.

        Returns:
            items and actions (1..T), int64 (n, history_length), valid up to lengths (n,).
        """
        c, num = self.config, self.config.history_length
        u = uniforms(self.seed, "history", users, 2 * num)
        items = power_law(u, c.num_items, c.power)
        ids, at = np.unique(items, return_inverse=True)
        v = self.item_vectors(ids)[at.reshape(items.shape)]
        scores = np.einsum("ntd,nmd->nmt", self.user_vectors(users), v)
        liked = scores.max(axis=2) > 0
        order = np.argsort(~liked, axis=1, kind="stable")[:, :num]
        wanted = _floor(uniforms(self.seed, "history length", users, 1)[:, 0], num + 1)
        lengths = np.minimum(wanted, liked.sum(axis=1))
        actions = 1 + scores.argmax(axis=2)
        take = np.take_along_axis
        return take(items, order, axis=1), take(actions, order, axis=1), lengths

    def tags(self, items: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Each item's tags (1..num_tags) and weights, (n, 4), valid up to lengths 1..4 (n,)."""
        u = uniforms(self.seed, "tags", items, 9)
        tags = 1 + _floor(u[:, :4], self.config.num_tags)
        return tags, (0.5 + u[:, 4:8]).astype(np.float32), 1 + _floor(u[:, 8], 4)


def block_table(
    world: World, intercepts: np.ndarray, block: int, first_row: int, rows: int
) -> pa.Table:
    """The rows of one block; the same whoever makes it.

    Args:
        intercepts: (T,).
        block: number of the block in the whole log; with the seed it decides everything.
        first_row: number of its first row in the whole log, which gives the time.
    """
    c, rng = world.config, np.random.default_rng([world.seed, 1, block])
    d = world.draw(rng, rows)
    missing = rng.random(rows) < MISSING_DURATIONS
    columns: dict[str, pa.Array] = {
        "user": pa.array(d.user),
        "item": pa.array(d.item),
        "segment": pa.array(world.segment(d.user)),
        "category": pa.array(world.category(d.item)),
        "hour": pa.array(d.hour),
        "device": pa.array(np.array(DEVICES, object)[d.device], pa.string()),
        "duration_s": pa.array(np.exp(3 + world.durations(d.item)), mask=missing),
    }
    tags, weights, lengths = world.tags(d.item)
    columns |= {"tags": _lists(tags, lengths), "tag_weights": _lists(weights, lengths)}
    if c.history_length:
        users, at = np.unique(d.user, return_inverse=True)
        items, actions, lengths = (part[at] for part in world.history(users))
        columns["history"] = _lists(items, lengths)
        columns["history_action"] = _lists(actions, lengths)
    columns["time"] = pa.array(START_MS + STEP_MS * (first_row + np.arange(rows)))
    if c.row_weights:
        columns["weight"] = pa.array(0.5 + 1.5 * rng.random(rows))
    probabilities = sigmoid(intercepts + c.signal * world.preferences(d.user, d.item))
    for t, task in enumerate(c.tasks):
        positive = rng.random(rows) < probabilities[:, t]
        unobserved = rng.random(rows) < task.null_share
        columns[task.name] = pa.array(positive.astype(np.int8), mask=unobserved)
    return pa.table(columns)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), float64."""
    return 1 / (1 + np.exp(-logits.astype(np.float64)))


def _floor(u: np.ndarray, size: int) -> np.ndarray:
    return np.minimum((u * size).astype(np.int64), size - 1)


def _lists(values: np.ndarray, lengths: np.ndarray) -> pa.Array:
    """A list column from (n, most) values, valid up to each row's length."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    valid = np.arange(values.shape[1]) < lengths[:, None]
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values[valid]))
