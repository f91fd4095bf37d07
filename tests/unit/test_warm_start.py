"""A new run that starts from another one's weights, and learning rates of single tables."""

import re
import shutil
from pathlib import Path

import pytest
import torch

from helpers.logs import small_log
from helpers.training import read_lines, small_config, train_config, weights_of
from raymtl import alone, warm_start
from raymtl.config import TrainConfig, dump, override, parse
from raymtl.errors import DamagedCheckpoint, InputError
from raymtl.learner import Learner
from raymtl.preflight import check_run, describe, schema_at
from raymtl.run import choose

STILL = ["optimizer.dense.lr=1e-20", "optimizer.rows.lr=1e-20", "train.max_steps=3"]
"""A run that moves nothing."""


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("log")
    small_log(folder, rows=3000)
    return str(folder)


def config(log: str, *overrides: str) -> TrainConfig:
    return train_config(log, "train.max_steps=14", *overrides)


@pytest.fixture(scope="module")
def first(log: str) -> str:
    """The run folder others start from."""
    return alone.train(config(log, "name=first"))["run"]


@pytest.mark.parametrize("rows", ["rowwise_adagrad", "lazy_adam", "dense_adam"])
def test_weights_and_row_states_are_taken_and_all_else_begins_anew(log: str, rows: str) -> None:
    chosen_rows = f"optimizer.rows.name={rows}"
    before = alone.train(config(log, f"name=before-{rows}", chosen_rows))["run"]
    made = config(log, f"name=after-{rows}", chosen_rows, *STILL, f"init_from={before}")
    result = alone.train(made)
    assert result["state"]["step"] == 3, "counted from 0"
    assert read_lines(result["run"])[-1]["step"] == 3
    old, new = weights_of(choose(before)), weights_of(choose(result["run"], "last"))
    assert old.keys() == new.keys()
    for key, tensor in old.items():
        if key.startswith("model/") or key.endswith("/values"):
            torch.testing.assert_close(new[key], tensor, rtol=0, atol=1e-12, msg=key)
    grown = {
        "rowwise_adagrad": "sum_of_squares",
        "lazy_adam": "num_updates",
        "dense_adam": "exp_avg_sq",
    }[rows]
    for key in [k for k in old if k.endswith(f"/{grown}")]:
        least = 0.999**3 if rows == "dense_adam" else 1.0
        assert (new[key] >= old[key] * least * (1 - 1e-6)).all(), key
        assert old[key].any(), key
    steps = [t for key, t in new.items() if key.startswith("optimizer_once/step")]
    assert [float(t) for t in steps] == [3.0], "the dense optimizer begins anew"


def test_a_run_that_was_begun_goes_on_without_the_one_it_started_from(
    log: str, first: str, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(first, copy)
    alone.train(config(log, "name=begun", "train.max_steps=5", f"init_from={copy}"))
    whole = alone.train(config(log, "name=not-cut", "train.max_steps=9", f"init_from={first}"))
    kept = choose(str(copy)).folder.url
    shutil.rmtree(copy)
    changed = config(log, "name=begun", "train.max_steps=9", f"init_from={kept}")
    resumed = alone.train(changed, resume=True)
    wanted = weights_of(choose(whole["run"], "last"))
    for key, tensor in weights_of(choose(resumed["run"], "last")).items():
        assert torch.equal(tensor, wanted[key]), key


@pytest.mark.parametrize(
    "changes, named",
    [
        (["model.expert_hidden_units=[17]"], "model.expert_hidden_units = [17]"),
        (["model.dropout=0.3"], "model.dropout = 0.3"),
        (["embedding.width=8"], "embedding.width = 8"),
        (["embedding.num_buckets=32"], "embedding.num_buckets = 32"),
        (["optimizer.rows.name=lazy_adam"], "optimizer.rows.name = lazy_adam"),
    ],
)
def test_another_models_weights_are_refused_by_name(
    log: str, first: str, changes: list[str], named: str
) -> None:
    made = config(log, "name=refused", *changes, f"init_from={first}")
    with pytest.raises(InputError, match=re.escape(named)):
        alone.train(made)
    assert not Path(made.storage, "refused").exists()


@pytest.mark.parametrize(
    "part, change, named",
    [
        (
            "features",
            {"name": "renamed", "table": "user", "column": "user"},
            "schema.features.user = none",
        ),
        ("tasks", {"name": "renamed"}, "schema.tasks.click = none"),
        ("tables", {"rows": 999}, "rows = 999"),
    ],
)
def test_another_schema_is_refused_by_name(
    log: str, first: str, tmp_path: Path, part: str, change: dict, named: str
) -> None:
    schema = schema_at(f"{log}/train/schema.yaml")
    values = schema.model_dump(mode="json")
    values[part][0] |= change
    path = tmp_path / "schema.yaml"
    path.write_text(dump(parse(type(schema), values, "test")))
    made = config(log, "name=refused", f"data.schema_path={path}", f"init_from={first}")
    with pytest.raises(InputError, match=f"cannot start from this checkpoint(.|\\n)*{named}"):
        check_run(made, resume=False)


def test_tasks_in_another_order_are_refused(log: str, first: str, tmp_path: Path) -> None:
    schema = schema_at(f"{log}/train/schema.yaml")
    values = schema.model_dump(mode="json")
    values["tasks"] = values["tasks"][::-1]
    path = tmp_path / "schema.yaml"
    path.write_text(dump(parse(type(schema), values, "test")))
    made = config(log, "name=refused", f"data.schema_path={path}", f"init_from={first}")
    with pytest.raises(InputError, match=r"order of schema\.tasks"):
        check_run(made, resume=False)


def test_a_damaged_or_missing_start_is_an_error_before_training(
    log: str, first: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="there is no such checkpoint"):
        check_run(config(log, "name=refused", f"init_from={tmp_path}/none"), resume=False)
    copy = Path(shutil.copytree(choose(first).folder.path, tmp_path / "copy"))
    data = bytearray((copy / "dense.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "dense.safetensors").write_bytes(bytes(data))
    with pytest.raises(DamagedCheckpoint, match="altered"):
        alone.train(config(log, "name=damaged-start", f"init_from={copy}"))


def test_a_table_of_rate_0_stays_as_it_is(log: str) -> None:
    rates = "optimizer.rows.lr_by_table={item: 0.0, user: 0.5}"
    plain = weights_of(choose(alone.train(config(log, "name=plain"))["run"]))
    begin = weights_of(choose(alone.train(config(log, "name=begin", *STILL))["run"], "last"))
    found = weights_of(choose(alone.train(config(log, "name=rates", rates))["run"]))
    assert torch.equal(found["item/values"], begin["item/values"])
    assert not torch.equal(plain["item/values"], begin["item/values"])
    assert (found["user/values"] - plain["user/values"]).abs().max() > 0.1
    unknown = override(small_config(log), ["optimizer.rows.lr_by_table={itm: 0.1}"])
    with pytest.raises(InputError, match="did you mean item"):
        check_run(parse(TrainConfig, unknown, "test"), resume=False)


def test_new_features_and_tasks_begin_seeded_and_are_listed(log: str, tmp_path: Path) -> None:
    whole = schema_at(f"{log}/train/schema.yaml")
    fewer = {
        "features": [f for f in whole.features if f.name not in ("item_hashed", "duration_plain")],
        "tasks": whole.tasks[:2],
    }
    path = tmp_path / "schema.yaml"
    path.write_text(dump(whole.model_copy(update=fewer)))
    before = alone.train(config(log, "name=fewer", f"data.schema_path={path}", "train.max_steps=3"))
    before = before["run"]
    made = config(log, "name=more", "validation.before_training=true", *STILL)
    made = made.model_copy(update={"init_from": choose(before, "last").folder.url})
    job, _ = check_run(made, resume=False)
    told = describe(job).splitlines()[2:]
    assert told == [
        "feature item_hashed is new",
        "feature duration_plain is new",
        "task share is new",
        "table hashed has 64 rows, all new",
    ]
    begun, seeded = (Learner(job.config, job.schema, torch.device("cpu")) for _ in range(2))
    warm_start.start(begun)
    rows, fresh = begun.tables.state(), seeded.tables.state()
    old = weights_of(choose(before, "last"))
    for table in ("user", "item", "category"):
        found, drawn = rows[f"{table}/values"], fresh[f"{table}/values"]
        assert torch.equal(found[:, [*range(8), *range(12, 16)]], old[f"{table}/values"])
        assert torch.equal(found[:, 8:12], drawn[:, 8:12]), "the view of the new task"
        assert not torch.equal(found, drawn)
    assert torch.equal(rows["hashed/values"], fresh["hashed/values"])
    result = alone.train(made)
    assert result["state"]["step"] == 3
    assert set(result["state"]["before_metrics"]) >= {"click/auc", "share/auc"}
