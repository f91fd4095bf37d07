"""A small study on Ray: searched, trained, compared; what is finished is not done again."""

import json
from pathlib import Path

import pytest
import torch

from helpers.logs import small_log
from helpers.studies import small_study
from raymtl.errors import RankFailed
from raymtl.run import Run, choose
from raymtl.study.conduct import conduct


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> str:
    made = tmp_path_factory.mktemp("study")
    small_log(made, rows=2500)
    return str(made)


def test_a_study_searches_trains_and_compares_and_does_nothing_twice(folder: str) -> None:
    said: list[str] = []
    found = conduct(small_study(folder), show=said.append)
    home = Path(folder, "studies", "study")
    choices = json.loads((home / "choices.json").read_text())
    tried = [(point["optimizer.rows.lr"], auc) for point, auc in choices["single_task"]["points"]]
    best = max(tried, key=lambda pair: pair[1])[0]
    assert choices["single_task"]["chosen"] == {"optimizer.rows.lr": best}
    assert found.labels == ["single_task", "bottom"]
    assert {(m.cell.label, m.cell.seed) for m in found.measured} == {
        (label, seed) for label in ("single_task", "bottom") for seed in (1, 2)
    }
    assert len(list((home / "runs").iterdir())) == 5  # 3 searched, 2 of them with another seed too
    assert (home / "report.html").stat().st_size > 10_000
    written = {p: p.stat().st_mtime_ns for p in home.rglob("*") if "runs" in p.parts}
    again: list[str] = []
    conduct(small_study(folder), show=again.append)
    assert {p: p.stat().st_mtime_ns for p in home.rglob("*") if "runs" in p.parts} == written
    assert not any("to train" in line or "scored" in line for line in again)


def test_a_run_that_fails_is_named_and_the_others_are_kept(folder: str) -> None:
    bad = {"label": "bad", "values": {"model": {"name": "shared_bottom"}}}
    bad["values"]["optimizer"] = {"dense": {"lr": 1e30}, "clip_norm": None}
    good = small_study(folder).models[1].model_dump()
    with pytest.raises(RankFailed, match=r"bad seed 1: rank 0: loss or gradient is not finite"):
        conduct(small_study(folder, name="failing", models=[good, bad], search={}))
    broken = {"optimizer": {"dense": {"lr": 1e30}, "clip_norm": None}}
    with pytest.raises(RankFailed, match="seed 1: its pretraining failed"):
        conduct(small_study(folder, name="broken", models=[good], search={}, pretrain=broken))
    runs = Path(folder, "studies", "failing", "runs")
    assert sorted(p.parent.name[:3] for p in runs.glob("*/result.json")) == ["bot"]


def test_runs_start_from_one_pretraining_a_model_and_seed(folder: str) -> None:
    pretrain = {"optimizer": {"rows": {"lr": 0.5}}, "data": {"valid": None}}
    keys = {"optimizer.rows.lr": [1e-9], "train.num_epochs": [1, 2]}
    model = small_study(folder).models[0].model_dump()
    study = small_study(folder, name="two", models=[model], pretrain=pretrain, search=keys)
    conduct(study, show=lambda line: None)
    runs = {path.name: Run(str(path)) for path in Path(folder, "studies", "two", "runs").iterdir()}
    first = {name: run for name, run in runs.items() if "pretrained" in name}
    assert sorted(name[-2:] for name in first) == ["-1", "-2"]
    assert len(runs) == 2 + 2 + 1  # pretrained, searched with the first seed, the other seed
    for name, run in runs.items():
        if name in first:
            continue
        before = first[(run.read_config().init_from or "").split("/")[-3]]
        rows, taken = (choose(r.url, "last").tables() for r in (run, before))
        schema = run.read_schema()
        for table in schema.table_names:
            size = schema.table(table).num_rows
            now, then = (r.read(f"{table}/values", size, 0, 1024) for r in (rows, taken))
            assert then.abs().max() > 0.05, "it did learn"
            torch.testing.assert_close(now, then, rtol=0, atol=1e-6)
