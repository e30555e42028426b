"""The random part of a latent's volume that the training loss is averaged over."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from neuromf.config import LossMask


def draw_mask(settings: LossMask, rows: int, space: Sequence[int], random: torch.Generator) -> Tensor | None:
    """Return weights 0 or 1 of shape (rows, 1, *space), the same for all channels, or None without a mask.

    Every row keeps round(kept · n) of its n voxels or blocks, at least one, each equally likely. Blocks tile the volume
    from its first corner; where the block's side does not divide the volume's, the last ones are cut, and the share of
    voxels varies around that of blocks.

    Args:
        settings: kind, share kept and side of a block.
        rows: B.
        space: D, H, W of the latent.
        random: generator on the device that the mask is for.
    """
    if settings.kind == "none":
        return None
    side = settings.block if settings.kind == "block" else 1
    blocks = [math.ceil(length / side) for length in space]
    total = math.prod(blocks)
    scores = torch.rand(rows, total, generator=random, device=random.device)
    order = scores.argsort(dim=1, stable=True)  # stable: equal scores must not make two runs differ
    mask = torch.zeros_like(scores).scatter_(1, order[:, : max(1, round(settings.kept * total))], 1.0)
    mask = mask.reshape(rows, 1, *blocks)
    for axis, length in enumerate(space, start=2):
        mask = mask.repeat_interleave(side, dim=axis).narrow(axis, 0, length)
    return mask
