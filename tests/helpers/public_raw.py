r"""Small files in the raw forms of public data sets, with the rows they hold.

Headers, order, types and examples of values as published:
KuaiRand: github.com/chongminggao/KuaiRand, README, "Data Descriptions";
Ali-CCP: tianchi.aliyun.com/dataset/408, as read by github.com/xidongbo/AITM
(process_public_dataset.py);
Census-Income (KDD): census-income.names, archive.ics.uci.edu/dataset/117/census+income+kdd.
"""

from pathlib import Path

LOG_HEADER = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,"
    "is_hate,long_view,play_time_ms,duration_ms,profile_stay_time,comment_stay_time,"
    "is_profile_enter,is_rand,tab"
)
USER_HEADER = (
    "user_id,user_active_degree,is_lowactive_period,is_live_streamer,is_video_author,"
    "follow_user_num,follow_user_num_range,fans_user_num,fans_user_num_range,friend_user_num,"
    "friend_user_num_range,register_days,register_days_range,"
    + ",".join(f"onehot_feat{n}" for n in range(18))
)
VIDEO_HEADER = (
    "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,"
    "server_width,server_height,music_id,music_type,tag"
)
STATISTIC_HEADER = (
    "video_id,counts,show_cnt,show_user_num,play_cnt,play_user_num,play_duration,"
    "complete_play_cnt,complete_play_user_num,valid_play_cnt,valid_play_user_num,"
    "long_time_play_cnt,long_time_play_user_num,short_time_play_cnt,short_time_play_user_num,"
    "play_progress,comment_stay_duration,like_cnt,like_user_num,click_like_cnt,double_click_cnt,"
    "cancel_like_cnt,cancel_like_user_num,comment_cnt,comment_user_num,direct_comment_cnt,"
    "reply_comment_cnt,delete_comment_cnt,delete_comment_user_num,comment_like_cnt,"
    "comment_like_user_num,follow_cnt,follow_user_num,cancel_follow_cnt,cancel_follow_user_num,"
    "share_cnt,share_user_num,download_cnt,download_user_num,report_cnt,report_user_num,"
    "reduce_similar_cnt,reduce_similar_user_num,collect_cnt,collect_user_num,cancel_collect_cnt,"
    "cancel_collect_user_num,direct_comment_user_num,reply_comment_user_num,share_all_cnt,"
    "share_all_user_num,outsite_share_all_cnt"
)
EARLY = "log_standard_4_08_to_4_21_pure.csv"
LATE = "log_standard_4_22_to_5_08_pure.csv"


def impression(n: int, date: int) -> str:
    """A line of a KuaiRand log: user n mod 7, video n mod 5; every third is clicked."""
    time_ms = 1_650_000_000_000 + 60_000 * n
    labels = f"{int(n % 3 == 0)},{int(n % 11 == 0)},0,0,0,0,{int(n % 4 == 0)}"
    return (
        f"{n % 7},{n % 5},{date},{100 * (n % 24) + 30},{time_ms},{labels},{500 * n},17200,0,0,0,0,1"
    )


def write_kuairand(folder: Path) -> None:
    """KuaiRand-Pure's four files that must be: 60 impressions a period, 7 users, 5 videos."""
    folder.mkdir(parents=True, exist_ok=True)
    early = [impression(n, 20220408 + n // 5) for n in range(60)]
    late = [impression(n, 20220422 + (n - 60) // 5) for n in range(60, 120)]
    users = [user(n, unknown=n == 3) for n in range(7)]
    videos = [video(n, unknown=n == 4) for n in range(5)]
    lines(folder / EARLY, [LOG_HEADER, *early])
    lines(folder / LATE, [LOG_HEADER, *late])
    lines(folder / "user_features_pure.csv", [USER_HEADER, *users])
    lines(folder / "video_features_basic_pure.csv", [VIDEO_HEADER, *videos])


def user(n: int, unknown: bool) -> str:
    """A line of user features; pandas leaves what is unknown empty, the column turns to floats."""
    feat4, feat12 = ("", "") if unknown else ("4.0", "1.0")
    ranges = f'{5 * n},"(0,10]",312,"[100,1k)",0,0,3624,730+'
    return (
        f"{n},full_active,0,-124,1,{ranges},1,2,2,1153,{feat4},0,0,31,354,3,3,2,{feat12},0,0,0,0,0"
    )


def video(n: int, unknown: bool) -> str:
    """A line of basic video features."""
    kind, tag = ("", "") if unknown else ("4.0", '"12,65"')
    sizes = "1.0,17200.0,720.0,1280.0,9155697141"
    return f"{n},{n % 2},NORMAL,2020-07-08,ShortImport,{sizes},{kind},{tag}"


def features(*triples: tuple[str, int, float]) -> str:
    """An Ali-CCP list: field, feature and value."""
    return "\x01".join(f"{field}\x02{feature}\x03{value}" for field, feature, value in triples)


def sample(number: int, click: int, conversion: int, index: str, *triples) -> str:
    """A line of a sample skeleton."""
    return f"{number},{click},{conversion},{index},{len(triples)},{features(*triples)}"


def common(index: str, *triples) -> str:
    """A line of a file of common features."""
    return f"{index},{len(triples)},{features(*triples)}"


def index_of(user: int) -> str:
    """An index as the files have them: 16 hexadecimal digits."""
    return f"{user * 0x9E3779B97F4A7C15 % 2**64:016x}"


def user_features(user: int) -> list[tuple[str, int, float]]:
    """The common features of a user: a profile, and user + 1 categories of the past."""
    profile = [("101", 1000 + user, 1.0), ("121", 3438658 + user % 3, 1.0)]
    past = [("109_14", 4_000_000 + n, 0.5 * (n + 1)) for n in range(user + 1)]
    return [*profile, *past]


def write_aliccp(folder: Path, samples: int = 60, users: int = 8) -> None:
    """Both splits: sample n is of user n mod `users`, every fifth clicked, every tenth converted.

    Sample 7 of each split has a conversion without a click.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        made = [
            sample(
                n,
                int(n % 5 == 0),
                int(n % 10 == 0 or n == 7),
                index_of(n % users),
                ("205", 4_186_222 + n, 1.0),
                ("206", 8_316_799 + n % 4, 1.0),
                ("210", 9_052_218, 1.0),
                ("210", 9_064_553 + n, 1.0),
                ("508", 9_355_039, 2.5),
            )
            for n in range(1, samples + 1)
        ]
        lines(folder / f"sample_skeleton_{split}.csv", made)
        shared = [common(index_of(u), *user_features(u)) for u in range(users)]
        lines(folder / f"common_features_{split}.csv", shared)


def person(n: int) -> str:
    """A line of Census-Income (KDD): 42 fields; every fourth earns much, every other is single."""
    education = ("Children", "Some college but no degree", "Masters degree(MA MS MEng MEd MSW MBA)")
    status = "Never married" if n % 2 else "Divorced"
    income = "50000+." if n % 4 == 0 else "- 50000."
    head = f"{20 + n % 50}, Private, 6, 36, {education[n % 3]}, 0, Not in universe, {status}"
    work = "Education, Other service, White, NA, Female, No, Not in universe, Full-time schedules"
    money = f"{n}, 0, {2500 if n % 5 == 0 else 0}, Single, South, Utah, Householder, Householder"
    moves = f"{1000 + n}.38, ?, ?, ?, Yes, ?, 4, Not in universe, Mexico, Mexico, United-States"
    rest = f"Native- Born in the United States, 0, Not in universe, 2, {n % 53}, 95, {income}"
    return f"{head}, {work}, {money}, {moves}, {rest}"


def write_census(folder: Path, train: int = 40, test: int = 20) -> None:
    """Both halves."""
    folder.mkdir(parents=True, exist_ok=True)
    lines(folder / "census-income.data", [person(n) for n in range(train)])
    lines(folder / "census-income.test", [person(n) for n in range(train, train + test)])


def lines(path: Path, content: list[str]) -> None:
    """Writes lines, each with its end."""
    path.write_text("".join(f"{line}\n" for line in content), encoding="utf-8")


def change(path: Path, old: str, new: str, count: int = -1) -> None:
    """Replaces text in a file."""
    content = path.read_text(encoding="utf-8")
    assert old in content
    path.write_text(content.replace(old, new, count), encoding="utf-8")
