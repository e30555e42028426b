"""Training volumes in memory and random crops of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from neuromf.codec.maisi import DOWNSAMPLING
from neuromf.codec.validate import bounding_box, read_tensor


@dataclass(frozen=True)
class Crops:
    """Volumes of one shape, kept as float16 (error at most 2.5·10⁻⁴ of the intensity range)."""

    volumes: torch.Tensor  # (N, 1, D, H, W)
    boxes: torch.Tensor  # (N, 3, 2): the brain's bounding box, first and one past the last voxel
    size: tuple[int, ...]  # of a crop, voxels
    flip_probability: float  # of the left-right axis (the first one, in RAS)

    @classmethod
    def read(cls, paths: Sequence[Path], size: tuple[int, int, int], flip_probability: float) -> Crops:
        """Read preprocessed volumes; a crop is at most a whole volume.

        Raises:
            ValueError: no volumes, volumes of different shapes, or sides of a crop that are no multiples of 4.
            VolumeError: an unreadable volume.
        """
        volumes: list[torch.Tensor] = []
        for path in tqdm(paths, desc="reading volumes", unit="scan", disable=len(paths) < 8):
            volume = read_tensor(path)
            if volumes and volume.shape != volumes[0].shape:
                shapes = f"{tuple(volume.shape[1:])}, not {tuple(volumes[0].shape[1:])}"
                raise ValueError(f"{path} has {shapes} voxels: all volumes of a codec training need one grid")
            volumes.append(volume.half())
        if not volumes:
            raise ValueError("codec training needs at least one volume for training and one for validation")
        fitted = tuple(min(n, whole) for n, whole in zip(size, volumes[0].shape[1:], strict=True))
        if any(n % DOWNSAMPLING for n in fitted):
            raise ValueError(f"crop {fitted}: every side must be a multiple of {DOWNSAMPLING}")
        boxes = [[[s.start, s.stop] for s in bounding_box(volume[0].numpy() > 0)] for volume in volumes]
        return cls(torch.stack(volumes), torch.tensor(boxes), fitted, flip_probability)

    def __len__(self) -> int:
        return len(self.volumes)

    def volume(self, index: int) -> torch.Tensor:
        """Return one whole volume (1, D, H, W) as float32."""
        return self.volumes[index].float()

    def sha256(self) -> str:
        """Return the hash of the volumes."""
        return hashlib.sha256(self.volumes.contiguous().numpy().data).hexdigest()

    def draw(self, batch: int, generator: torch.Generator, *, whole: bool = False) -> torch.Tensor:
        """Return crops (batch, 1, d, h, w) centred anywhere in the brain's box, as far as the volume's edge allows.

        ``whole``: whole volumes, as many as have about the voxels of ``batch`` crops, at least one.
        """
        size = tuple(self.volumes.shape[2:]) if whole else self.size
        if whole:
            voxels = torch.tensor(self.size).prod() * batch
            batch = max(1, round(float(voxels / torch.tensor(size).prod())))
        indices = torch.randint(len(self), (batch,), generator=generator)
        places = torch.rand(batch, 3, generator=generator)
        flips = torch.rand(batch, generator=generator) < self.flip_probability
        crops = []
        for index, place, flip in zip(indices.tolist(), places, flips.tolist(), strict=True):
            low, high = self.boxes[index].unbind(1)
            centre = low + place * (high - low)
            limits = torch.tensor(self.volumes.shape[2:]) - torch.tensor(size)
            corner = (centre - torch.tensor(size) / 2).round().long().clamp_min(0).minimum(limits)
            x, y, z = (slice(c, c + n) for c, n in zip(corner.tolist(), size, strict=True))
            crop = self.volumes[index, :, x, y, z]
            crops.append(crop.flip(1) if flip else crop)
        return torch.stack(crops).float()
