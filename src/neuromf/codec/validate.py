"""How well a codec reproduces scans it has not seen, beside the linear codec of the same rate.

Conventions, the same for every codec: reconstructions are clipped to [0, 1]; SSIM is scikit-image's (7³ uniform window,
sample covariance, data range 1). ``psnr`` and ``ssim`` are taken over the whole bounding box of the brain, background
corners included; ``psnr_brain``, ``ssim_brain`` (the mean of SSIM's map) and ``mae`` over the brain's voxels only, which
is the stricter place and the one that the gate looks at. LPIPS is the mean over all slices of the box in each plane. The
brain is where the preprocessed volume is not zero.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from skimage.metrics import structural_similarity
from tqdm import tqdm

from neuromf.codec import linear
from neuromf.codec.maisi import FrozenCodec
from neuromf.codec.perceptual import PLANES, SliceLpips
from neuromf.tables import write_json, write_tsv
from neuromf.volume import read_volume, write_volume

log = logging.getLogger(__name__)

METRICS = ("psnr", "ssim", "mae")  # of the tables that compare codecs
IN_BRAIN = ("psnr_brain", "ssim_brain")
PERCEPTUAL = tuple(f"lpips_{plane}" for plane in PLANES)
FIGURES = (*METRICS, *IN_BRAIN, *PERCEPTUAL)
COLUMNS = ("scan", "codec", *FIGURES)
WORST = 3  # scans whose reconstruction is kept to look at
_WINDOW = 7  # SSIM's, voxels


@dataclass(frozen=True)
class Reconstructed:
    """A scan that the VAE reproduced badly, kept for its picture; volumes (D, H, W)."""

    scan: str
    ssim_brain: float
    volume: np.ndarray
    reconstruction: np.ndarray
    affine: np.ndarray


def validate_codec(
    codec: FrozenCodec,
    train: Sequence[Path],
    test: Sequence[Path],
    out: Path,
    *,
    lpips: SliceLpips | None = None,
    worst: Path | None = None,
) -> dict[str, Any]:
    """Measure the VAE and the linear codec of its rate on ``test`` and write the figures to ``out`` (.json and .tsv).

    Args:
        codec: the VAE.
        train: preprocessed volumes that the linear codec is fitted on.
        test: preprocessed volumes that neither codec was trained on.
        out: JSON file; a tidy table (one row per scan and codec) is written beside it as .tsv.
        lpips: network of the perceptual distance; None: not measured, its figures are None.
        worst: folder to write ``<rank>_<scan>_{real,reconstruction}.nii.gz`` of the scans with the smallest SSIM inside
            the brain to, the worst first.

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
    lpips = lpips.to(codec.device) if lpips is not None else None
    rows: list[dict[str, Any]] = []
    latents = []
    kept: list[Reconstructed] = []
    for path in tqdm(test, desc="codec validation", unit="scan"):
        volume = read_tensor(path)
        latents.append(codec.encode(volume[None]))
        reconstructions = {"vae": codec.decode(latents[-1])[0], "linear": baseline.reconstruct(volume)}
        for name, reconstruction in reconstructions.items():
            x, y = volume[0].numpy(), reconstruction[0].numpy()
            figures = reconstruction_figures(x, y) | brain_figures(x, y) | perceptual_figures(x, y, lpips)
            rows.append({"scan": scan_name(path), "codec": name} | figures)
            if worst is not None and name == "vae":
                shown = Reconstructed(scan_name(path), rows[-1]["ssim_brain"], x, y, read_volume(path).affine)
                kept = sorted([*kept, shown], key=lambda one: one.ssim_brain)[:WORST]
    if worst is not None:
        write_worst(worst, kept)
    mean = {name: _means([row for row in rows if row["codec"] == name]) for name in ("vae", "linear")}
    result = {
        "codec": codec.settings.name,
        "sha256": codec.sha256,
        "region": (
            "psnr, ssim: bounding box of the brain; psnr_brain, ssim_brain, mae: brain voxels; lpips: slices of the"
            " bounding box; reconstructions clipped to [0, 1]"
        ),
        "linear_codec": f"{baseline.kept} principal components of 4x4x4 blocks fitted on {len(train)} scans",
        "n_train": len(train),
        "n_test": len(test),
        "mean": mean,
        "difference": {name: _difference(mean["vae"][name], mean["linear"][name]) for name in FIGURES},
        "latent_std": latent_std(latents),
        "rows": rows,
    }
    write_json(out, result)
    write_tsv(out.with_suffix(".tsv"), COLUMNS, [[row[column] for column in COLUMNS] for row in rows])
    log.info("codec %s: %s", codec.settings.name, mean)
    return result


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Return the mean of each figure over scans; None where it was not measured."""
    return {
        name: None if any(row[name] is None for row in rows) else float(np.mean([row[name] for row in rows]))
        for name in FIGURES
    }


def _difference(vae: float | None, linear: float | None) -> float | None:
    return None if vae is None or linear is None else vae - linear


def write_worst(folder: Path, scans: Sequence[Reconstructed]) -> None:
    """Write scans and their reconstructions, clipped to [0, 1], as NIfTI, numbered in the order given."""
    folder.mkdir(parents=True, exist_ok=True)
    for rank, one in enumerate(scans):
        for kind, volume in (("real", one.volume), ("reconstruction", one.reconstruction.clip(0, 1))):
            write_volume(folder / f"{rank}_{one.scan}_{kind}.nii.gz", volume, one.affine, np.float32)


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


def brain_figures(volume: np.ndarray, reconstruction: np.ndarray) -> dict[str, float]:
    """Return PSNR (dB) and SSIM over the brain's voxels; both volumes (D, H, W) in [0, 1].

    SSIM's map is computed on the brain's box and a margin of half a window, so that no brain voxel's window is cut off
    where the grid goes on.
    """
    brain = volume > 0
    margin = _WINDOW // 2
    box = tuple(slice(max(0, side.start - margin), side.stop + margin) for side in bounding_box(brain))
    x, y = volume[box].astype(np.float64), np.clip(reconstruction[box], 0, 1).astype(np.float64)
    inside = brain[box] if brain.any() else np.ones(x.shape, bool)
    _, similarity = structural_similarity(x, y, win_size=_WINDOW, data_range=1.0, full=True)
    mse = float(np.mean(((x - y) ** 2)[inside]))
    return {
        "psnr_brain": float(-10 * np.log10(max(mse, 1e-12))),
        "ssim_brain": float(similarity[inside].mean()),
    }


def perceptual_figures(
    volume: np.ndarray, reconstruction: np.ndarray, lpips: SliceLpips | None
) -> dict[str, float | None]:
    """Return LPIPS per plane over the slices of the brain's box; both volumes (D, H, W) in [0, 1], RAS."""
    if lpips is None:
        return dict.fromkeys(PERCEPTUAL)
    box = bounding_box(volume > 0)
    x, y = (torch.from_numpy(np.clip(v[box], 0, 1).astype(np.float32)) for v in (volume, reconstruction))
    return {f"lpips_{plane}": distance for plane, distance in lpips.planes(y, x).items()}


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
