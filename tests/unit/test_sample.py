"""Rows without a positive label, kept in part: weights recover the figures of all rows."""

import numpy as np
import pyarrow as pa
import pytest

from raymtl.analysis.bootstrap import Draws, interval, metrics_of_draws
from raymtl.analysis.cells import Outcomes
from raymtl.analysis.views import Units, views_of
from raymtl.data.planted import World, block_table, sigmoid
from raymtl.data.prepare_config import Sample
from raymtl.data.sample import sampled, uniform
from raymtl.data.synth_config import SynthConfig
from raymtl.data.synthetic import plant
from raymtl.schema import LogSchema
from raymtl.scores import auc, calibration, log_loss

SCHEMA = LogSchema.model_validate(
    {
        "features": [{"name": "item", "kind": "categorical"}],
        "tables": [{"name": "item", "rows": 5}],
        "tasks": [{"name": "click", "label": "click"}, {"name": "buy", "label": "buy"}],
    }
)


def log(rows: int, seed: int) -> tuple[pa.Table, np.ndarray]:
    """Rare labels, a third of `buy` unobserved, and scores that are right on average."""
    rng = np.random.default_rng(seed)
    score = rng.beta(1, 30, rows)
    click = (rng.random(rows) < score).astype(np.int8)
    buy = pa.array((rng.random(rows) < 0.01).astype(np.int8), mask=rng.random(rows) < 0.3)
    return pa.table({"click": click, "buy": buy, "row": np.arange(rows)}), score


def test_positives_stay_and_the_others_weigh_for_those_left_out() -> None:
    table, _ = log(20_000, 1)
    made = sampled(table, Sample(keep=0.1), SCHEMA, "train", np.arange(20_000))
    positive = (table["click"].to_numpy() == 1) | (table["buy"].fill_null(0).to_numpy() == 1)
    kept = made["row"].to_numpy()
    assert set(np.flatnonzero(positive)) <= set(kept)
    weights = made["sample_weight"].to_numpy()
    np.testing.assert_allclose(weights, np.where(positive[kept], 1.0, 10.0))
    assert len(kept) - positive.sum() == pytest.approx((~positive).sum() * 0.1, rel=0.1)


def test_other_splits_keep_all_rows_with_weight_1() -> None:
    table, _ = log(500, 2)
    made = sampled(table, Sample(keep=0.1), SCHEMA, "test", np.arange(500))
    assert made.num_rows == 500
    assert set(made["sample_weight"].to_pylist()) == {1.0}


def test_a_weight_of_the_schema_is_multiplied() -> None:
    table, _ = log(500, 3)
    own = np.linspace(1, 2, 500)
    table = table.append_column("weight", pa.array(own))
    schema = SCHEMA.model_copy(update={"weight": "weight"})
    made = sampled(table, Sample(keep=0.5), schema, "train", np.arange(500))
    rows = made["row"].to_numpy()
    positive = (table["click"].to_numpy() == 1) | (table["buy"].fill_null(0).to_numpy() == 1)
    wanted = own[rows] * np.where(positive[rows], 1, 2)
    np.testing.assert_allclose(made["sample_weight"].to_numpy(), wanted)


def test_the_same_rows_are_kept_however_they_are_cut() -> None:
    table, _ = log(1000, 4)
    whole = sampled(table, Sample(keep=0.2), SCHEMA, "train", np.arange(1000))
    parts = [
        sampled(
            table.slice(first, 250),
            Sample(keep=0.2),
            SCHEMA,
            "train",
            first + np.arange(250),
        )
        for first in range(0, 1000, 250)
    ]
    assert pa.concat_tables(parts).equals(whole)


def test_weighted_metrics_recover_those_of_all_rows() -> None:
    """Each within four standard errors of the sampling, estimated from 20 samples."""
    table, score = log(40_000, 5)
    labels = table["click"].to_numpy().astype(np.float64)
    full = np.array([auc(score, labels), log_loss(score, labels), calibration(score, labels)])
    found = []
    for first in range(0, 20 * 40_000, 40_000):
        places = first + np.arange(40_000)
        made = sampled(table, Sample(keep=0.1), SCHEMA, "train", places)
        rows, weights = made["row"].to_numpy(), made["sample_weight"].to_numpy()
        values = (score[rows], labels[rows], weights)
        found.append([auc(*values), log_loss(*values), calibration(*values)])
        unweighted = calibration(score[rows], labels[rows])
        assert unweighted is not None and unweighted < 0.5, "which is what the weights are for"
    spread = np.std(found, axis=0, ddof=1) / np.sqrt(len(found))
    assert (np.abs(np.mean(found, axis=0) - full) < 4 * spread + 1e-9).all()


def test_the_hash_is_uniform() -> None:
    found = uniform(np.arange(100_000))
    assert found.min() >= 0 and found.max() < 1
    counts, _ = np.histogram(found, bins=20, range=(0, 1))
    assert np.abs(counts / 5000 - 1).max() < 0.06


def test_weighted_metrics_of_a_generated_log_hold_the_unsampled_figures() -> None:
    """Each figure of all rows lies in the 95 % bootstrap interval of the sampled rows."""
    config = SynthConfig(rows=60_000, history_length=0, num_users=3000)
    world, truth = World(config), plant(config)
    table = block_table(world, np.array(truth.intercepts), 0, 0, config.rows)
    schema = config.schema_of(truth.duration_mean, truth.duration_std)
    user, item = table["user"].to_numpy(), table["item"].to_numpy()
    logits = config.signal * world.preferences(user, item) + np.array(truth.intercepts)
    scores_NT = sigmoid(logits)
    made = sampled(
        table.append_column("row", pa.array(np.arange(config.rows))),
        Sample(keep=0.2),
        schema,
        "train",
        np.arange(config.rows),
    )
    kept, weights = made["row"].to_numpy(), made["sample_weight"].to_numpy()
    assert len(kept) < 0.6 * config.rows
    names = tuple(task.name for task in schema.tasks)
    labels_NT = np.stack([table[name].to_numpy() for name in names], axis=1).astype(np.float32)
    weight_NT = np.repeat(weights[:, None], 2, axis=1).astype(np.float32)
    outcomes = Outcomes(names, ("binary",) * 2, user[kept], labels_NT[kept], weight_NT)
    units = Units.of(user[kept])
    views = views_of(outcomes, units, [])
    drawn = metrics_of_draws(views, scores_NT[kept], Draws(units.num_units, 200, seed=1))
    for task, values in enumerate(drawn):
        score, label = scores_NT[:, task], labels_NT[:, task].astype(np.float64)
        for metric, exact in (("auc", auc), ("log_loss", log_loss), ("calibration", calibration)):
            low, high = interval(values[metric])
            full = exact(score, label)
            assert low is not None and high is not None and full is not None
            assert low < full < high, (names[task], metric)
            unweighted = exact(score[kept], label[kept])
            assert metric == "auc" or not low < (unweighted or 0.0) < high, "weights are needed"
