"""Writes safetensors files, and reads byte ranges of them on any filesystem.

Reading trusts nothing the header says.
"""

import errno
import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from raymtl.errors import DamagedCheckpoint
from raymtl.storage import Folder

READABLE = 0o644
MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors format itself."""
DTYPES: dict[str, tuple[torch.dtype, str]] = {
    "F32": (torch.float32, "<f4"),
    "F64": (torch.float64, "<f8"),
    "I64": (torch.int64, "<i8"),
    "I32": (torch.int32, "<i4"),
    "U8": (torch.uint8, "<u1"),
    "BOOL": (torch.bool, "|b1"),
}


def damaged(folder: Folder, name: str, got: str, wanted: str) -> DamagedCheckpoint:
    """The one error for a checkpoint file that is not what its manifest says."""
    return DamagedCheckpoint(
        "a checkpoint is damaged",
        f"{folder.url}/{name}: {got}",
        wanted,
        "use another checkpoint (--checkpoint NAME), or restore the file",
    )


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Writes a local file, as readable as the text files beside it.

    Raises:
        OSError: with its number, which safetensors gives in words only.
    """
    try:
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
    except SafetensorError as error:
        found = re.search(r"os error (\d+)", str(error))
        number = int(found[1]) if found else errno.EIO
        raise OSError(number, os.strerror(number), str(path)) from error
    path.chmod(READABLE)


@dataclass(frozen=True)
class Slot:
    """Where a tensor lies in its file."""

    dtype: torch.dtype
    numpy_dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row (dimension 0)."""
        return math.prod(self.shape[1:]) * np.dtype(self.numpy_dtype).itemsize


class ShardFile:
    """One safetensors file, opened; tensors are read by rows."""

    def __init__(self, folder: Folder, name: str):
        self.folder, self.name = folder, name
        try:
            self._file = folder.open(name)
            self._size = self._file.size()
            self.slots = self._read_header()
        except (
            *(OSError, ValueError, KeyError, TypeError, AttributeError),
            *(RecursionError, OverflowError),
        ) as error:
            if isinstance(error, DamagedCheckpoint):
                raise
            raise damaged(folder, name, str(error), "a readable safetensors file") from None

    def _read_header(self) -> dict[str, Slot]:
        length = int.from_bytes(self._file.read_at(8, 0), "little")
        if self._size < 8 or not 2 <= length <= min(MAX_HEADER_BYTES, self._size - 8):
            raise self._damaged(f"header of {length} bytes in a file of {self._size}")
        header = json.loads(bytes(self._file.read_at(length, 8)))
        header.pop("__metadata__", None)
        return {key: self._slot(key, entry, 8 + length) for key, entry in header.items()}

    def _slot(self, key: str, entry: dict, base: int) -> Slot:
        dtype, numpy_dtype = DTYPES[entry["dtype"]]
        shape = tuple(int(n) for n in entry["shape"])
        begin, end = (int(n) for n in entry["data_offsets"])
        size = math.prod(shape) * np.dtype(numpy_dtype).itemsize
        inside = 0 <= begin <= end <= self._size - base
        if not all(0 <= n < 2**48 for n in shape) or not inside or end - begin != size:
            raise self._damaged(f"{key} of shape {list(shape)} at bytes {begin} to {end}")
        return Slot(dtype, numpy_dtype, shape, base + begin)

    def _damaged(self, got: str) -> DamagedCheckpoint:
        return damaged(self.folder, self.name, got, "a header that fits its file")

    def read(self, key: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows start to stop of a tensor (the whole of a scalar), in a new tensor."""
        if key not in self.slots:
            raise damaged(self.folder, self.name, f"no tensor {key}", f"a tensor {key}")
        slot = self.slots[key]
        if not slot.shape:
            content = self._file.read_at(slot.row_bytes, slot.start)
            return _tensor(content, slot, ())
        stop = slot.shape[0] if stop is None else stop
        assert 0 <= start <= stop <= slot.shape[0], (key, start, stop, slot.shape)
        if (stop - start) * slot.row_bytes == 0:
            return torch.empty((stop - start, *slot.shape[1:]), dtype=slot.dtype)
        content = self._file.read_at(
            (stop - start) * slot.row_bytes, slot.start + start * slot.row_bytes
        )
        return _tensor(content, slot, (stop - start, *slot.shape[1:]))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _tensor(content: bytes, slot: Slot, shape: tuple[int, ...]) -> Tensor:
    array = np.frombuffer(content, dtype=slot.numpy_dtype).reshape(shape).copy()
    return torch.from_numpy(array) if shape else torch.tensor(array.item(), dtype=slot.dtype)
