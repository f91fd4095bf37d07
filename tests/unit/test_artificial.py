"""The papers' artificial logs hold what their formulas say."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.training import small_config, train_on_rank
from raymtl.batch import Layout
from raymtl.config import parse, read_yaml
from raymtl.data.artificial import DephnLog, MmoeLog, related, unrelated
from raymtl.data.artificial_config import DephnLogConfig, MmoeLogConfig
from raymtl.data.decode import decode
from raymtl.data.synth_config import SynthConfig
from raymtl.data.synthetic import parse_log, write_log
from raymtl.errors import InputError
from raymtl.schema import LogSchema


def mmoe(**values: Any) -> MmoeLog:
    return MmoeLog.of(MmoeLogConfig(kind="mmoe", **values))


def dephn(**values: Any) -> DephnLog:
    return DephnLog.of(DephnLogConfig(kind="dephn", **values))


def label_pearson(log: MmoeLog, rows: int = 20_000) -> float:
    _, labels = log.draw(np.random.default_rng(5), rows)
    return float(np.corrcoef(labels.T)[0, 1])


def read(folder: Path, split: str) -> pa.Table:
    return pa.concat_tables([pq.read_table(f) for f in sorted((folder / split).glob("*.parquet"))])


@pytest.mark.parametrize("p", [-1.0, -0.5, 0.0, 0.3, 0.98, 1.0])
@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_the_weights_have_length_c_and_cosine_p(p, scale):
    first, second = mmoe(correlation=p, scale=scale, num_features=37).weights_2D
    lengths = np.linalg.norm(first), np.linalg.norm(second)
    assert lengths == pytest.approx((scale, scale), abs=1e-6)
    assert first @ second / scale**2 == pytest.approx(p, abs=1e-6)


@pytest.mark.parametrize("p", [-0.5, 0.0, 0.7])
def test_without_sines_the_labels_correlate_by_p(p):
    log = mmoe(correlation=p, num_sines=0, noise_std=0)
    assert label_pearson(log) == pytest.approx(p, abs=0.02)


def test_labels_are_the_formula_term_by_term():
    log = mmoe(correlation=0.3, num_features=5, num_sines=3, noise_std=0)
    x, labels = log.draw(np.random.default_rng(0), 4)
    assert (log.alpha.tolist(), log.beta.tolist()) == ([1, 2, 3], [0, 1, 4])
    for row in range(4):
        for k in range(2):
            s = sum(float(log.weights_2D[k, d]) * float(x[row, d]) for d in range(5))
            wanted = s + np.sin(s) + np.sin(2 * s + 1) + np.sin(3 * s + 4)
            assert labels[row, k] == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("constants", ["counting", "normal"])
def test_at_1_without_noise_both_labels_are_the_same(constants):
    log = mmoe(correlation=1.0, noise_std=0, constants=constants)
    _, labels = log.draw(np.random.default_rng(0), 100)
    assert (labels[:, 0] == labels[:, 1]).all() and labels.std() > 0.5


def test_noise_is_independent_and_of_the_chosen_size():
    quiet, noisy = mmoe(correlation=1.0, noise_std=0), mmoe(correlation=1.0, noise_std=0.1)
    x, labels = noisy.draw(np.random.default_rng(0), 20_000)
    noise = labels - quiet.labels(x)
    assert noise.std(axis=0) == pytest.approx([0.1, 0.1], rel=0.03)
    assert np.corrcoef(noise.T)[0, 1] == pytest.approx(0, abs=0.03)


@pytest.mark.parametrize(
    "setting",
    [{}, {"scale": 1.0}, {"scale": 1.0, "constants": "normal", "num_features": 512}],
    ids=["ours", "google-research", "PLE"],
)
def test_the_labels_correlation_rises_with_p(setting):
    dial = (0.0, 0.4, 0.6, 0.8, 0.9, 0.95, 1.0)
    found = [label_pearson(mmoe(correlation=p, **setting), 10_000) for p in dial]
    assert found == sorted(found)
    assert found[0] == pytest.approx(0, abs=0.03) and found[-1] > 0.97
    if not setting:  # the paper's figure 2, read by eye
        assert found[1:6] == pytest.approx([0.06, 0.10, 0.20, 0.31, 0.45], abs=0.15)


def test_minus_p_does_not_just_turn_the_labels_correlation():
    there, back = (label_pearson(mmoe(correlation=p)) for p in (1.0, -1.0))
    assert there > 0.99 and abs(there + back) > 0.3


def test_directions_and_sines_do_not_depend_on_p():
    one, other = mmoe(correlation=0.1, constants="normal"), mmoe(correlation=0.9)
    assert (one.weights_2D[0] == other.weights_2D[0]).all()
    again = mmoe(correlation=0.9, constants="normal")
    assert (one.alpha == again.alpha).all() and len(np.unique(one.alpha)) == 10


def test_dephns_scores_have_the_values_computed_by_hand():
    c = np.array([-2.0, -0.5, 0.0, 0.5, 3.0])
    sizes = [2 * np.log(3) + 0.1 * np.e**2, 2 * np.log(1.5) + 0.1 * np.e**0.5]
    last = 2 * np.log(4) + 0.1 * np.e**3
    assert related(c) == pytest.approx([-sizes[0], -sizes[1], 0, sizes[1], last])
    sizes = [2 * np.sin(2) + 0.1 * np.cos(2), 2 * np.sin(0.5) + 0.1 * np.cos(0.5)]
    last = 2 * np.sin(3) + 0.1 * np.cos(3)
    assert unrelated(c) == pytest.approx([-sizes[0], -sizes[1], 0, sizes[1], last])


def test_dephns_labels_correlate_as_the_paper_reports():
    for seed in (2023, 1):
        tasks = dephn(seed=seed).facts()["tasks"]
        assert tasks["related"]["label_pearson"] == pytest.approx(0.9877, abs=0.005)
        assert tasks["unrelated"]["label_pearson"] == pytest.approx(0.5288, abs=0.02)
        assert tasks["base"]["positive_rate"] == pytest.approx(0.28, abs=0.02)


def test_dephns_score_has_the_chosen_mean_and_spread_and_stays_in_bounds():
    log = dephn(score_mean=1.0, score_std=3.0)
    rng = np.random.default_rng(0)
    c = log.scores(log.ids(rng, 20_000), rng)["base"]
    assert (c.mean(), c.std()) == pytest.approx((1.0, 3.0), abs=0.08)
    wild = dephn(score_std=1e4)
    assert np.abs(wild.scores(wild.ids(rng, 500), rng)["base"]).max() == 15
    assert wild.facts()["tasks"]["related"]["positive_rate"] == pytest.approx(0.5, abs=0.02)


LOGS: dict[str, dict[str, Any]] = {
    "mmoe": {"kind": "mmoe", "num_features": 6},
    "dephn": {"kind": "dephn", "num_fields": 3, "num_values": 20},
}
SMALL = {"rows": 3000, "block_rows": 700, "chunk_rows": 128}


@pytest.mark.parametrize("kind", LOGS)
def test_a_log_reads_by_its_own_schema_and_repeats_byte_for_byte(tmp_path, kind):
    config = parse_log({**LOGS[kind], **SMALL}, "a test")
    truth = write_log(config, str(tmp_path / "log"))
    table = read(tmp_path / "log", "train")
    schema = parse(LogSchema, read_yaml(tmp_path / "log" / "train" / "schema.yaml"), "schema.yaml")
    schema.check(table.schema, "train")
    schema.require_ready()
    out = decode(table, schema, Layout.of(schema), "train")
    assert truth["rows"] == {"train": 2400, "valid": 300, "test": 300}
    assert len(out["labels"]) == 2400 and np.isfinite(out["labels"]).all()
    assert json.loads((tmp_path / "log" / "truth.json").read_text()) == truth
    assert write_log(config, str(tmp_path / "log")) == truth
    write_log(config, str(tmp_path / "again"))
    for file in (tmp_path / "log").rglob("*.parquet"):
        twin = tmp_path / "again" / file.relative_to(tmp_path / "log")
        assert twin.read_bytes() == file.read_bytes()


@pytest.mark.parametrize("kind", LOGS)
@pytest.mark.parametrize("name", ["shared_bottom", "dephn"])
def test_models_learn_from_these_logs(tmp_path, kind, name):
    write_log(parse_log({**LOGS[kind], **SMALL}, "a test"), str(tmp_path))
    units = "bottom" if name == "shared_bottom" else "expert"
    model = {"name": name, f"{units}_hidden_units": [16]}
    more = ["validation.metric=rmse"] if kind == "mmoe" else []
    done = train_on_rank(small_config(str(tmp_path), *more, model=model))
    assert done["error"] is None and len(done["losses"]) >= 16
    losses = [values[0] for _, values in sorted(done["losses"].items())]
    assert np.mean(losses[-4:]) < np.mean(losses[:4])


@pytest.mark.parametrize(
    ("second", "tasks"),
    [
        ("related", ["base", "related"]),
        ("unrelated", ["base", "unrelated"]),
        ("both", ["base", "related", "unrelated"]),
    ],
)
def test_the_second_task_is_chosen(second, tasks):
    assert [task.name for task in dephn(second=second).schema().tasks] == tasks


def test_the_kind_picks_the_config_and_planted_needs_none():
    assert parse_log({"rows": 10}, "here") == SynthConfig(rows=10)
    assert isinstance(parse_log({"kind": "mmoe"}, "here"), MmoeLogConfig)
    with pytest.raises(InputError, match="no such kind of generated log"):
        parse_log({"kind": "moe"}, "here")
    with pytest.raises(InputError, match="unknown key conflict"):
        parse_log({"kind": "dephn", "conflict": 1}, "here")


def test_a_log_of_one_kind_is_not_taken_for_one_of_another(tmp_path):
    write_log(parse_log({**LOGS["dephn"], **SMALL}, "here"), str(tmp_path))
    with pytest.raises(InputError, match="holds something else"):
        write_log(parse_log({**LOGS["mmoe"], **SMALL}, "here"), str(tmp_path))
