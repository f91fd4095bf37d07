"""A checkpoint's manifest: its files with sizes and hashes. Whoever wrote it is not trusted."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from raymtl.errors import DamagedCheckpoint
from raymtl.shards import damaged
from raymtl.storage import Folder

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
MAX_BYTES = 64 * 2**20
"""Of a manifest; one with 1,024 ranks' files has 0.2 MB."""
Count = Annotated[int, Field(ge=0, lt=2**63)]


@dataclass(frozen=True)
class FileEntry:
    """A file of a checkpoint as its manifest describes it."""

    name: str
    size: Count
    sha256: str
    buckets: tuple[Count, Count] | None = None
    """First and past-last bucket of the table rows it holds; null for other files."""


@dataclass(frozen=True)
class Manifest:
    """What a complete checkpoint holds."""

    step: Count
    metric: float | None
    num_buckets: Annotated[int, Field(ge=1, lt=2**31)]
    files: list[FileEntry] = field(default_factory=list)
    format_version: int = FORMAT_VERSION

    def to_bytes(self) -> bytes:
        """The file's content, its own hash included."""
        content = asdict(self)
        content["sha256"] = _self_hash(content)
        return json.dumps(content, indent=1, sort_keys=True).encode()


_MANIFEST = TypeAdapter(Manifest)


def read_manifest(folder: Folder) -> Manifest:
    """Reads and checks a checkpoint's manifest.

    Raises:
        DamagedCheckpoint: it is missing, altered, of another format, or not one of ours.
    """
    try:
        content = json.loads(_bytes_of(folder))
        wanted = content.pop("sha256")
        if wanted != _self_hash(content):
            raise damaged(folder, MANIFEST, "its bytes were altered", "the bytes saved")
        version = content["format_version"]
        if version != FORMAT_VERSION:
            raise damaged(folder, MANIFEST, f"format {version}", f"format {FORMAT_VERSION}")
        manifest = _MANIFEST.validate_json(json.dumps(content), strict=True, extra="forbid")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, DamagedCheckpoint):
            raise
        text = _first(error) if isinstance(error, ValidationError) else str(error)
        raise damaged(folder, MANIFEST, text, "the manifest of a complete save") from None
    for entry in manifest.files:
        _check(folder, entry, manifest.num_buckets)
    return manifest


def peek(folder: Folder) -> Manifest | None:
    """A checkpoint's manifest, null where it cannot be read; for retention, not for loading."""
    try:
        return read_manifest(folder)
    except DamagedCheckpoint:
        return None


def _bytes_of(folder: Folder) -> bytes:
    size = folder.size(MANIFEST)
    if size is not None and size > MAX_BYTES:
        raise damaged(folder, MANIFEST, f"{size} bytes", f"at most {MAX_BYTES}")
    return folder.read(MANIFEST)


def _check(folder: Folder, entry: FileEntry, num_buckets: int) -> None:
    if not PLAIN_NAME.fullmatch(entry.name):
        raise damaged(folder, MANIFEST, f"a file named {entry.name!r}", "plain file names")
    first, last = entry.buckets or (0, 0)
    if not first <= last <= num_buckets:
        raise damaged(folder, MANIFEST, f"buckets {entry.buckets}", f"ranges within {num_buckets}")


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def _self_hash(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
