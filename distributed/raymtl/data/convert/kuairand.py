"""KuaiRand-Pure, -1K and -27K: CSV files with a header, as they lie in the official archives.

File names, columns and types: the tables "Data Descriptions" of the authors' page
(github.com/chongminggao/KuaiRand, README; Gao et al., CIKM 2022, doi 10.1145/3511808.3557624; the
archives are at zenodo.org/records/10439422). -27K has some files in parts. What the page calls
int64 in the feature files is written as floats by pandas where values are missing; such columns
are read as whole numbers (ours).
"""

import re
from collections.abc import Iterator, Mapping

import pyarrow as pa

from raymtl.data.convert import columns as kind
from raymtl.data.convert.columns import Column, schema_of, typed
from raymtl.data.convert.plan import Options, Piece, Plan, Tally, cut_notes, require_rows
from raymtl.data.convert.row_groups import RowGroups
from raymtl.data.convert.text import Form, TextFile, blocks, check_header, files_in
from raymtl.errors import InputError

LOG = (
    kind.ids("user_id"),
    kind.ids("video_id"),
    kind.whole("date", pa.int32()),
    Column("hourmin", pa.int32(), required=True, low=0, high=2359),
    kind.ids("time_ms"),
    kind.flag("is_click"),
    kind.flag("is_like"),
    kind.flag("is_follow"),
    kind.flag("is_comment"),
    kind.flag("is_forward"),
    kind.flag("is_hate"),
    kind.flag("long_view"),
    kind.whole("play_time_ms"),
    kind.whole("duration_ms"),
    kind.whole("profile_stay_time"),
    kind.whole("comment_stay_time"),
    kind.flag("is_profile_enter"),
    kind.flag("is_rand"),
    Column("tab", pa.int8(), required=True, low=0, high=14),
)
USERS = (
    kind.ids("user_id"),
    kind.text("user_active_degree"),
    kind.category("is_lowactive_period"),
    kind.category("is_live_streamer"),
    kind.category("is_video_author"),
    kind.category("follow_user_num"),
    kind.text("follow_user_num_range"),
    kind.category("fans_user_num"),
    kind.text("fans_user_num_range"),
    kind.category("friend_user_num"),
    kind.text("friend_user_num_range"),
    kind.category("register_days"),
    kind.text("register_days_range"),
    *(kind.category(f"onehot_feat{n}") for n in range(18)),
)
VIDEOS = (
    kind.ids("video_id"),
    kind.category("author_id"),
    kind.text("video_type"),
    kind.text("upload_dt"),
    kind.text("upload_type"),
    kind.category("visible_status"),
    kind.number("video_duration"),
    kind.number("server_width"),
    kind.number("server_height"),
    kind.category("music_id"),
    kind.category("music_type"),
    kind.text("tag"),
)
_AVERAGES = """
show_cnt show_user_num play_cnt play_user_num play_duration complete_play_cnt complete_play_user_num
valid_play_cnt valid_play_user_num long_time_play_cnt long_time_play_user_num short_time_play_cnt
short_time_play_user_num play_progress comment_stay_duration like_cnt like_user_num click_like_cnt
double_click_cnt cancel_like_cnt cancel_like_user_num comment_cnt comment_user_num
direct_comment_cnt reply_comment_cnt delete_comment_cnt delete_comment_user_num comment_like_cnt
comment_like_user_num follow_cnt follow_user_num cancel_follow_cnt cancel_follow_user_num share_cnt
share_user_num download_cnt download_user_num report_cnt report_user_num reduce_similar_cnt
reduce_similar_user_num collect_cnt collect_user_num cancel_collect_cnt cancel_collect_user_num
direct_comment_user_num reply_comment_user_num share_all_cnt share_all_user_num
outsite_share_all_cnt
"""
AVERAGES = tuple(_AVERAGES.split())
"""Averages over a month that reaches past every impression: outcomes, not features."""
STATISTICS = (
    kind.ids("video_id"),
    kind.category("counts"),
    *(kind.number(name) for name in AVERAGES),
)

STEMS: dict[str, tuple[Column, ...]] = {
    "log_standard_4_08_to_4_21": LOG,
    "log_standard_4_22_to_5_08": LOG,
    "log_random_4_22_to_5_08": LOG,
    "user_features": USERS,
    "video_features_basic": VIDEOS,
    "video_features_statistic": STATISTICS,
}
"""What a raw file is called without its version and part -> its columns."""
OPTIONAL = {"log_random_4_22_to_5_08", "video_features_statistic"}
NAME = re.compile(rf"({'|'.join(STEMS)})_(pure|1k|27k)(?:_part(\d+))?\.csv(?:\.gz)?")


def plan(url: str) -> Plan:
    """Finds the files of one version in a folder, or in its folder `data` as the archives have it.

    Raises:
        InputError: a file or part is missing, two versions are mixed, or a header lacks a column.
    """
    files = files_in(url)
    if not any(map(NAME.fullmatch, files)) and not any(n.endswith(".csv") for n in files):
        files = _files_in_data(url) or files
    found = {name: match for name in files if (match := NAME.fullmatch(name))}
    versions = sorted({match[2] for match in found.values()})
    if len(versions) != 1:
        raise InputError(
            "not the files of one KuaiRand",
            f"{url}: " + (f"files of {' and '.join(versions)}" if versions else _some(files)),
            "log_standard_4_08_to_4_21_pure.csv and its siblings (or _1k, _27k)",
            "name the archive's folder `data`, one version at a time",
        )
    pieces, notes = [], []
    for stem in STEMS:
        parts = {int(m[3] or 0): files[name] for name, m in found.items() if m[1] == stem}
        if not parts and stem in OPTIONAL:
            notes.append(f"no {stem}_{versions[0]}.csv: left out")
            continue
        inputs = tuple(_in_order(parts, f"{stem}_{versions[0]}", url))
        notes += [note for file in inputs for note in _check(file, STEMS[stem])]
        pieces.append(Piece(f"{stem}.parquet", inputs))
    return Plan(tuple(pieces), tuple(notes + cut_notes([f for p in pieces for f in p.inputs])))


def write(piece: Piece, url: str, options: Options) -> Tally:
    """Writes one file's parts, in their order, as one parquet file."""
    wanted = STEMS[piece.output.removesuffix(".parquet")]
    form = _form(wanted)
    with RowGroups(f"{url}/{piece.output}", schema_of(wanted)) as out:
        for file in piece.inputs:
            for block in blocks(file, form, options.watch):
                out.write(typed(block, wanted))
    tally = Tally(out.num_rows)
    require_rows(tally, piece)
    return tally


def _files_in_data(url: str) -> Mapping[str, TextFile]:
    try:
        return files_in(f"{url.rstrip('/')}/data")
    except InputError:
        return {}


def _in_order(parts: dict[int, TextFile], name: str, url: str) -> Iterator[TextFile]:
    whole = [0] if 0 in parts else list(range(1, max(parts, default=0) + 1))
    if not parts or sorted(parts) != whole:
        there = ", ".join(parts[n].name for n in sorted(parts)) or "not there"
        raise InputError(
            "a raw file is missing, or there twice",
            f"{url}: {name}.csv: {there}",
            f"{name}.csv, or {name}_part1.csv and on without a gap",
            "unpack the whole archive",
        )
    return (parts[n] for n in whole)


def _check(file: TextFile, wanted: tuple[Column, ...]) -> list[str]:
    extra = check_header(file, _form(wanted))
    return [f"{file.url}: not read: {', '.join(extra)[:200]}"] if extra else []


def _form(wanted: tuple[Column, ...]) -> Form:
    return Form(tuple(c.name for c in wanted))


def _some(files: Mapping[str, TextFile]) -> str:
    return ", ".join(list(files)[:5]) + (", ..." if len(files) > 5 else "") or "no files"
