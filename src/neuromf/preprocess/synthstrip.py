"""Brain extraction by SynthStrip (Hoopes et al. 2022, NeuroImage 260:119474): NiPreps' package or FreeSurfer's."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from nibabel.processing import resample_from_to
from numpy.typing import NDArray

from neuromf.meshnet import WeightsError
from neuromf.published import PublishedError, read_published
from neuromf.scratch import temporary_folder
from neuromf.volume import VolumeError, read_volume

WEIGHTS = "synthstrip.1.pt"
COMMAND = "mri_synthstrip"
_BORDER = 1.0  # mm: the published threshold on the signed distance to the brain's border
_OUTSIDE = 100.0  # mm, the distance given to voxels outside the network's view

Mask = NDArray[np.bool_]


def find_synthstrip(weights_dir: Path | None = None) -> Path:
    """Return what SynthStrip runs with here: the path of its weights, or that of FreeSurfer's ``mri_synthstrip``.

    Raises:
        WeightsError: neither is found.
    """
    folder = weights_dir or (Path(os.environ["NEUROMF_WEIGHTS"]) if os.environ.get("NEUROMF_WEIGHTS") else None)
    if folder is not None and (folder / WEIGHTS).is_file():
        return folder / WEIGHTS
    if command := shutil.which(COMMAND):
        return Path(command)
    raise WeightsError(
        f"skull_strip.backend synthstrip needs {WEIGHTS} in the folder of weights ({folder or 'none is given'}) or"
        f" FreeSurfer's {COMMAND} on PATH: fetch {WEIGHTS} from https://surfer.nmr.mgh.harvard.edu/docs/synthstrip/ and"
        " name its folder in `weights_dir` or NEUROMF_WEIGHTS, install FreeSurfer 7.3, or choose another backend"
    )


def synthstrip_mask(image: nib.Nifti1Image, found: Path, device: torch.device) -> Mask:
    """Return the brain mask of a head of any contrast, on the image's grid.

    Args:
        found: what `find_synthstrip` returned.

    Raises:
        WeightsError: the weights file is not SynthStrip's.
        VolumeError: the command failed.
    """
    strip: Callable[..., Mask] = _by_network if found.name == WEIGHTS else _by_command
    return strip(image, found, device)


def _by_network(image: nib.Nifti1Image, weights: Path, device: torch.device) -> Mask:
    conformed = resample_from_to(image, _grid(image), order=1)
    volume = np.asarray(conformed.dataobj, np.float32)
    volume = volume - volume.min()
    volume = np.clip(volume / max(float(np.percentile(volume, 99)), 1e-6), 0, 1)
    with torch.inference_mode():
        distance = (
            _network(weights, device)(torch.from_numpy(volume)[None, None].to(device))[0, 0].float().cpu().numpy()
        )
    back = resample_from_to(nib.Nifti1Image(distance, conformed.affine), image, order=1, cval=_OUTSIDE)
    return np.asarray(back.dataobj) < _BORDER


@cache
def _network(weights: Path, device: torch.device) -> torch.nn.Module:
    from nipreps.synthstrip.model import StripModel

    try:
        checkpoint = read_published(weights)
        network = StripModel()
        network.load_state_dict(checkpoint["model_state_dict"], strict=True)
    except (PublishedError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise WeightsError(f"{weights} is not SynthStrip's weights file ({reason}); fetch it again") from None
    return network.to(device).eval().requires_grad_(False)


def _grid(image: nib.Nifti1Image) -> tuple[tuple[int, ...], NDArray[np.floating]]:
    """Return shape and affine of SynthStrip's view: 1 mm, LIA, sides of 192, 256 or 320 voxels around the centre."""
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in image.shape], indexing="ij")).reshape(3, -1).T
    world = nib.affines.apply_affine(image.affine, corners)
    extent = np.ptp(world, axis=0) + 0.999
    right, anterior, superior = (int(n) for n in np.clip(np.ceil(np.floor(extent) / 64) * 64, 192, 320))
    shape = (right, superior, anterior)
    affine = np.array([[-1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
    centre = nib.affines.apply_affine(image.affine, (np.array(image.shape) - 1) / 2)
    affine[:3, 3] = centre - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return shape, affine


def _by_command(image: nib.Nifti1Image, command: Path, device: torch.device) -> Mask:
    with temporary_folder(8 * math.prod(image.shape) / 2**20) as folder:
        scan, mask = Path(folder, "scan.nii.gz"), Path(folder, "mask.nii.gz")
        nib.save(image, scan)
        arguments = [str(command), "-i", str(scan), "-m", str(mask)] + (["-g"] if device.type == "cuda" else [])
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
        if done.returncode < 0:
            raise MemoryError(f"{command} was ended by signal {-done.returncode}, most often for want of memory")
        if done.returncode or not mask.is_file():
            said = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no message"]
            raise VolumeError(f"{command} failed with exit code {done.returncode}: {said[0]}")
        return np.asarray(read_volume(mask).dataobj) > 0.5
