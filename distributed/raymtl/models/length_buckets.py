"""Rows of a padded batch dealt by the length of their sequence, so that little padding is computed.

A row of length l is always run at the same width, whatever the rows beside it. Ours.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

MIN_WIDTH = 8
"""Narrower buckets cost more in calls than they save in padding."""


def bucket_widths(length: int) -> list[int]:
    """Widths the rows are cut to, ascending: 0 for rows without events, halvings of S, and S.

    Args:
        length: S, the width of the padded batch.
    """
    widths = [length]
    while widths[0] > MIN_WIDTH:
        widths.insert(0, (widths[0] + 1) // 2)
    return [0, *widths]


@dataclass(frozen=True)
class LengthBuckets:
    """Which rows go to which bucket; a row goes to the narrowest that holds its last event."""

    order_B: Tensor
    """Rows of the batch, bucket after bucket, in their own order within one."""
    counts: list[int]
    """Rows of each bucket."""
    widths: list[int]

    @classmethod
    def of(cls, mask_BS: Tensor) -> "LengthBuckets":
        """Deals rows by the place of their last event."""
        num_places = mask_BS.shape[1]
        widths = bucket_widths(num_places)
        places_S = torch.arange(1, num_places + 1, device=mask_BS.device)
        length_B = (mask_BS * places_S).amax(dim=1)
        bucket_B = torch.bucketize(length_B, torch.tensor(widths, device=mask_BS.device))
        counts = torch.bincount(bucket_B, minlength=len(widths)).tolist()
        return cls(bucket_B.argsort(stable=True), counts, widths)

    def split(self, rows_BX: Tensor) -> list[Tensor]:
        """The rows of each bucket, at their full width."""
        return list(rows_BX.index_select(0, self.order_B).split(self.counts))

    def join(self, parts_KRD: list[Tensor]) -> Tensor:
        """Puts one vector per row, made bucket by bucket, back in the batch's order; (K, B, D)."""
        return torch.cat(parts_KRD, dim=1).index_select(1, self.order_B.argsort())
