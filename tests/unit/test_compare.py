"""Comparing cells end to end: figures, files, the page, and errors."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.comparison import cell, drawn_log, run_folder, schema_of, silent, write_log
from raymtl.analysis import Cell, Options, compare
from raymtl.analysis.gains import over_seeds
from raymtl.analysis.runs import read_training
from raymtl.errors import InputError
from raymtl.scores import auc, gauc
from raymtl_jobs.compare import show

LABELS = ("single_task", "good", "same", "bad")
QUICK = Options(num_draws=100)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Four models of two seeds; `same` is single_task again, to the bit."""
    folder = tmp_path_factory.mktemp("compare")
    log, truth_NT = drawn_log(folder / "test")
    train, _ = drawn_log(folder / "train", rows=1200, seed=1)
    noises = {"single_task": 1.0, "good": 0.0, "same": 1.0, "bad": 3.0}
    cells = [cell(label, seed, truth_NT, noises[label]) for label in LABELS for seed in (1, 2)]
    out = str(folder / "out")
    found = compare(cells, log, schema_of(), train, out, Options(num_draws=200), silent)
    return found, cells, Path(out)


def gain(found, model: str, task: int, metric: str = "auc"):
    (d,) = [
        d for d in found.gains if (d.model, d.task, d.metric, d.pair) == (model, task, metric, None)
    ]
    return d


def test_the_metrics_of_a_cell_are_those_of_its_arrays(made) -> None:
    found, cells, _ = made
    labels = found.outcomes.labels_NT[:, 1]
    points = found.measured[0].points[1]
    assert points["auc"] == auc(cells[0].scores["like"], labels)
    wanted = gauc(cells[0].scores["like"], labels, found.outcomes.group_N)
    assert (points["gauc"], points["gauc_users"]) == (wanted.value, wanted.num_users)


def test_the_baseline_is_the_single_task_model_and_its_copy_is_within_noise(made) -> None:
    found, _, _ = made
    assert (found.baseline, found.baseline_is_single_task) == ("single_task", True)
    same = gain(found, "same", 0)
    assert (same.value, same.low, same.high, same.verdict) == (0.0, 0.0, 0.0, "within noise")


def test_better_and_worse_models_are_called_so_in_every_metric(made) -> None:
    found, _, _ = made
    for metric in ("auc", "gauc", "log_loss"):
        good, bad = gain(found, "good", 0, metric), gain(found, "bad", 0, metric)
        assert (good.verdict, bad.verdict) == ("better", "worse")
        assert good.low < good.value < good.high


def test_a_gain_is_the_mean_difference_over_the_seeds_both_have(made) -> None:
    found, cells, _ = made
    labels = found.outcomes.labels_NT[:, 0]
    good, single = (
        [auc(c.scores["click"], labels) or 0.0 for c in cells[i : i + 2]] for i in (2, 0)
    )
    d = gain(found, "good", 0)
    assert d.num_pairs == 2
    assert d.value == pytest.approx(np.mean(good) - np.mean(single))


def test_a_difference_that_one_seed_makes_is_called_one_of_these_seeds(
    tmp_path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, truth_NT = drawn_log(tmp_path / "test")
    noises = {"plain": (1.0, 1.0, 1.0), "unlucky": (9.0, 1.0, 1.0), "bad": (9.0, 9.0, 9.0)}
    cells = [
        cell(label, seed, truth_NT, noise)
        for label, of_seeds in noises.items()
        for seed, noise in enumerate(of_seeds)
    ]
    # In any order: pairs go by seed.
    found = compare(cells[::-1], log, schema_of(), None, str(tmp_path), Options("plain"), silent)
    unlucky, bad = gain(found, "unlucky", 0), gain(found, "bad", 0)
    assert (unlucky.verdict, bad.verdict) == ("worse", "worse")
    assert (unlucky.words, bad.words) == ("worse for these seeds", "worse")
    auc_of = {(m.cell.label, m.cell.seed): float(m.points[0]["auc"] or 0) for m in found.measured}
    pairs = [auc_of["unlucky", s] - auc_of["plain", s] for s in range(3)]
    assert pairs[1:] == [0.0, 0.0]
    wanted = over_seeds(pairs)
    assert (unlucky.seeds_low, unlucky.seeds_high) == pytest.approx(wanted)
    show(found)
    lines = [line for line in capsys.readouterr().out.splitlines() if "click" in line]
    assert ["for these seeds" in line for line in lines] == ["unlucky" in line for line in lines]
    page = (tmp_path / "report.html").read_text()
    assert wanted.low is not None
    assert page.count('class="worse"') == page.count('title="worse"') > 0
    assert f"seeds [−{-wanted.low:.4f}, +{wanted.high:.4f}]" in page


def test_the_bins_of_a_pair_hold_all_rows_and_users_once(made) -> None:
    found, _, _ = made
    assert sum(c.rows for c in found.bins) == found.outcomes.num_rows
    assert sum(c.users for c in found.bins) == found.num_users
    positives = np.sum([c.positives for c in found.bins], axis=0)
    assert positives.tolist() == found.outcomes.labels_NT.sum(axis=0).tolist()


def test_cells_parquet_has_a_row_for_each_model_seed_task_bin_and_metric(made) -> None:
    found, _, out = made
    table = pq.read_table(out / "cells.parquet")
    keys = ["model", "seed", "task", "pair", "bin", "metric"]
    assert table.group_by(keys).aggregate([]).num_rows == table.num_rows
    num_metrics = 8
    assert table.num_rows == 4 * 2 * len(found.views) * num_metrics
    rows = table.to_pylist()
    (value,) = [
        r["value"]
        for r in rows
        if [r[k] for k in keys] == ["bad", 2, "like", None, "all", "log_loss"]
    ]
    assert value == found.measured[7].points[1]["log_loss"]


def test_result_json_has_models_gains_pairs_and_bins(made) -> None:
    _, _, out = made
    result = json.loads((out / "result.json").read_text())
    assert list(result["models"]) == sorted(LABELS)
    metric = result["models"]["good"]["metrics"]["click"]["auc"]
    assert metric["mean"] == pytest.approx(np.mean(metric["values"]))
    assert metric["spread"] == pytest.approx(np.std(metric["values"], ddof=1))
    assert len(result["pairs"]) == 6 * 2 * 3
    assert {g["pair"] and tuple(g["pair"]) for g in result["gains"]} == {None, ("click", "like")}
    assert result["bins"]["training_positives"]["click"] > 0
    assert result["options"] == {"baseline": None, "num_draws": 200, "seed": 0, "ratio": 2.0}


class Page(HTMLParser):
    """Counts tags and keeps what would be fetched, ids, and open tags."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.ids: list[str] = []
        self.unnamed = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        links = [values.get(key) or "" for key in ("src", "href", "xlink:href")]
        self.fetched += [link for link in links if link and not link.startswith("#")]
        self.ids += [str(values["id"])] if "id" in values else []
        self.unnamed += tag == "svg" and not values.get("aria-label")


def test_the_report_fetches_nothing_runs_nothing_and_names_its_pictures(made) -> None:
    _, _, out = made
    text = (out / "report.html").read_text()
    page = Page(text)
    assert page.fetched == []
    assert "script" not in page.tags
    assert not re.search(r"https?:|@import|url\((?!#)", text)
    assert page.tags.count("svg") > 5
    assert page.unnamed == 0
    assert len(page.ids) == len(set(page.ids))
    assert page.tags.count("svg") == page.tags.count("figcaption")
    assert page.tags.count("table") == page.tags.count("caption")


def test_the_report_has_both_colour_schemes_and_no_stand_in_is_left(made) -> None:
    _, _, out = made
    text = (out / "report.html").read_text()
    assert "prefers-color-scheme:dark" in text
    assert "currentColor" in text
    used = set(re.findall(r"var\((--\w+)\)", text))
    light, dark = (set(re.findall(r"(--\w+):#", part)) for part in text.split("@media")[:2])
    assert used <= light & dark
    assert not re.search(r"#0[abc]00[0-9a-f]{2}", text)


def test_a_label_is_text_not_markup(tmp_path) -> None:
    log, truth_NT = drawn_log(tmp_path / "log", rows=200)
    strange = cell("<b>&", 1, truth_NT, 1.0)
    compare([strange], log, schema_of(), None, str(tmp_path), QUICK, silent)
    text = (tmp_path / "report.html").read_text()
    assert "<b>" not in text
    assert "&lt;b&gt;&amp;" in text


def test_scores_may_come_in_any_order_beside_the_number_of_their_row(made, tmp_path) -> None:
    found, cells, _ = made
    order = np.random.default_rng(0).permutation(found.outcomes.num_rows)
    columns = {task: scores[order] for task, scores in cells[0].scores.items()}
    pq.write_table(pa.table({**columns, "log_row": order}), tmp_path / "part-0.parquet")
    shuffled = Cell("x", 1, str(tmp_path))
    again = compare([shuffled], found.log, schema_of(), None, None, QUICK, silent)
    assert again.measured[0].points == found.measured[0].points[:2]


def test_models_without_a_common_seed_are_compared_by_their_means(made) -> None:
    found, cells, _ = made
    other = Cell("lightgbm", 0, cells[2].scores)
    again = compare([*cells[:2], other], found.log, schema_of(), None, None, QUICK, silent)
    assert again.gains[0].num_pairs == 0
    values = [m.points[0]["auc"] or 0.0 for m in again.measured]
    assert again.gains[0].value == pytest.approx(values[2] - np.mean(values[:2]))


def test_without_a_single_task_model_the_first_is_the_reference_and_no_gain_is_claimed(
    made, tmp_path
) -> None:
    found, cells, _ = made
    compare(cells[2:6], found.log, schema_of(), None, str(tmp_path), QUICK, silent)
    text = (tmp_path / "report.html").read_text()
    assert "difference to good" in text
    assert "MTL gain, AUC" not in text


def test_a_log_without_groups_has_no_bins_and_draws_rows(made, tmp_path) -> None:
    _, truth_NT = drawn_log(tmp_path / "log", rows=200)
    schema = schema_of(group=None)
    two = [cell(label, 1, truth_NT, noise) for label, noise in (("a", 0.0), ("b", 2.0))]
    log = str(tmp_path / "log")
    found = compare(two, log, schema, log, str(tmp_path), QUICK, silent)
    assert (found.bins, found.measured[0].points[0]["gauc"]) == ([], None)
    assert "draws of rows" in (tmp_path / "report.html").read_text()


def error_of(*arguments) -> InputError:
    with pytest.raises(InputError) as caught:
        compare(*arguments)
    return caught.value


def test_a_baseline_that_is_not_there_is_refused(made) -> None:
    found, cells, _ = made
    error = error_of(cells, found.log, schema_of(), None, None, Options(baseline="ple"), silent)
    assert (error.what, error.got) == ("the baseline is not among the models", "ple")
    assert "single_task" in error.wanted


def test_one_model_and_seed_twice_is_refused(made) -> None:
    found, cells, _ = made
    error = error_of([cells[0], cells[0]], found.log, schema_of())
    assert (error.what, error.got) == (
        "a model is given twice with one seed",
        "single_task, seed 1",
    )


def test_a_log_without_labels_is_refused(made, tmp_path) -> None:
    _, cells, _ = made
    log = write_log(tmp_path, {"user": [1, 2], "click": [0, 1]})
    assert error_of(cells, log, schema_of()).what == "column like is missing"


@pytest.mark.parametrize(
    ("scores", "what"),
    [
        ({"click": np.full(900, 0.5)}, "the scores of x, seed 1 lack tasks"),
        (dict.fromkeys(("click", "like"), np.full(3, 0.5)), "the scores of x, seed 1 are of"),
        (dict.fromkeys(("click", "like"), np.full(900, 1.5)), "a score of x, seed 1 for click"),
        (
            {**dict.fromkeys(("click", "like"), np.full(900, 0.5)), "log_row": np.zeros(900)},
            "the scores of x, seed 1 do not name each row",
        ),
    ],
)
def test_scores_that_do_not_fit_the_log_are_refused(made, scores, what) -> None:
    found, _, _ = made
    assert error_of([Cell("x", 1, scores)], found.log, schema_of()).what.startswith(what)


def test_a_training_log_that_is_not_there_is_refused_with_the_way_out(made) -> None:
    found, cells, _ = made
    error = error_of(cells, found.log, schema_of(), "/nowhere/train")
    assert error.what.startswith("the training log:")
    assert "--train-log none" in error.do


def test_curves_gates_and_speed_of_a_run_stand_in_the_report(made, tmp_path) -> None:
    found, cells, _ = made
    run = run_folder(tmp_path / "stem-1", 1)
    lines = [{"step": 10, "rows_per_s": 10, "click/log_loss": 0.9}]
    for step, share in ((20, 0.25), (40, 0.4)):
        lines.append({"step": step, "rows_per_s": 5000, "click/log_loss": 0.5})
        gates = {"gate/0/click/click": share, "gate/0/click/shared": 1 - share}
        lines.append({"step": step, "valid/click/log_loss": 0.55, **gates})
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 5'
    (tmp_path / "stem-1" / "metrics.jsonl").write_text(text)
    training = read_training(run)
    assert (training.rows_per_s, training.num_dense, len(training.lines)) == (5000, None, 5)
    stem = Cell("stem", 1, cells[2].scores, run)
    compare([cells[0], stem], found.log, schema_of(), None, str(tmp_path), QUICK, silent)
    page = (tmp_path / "report.html").read_text()
    assert 'aria-label="Gate mass of click, layer 0 by source over steps"' in page
    assert 'aria-label="Loss of click over steps, training and validation"' in page
    assert "5e+03" not in page
    assert ">5 k<" in page
