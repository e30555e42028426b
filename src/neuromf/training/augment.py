"""Random changes of a batch of normalised latents: MONAI's transforms row by row, and mixup between rows.

Which of the spatial ones a codec allows (the changed latent has to be about the latent of the changed head) is
measured by ``neuromf.codec.equivariance``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from monai.transforms import RandFlip, RandomizableTransform, RandRotate90, RandScaleIntensity
from torch import Tensor

from neuromf.config import Augmentation


def augment(z0: Tensor, settings: Augmentation, seed: int, std: Sequence[float] | None = None) -> Tensor:
    """Return changed latents; a function of its arguments only, with the same draws on every device.

    Each operation has a random state of its own, so switching one on leaves the draws of the others as they are.

    Args:
        z0: normalised latents (B, C, D, H, W) in RAS. Not changed in place.
        settings: probabilities; a row meets each operation on its own.
        seed: of this batch.
        std: σ_c of the train split's normalised latents, (C,); None: 1, as normalised by their own statistics.
    """
    if not settings.enabled:
        return z0
    transforms = row_transforms(settings, std or [1.0] * z0.shape[1])
    *states, mixup_state = np.random.SeedSequence(seed).generate_state(len(transforms) + 1).tolist()
    for transform, state in zip(transforms, states, strict=True):
        if transform.prob > 0:
            transform.set_random_state(state)
            z0 = torch.stack([transform(row).as_subclass(Tensor) for row in z0])  # MONAI's carry metadata
    if settings.mixup > 0 and len(z0) > 1:
        z0 = mix(z0, settings.mixup, settings.mixup_alpha, np.random.RandomState(mixup_state))
    return z0


class RandChannelNoise(RandomizableTransform):
    """Adds Gaussian noise with a standard deviation of its own to each channel; MONAI's has one for all.

    Args:
        prob: of a row.
        std: of the noise per channel, (C,).
    """

    def __init__(self, prob: float, std: Sequence[float]) -> None:
        super().__init__(prob)
        self.std = torch.tensor(std).reshape(-1, 1, 1, 1)

    def __call__(self, row: Tensor) -> Tensor:
        self.randomize(None)
        if not self._do_transform:
            return row
        noise = torch.from_numpy(self.R.standard_normal(row.shape).astype(np.float32))
        return row + (self.std * noise).to(row)


def row_transforms(settings: Augmentation, std: Sequence[float]) -> tuple[RandomizableTransform, ...]:
    """Return what is done to each row (C, D, H, W), in this order; ``std`` is σ_c, (C,)."""
    low, high = settings.scale_range
    return (
        RandFlip(settings.flip_left_right, spatial_axis=0),
        RandFlip(settings.flip_anterior_posterior, spatial_axis=1),
        RandFlip(settings.flip_inferior_superior, spatial_axis=2),
        RandRotate90(settings.rotate_axial, spatial_axes=(0, 1)),
        RandChannelNoise(settings.noise, [settings.noise_share * sigma for sigma in std]),
        RandScaleIntensity((low - 1, high - 1), settings.scale, channel_wise=True),
    )


def effective_factor(settings: Augmentation) -> float:
    """Return ∏ (1 + p_i (k_i − 1)) over the operations, p_i their probability and k_i the number of their outcomes.

    The flips along n axes are one operation with 2ⁿ outcomes and the mean of their probabilities, a rotation has 4, noise
    and factors 1: 4.5 · 1.75 for flips along all axes at ½ and rotations at ¼. It counts outcomes that a row rarely meets
    as if they were whole latents, and those that make the same version twice; `distinct_versions` does neither.
    """
    if not settings.enabled:
        return 1.0
    flips = (settings.flip_left_right, settings.flip_anterior_posterior, settings.flip_inferior_superior)
    used = [probability for probability in flips if probability > 0]
    flipped = 1 + math.fsum(used) / len(used) * (2 ** len(used) - 1) if used else 1.0
    return flipped * (1 + settings.rotate_axial * (4 - 1))


def distinct_versions(settings: Augmentation) -> float:
    """Return how many versions of one latent the flips and rotations make: exp of the entropy of which one a row becomes.

    1 when all are off, 2 for a flip with probability ½, less for a rarer one. Flips and rotations that make the same version
    count as one. Factors, noise and mixtures have no number of versions and are left out.
    """
    if not settings.enabled:
        return 1.0
    flips = (settings.flip_left_right, settings.flip_anterior_posterior, settings.flip_inferior_superior)
    corners, versions = np.arange(8).reshape(2, 2, 2), dict[bytes, float]()
    for *flipped, quarters in itertools.product((False, True), (False, True), (False, True), range(4)):
        share = settings.rotate_axial / 3 if quarters else 1 - settings.rotate_axial
        for probability, chosen in zip(flips, flipped, strict=True):
            share *= probability if chosen else 1 - probability
        version = np.rot90(np.flip(corners, tuple(np.flatnonzero(flipped).tolist())), quarters, axes=(0, 1)).tobytes()
        versions[version] = versions.get(version, 0.0) + share
    return math.exp(-sum(share * math.log(share) for share in versions.values() if share > 0))


def mix(z0: Tensor, probability: float, alpha: float, random: np.random.RandomState) -> Tensor:
    """Return λ z + (1 − λ) z' with z' another row, λ ~ Beta(alpha, alpha); Zhang et al. 2018 (mixup).

    MONAI's MixUp has no probability, may pair a row with itself and keeps λ on the CPU.

    Args:
        z0: (B, C, D, H, W), at least two rows.
        probability: of each row; the others are returned as they are.
        alpha: small values leave most mixtures close to one of the two.
        random: drawn from in the same way whatever ``probability`` is.
    """
    rows = len(z0)
    chosen = random.rand(rows) < probability
    share = np.where(chosen, random.beta(alpha, alpha, rows), 1.0)
    other = (np.arange(rows) + random.randint(1, rows, rows)) % rows
    weight = torch.as_tensor(share, dtype=z0.dtype, device=z0.device).reshape(-1, 1, 1, 1, 1)
    return weight * z0 + (1 - weight) * z0[torch.as_tensor(other, device=z0.device)]
