"""A prepared log's transforms as plain files: in a run's folder, and from there in checkpoints.

A vocabulary costs some ten bytes a value; the same value's table row costs views x width x 4 bytes
and its optimizer state. So every checkpoint has them all, and a checkpoint copied alone will do for
`raymtl prepare --like`. Their names are plain ones, since tables may have any name:
`vocabulary-00003.parquet` is the fourth of those that transforms.yaml lists.
"""

import logging
import shutil

from raymtl.config import parse_yaml
from raymtl.errors import InputError
from raymtl.storage import Folder

TRANSFORMS = "transforms.yaml"
DISTRIBUTIONS = "distributions.json"
"""What the training part's columns held, for drift; not part of the transforms."""
CARRIED = "transforms"
"""Folder of a run that holds them."""

logger = logging.getLogger(__name__)


def stored_name(number: int) -> str:
    """The plain name of a vocabulary, by its place in transforms.yaml."""
    return f"vocabulary-{number:05d}.parquet"


def beside(log: str) -> Folder:
    """The folder that `raymtl prepare` wrote, of one of its splits."""
    return Folder(log.rstrip("/").rpartition("/")[0] or ".")


def carry(log: str, digest: str | None, target: Folder) -> None:
    """Copies the transforms of a prepared log; warns where they are not beside it any more.

    Args:
        log: URL of one of its splits.
        digest: as the log's schema has it; null for a raw log, of which nothing is copied.
    """
    if digest is None:
        return
    source = beside(log)
    values = _read(source)
    if values.get("digest") != digest:
        logger.warning(
            "the transforms of %s are not beside it: its runs cannot be named in `prepare --like`",
            log,
        )
        return
    listed = enumerate(values.get("vocabularies", {}))
    names = {TRANSFORMS: TRANSFORMS} | {path: stored_name(n) for n, path in listed}
    if source.size(DISTRIBUTIONS) is not None:
        names[DISTRIBUTIONS] = DISTRIBUTIONS
    scratch = target.scratch()
    try:
        for path, name in names.items():
            source.fetch(path, scratch / name)
            target.put(name, scratch / name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _read(folder: Folder) -> dict:
    try:
        return parse_yaml(folder.read(TRANSFORMS).decode(errors="replace"), folder.url)
    except (OSError, InputError):
        return {}
