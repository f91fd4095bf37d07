"""Scores of runs, made once: kept under a name that follows from checkpoint and log.

The only part of the analysis that starts workers.
"""

import hashlib
import json
from collections.abc import Sequence

from raymtl.analysis.cells import Cell
from raymtl.analysis.runs import NamedRun
from raymtl.checkpoint import Checkpoint
from raymtl.cluster import session
from raymtl.config import LaunchSection
from raymtl.data.log import LOG_ROW, LogIndex
from raymtl.lineage import reading_schema
from raymtl.preflight import indexed
from raymtl.progress import Show
from raymtl.run import choose
from raymtl.scoring import predict
from raymtl.storage import Folder

DONE = "_result.json"
"""Written last into a folder of scores."""


def cells_of(
    runs: Sequence[NamedRun],
    log: str,
    out: str,
    launch: LaunchSection,
    which: str = "best",
    show: Show = print,
) -> list[Cell]:
    """Scores a log with each run's checkpoint, those excepted whose scores are in `out` already.

    Args:
        out: folder that keeps the scores, one folder for each checkpoint and log.
        which: `best`, `last`, or a checkpoint's name.

    Raises:
        InputError: as `raymtl.scoring.predict`, before any worker starts where labels are missing.
    """
    places = [_place(run, log, out, which) for run in runs]
    waiting = [i for i, (folder, _) in enumerate(places) if folder.size(DONE) is None]
    if waiting:
        with session(launch):
            for i in waiting:
                _score(places[i], log, launch, show)
    return [
        Cell(run.label, run.seed, folder.url, run.url)
        for run, (folder, _) in zip(runs, places, strict=True)
    ]


def scores_name(checkpoint: Checkpoint, index: LogIndex) -> str:
    """Changes with any byte of the checkpoint and with the log's files."""
    files = sorted((entry.name, entry.sha256) for entry in checkpoint.entries.values())
    text = json.dumps([files, index.digest])
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def _place(run: NamedRun, log: str, out: str, which: str) -> tuple[Folder, Checkpoint]:
    checkpoint = choose(run.url, which)
    index = indexed(log, reading_schema(run.schema, log, checkpoint.folder.url))
    return Folder(out) / scores_name(checkpoint, index), checkpoint


def _score(place: tuple[Folder, Checkpoint], log: str, launch: LaunchSection, show: Show) -> None:
    folder, checkpoint = place
    for name in folder.names():  # of an attempt that did not come to its end
        folder.delete(name)
    url = checkpoint.folder.url
    result = predict(url, log, folder.url, (LOG_ROW,), launch, show=show)
    folder.write(DONE, (json.dumps(result, indent=1, sort_keys=True) + "\n").encode())
