"""One rank's failure becomes every rank's: the status word of each step's first collective."""

import json
import traceback
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from raymtl import collectives
from raymtl.errors import (
    DamagedCheckpoint,
    IdOutOfRange,
    InputError,
    NonFinite,
    RankFailed,
    UnreadableChunk,
)

T = TypeVar("T")
INPUT_ERRORS = {
    c.__name__: c for c in (InputError, IdOutOfRange, UnreadableChunk, DamagedCheckpoint)
}


def attempt(action: Callable[[], T]) -> tuple[T | None, Exception | None]:
    """Runs what one rank does alone; returns its result or its exception, for `agree`."""
    try:
        return action(), None
    except Exception as error:
        return None, error


def agree(
    error: Exception | None, numbers: Tensor, group: collectives.Group | None = None
) -> Tensor:
    """Collective. Sums `numbers` over ranks, or raises on all ranks alike if one failed.

    Args:
        error: what went wrong on this rank, or None.
        numbers: float64, any length, on the group's device.
        group: null for the first process group.

    Returns:
        The sums, a new tensor.

    Raises:
        InputError: the first failing rank's, rebuilt on every rank.
        NonFinite: with all failing ranks' texts.
        RankFailed: with all failing ranks' texts, for any other exception.
    """
    word = torch.cat([numbers.new_tensor([0.0 if error is None else 1.0]), numbers])
    collectives.sum_(word, group)
    if word[0] > 0:
        messages = collectives.gather_bytes(_to_bytes(error), numbers.device, group)
        raise _from_messages(messages) from error
    return word[1:]


def raise_together(error: Exception | None, device: torch.device) -> None:
    """Collective. Raises on all ranks alike if any rank brings an error."""
    agree(error, torch.zeros(0, dtype=torch.float64, device=device))


def to_dict(error: Exception) -> dict:
    """An error as plain values, so that it crosses processes without pickle."""
    if isinstance(error, InputError):
        return {"kind": type(error).__name__, "parts": list(error.parts)}
    if isinstance(error, RankFailed):
        return {"kind": type(error).__name__, "parts": [str(error)]}
    text = "".join(traceback.format_exception(error))
    return {"kind": "RankFailed", "parts": [f"{type(error).__name__}: {error}\n{text}"]}


def from_dict(value: dict) -> Exception:
    """The error `to_dict` wrote down."""
    if value["kind"] in INPUT_ERRORS:
        return INPUT_ERRORS[value["kind"]](*value["parts"])
    return (NonFinite if value["kind"] == "NonFinite" else RankFailed)(*value["parts"])


def _to_bytes(error: Exception | None) -> bytes:
    return b"" if error is None else json.dumps(to_dict(error)).encode()


def _from_messages(messages: list[bytes]) -> Exception:
    failures = {r: json.loads(m) for r, m in enumerate(messages) if m}
    for failure in failures.values():
        if failure["kind"] in INPUT_ERRORS:
            return from_dict(failure)
    text = "\n".join(f"rank {r}: {f['parts'][0]}" for r, f in failures.items())
    kinds = {f["kind"] for f in failures.values()}
    return NonFinite(text) if kinds == {"NonFinite"} else RankFailed(text)
