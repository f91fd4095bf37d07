"""A week of daily runs: each scores its day first, and goes on from the day before."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from helpers.days import day_config, items_of, write_day
from helpers.training import read_lines
from raymtl import alone, warm_start
from raymtl.data.frozen import read_frozen, read_vocabulary
from raymtl.errors import InputError
from raymtl.learner import Learner
from raymtl.preflight import check_run, schema_at
from raymtl.run import choose
from raymtl.scores import auc, log_loss
from raymtl.scoring import Pick, checked, drift_of

DAYS = 7
TABLES = ("user", "item", "hour")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("week")


@pytest.fixture(scope="module")
def logs(folder: Path) -> list[str]:
    return [write_day(folder, day) for day in range(1, DAYS + 1)]


@pytest.fixture(scope="module")
def chain(logs: list[str]) -> list[dict]:
    """Each day's result, the runs one after the other."""
    results, start = [], None
    for day, log in enumerate(logs, 1):
        results.append(alone.train(day_config(log, f"day-{day}", start)))
        start = results[-1]["run"]
    return results


def state_of(run: str, log: str) -> dict[str, torch.Tensor]:
    """A learner's tables as a run on `log` begins, from another run."""
    config = day_config(log, "not-run", choose(run, "last").folder.url)
    learner = Learner(config, schema_at(f"{log}/schema.yaml"), torch.device("cpu"))
    warm_start.start(learner)
    return by_row(learner.tables.state())


def saved_in(run: str) -> dict[str, torch.Tensor]:
    """A run's tables as its last checkpoint has them."""
    found = choose(run, "last")
    tensors = found.tensors("tables-00000-of-00001.safetensors")
    return by_row(tensors | found.tensors("replicated.safetensors"))


def by_row(tensors: dict[str, torch.Tensor], buckets: int = 4) -> dict[str, torch.Tensor]:
    """Tensors saved in (bucket, k) order, row 0 first."""
    made = {}
    for key, saved in tensors.items():
        places = torch.arange(len(saved))
        made[key] = saved[torch.argsort(torch.argsort(places % buckets, stable=True))].clone()
    return made


def test_a_week_s_chain_equals_its_checkpoints_table_by_table(
    logs: list[str], chain: list[dict]
) -> None:
    for day in range(2, DAYS + 1):
        before, begun = (
            saved_in(chain[day - 2]["run"]),
            state_of(chain[day - 2]["run"], logs[day - 1]),
        )
        fresh = Learner(
            day_config(logs[day - 1], "fresh"),
            schema_at(f"{logs[day - 1]}/schema.yaml"),
            torch.device("cpu"),
        )
        seeded = by_row(fresh.tables.state())
        assert before.keys() == begun.keys() == seeded.keys()
        for key, saved in before.items():
            assert torch.equal(begun[key][: len(saved)], saved), (day, key)
            assert torch.equal(begun[key][len(saved) :], seeded[key][len(saved) :]), (day, key)
        assert len(begun["item/values"]) == items_of(day) + 1
        assert not torch.equal(
            saved_in(chain[day - 1]["run"])["user/values"], before["user/values"]
        )


def test_growing_one_table_leaves_all_others_byte_for_byte(
    logs: list[str], chain: list[dict]
) -> None:
    before, begun = saved_in(chain[0]["run"]), state_of(chain[0]["run"], logs[1])
    for key in before:
        if not key.startswith("item/"):
            assert begun[key].numpy().tobytes() == before[key].numpy().tobytes(), key
    assert len(begun["item/values"]) == len(before["item/values"]) + 5


def test_each_day_is_scored_before_it_is_trained_on(
    logs: list[str], chain: list[dict], tmp_path: Path
) -> None:
    assert chain[0]["state"]["before_metrics"] == {}
    for day in (2, DAYS):
        found = chain[day - 1]["state"]["before_metrics"]
        out = str(tmp_path / f"scores-{day}")
        alone.predict(chain[day - 2]["run"], logs[day - 1], out)
        scores = pq.read_table(out).sort_by("log_row")["click"].to_numpy()
        labels = pq.read_table(f"{logs[day - 1]}/part-0.parquet")["click"].to_numpy()
        # Two passes may round two near scores into another order.
        assert found["click/auc"] == pytest.approx(auc(scores, labels), abs=1e-4)
        assert found["click/log_loss"] == pytest.approx(log_loss(scores, labels), abs=1e-5)
        first = read_lines(chain[day - 1]["run"])[0]
        assert first["step"] == 0 and first["before/click/auc"] == found["click/auc"]


def test_a_model_scores_values_that_came_later_as_out_of_vocabulary(
    logs: list[str], chain: list[dict], tmp_path: Path
) -> None:
    log = tmp_path / "later"
    shutil.copytree(logs[DAYS - 1], log)
    rows = pq.read_table(log / "part-0.parquet")
    item = rows["item"].to_numpy()
    alone.predict(chain[0]["run"], str(log), str(tmp_path / "later-scores"))
    cut = np.where(item > items_of(1), 0, item)
    assert (cut == 0).sum() > 100, "half of the items came after the first day"
    pq.write_table(rows.set_column(1, "item", [cut]), log / "part-0.parquet")
    alone.predict(chain[0]["run"], str(log), str(tmp_path / "known-scores"))
    parts = [pq.read_table(tmp_path / f"{name}-scores") for name in ("later", "known")]
    assert parts[0].equals(parts[1])


def test_a_checkpoint_copied_alone_has_its_transforms(
    logs: list[str], chain: list[dict], folder: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(choose(chain[2]["run"], "last").folder.path, tmp_path / "copy"))
    found, wanted = read_frozen(str(copy)), read_frozen(str(folder / "day-3"))
    assert found.values == wanted.values and found.url == str(copy)
    assert read_vocabulary(found, "item").num_rows == items_of(3)
    assert read_vocabulary(found, "item").equals(read_vocabulary(wanted, "item"))
    choose(str(copy)).verify(["transforms.yaml", "vocabulary-00000.parquet"])
    (copy / "vocabulary-00000.parquet").write_bytes(b"no parquet")
    with pytest.raises(InputError, match="not the one that was fitted"):
        read_vocabulary(found, "item")


def test_a_log_of_other_transforms_is_refused_naming_what_differs(
    logs: list[str], chain: list[dict], tmp_path: Path
) -> None:
    other = write_day(tmp_path, 2, chained=False)
    named = r"(?s)other transforms.*vocabularies"
    with pytest.raises(InputError, match=r"(?s)other transforms.*schema\.tables\.item\.rows = 36"):
        alone.predict(chain[0]["run"], other, str(tmp_path / "scores"))
    valid = day_config(logs[0], "refused").model_copy()
    valid = valid.model_copy(update={"data": valid.data.model_copy(update={"valid": other})})
    with pytest.raises(InputError, match=named):
        check_run(valid, resume=False)
    with pytest.raises(InputError, match=r"(?s)cannot start.*schema\.transforms"):
        check_run(day_config(other, "refused", chain[2]["run"]), resume=False)


def test_a_schema_that_changed_under_a_run_is_refused_at_resume(tmp_path: Path) -> None:
    log = write_day(tmp_path, 1)
    config = day_config(log, "resumed")
    alone.train(config)
    path = Path(log, "schema.yaml")
    path.write_text(path.read_text().replace("loss_weight: 1.0", "loss_weight: 2.0"))
    with pytest.raises(InputError, match=r"(?s)schema changed.*loss_weight = 2\.0"):
        check_run(config, resume=True)


def test_evaluation_holds_a_later_log_against_the_model_s_own_training(
    logs: list[str], chain: list[dict]
) -> None:
    found, payload, _ = checked(chain[0]["run"], Pick("last"), logs[DAYS - 1], labels=True)
    drift = drift_of(found, payload)
    assert drift is not None and set(drift) == set(TABLES)
    item = pq.read_table(f"{logs[DAYS - 1]}/part-0.parquet")["item"].to_numpy()
    later = (item > items_of(1)).mean()
    assert drift["item"]["unknown"] == pytest.approx(later, abs=1e-6)
    assert drift["item"]["train_unknown"] == 0 and drift["item"]["jumps"] == ["unknown", "psi"]
    assert drift["user"]["jumps"] == drift["hour"]["jumps"] == []
