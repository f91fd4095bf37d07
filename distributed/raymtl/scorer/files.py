"""The files of an artifact: checked against the manifest's hashes before any is looked into."""

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from raymtl.scorer.errors import ArtifactError, damaged, one_line, require

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
TEXTS = ("artifact.json", "golden.json", "program.json", "schema.yaml", "scorer.py")
TENSORS = ("tables.safetensors", "vocabularies.safetensors", "weights.safetensors")
FILES = tuple(sorted(TEXTS + TENSORS))
"""The manifest must name these and no others, so no name leads out of the folder."""
MAX_MANIFEST_BYTES = 1_000_000


def verified(folder: Path) -> dict[str, bytes]:
    """The small files, once every file has the size and the SHA-256 of the manifest."""
    with reading(folder, MANIFEST):
        content = _read(folder / MANIFEST, MAX_MANIFEST_BYTES)
        manifest = json.loads(content)
        require(manifest["format_version"] == FORMAT_VERSION, "of another format version")
        entries = manifest["files"]
        require(sorted(entries) == list(FILES), "with other files than an export's")
    texts = {}
    for name in FILES:
        with reading(folder, name):
            size, digest = entries[name]["size"], hashlib.sha256()
            require(type(size) is int, "of a size that is no number")
            with _opened(folder / name) as stream:
                require(os.fstat(stream.fileno()).st_size == size, f"not of {size} bytes")
                parts = []
                while part := stream.read(2**24):
                    digest.update(part)
                    parts += [part] if name in TEXTS else []
            require(digest.hexdigest() == entries[name]["sha256"], "altered: its hash differs")
            texts[name] = b"".join(parts)
    return texts


def _opened(path: Path) -> Any:
    """A plain file; neither a link nor a device or pipe, which could hang."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    stream = os.fdopen(handle, "rb")
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        stream.close()
        raise ValueError("no plain file")
    return stream


def _read(path: Path, most: int) -> bytes:
    with _opened(path) as stream:
        content = stream.read(most + 1)
    require(len(content) <= most, f"longer than {most:,} bytes")
    return content


def tensors_of(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, mapped from the disk and not copied."""
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


@contextmanager
def reading(folder: Path, name: str) -> Iterator[None]:
    """Turns what goes wrong with a file into the one error for damaged artifacts."""
    try:
        yield
    except ArtifactError:
        raise
    except Exception as error:
        text = f"{type(error).__name__}: {one_line(error)}"
        raise damaged(f"{folder}/{name}", text) from None
