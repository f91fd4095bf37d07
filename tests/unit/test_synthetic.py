"""Generated logs hold what was planted."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.logs import small_log
from raymtl.batch import Layout
from raymtl.config import parse, read_yaml
from raymtl.data.decode import decode
from raymtl.data.planted import World, power_law
from raymtl.data.synthetic import (
    SynthConfig,
    SynthTask,
    block_of,
    expected_auc,
    num_blocks,
    write_log,
)
from raymtl.errors import InputError
from raymtl.schema import LogSchema


def read(folder: Path, split: str) -> pa.Table:
    files = sorted((folder / split).glob("*.parquet"))
    return pa.concat_tables([pq.read_table(file) for file in files])


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def preferences(conflict: float, num_tasks: int) -> np.ndarray:
    """Correlation matrix of the tasks' preferences over random users and items."""
    tasks = [SynthTask(name=f"t{i}") for i in range(num_tasks)]
    world = World(SynthConfig(tasks=tasks, conflict=conflict))
    rng = np.random.default_rng(0)
    users, items = rng.integers(1, 10**6, 4000), rng.integers(1, 10**6, 4000)
    return np.corrcoef(world.preferences(users, items).T)


def test_rates_and_nulls_are_the_chosen_ones(tmp_path):
    tasks = [
        SynthTask(name="click", positive_rate=0.4),
        SynthTask(name="like", positive_rate=0.05, null_share=0.5),
    ]
    # A flat draw of users and items: under a power law a few heads decide the rate.
    config = SynthConfig(rows=30_000, num_users=20_000, num_items=5_000, power=0, tasks=tasks)
    truth = write_log(config, str(tmp_path))
    table = read(tmp_path, "train")
    click, like = (table[name].to_numpy().astype(float) for name in ("click", "like"))
    assert table.num_rows == truth["rows"]["train"] == 24_000
    assert np.isnan(click).sum() == 0 and abs(click.mean() - 0.4) < 0.02
    assert abs(np.isnan(like).mean() - 0.5) < 0.02
    assert abs(np.nanmean(like) - 0.05) < 0.01


def test_no_conflict_means_one_preference_for_all_tasks():
    np.testing.assert_allclose(preferences(0.0, 3), 1, atol=1e-5)


def test_conflict_moves_two_tasks_from_equal_over_independent_to_opposite():
    # 5 % of the variance (the duration) is common to both tasks whatever the conflict is.
    assert preferences(0.5, 2)[0, 1] == pytest.approx(0.05, abs=0.06)
    assert preferences(1.0, 2)[0, 1] == pytest.approx(-0.9, abs=0.03)
    assert World(SynthConfig(conflict=1.0)).correlation == -1


def test_three_tasks_are_at_most_half_opposite():
    got = preferences(1.0, 3)
    wanted = 0.05 + 0.95 * -0.5
    np.testing.assert_allclose(got[np.triu_indices(3, 1)], wanted, atol=0.06)


@pytest.mark.parametrize("power", [0.0, 0.7, 1.0, 1.5])
def test_ids_follow_the_power_law(power):
    ids = power_law((np.arange(10**6) + 0.5) / 10**6, 1000, power)
    counts = np.bincount(ids, minlength=1001)[1:]
    assert ids.min() == 1 and counts[0] == counts.max()
    for k in (10, 40):  # averaged over [k, k + 1), so close to (k + 1/2)^-power
        wanted = ((k + 0.5) / (4 * k + 0.5)) ** -power
        assert counts[k - 1] / counts[4 * k - 1] == pytest.approx(wanted, rel=0.05)


def test_the_bayes_auc_is_that_of_the_true_probabilities():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    p = rng.beta(1, 3, 20_000)
    labels = rng.random((5, 20_000)) < p
    measured = np.mean([roc_auc_score(y, p) for y in labels])
    assert expected_auc(p) == pytest.approx(measured, abs=0.004)
    assert expected_auc(np.full(100, 0.3)) == pytest.approx(0.5)


def test_a_log_reads_by_its_own_schema_and_repeats_byte_for_byte(tmp_path):
    for encoding in ("index", "hash"):
        config = SynthConfig(rows=2000, block_rows=700, chunk_rows=300, encoding=encoding)
        write_log(config, str(tmp_path / encoding))
        table = read(tmp_path / encoding, "train")
        values = read_yaml(tmp_path / encoding / "train" / "schema.yaml")
        schema = parse(LogSchema, values, "schema.yaml")
        schema.check(table.schema, "train")
        schema.require_ready()
        out = decode(table, schema, Layout.of(schema), "train")
        assert out["ids"].shape[0] == 1600 and (out["ids"][:, :5] > 0).all()
        assert abs(out["numeric"][:, 0].mean()) < 0.5
        write_log(config, str(tmp_path / "again"))
        assert files_of(tmp_path / "again") == files_of(tmp_path / encoding)
        _remove(tmp_path / "again")


def _remove(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()


def test_blocks_cover_every_row_once_in_order_of_time(tmp_path):
    config = SynthConfig(rows=1003, block_rows=100, chunk_rows=30, history_length=0)
    blocks = [block_of(config, i) for i in range(num_blocks(config))]
    assert [b.number for b in blocks] == list(range(len(blocks)))
    write_log(config, str(tmp_path))
    times = [read(tmp_path, split)["time"].to_numpy() for split in ("train", "valid", "test")]
    assert [len(t) for t in times] == [803, 100, 100]
    assert (np.diff(np.concatenate(times)) == 50).all()
    groups = pq.ParquetFile(tmp_path / "train" / "part-000000.parquet").metadata
    assert [groups.row_group(i).num_rows for i in range(groups.num_row_groups)] == [30, 30, 30, 10]


def test_a_made_log_is_left_alone_and_another_folder_is_refused(tmp_path):
    config = SynthConfig(rows=500, history_length=0)
    truth = write_log(config, str(tmp_path / "log"))
    part = tmp_path / "log" / "train" / "part-000000.parquet"
    before = part.stat().st_mtime_ns
    assert write_log(config, str(tmp_path / "log")) == truth
    assert part.stat().st_mtime_ns == before
    with pytest.raises(InputError, match="holds something else"):
        write_log(SynthConfig(rows=501), str(tmp_path / "log"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    with pytest.raises(InputError, match=r"thesis\.tex"):
        write_log(config, str(tmp_path / "other"))


def test_an_interrupted_log_is_finished(tmp_path):
    config = SynthConfig(rows=500, history_length=0)
    write_log(config, str(tmp_path))
    whole = files_of(tmp_path)
    (tmp_path / "truth.json").unlink()
    (tmp_path / "test" / "part-000000.parquet").unlink()
    write_log(config, str(tmp_path))
    assert files_of(tmp_path) == whole


def test_a_task_may_not_take_a_columns_name():
    for name in ("user", "time", "weight"):
        with pytest.raises(InputError, match="name is taken"):
            parse(SynthConfig, {"tasks": [{"name": name}]}, "here")


def test_the_small_log_decodes_and_uses_every_kind_of_thing(tmp_path):
    schema = small_log(tmp_path)
    table = read(tmp_path, "train")
    layout = Layout.of(schema)
    out = decode(table, schema, layout, "train")
    truth = json.loads((tmp_path / "truth.json").read_text())
    assert table.num_rows == truth["rows"]["train"] == 4000
    assert {f.kind for f in schema.features} == {"categorical", "numeric", "bag", "sequence"}
    hidden = np.isnan(out["labels"]).mean(axis=0)
    assert hidden[0] == 0 and 0.25 < hidden[1] < 0.35 and 0.05 < hidden[2] < 0.2
    assert (out["numeric"][:, layout.numeric_names.index("duration_s:missing")] == 1).any()
    assert len(np.unique(out["weights"])) > 100 and out["bag_weights"].any()
