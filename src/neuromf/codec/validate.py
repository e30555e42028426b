"""How well a codec reproduces scans it has not seen, beside the linear codec of the same rate.

Conventions, the same for every codec: reconstructions are clipped to [0, 1]; PSNR and SSIM (scikit-image's: 7³ uniform
window, sample covariance, data range 1) are taken over the whole bounding box of the brain, background corners
included; MAE over the brain's voxels only. The brain is where the preprocessed volume is not zero.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from skimage.metrics import structural_similarity
from tqdm import tqdm

from neuromf.codec import linear
from neuromf.codec.maisi import FrozenCodec
from neuromf.tables import write_json, write_tsv
from neuromf.volume import read_volume

log = logging.getLogger(__name__)

METRICS = ("psnr", "ssim", "mae")
COLUMNS = ("scan", "codec", *METRICS)


def validate_codec(codec: FrozenCodec, train: Sequence[Path], test: Sequence[Path], out: Path) -> dict[str, Any]:
    """Measure the VAE and the linear codec of its rate on ``test`` and write the figures to ``out`` (.json and .tsv).

    Args:
        codec: the VAE.
        train: preprocessed volumes that the linear codec is fitted on.
        test: preprocessed volumes that neither codec was trained on.
        out: JSON file; a tidy table (one row per scan and codec) is written beside it as .tsv.

    Returns:
        What the JSON holds: ``rows``, the ``mean`` of each codec, their ``difference`` (VAE − linear), the
        ``latent_std`` of the test scans' posterior means, and what was measured where.

    Raises:
        ValueError: an empty list.
        VolumeError: an unreadable volume.
    """
    if not train or not test:
        raise ValueError(f"codec validation needs training and test scans; got {len(train)} and {len(test)}")
    baseline = linear.fit((read_tensor(path) for path in train), codec.settings.latent_channels)
    rows: list[dict[str, Any]] = []
    latents = []
    for path in tqdm(test, desc="codec validation", unit="scan"):
        volume = read_tensor(path)
        latents.append(codec.encode(volume[None]))
        reconstructions = {"vae": codec.decode(latents[-1])[0], "linear": baseline.reconstruct(volume)}
        for name, reconstruction in reconstructions.items():
            figures = reconstruction_figures(volume[0].numpy(), reconstruction[0].numpy())
            rows.append({"scan": scan_name(path), "codec": name} | figures)
    mean = {
        name: {metric: float(np.mean([row[metric] for row in rows if row["codec"] == name])) for metric in METRICS}
        for name in ("vae", "linear")
    }
    result = {
        "codec": codec.settings.name,
        "sha256": codec.sha256,
        "region": "psnr, ssim: bounding box of the brain; mae: brain voxels; reconstructions clipped to [0, 1]",
        "linear_codec": f"{baseline.kept} principal components of 4x4x4 blocks fitted on {len(train)} scans",
        "n_train": len(train),
        "n_test": len(test),
        "mean": mean,
        "difference": {metric: mean["vae"][metric] - mean["linear"][metric] for metric in METRICS},
        "latent_std": latent_std(latents),
        "rows": rows,
    }
    write_json(out, result)
    write_tsv(out.with_suffix(".tsv"), COLUMNS, [[row[column] for column in COLUMNS] for row in rows])
    log.info("codec %s: %s", codec.settings.name, mean)
    return result


def reconstruction_figures(volume: np.ndarray, reconstruction: np.ndarray) -> dict[str, float]:
    """Return PSNR (dB) and SSIM in the brain's bounding box and MAE in the brain; both volumes (D, H, W) in [0, 1]."""
    brain = volume > 0
    box = bounding_box(brain)
    x, y = volume[box].astype(np.float64), np.clip(reconstruction[box], 0, 1).astype(np.float64)
    mse = float(np.mean((x - y) ** 2))
    return {
        "psnr": float(-10 * np.log10(max(mse, 1e-12))),
        "ssim": float(structural_similarity(x, y, data_range=1.0)),
        "mae": float(np.mean(np.abs(x - y)[brain[box]])),
    }


def bounding_box(brain: np.ndarray) -> tuple[slice, ...]:
    """Return the slices of the smallest box around a mask, grown to at least 7 voxels (SSIM's window) a side."""
    box = []
    for axis in range(brain.ndim):
        inside = np.flatnonzero(brain.any(axis=tuple(a for a in range(brain.ndim) if a != axis)))
        low, high = (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, brain.shape[axis])
        low = max(0, min(low, high - 7))
        box.append(slice(low, max(high, low + 7)))
    return tuple(box)


def latent_std(latents: Sequence[torch.Tensor]) -> float:
    """Return √(mean over channels of the variance over scans and space) of posterior means (B, C, D, H, W)."""
    flat = torch.cat([z.double().transpose(0, 1).flatten(1) for z in latents], dim=1)
    return float(flat.var(dim=1, unbiased=False).mean().sqrt())


def read_tensor(path: Path) -> torch.Tensor:
    """Return a preprocessed volume as a float32 tensor (1, D, H, W).

    Raises:
        VolumeError: an unreadable volume.
    """
    return torch.from_numpy(np.asarray(read_volume(path).dataobj, dtype=np.float32))[None]


def scan_name(path: Path) -> str:
    """Return a volume's file name without its NIfTI suffixes."""
    return path.name.removesuffix(".gz").removesuffix(".nii")
