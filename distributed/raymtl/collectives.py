"""The only file that calls torch.distributed. Without a process group all are the identity.

Backend nccl or gloo follows the device of the group; tensors must lie on that device.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

Group = dist.ProcessGroup


@contextmanager
def joined(rank: int, world_size: int, meeting: str) -> Iterator[None]:
    """Collective. A gloo group for the block, for measurements outside Ray.

    Args:
        meeting: path of a file that all ranks reach and that is not there yet.
    """
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=world_size
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def world_size() -> int:
    """W, 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's rank, 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def second_group(timeout_s: float) -> Group | None:
    """Collective. Another gloo group of all ranks, for a second thread; null without a first."""
    if not dist.is_initialized():
        return None
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
    assert isinstance(group, Group)
    return group


def sum_(tensor: Tensor, group: Group | None = None) -> Tensor:
    """Collective. Sums a tensor over ranks in place and returns it."""
    if world_size() > 1:
        dist.all_reduce(tensor, group=group)
    return tensor


@dataclass
class Begun:
    """An exchange on its way; what is sent must not change before `wait`."""

    _sent: Tensor
    _received: Tensor
    _into: Tensor
    """What was received, or where it shall lie in another type."""
    _work: Any

    def wait(self) -> Tensor:
        """What this rank got; raises where another rank is gone."""
        if self._work is not None:
            self._work.wait()
        return self._into if self._received is self._into else self._into.copy_(self._received)


def begin_exchange(
    send: Tensor,
    send_sizes: list[int],
    receive_sizes: list[int],
    group: Group | None = None,
    into: Tensor | None = None,
) -> Begun:
    """Collective. `exchange` without waiting for it; all ranks begin theirs in one order.

    Args:
        into: contiguous, of the result's shape, to receive in; of another type than `send` it takes
            a copy. Null for a new tensor.
    """
    if world_size() == 1:
        return Begun(send, send, send if into is None else into, None)
    if into is not None and into.dtype == send.dtype:
        received = into
    else:
        received = send.new_empty((sum(receive_sizes), *send.shape[1:]))
    work = dist.all_to_all_single(
        received, send, receive_sizes, send_sizes, group=group, async_op=True
    )
    return Begun(send, received, received if into is None else into, work)


def exchange(
    send: Tensor, send_sizes: list[int], receive_sizes: list[int], group: Group | None = None
) -> Tensor:
    """Collective. Sends `send[:send_sizes[0]]` to rank 0, the next part to rank 1, and so on.

    Args:
        send: contiguous, any type; dimension 0 is split.
        send_sizes: W row counts, summing to len(send).
        receive_sizes: W row counts this rank will get.
        group: null for the first group.

    Returns:
        What this rank got, in rank order: (sum(receive_sizes), *send.shape[1:]).
    """
    return begin_exchange(send, send_sizes, receive_sizes, group).wait()


def exchange_sizes(
    *sizes: list[int], device: torch.device | None = None, group: Group | None = None
) -> list[list[int]]:
    """Collective. Of each list, rank r's sizes[q] arrives as rank q's result[r]."""
    if world_size() == 1:
        return list(sizes)
    send = torch.tensor(sizes, dtype=torch.int64, device=device).t().contiguous()
    received = torch.empty_like(send)
    dist.all_to_all_single(received, send, group=group)
    return received.t().tolist()


def gather_bytes(
    message: bytes, device: torch.device | None = None, group: Group | None = None
) -> list[bytes]:
    """Collective. Every rank's message on every rank, in rank order; no pickle."""
    if world_size() == 1:
        return [message]
    sizes = torch.zeros(world_size(), dtype=torch.int64, device=device)
    sizes[rank()] = len(message)
    dist.all_reduce(sizes, group=group)
    longest = int(sizes.max())
    mine = torch.zeros(longest, dtype=torch.uint8, device=device)
    if message:
        mine[: len(message)] = torch.frombuffer(bytearray(message), dtype=torch.uint8)
    parts = [torch.empty_like(mine) for _ in range(world_size())]
    dist.all_gather(parts, mine, group=group)
    return [bytes(p[:n].cpu().numpy()) for p, n in zip(parts, sizes.tolist(), strict=True)]


def barrier() -> None:
    """Collective. Waits for all ranks."""
    if world_size() > 1:
        dist.barrier()
