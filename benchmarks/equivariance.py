"""How far flips and the 90° axial rotation commute with a codec: what `train.augmentation` may do to its latents.

    python benchmarks/equivariance.py --codec demo --json equivariance.json
    python benchmarks/equivariance.py --codec WEIGHTS --side 128 --spacing 1
    python benchmarks/equivariance.py --codec demo --scans FOLDER

Without --scans the volume is the ICBM152 template's brain on a grid of --side voxels of --spacing mm; with it the
figures are means over the preprocessed volumes (``*_desc-preproc_*.nii.gz``) anywhere under FOLDER. What they mean:
`neuromf.codec.equivariance`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from nilearn.datasets import load_mni152_brain_mask, load_mni152_template

from neuromf.codec.equivariance import OPERATIONS, equivariance
from neuromf.codec.maisi import load_codec
from neuromf.codec.validate import read_tensor
from neuromf.config import Codec, Conform
from neuromf.preprocess.conform import conform_volume
from neuromf.tables import write_json


def template_brain(side: int, spacing_mm: float) -> torch.Tensor:
    """Return the template's brain as preprocessing would, (1, D, H, W) in [0, 1]."""
    settings = Conform(shape=(side,) * 3, spacing_mm=spacing_mm)
    data, *_ = conform_volume(load_mni152_template(resolution=1), load_mni152_brain_mask(resolution=1), settings)
    return torch.from_numpy(data)[None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codec", default="demo", help="demo, or a folder, .safetensors or .pt")
    parser.add_argument("--side", type=int, default=64, help="of the template's grid, voxels")
    parser.add_argument("--spacing", type=float, default=3.0, help="of the template's grid, mm")
    parser.add_argument("--scans", type=Path, help="folder of preprocessed volumes instead of the template")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    codec = load_codec(Codec(weights=arguments.codec), device=arguments.device)
    if arguments.scans:
        found = sorted(p for p in arguments.scans.rglob("*_desc-preproc_*.nii.gz") if "_mask." not in p.name)
        volumes = [read_tensor(path) for path in found]
    else:
        volumes = [template_brain(arguments.side, arguments.spacing)]
    if not volumes:
        raise SystemExit(f"no *_desc-preproc_*.nii.gz under {arguments.scans}")
    each = [equivariance(codec, volume[None]) for volume in volumes]
    mean = {
        name: {figure: float(np.mean([one[name][figure] for one in each])) for figure in each[0][name]}
        for name in OPERATIONS
    }
    print(f"{'operation':<26}{'latent error':>13}{'T dec z, dec T z':>18}{'T x, dec T z':>14}   (PSNR, dB)")
    for name, row in mean.items():
        print(f"{name:<26}{row['latent_error']:>13.3f}{row['commutation_psnr']:>18.2f}{row['scan_psnr']:>14.2f}")
    if arguments.json:
        write_json(arguments.json, {"codec": codec.sha256, "volumes": len(volumes), "mean": mean})


if __name__ == "__main__":
    main()
