"""KuaiRand's CSV files to parquet: values, types, parts, and what is refused."""

import csv
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers import public_raw as raw
from raymtl.data.convert import kuairand
from raymtl.data.convert.forms import convert
from raymtl.data.convert.plan import Options
from raymtl.errors import InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    raw.write_kuairand(tmp_path / "raw")
    return tmp_path / "raw"


def converted(folder: Path) -> Path:
    out = folder.parent / "out"
    convert("kuairand", str(folder), str(out), Options(), overwrite=out.exists())
    return out


def refusal(folder: Path) -> InputError:
    """The error, after which nothing may be left."""
    with pytest.raises(InputError) as caught:
        converted(folder)
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]
    return caught.value


def test_the_headers_written_here_are_those_the_converter_wants() -> None:
    headers = (raw.LOG_HEADER, raw.USER_HEADER, raw.VIDEO_HEADER, raw.STATISTIC_HEADER)
    wanted = (kuairand.LOG, kuairand.USERS, kuairand.VIDEOS, kuairand.STATISTICS)
    assert [h.split(",") for h in headers] == [[c.name for c in columns] for columns in wanted]


def test_a_log_keeps_its_rows_their_order_and_small_types(folder: Path) -> None:
    table = pq.read_table(converted(folder) / "log_standard_4_08_to_4_21.parquet")
    assert table.num_rows == 60
    assert table.slice(33, 1).to_pylist() == [
        {
            **{"user_id": 5, "video_id": 3, "date": 20220414, "hourmin": 930},
            **{"time_ms": 1_650_001_980_000, "is_click": 1, "is_like": 1, "is_follow": 0},
            **{"is_comment": 0, "is_forward": 0, "is_hate": 0, "long_view": 0},
            **{"play_time_ms": 16_500, "duration_ms": 17_200, "profile_stay_time": 0},
            **{"comment_stay_time": 0, "is_profile_enter": 0, "is_rand": 0, "tab": 1},
        }
    ]
    assert table.schema.field("is_click").type == pa.int8()
    assert table.schema.field("time_ms").type == pa.int64()


def test_missing_values_are_null_and_categories_whole_numbers(folder: Path) -> None:
    out = converted(folder)
    users = pq.read_table(out / "user_features.parquet")
    assert users["onehot_feat4"].to_pylist() == [4, 4, 4, None, 4, 4, 4]
    assert users["onehot_feat4"].type == pa.int64()
    assert users["follow_user_num_range"][0].as_py() == "(0,10]"
    assert users["is_live_streamer"][0].as_py() == -124
    videos = pq.read_table(out / "video_features_basic.parquet")
    assert videos["tag"].to_pylist() == ["12,65"] * 4 + [None]
    assert videos["music_type"].to_pylist() == [4, 4, 4, 4, None]
    assert videos["video_duration"].to_pylist() == [17200.0] * 5


def test_the_result_says_what_was_read_and_what_was_not_there(folder: Path) -> None:
    out = converted(folder)
    result = json.loads((out / "result.json").read_text())
    assert result["files"] == {
        "log_standard_4_08_to_4_21.parquet": 60,
        "log_standard_4_22_to_5_08.parquet": 60,
        "user_features.parquet": 7,
        "video_features_basic.parquet": 5,
    }
    assert any("log_random" in note for note in result["notes"])
    described = json.loads((out / "converted.json").read_text())["files"]
    assert described["user_features.parquet"]["columns"]["onehot_feat0"] == "int64"
    assert described["user_features.parquet"]["from"][0]["url"].endswith("user_features_pure.csv")


def test_parts_of_27k_become_one_file_in_their_order_and_gzip_is_read(folder: Path) -> None:
    for file in list(folder.iterdir()):
        file.rename(folder / file.name.replace("_pure", "_27k"))
    whole = folder / "log_standard_4_22_to_5_08_27k.csv"
    head, *rows = whole.read_text().splitlines(keepends=True)
    whole.unlink()
    for part, start in ((1, 0), (2, 25), (10, 58)):
        text = "".join([head, *rows[start : {0: 25, 25: 58, 58: 60}[start]]])
        name = f"log_standard_4_22_to_5_08_27k_part{part}.csv"
        (folder / name).write_text(text)
    assert "without a gap" in str(refusal(folder))
    (folder / "log_standard_4_22_to_5_08_27k_part10.csv").rename(
        folder / "log_standard_4_22_to_5_08_27k_part3.csv"
    )
    packed = folder / "log_standard_4_22_to_5_08_27k_part2.csv"
    (folder / f"{packed.name}.gz").write_bytes(gzip.compress(packed.read_bytes()))
    packed.unlink()
    times = pq.read_table(converted(folder) / "log_standard_4_22_to_5_08.parquet")["time_ms"]
    assert times.to_pylist() == [1_650_000_000_000 + 60_000 * n for n in range(60, 120)]


def test_the_statistics_and_the_random_log_are_taken_where_they_are(folder: Path) -> None:
    numbers = ",".join(["75.212"] * 50)
    raw.lines(
        folder / "video_features_statistic_pure.csv", [raw.STATISTIC_HEADER, f"3,66,{numbers}"]
    )
    raw.lines(
        folder / "log_random_4_22_to_5_08_pure.csv", [raw.LOG_HEADER, raw.impression(0, 20220422)]
    )
    out = converted(folder)
    (row,) = pq.read_table(out / "video_features_statistic.parquet").to_pylist()
    assert (row["video_id"], row["counts"], row["outsite_share_all_cnt"]) == (3, 66, 75.212)
    assert pq.read_metadata(out / "log_random_4_22_to_5_08.parquet").num_rows == 1


def test_the_archives_own_folder_may_be_named(folder: Path) -> None:
    (folder.parent / "KuaiRand-Pure").mkdir()
    folder.rename(folder.parent / "KuaiRand-Pure" / "data")
    assert (converted(folder.parent / "KuaiRand-Pure") / "user_features.parquet").exists()


def test_columns_may_stand_in_another_order_and_others_are_noted(folder: Path) -> None:
    users = folder / "user_features_pure.csv"
    rows = list(csv.reader(users.read_text().splitlines()))
    with users.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(
            [[*reversed(row), "Unnamed: 0" if n == 0 else n] for n, row in enumerate(rows)]
        )
    out = converted(folder)
    assert pq.read_table(out / "user_features.parquet")["user_id"].to_pylist() == list(range(7))
    notes = json.loads((out / "result.json").read_text())["notes"]
    assert any("not read: Unnamed: 0" in note for note in notes)


def test_a_byte_order_mark_windows_line_ends_and_blank_lines_change_nothing(folder: Path) -> None:
    plain = pq.read_table(converted(folder) / "log_standard_4_22_to_5_08.parquet")
    text = (folder / raw.LATE).read_text().splitlines()
    text.insert(10, "")
    (folder / raw.LATE).write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*text, "", ""]).encode())
    assert pq.read_table(converted(folder) / "log_standard_4_22_to_5_08.parquet").equals(plain)


def test_a_last_line_without_an_end_is_read_and_noted(folder: Path) -> None:
    (folder / raw.LATE).write_text((folder / raw.LATE).read_text().rstrip("\n"))
    out = converted(folder)
    assert pq.read_metadata(out / "log_standard_4_22_to_5_08.parquet").num_rows == 60
    notes = json.loads((out / "result.json").read_text())["notes"]
    assert any("no line end" in note and raw.LATE in note for note in notes)


def test_half_a_last_line_is_named(folder: Path) -> None:
    text = (folder / raw.LATE).read_text()
    (folder / raw.LATE).write_text(text[: text.rstrip().rfind(",17200")])
    error = refusal(folder)
    assert error.what == "a line has the wrong number of fields"
    assert f"{raw.LATE}, line 61: 13 fields" in error.got


def test_half_a_gzip_file_is_named(folder: Path) -> None:
    packed = gzip.compress((folder / raw.LATE).read_bytes())
    (folder / raw.LATE).unlink()
    (folder / f"{raw.LATE}.gz").write_bytes(packed[: len(packed) // 2])
    assert f"{raw.LATE}.gz" in refusal(folder).got


@pytest.mark.parametrize("separator", [";", "\t"])
def test_another_separator_is_named(folder: Path, separator: str) -> None:
    raw.change(folder / raw.LATE, ",", separator)
    error = refusal(folder)
    assert error.what == "a file lacks columns of its form"
    assert "separated by commas" in error.wanted


def test_another_separator_below_a_good_header_is_named(folder: Path) -> None:
    head, *rows = (folder / raw.LATE).read_text().splitlines()
    raw.lines(folder / raw.LATE, [head, *(row.replace(",", ";") for row in rows)])
    assert f"{raw.LATE}, line 2: 1 fields" in refusal(folder).got


def test_a_missing_column_is_named(folder: Path) -> None:
    raw.change(folder / raw.LATE, "long_view", "longview")
    error = refusal(folder)
    assert "line 1" in error.got
    assert error.wanted.startswith("columns long_view,")


def test_a_column_that_is_there_twice_is_named(folder: Path) -> None:
    raw.change(folder / raw.LATE, ",tab\n", ",tab,tab\n")
    assert refusal(folder).what == "a header names a column twice"


@pytest.mark.parametrize(
    ("old", "new", "column", "got"),
    [
        ("1650003660000", "16500x", "time_ms", "'16500x'"),
        ("1650003660000", "", "time_ms", "''"),
        (",20220422,", ",20220422.5,", "date", "'20220422.5'"),
        (",1330,", ",2460,", "hourmin", "2460"),
        (",0,0,0,0,0,0,0,30500,", ",0,2,0,0,0,0,0,30500,", "is_like", "2"),
        (",0,1\n", ",0,99999\n", "tab", "'99999'"),
    ],
)
def test_a_value_that_does_not_fit_is_named_by_line_and_column(
    folder: Path, old: str, new: str, column: str, got: str
) -> None:
    head, first, line, *rest = (folder / raw.LATE).read_text().splitlines(keepends=True)
    assert old in line
    changed = line.replace(old, new)
    (folder / raw.LATE).write_text("".join([head, first, changed, *rest]))
    error = refusal(folder)
    assert error.what == f"a value of column {column} does not fit"
    assert error.got == f"{got}   ({folder}/{raw.LATE}, line 3)"


def test_text_that_is_not_utf_8_is_named_by_line_and_column(folder: Path) -> None:
    users = folder / "user_features_pure.csv"
    text = users.read_bytes().replace(b"\n2,full_active", b"\n2,full_\xff")
    users.write_bytes(text)
    error = refusal(folder)
    assert "user_active_degree" in error.what
    assert "user_features_pure.csv, line 4" in error.got


@pytest.mark.parametrize("content", [b"", b"\n", raw.LOG_HEADER.encode() + b"\n"])
def test_a_file_without_rows_is_named(folder: Path, content: bytes) -> None:
    (folder / raw.LATE).write_bytes(content)
    assert raw.LATE in refusal(folder).got


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "user_features_pure.csv").unlink()
    assert "user_features_pure.csv: not there" in refusal(folder).got


def test_two_versions_in_one_folder_are_refused(folder: Path) -> None:
    (folder / "user_features_1k.csv").write_text("")
    assert "files of 1k and pure" in refusal(folder).got


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "notes.txt").write_text("")
    assert "notes.txt" in refusal(tmp_path / "raw").got
