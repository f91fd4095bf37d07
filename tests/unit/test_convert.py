"""`raymtl convert` as a command, and what all conversions share."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from helpers import public_raw as raw
from raymtl.data.convert import text
from raymtl.data.convert.deal import Deal
from raymtl.data.convert.forms import FORMS, convert
from raymtl.data.convert.plan import Options
from raymtl.data.convert.row_groups import RowGroups
from raymtl.data.prepare_config import PrepareConfig
from raymtl.errors import InputError
from raymtl_jobs import names
from raymtl_jobs.cli import app

WRITERS = {
    "kuairand": raw.write_kuairand,
    "aliccp": raw.write_aliccp,
    "census": raw.write_census,
}
each_form = pytest.mark.parametrize("form", FORMS)


def invoke(*arguments: str):
    return CliRunner().invoke(app, ["convert", *arguments])


@each_form
def test_a_conversion_prints_its_rows_and_the_next_command(form: str, tmp_path: Path) -> None:
    WRITERS[form](tmp_path / "raw")
    done = invoke(form, str(tmp_path / "raw"), str(tmp_path / "out"))
    assert done.exit_code == 0, done.stderr
    assert f"next: raymtl prepare {FORMS[form].configs[0]}" in done.stderr
    assert f"result: {tmp_path}/out/result.json" in done.stderr
    assert not list((tmp_path / "out").glob("_*"))


@each_form
def test_the_shipped_config_names_files_and_columns_that_the_conversion_makes(
    form: str, tmp_path: Path
) -> None:
    WRITERS[form](tmp_path / "raw")
    convert(form, str(tmp_path / "raw"), str(tmp_path / "out"), Options())
    for name in FORMS[form].configs:
        config = names.load(PrepareConfig, name, [f"data_root={tmp_path}/out"], "prepare")
        urls = [u for s in config.sources for u in ([s.url] if isinstance(s.url, str) else s.url)]
        joined = {
            c
            for join in config.joins
            for c in pq.read_schema(tmp_path / "out" / str(join.url)).names
        }
        for url in urls:
            there = joined | set(pq.read_schema(tmp_path / "out" / url).names)
            wanted = {*config.raw_columns(), *config.history_columns()}
            made = {*config.derive, *config.made_columns}
            assert wanted - made - {"row", "fold"} <= there


@each_form
def test_a_dry_run_prints_the_plan_and_writes_nothing(form: str, tmp_path: Path) -> None:
    WRITERS[form](tmp_path / "raw")
    done = invoke(form, str(tmp_path / "raw"), str(tmp_path / "out"), "--dry-run")
    assert done.exit_code == 0, done.stderr
    printed = [line for line in done.stdout.splitlines() if not line.startswith(" ")]
    pieces = FORMS[form].plan(str(tmp_path / "raw")).pieces
    assert printed == [f"{tmp_path}/out/{piece.output}" for piece in pieces]
    assert f"  from {tmp_path}/raw/" in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["raw"]


def test_an_unknown_form_is_answered_with_the_nearest() -> None:
    done = invoke("kuairan", "raw", "out")
    assert done.exit_code == 2
    assert "did you mean kuairand?" in done.stderr


def test_a_missing_folder_is_named_in_four_parts(tmp_path: Path) -> None:
    done = invoke("census", str(tmp_path / "nowhere"), str(tmp_path / "out"))
    assert done.exit_code == 2
    assert done.stderr.splitlines()[1] == f"  got:    {tmp_path}/nowhere: not found"


def test_an_existing_folder_is_kept_unless_a_conversion_wrote_it_and_overwrite_is_said(
    tmp_path: Path,
) -> None:
    raw.write_census(tmp_path / "raw")
    command = ("census", str(tmp_path / "raw"), str(tmp_path / "out"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert "not written by raymtl convert" in invoke(*command, "--overwrite").stderr
    (tmp_path / "out" / "mine.txt").unlink()
    assert invoke(*command).exit_code == 0
    first = (tmp_path / "out" / "train.parquet").read_bytes()
    refused = invoke(*command)
    assert refused.exit_code == 2 and "--overwrite" in refused.stderr
    assert invoke(*command, "--overwrite").exit_code == 0
    assert (tmp_path / "out" / "train.parquet").read_bytes() == first


def test_a_failed_conversion_keeps_what_an_earlier_one_wrote(tmp_path: Path) -> None:
    raw.write_census(tmp_path / "raw")
    command = ("census", str(tmp_path / "raw"), str(tmp_path / "out"), "--overwrite")
    assert invoke(*command).exit_code == 0
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    raw.change(tmp_path / "raw" / "census-income.test", "Private", "Private, Private", 1)
    assert invoke(*command).exit_code == 2
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "raw"]


def test_an_output_that_holds_the_raw_files_is_refused(tmp_path: Path) -> None:
    raw.write_census(tmp_path / "out" / "raw")
    with pytest.raises(InputError, match="the output folder holds the raw files"):
        convert("census", str(tmp_path / "out" / "raw"), str(tmp_path / "out"), Options())


def test_progress_reaches_the_end_of_every_file(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(text, "BLOCK_BYTES", 2048)
    raw.write_census(tmp_path / "raw")
    seen: dict[str, list[tuple[int, float]]] = {}

    def watch(name: str, rows: int, share: float | None) -> None:
        assert share is not None
        seen.setdefault(name, []).append((rows, share))

    convert("census", str(tmp_path / "raw"), str(tmp_path / "out"), Options(watch=watch))
    assert {name: last[-1] for name, last in seen.items()} == {
        "census-income.data": (40, 1.0),
        "census-income.test": (20, 1.0),
    }
    assert len(seen["census-income.data"]) > 3
    assert seen["census-income.data"] == sorted(seen["census-income.data"])


def test_a_block_is_never_larger_than_its_bytes_allow(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(text, "BLOCK_BYTES", 1000)
    raw.lines(tmp_path / "a.csv", [f"{n:08d},x" for n in range(5000)])
    file = text.files_in(str(tmp_path))["a.csv"]
    form = text.Form(("n", "x"), has_header=False)
    sizes = [b.table.num_rows for b in text.blocks(file, form, lambda name, rows, share: None)]
    assert sum(sizes) == 5000 and max(sizes) <= 1000 // 11 + 1


def test_a_rows_line_is_its_line_in_the_file_over_blocks_and_blank_lines(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(text, "BLOCK_BYTES", 64)
    content = ["n,x", *(f"{n},x" if n % 7 else "" for n in range(2, 200))]
    raw.lines(tmp_path / "a.csv", content)
    file = text.files_in(str(tmp_path))["a.csv"]
    for block in text.blocks(file, text.Form(("n", "x")), lambda name, rows, share: None):
        assert [int(v) for v in block.table["n"].to_pylist()] == block.lines.tolist()


def test_row_groups_have_their_size_whatever_comes_in(tmp_path: Path) -> None:
    url = str(tmp_path / "a.parquet")
    with RowGroups(url, pa.schema([("n", pa.int32())]), rows=100) as out:
        start = 0
        for size in (0, 30, 250, 1, 69, 100, 7):
            out.write(pa.table({"n": np.arange(start, start + size)}))
            start += size
    footer = pq.read_metadata(url)
    groups = [footer.row_group(g).num_rows for g in range(footer.num_row_groups)]
    assert groups == [100, 100, 100, 100, 57]
    assert pq.read_table(url)["n"].to_pylist() == list(range(457))


def test_equal_keys_are_dealt_to_one_part_in_their_order(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("raymtl.data.convert.deal.HELD_BYTES", 200)
    keys = [f"key {n % 13}" for n in range(100)]
    with Deal(str(tmp_path / "deal"), 4, "key") as deal:
        for start in range(0, 100, 9):
            part = slice(start, start + 9)
            deal.add(pa.table({"key": keys[part], "n": range(100)[part]}))
    parts = [deal.read(part) for part in range(4)]
    assert sum(p.num_rows for p in parts) == 100
    assert sum(len(set(p["key"].to_pylist())) for p in parts) == 13
    for p in parts:
        assert p["n"].to_pylist() == sorted(p["n"].to_pylist())
