"""Peak memory of `raymtl convert` on generated raw files and on ones some times longer.

    python benchmarks/convert_memory.py [--rows 2000000] [--times 5]

Prints one table and writes convert_memory.json. KuaiRand: a log of that many rows. Ali-CCP: a fifth
of them as samples of a hundredth of them as users, each with 800 common features, near what public
excerpts of the real file show. A peak is the kernel's VmHWM of the one process there is.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

LOG_HEADER = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,"
    "is_hate,long_view,play_time_ms,duration_ms,profile_stay_time,comment_stay_time,"
    "is_profile_enter,is_rand,tab\n"
)
USERS = "user_id,user_active_degree,is_lowactive_period,is_live_streamer,is_video_author,"
USERS += "follow_user_num,follow_user_num_range,fans_user_num,fans_user_num_range,"
USERS += "friend_user_num,friend_user_num_range,register_days,register_days_range,"
USERS += ",".join(f"onehot_feat{n}" for n in range(18))
VIDEOS = "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,"
VIDEOS += "server_width,server_height,music_id,music_type,tag"
COMMON_FEATURES, LISTS = 800, 100
RUN = """
import sys, time
from pathlib import Path
from raymtl.data.convert.forms import convert
from raymtl.data.convert.plan import Options
start = time.monotonic()
convert(sys.argv[1], sys.argv[2], sys.argv[3], Options())
seconds = time.monotonic() - start
status = Path("/proc/self/status").read_text()
peak = next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]
print(int(peak) * 1024, seconds)
"""


def write_kuairand(folder: Path, rows: int) -> None:
    """One log of `rows` rows; the other files have one each."""
    row = "{},{},20220422,1330,{},1,0,0,0,0,0,1,30500,17200,0,0,0,0,1\n".format
    with (folder / "log_standard_4_22_to_5_08_pure.csv").open("w") as file:
        file.write(LOG_HEADER)
        file.writelines(row(n % 27_285, n * 7 % 7_583, 1_650_000_000_000 + n) for n in range(rows))
    first = LOG_HEADER + row(1, 1, 1)
    (folder / "log_standard_4_08_to_4_21_pure.csv").write_text(first)
    (folder / "user_features_pure.csv").write_text(f"{USERS}\n1{',' * 30}\n")
    (folder / "video_features_basic_pure.csv").write_text(f"{VIDEOS}\n1{',' * 11}\n")


def write_aliccp(folder: Path, rows: int) -> None:
    """A train split: rows / 5 samples of rows / 100 users."""
    users = max(1, rows // 100)
    fields = ["109_14", "110_14", "127_14", "150_14"]
    lists = [
        "\x01".join(
            f"{fields[n % 4]}\x02{4_000_000 + k * 1000 + n}\x03{0.6931 * (n % 17 + 1):.5f}"
            for n in range(COMMON_FEATURES)
        )
        for k in range(LISTS)
    ]
    with (folder / "common_features_train.csv").open("w") as file:
        file.writelines(f"{u:016x},{COMMON_FEATURES},{lists[u % LISTS]}\n" for u in range(users))
    with (folder / "sample_skeleton_train.csv").open("w") as file:
        file.writelines(
            f"{n},0,0,{n % users:016x},4,205\x02{4_186_222 + n}\x031.0\x01206\x028316799\x031.0"
            f"\x01210\x029052218\x031.0\x01210\x029064553\x031.0\n"
            for n in range(rows // 5)
        )


def peak_of(form: str, write: Callable[[Path, int], None], rows: int) -> tuple[int, int, float]:
    """Bytes of the raw files, the conversion's peak in bytes, and its seconds."""
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder, "raw")
        raw.mkdir()
        write(raw, rows)
        size = sum(file.stat().st_size for file in raw.iterdir())
        command = [sys.executable, "-c", RUN, form, str(raw), f"{folder}/out"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    peak, seconds = done.stdout.split()
    return size, int(peak), float(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--times", type=int, default=5)
    args = parser.parse_args()
    result = {}
    print(f"{'form':12}{'rows':>12}{'raw MB':>10}{'peak MB':>10}{'seconds':>10}")
    for form, write in (("kuairand", write_kuairand), ("aliccp", write_aliccp)):
        for rows in (args.rows, args.rows * args.times):
            size, peak, seconds = peak_of(form, write, rows)
            print(f"{form:12}{rows:>12,}{size / 1e6:>10.0f}{peak / 1e6:>10.0f}{seconds:>10.1f}")
            result[f"{form} {rows}"] = {"raw_bytes": size, "peak_bytes": peak, "seconds": seconds}
    Path("convert_memory.json").write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
