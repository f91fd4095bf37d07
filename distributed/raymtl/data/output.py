"""The folder `raymtl prepare` or `raymtl convert` writes: whole or not at all. No Ray."""

import uuid
from types import TracebackType

import pyarrow as pa
import pyarrow.fs as pafs

from raymtl.data import scratch
from raymtl.errors import InputError
from raymtl.storage import filesystem

MARKS = ("result.json", "transforms.yaml")
"""Files that show a folder was written by `prepare`, and so may be overwritten."""


class Output:
    """Staging beside the target and a rename at the end; elsewhere than locally in place.

    Used as a context: what was written is removed unless `finish` was called.
    """

    def __init__(
        self,
        url: str,
        overwrite: bool,
        marks: tuple[str, ...] = MARKS,
        by: str = "raymtl prepare",
        force: str = "overwrite=true",
    ):
        """Looks at nothing yet.

        Args:
            marks: files that show a folder was written by this command, and may be overwritten.
            by: the command.
            force: how its user says `overwrite`.
        """
        fs, root = filesystem(url)
        self._is_local = isinstance(fs, pafs.LocalFileSystem)
        self._fs, self._root = fs, root
        self.url = root if self._is_local else url.rstrip("/")
        folder, _, name = root.rpartition("/")
        self.staging = f"{folder}/.{name}.{uuid.uuid4().hex[:8]}" if self._is_local else self.url
        """URL that everything is written below."""
        self._overwrite, self._finished = overwrite, False
        self._marks, self._by, self._force = marks, by, force

    def __enter__(self) -> "Output":
        self._refuse_existing()
        try:
            if not self._is_local:
                scratch.remove(self.url)
            self._fs.create_dir(filesystem(self.staging)[1])
            write_text(self.staging, "_writable", "")
            self._fs.delete_file(f"{filesystem(self.staging)[1]}/_writable")
        except (OSError, pa.ArrowException) as error:
            raise InputError(
                "the output folder cannot be written",
                f"{self.url}: {' '.join(str(error).split())[:200]}",
                "a folder or URL with write permission",
                "name another place",
            ) from None
        return self

    def finish(self, result: str) -> None:
        """Puts the folder in its place, with result.json written last."""
        scratch.remove(f"{self.staging}/_scratch")
        write_text(self.staging, "result.json", result)
        if self._is_local:
            old = f"{self.staging}.old"
            exists = self._fs.get_file_info(self._root).type != pafs.FileType.NotFound
            if exists:
                self._fs.move(self._root, old)
            self._fs.move(self.staging, self._root)
            scratch.remove(old)
        self._finished = True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._finished:
            scratch.remove(self.staging)

    def _refuse_existing(self) -> None:
        info = self._fs.get_file_info(self._root)
        if info.type == pafs.FileType.NotFound:
            return
        marks = [self._fs.get_file_info(f"{self._root}/{m}") for m in self._marks]
        ours = all(m.type == pafs.FileType.File for m in marks)
        if info.type == pafs.FileType.Directory and ours and self._overwrite:
            return
        empty = info.type == pafs.FileType.Directory and not self._fs.get_file_info(
            pafs.FileSelector(self._root)
        )
        if not empty:
            raise InputError(
                "the output folder is there already",
                f"{self.url}" + ("" if ours else f", not written by {self._by}"),
                "a new or empty folder" + (f", or {self._force}" if ours else ""),
                "name another folder" + (f", or add {self._force}" if ours else ", or remove it"),
            )


def write_text(url: str, name: str, text: str) -> None:
    """Writes one UTF-8 file below a URL, which is made."""
    fs, root = filesystem(url)
    fs.create_dir(root)
    with fs.open_output_stream(f"{root}/{name}") as stream:
        stream.write(text.encode())
