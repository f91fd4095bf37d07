"""Folders on any filesystem pyarrow or fsspec can reach, and the few things raymtl does there."""

import errno
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
from pyarrow import fs

from raymtl.errors import InputError, one_line

T = TypeVar("T")
START_FOLDER = "RAYMTL_FOLDER"
"""Environment variable that a submitted job has: the folder that its command was typed in."""

PAUSES_S = (1.0, 4.0, 15.0)
"""Seconds between tries where storage does not answer."""
FINAL_ERRORS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),
}
"""Error numbers of storage that is full, forbidden or not there, which a person must mend."""


def filesystem(url: str) -> tuple[fs.FileSystem, str]:
    """The filesystem a URL names, and the path on it.

    pyarrow's own filesystems are asked first (local, s3, gs, hdfs, abfs), then fsspec's.

    Raises:
        InputError: no filesystem knows the URL, or its package is not installed.
    """
    if "://" not in url:
        return fs.LocalFileSystem(), absolute(url)
    return _remote(url)


def absolute(url: str) -> str:
    """A local path made absolute, for processes with another working folder; a URL as it is.

    Relative paths start at RAYMTL_FOLDER where that is set, else at the working folder. A slash at
    the end is dropped.
    """
    url = url.rstrip("/") if len(url) > 1 else url
    start = os.environ.get(START_FOLDER) or os.getcwd()
    return url if "://" in url else os.path.abspath(os.path.join(start, os.path.expanduser(url)))


@lru_cache(maxsize=8)
def _remote(url: str) -> tuple[fs.FileSystem, str]:
    try:
        found, path = fs.FileSystem.from_uri(url)
    except (pa.ArrowException, OSError, ValueError) as arrow_error:
        found, path = _fsspec(url, arrow_error)
    return found, path.rstrip("/") or "/"


def _fsspec(url: str, arrow_error: Exception) -> tuple[fs.FileSystem, str]:
    from fsspec.core import url_to_fs

    try:
        inner, path = url_to_fs(url)
    except (ValueError, ImportError, OSError) as error:
        raise InputError(
            "no filesystem can open a URL",
            f"{url}: {one_line(arrow_error)}; {one_line(error)}",
            "a path, or a URL that pyarrow or an installed fsspec package knows",
            "mend the URL, or install the fsspec package of its scheme",
        ) from None
    return fs.PyFileSystem(fs.FSSpecHandler(inner)), path


def persistently(action: Callable[[], T]) -> T:
    """Does again what storage refuses, after each of `PAUSES_S`, as it may be back by then.

    Raises:
        OSError: the last one, or at once the first that waiting does not mend (`FINAL_ERRORS`).
    """
    for pause in PAUSES_S:
        try:
            return action()
        except OSError as error:
            if error.errno in FINAL_ERRORS:
                raise
            time.sleep(pause)
    return action()


class Folder:
    """A folder: whole small files, streamed large ones. Names are relative, `/` parts allowed."""

    def __init__(self, url: str):
        # Ray Train's workers have another working folder, so a relative path becomes absolute.
        self.url = absolute(url)
        self.filesystem, self.path = filesystem(self.url)
        self.path = self.path.rstrip("/")

    def __truediv__(self, name: str) -> "Folder":
        return Folder(f"{self.url}/{name}")

    @property
    def is_local(self) -> bool:
        """Whether it lies on this machine's own filesystem."""
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def names(self) -> list[str]:
        """Names of what lies directly in the folder, sorted; none where it does not exist."""
        selector = fs.FileSelector(self.path, allow_not_found=True)
        return sorted(info.base_name for info in self.filesystem.get_file_info(selector))

    def size(self, name: str) -> int | None:
        """Bytes of a file; null where there is none."""
        info = self.filesystem.get_file_info(f"{self.path}/{name}")
        return info.size if info.type == fs.FileType.File else None

    def read(self, name: str) -> bytes:
        """A whole file. Raises FileNotFoundError or OSError."""
        with self.filesystem.open_input_stream(f"{self.path}/{name}") as stream:
            return stream.read()

    def open(self, name: str) -> pa.NativeFile:
        """A file for random access."""
        return self.filesystem.open_input_file(f"{self.path}/{name}")

    def write(self, name: str, content: bytes) -> None:
        """Writes a whole file; readers see the old one or the new one, never a part."""
        if self.is_local:
            target = Path(self.path, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
            try:
                with open(temporary, "wb") as stream:
                    stream.write(content)
                    stream.flush()
                    os.fsync(stream.fileno())
                os.replace(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)
            _sync_folder(target.parent)
        else:
            with self.filesystem.open_output_stream(f"{self.path}/{name}") as stream:
                stream.write(content)

    def put(self, name: str, source: Path) -> None:
        """Moves a local file here, synced to disk before it takes its name."""
        if self.is_local:
            target = Path(self.path, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(source, "rb") as stream:
                os.fsync(stream.fileno())
            shutil.move(source, target)
            _sync_folder(target.parent)
        else:
            with (
                open(source, "rb") as stream,
                self.filesystem.open_output_stream(f"{self.path}/{name}") as out,
            ):
                shutil.copyfileobj(stream, out, 16 * 2**20)
            source.unlink()

    def fetch(self, name: str, target: Path) -> tuple[int, str]:
        """Copies a file to a local path, piece by piece; its size and SHA-256 in hex."""
        digest, size = hashlib.sha256(), 0
        with (
            self.filesystem.open_input_stream(f"{self.path}/{name}") as stream,
            open(target, "wb") as out,
        ):
            while piece := stream.read(16 * 2**20):
                digest.update(piece)
                size += out.write(piece)
        return size, digest.hexdigest()

    def scratch(self) -> Path:
        """A local folder to build files in before `put`; on the same disk where it can be."""
        root = Path(self.path) if self.is_local else Path(os.environ.get("TMPDIR", "/tmp"))
        folder = root / f".writing-{uuid.uuid4().hex}"
        folder.mkdir(parents=True)
        return folder

    def delete(self, name: str) -> None:
        """Removes a file or a folder below this one, if it is there.

        What goes away meanwhile is no error: a worker of an earlier attempt may still be writing.
        """
        path = f"{self.path}/{name}"
        for last in (False, False, True):
            kind = self.filesystem.get_file_info(path).type
            try:
                if kind == fs.FileType.Directory:
                    self.filesystem.delete_dir(path)
                elif kind == fs.FileType.File:
                    self.filesystem.delete_file(path)
                return
            except FileNotFoundError:
                if last:
                    raise

    def require_writable(self) -> None:
        """Raises InputError unless a file can be made here."""
        probe = f".probe-{uuid.uuid4().hex}"
        try:
            if not self.is_local:
                self.filesystem.create_dir(self.path)
            self.write(probe, b"raymtl")
            self.delete(probe)
        except OSError as error:
            raise InputError(
                "storage is not writable",
                f"{self.url}: {error}",
                "a folder or URL this user may write to",
                "set storage=… to one",
            ) from None


def _sync_folder(folder: Path) -> None:
    """Makes a rename in a local folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
