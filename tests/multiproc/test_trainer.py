"""Training on 1, 2 and 3 ranks: same losses, same batches, exact resume, one failure for all."""

import time
from pathlib import Path

import pytest
import torch

from helpers.damage import spoil_row_group
from helpers.logs import small_log
from helpers.procs import run_ranks
from helpers.training import (
    bytes_of,
    final_checkpoint,
    read_lines,
    small_config,
    train_on_rank,
    weights_of,
)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("log")
    small_log(folder, rows=5000)
    return str(folder)


def rows_by_step(results: list[dict]) -> dict[int, set[tuple[int, int]]]:
    """The global batch of each step, from every rank's part."""
    merged: dict[int, set[tuple[int, int]]] = {}
    for result in results:
        for step, rows in result["rows"].items():
            merged.setdefault(step, set()).update(map(tuple, rows))
    return merged


@pytest.mark.parametrize("rows", ["rowwise_adagrad", "lazy_adam", "dense_adam"])
def test_one_two_and_three_ranks_train_alike(log: str, rows: str) -> None:
    runs = {}
    for world_size in (1, 2, 3):
        values = small_config(
            log,
            f"name=alike-{rows}-{world_size}",
            f"optimizer.rows.name={rows}",
            "train.num_epochs=4",
            "train.max_steps=50",
        )
        runs[world_size] = run_ranks(train_on_rank, world_size, values)
    alone = runs[1][0]
    assert alone["error"] is None and len(alone["losses"]) == 50
    weights = weights_of(final_checkpoint(alone["run"]))
    for world_size in (2, 3):
        several = runs[world_size]
        assert rows_by_step(several) == rows_by_step(runs[1])
        for step, losses in alone["losses"].items():
            assert several[0]["losses"][step] == pytest.approx(losses, rel=2e-4, abs=2e-6)
        others = weights_of(final_checkpoint(several[0]["run"]))
        assert others.keys() == weights.keys()
        for key, tensor in weights.items():
            torch.testing.assert_close(others[key], tensor, rtol=5e-3, atol=5e-4, msg=key)


def test_ranks_start_alike_from_another_runs_weights(log: str) -> None:
    first = run_ranks(train_on_rank, 2, small_config(log, "name=first", "train.max_steps=9"))
    start = f"init_from={final_checkpoint(first[0]['run']).folder.url}"
    rates = "optimizer.rows.lr_by_table={item: 0.3, user: 0.0}"
    losses = {}
    for world_size in (1, 2, 3):
        values = small_config(log, f"name=second-{world_size}", start, rates, "train.max_steps=9")
        results = run_ranks(train_on_rank, world_size, values)
        losses[world_size] = results[0]["losses"]
        weights = weights_of(final_checkpoint(results[0]["run"]))
        still = weights_of(final_checkpoint(first[0]["run"]))["user/values"]
        assert torch.equal(weights["user/values"], still)
    for world_size in (2, 3):
        for step, wanted in losses[1].items():
            assert losses[world_size][step] == pytest.approx(wanted, rel=2e-4, abs=2e-6)


def test_every_row_is_trained_once_an_epoch(log: str) -> None:
    values = small_config(log, "name=once", "train.num_epochs=2")
    results = run_ranks(train_on_rank, 3, values)
    steps = max(results[0]["losses"]) + 1
    for epoch in range(2):
        seen = [
            tuple(row)
            for result in results
            for step, rows in result["rows"].items()
            if step * 2 // steps == epoch
            for row in rows
        ]
        assert len(seen) == len(set(seen)) == 4000
    assert results[0]["state"]["rows"] == 8000


def test_a_run_left_at_any_step_ends_in_the_same_bytes(log: str) -> None:
    every = ["checkpoint.every_steps=3", "train.max_steps=14", "train.report_every_steps=4"]
    whole = run_ranks(train_on_rank, 2, small_config(log, "name=whole", *every))
    wanted = bytes_of(whole[0]["run"])
    for step in (2, 5, 9, 13):
        values = small_config(log, f"name=left-{step}", *every)
        run_ranks(train_on_rank, 2, values, None, step)
        resumed = run_ranks(train_on_rank, 2, values)
        assert resumed[0]["start"] % 3 == 0 and resumed[0]["start"] <= step
        assert bytes_of(resumed[0]["run"]) == wanted
        timeless = [
            {k: v for k, v in line.items() if k != "rows_per_s"}
            for line in read_lines(resumed[0]["run"])
        ]
        assert [line["step"] for line in timeless] == [
            line["step"] for line in read_lines(whole[0]["run"])
        ]


def test_a_run_saved_on_three_ranks_goes_on_with_two_on_the_unseen_rows(log: str) -> None:
    few = ["checkpoint.every_steps=5", "train.max_steps=20"]
    whole = run_ranks(train_on_rank, 3, small_config(log, "name=three", *few))
    values = small_config(log, "name=three-two", *few)
    run_ranks(train_on_rank, 3, values, None, 12)
    resumed = run_ranks(train_on_rank, 2, values)
    start = resumed[0]["start"]
    assert start in (5, 10)
    wanted = {s: rows for s, rows in rows_by_step(whole).items() if s >= start}
    assert rows_by_step(resumed) == wanted
    for step in range(start, 20):
        assert resumed[0]["losses"][step] == pytest.approx(whole[0]["losses"][step], rel=2e-4)


@pytest.mark.parametrize(
    ("how", "kind", "text"),
    [
        ("read", "RankFailed", "the disk is on fire"),
        ("id", "IdOutOfRange", "1000000"),
        ("nan", "NonFinite", "row group"),
    ],
)
def test_one_ranks_failure_ends_all_with_the_same_message(
    log: str, how: str, kind: str, text: str
) -> None:
    values = small_config(log, f"name=fails-{how}", "checkpoint.every_steps=2")
    began = time.monotonic()
    results = run_ranks(train_on_rank, 3, values, {"rank": 1, "step": 5, "how": how})
    assert time.monotonic() - began < 30
    errors = {result["error"] for result in results}
    assert len(errors) == 1
    error = errors.pop()
    assert error.startswith(kind) and text in error
    if how == "nan":
        assert "step 5" in error and "part-" in error and "step-00000004" in error


def test_training_on_one_rank_needs_no_process_group(log: str) -> None:
    result = train_on_rank(small_config(log, "name=alone", "train.max_steps=3"))
    assert result["error"] is None and result["state"]["stopped"] == "max_steps"


def test_a_notice_that_a_node_goes_saves_at_once_and_loses_no_step(log: str) -> None:
    sizes = ["train.num_epochs=2", "checkpoint.every_steps=100"]
    whole = run_ranks(train_on_rank, 2, small_config(log, "name=not-warned", *sizes))
    values = small_config(log, "name=warned", *sizes)
    first = run_ranks(train_on_rank, 2, values, None, None, 7)
    assert first[0]["state"]["step"] == 7 and first[0]["state"]["stopped"] is None
    second = run_ranks(train_on_rank, 2, values)
    assert second[0]["start"] == 7 and second[0]["error"] is None
    assert rows_by_step(first) | rows_by_step(second) == rows_by_step(whole)
    assert bytes_of(second[0]["run"]) == bytes_of(whole[0]["run"])


def test_a_damaged_row_group_is_named_or_by_policy_skipped_and_counted(tmp_path: Path) -> None:
    small_log(tmp_path, rows=2500)
    part = sorted((tmp_path / "train").glob("*.parquet"))[0]
    lost = spoil_row_group(part, 1)
    failed = run_ranks(train_on_rank, 2, small_config(str(tmp_path), "name=failed"))
    for result in failed:
        assert "a chunk of the log cannot be read" in result["error"]
        assert f"{part.name}, row group 1" in result["error"]
    skipping = "data.on_unreadable=skip"
    runs = {
        size: run_ranks(
            train_on_rank, size, small_config(str(tmp_path), f"name=skip-{size}", skipping)
        )
        for size in (1, 2)
    }
    for results in runs.values():
        state = results[0]["state"]
        assert state["skipped_rows"] == 2 * lost and state["rows"] == 2 * (2000 - lost)
    assert rows_by_step(runs[1]) == rows_by_step(runs[2])
    assert read_lines(runs[2][0]["run"])[-1].get("skipped_rows", 2 * lost) == 2 * lost
    assert any("skipped_rows" in line for line in read_lines(runs[2][0]["run"]))
