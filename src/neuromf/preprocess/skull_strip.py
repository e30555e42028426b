"""Brain extraction: several ways to find the mask behind one interface."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from nibabel.processing import resample_from_to
from numpy.typing import NDArray
from scipy import ndimage

from neuromf.config import SkullStrip
from neuromf.device import choose_device
from neuromf.meshnet import MeshNet, find_weights, load_meshnet, segment
from neuromf.orientation import without_shear
from neuromf.preprocess.derivatives import describe, mask_path, volume_path
from neuromf.preprocess.synthstrip import find_synthstrip, synthstrip_mask
from neuromf.preprocess.template import largest_component, template_mask
from neuromf.shards import Figures, Task, run_shard
from neuromf.tables import ManifestRow, Scan, file_sha256, leads_out
from neuromf.volume import VolumeError, read_volume, to_ras, voxel_sizes, write_volume

Mask = NDArray[np.bool_]
Backend = Callable[[nib.Nifti1Image], tuple[Mask, dict[str, float]]]

_log = logging.getLogger(__name__)
_PLAUSIBLE_ML = (600.0, 2500.0)  # adult and child brains; outside: a warning in the row, for the quality control
_STRIPPED_SHARE = 0.95  # of voxels above zero: more than that is no skull-stripped scan


def skull_strip_shard(
    scans: Sequence[Scan],
    root: Path,
    folder: Path,
    manifest: Path,
    settings: SkullStrip,
    *,
    code: str,
    workers: int,
    weights_dir: Path | None = None,
    device: str = "cpu",
) -> tuple[ManifestRow, ...]:
    """Find the brain in the scans of one shard; write stripped volumes and masks in RAS.

    Args:
        root: the cohort's root, which the scans' ``image`` is relative to.
        folder: the derivatives tree; its dataset_description.json is written too.
        workers: processes; the networks (mindgrab, synthstrip) run one scan at a time with that many threads, since
            they need gigabytes of memory each.
        weights_dir: folder of published weights; default: the environment variable NEUROMF_WEIGHTS.

    Figures of a row: brain_ml, components (of the mask before the largest was kept), backend, warning, and the
    backend's own.

    Raises:
        WeightsError: the backend's weights are missing or altered.
    """
    tasks = [_task(scan, root, folder, "none" if scan.skull_stripped else settings.backend) for scan in scans]
    weights = _weights(settings.backend, weights_dir) if not all(scan.skull_stripped for scan in scans) else None
    if weights is not None:
        torch.set_num_threads(max(workers, 1))
        workers = 1
    describe(folder, root)
    return run_shard(
        tasks,
        partial(skull_strip_file, settings=settings, weights=weights, device=device),
        manifest,
        settings=settings.model_dump(mode="json") | {"weights": file_sha256(weights) if weights else None},
        code=code,
        workers=workers,
        label=f"skull_strip {manifest.stem}",
        root=root,
    )


def skull_strip_file(
    inputs: Sequence[Path],
    outputs: Sequence[Path],
    *,
    backend: str,
    modality: str,
    settings: SkullStrip,
    weights: Path | None = None,
    device: str = "cpu",
) -> Figures:
    """Strip the scan ``inputs[0]``; write the stripped volume (float32) and the mask (uint8), both in RAS.

    A sheared scan is resampled first."""
    scan = read_volume(inputs[0])
    image = to_ras(without_shear(scan))
    find_brain = _backend(backend, settings, weights, device)
    mask, figures = find_brain(image)
    mask, components = _clean(mask, voxel_sizes(image.affine), 0.0 if backend == "none" else settings.border_mm)
    data = np.asarray(image.dataobj, np.float32)
    if not np.ptp(data[mask]):
        raise VolumeError(f"{inputs[0]}: every voxel of the brain found has the same value; look at the scan")
    brain_ml = round(float(mask.sum() * np.prod(voxel_sizes(image.affine)) / 1000), 2)
    warning = "; ".join(filter(None, (scan.extra["warning"], _warning(brain_ml, backend, modality))))
    if warning:
        _log.warning("%s: %s", inputs[0], warning)
    write_volume(outputs[1], mask, image.affine, np.uint8)
    write_volume(outputs[0], np.where(mask, data, 0), image.affine, np.float32)
    return {"brain_ml": brain_ml, "components": float(components), "backend": backend, "warning": warning, **figures}


def _task(scan: Scan, root: Path, folder: Path, backend: str) -> Task:
    volume = volume_path(folder, scan, "brain")
    return Task(
        scan.scan_id,
        (root / scan.image,),
        (volume, mask_path(volume)),
        {"backend": backend, "modality": scan.modality},
        failed_upstream=leads_out(root, scan.image),
    )


def _warning(brain_ml: float, backend: str, modality: str) -> str:
    low, high = _PLAUSIBLE_ML
    if not low <= brain_ml <= high:
        return f"brain of {brain_ml:.0f} ml, expected {low:.0f} to {high:.0f}"
    if backend == "template" and modality != "T1w":
        return f"the template backend is made for T1w, not {modality}; synthstrip takes any contrast"
    return ""


def _clean(mask: Mask, spacing: NDArray[np.floating], border_mm: float) -> tuple[Mask, int]:
    """Return the largest component without holes, grown or shrunk, and the number of components there were."""
    components = int(ndimage.label(mask)[1])
    mask = ndimage.binary_fill_holes(largest_component(mask))
    if border_mm > 0:
        mask = ndimage.distance_transform_edt(~mask, sampling=spacing) <= border_mm
    elif border_mm < 0:
        mask = largest_component(ndimage.distance_transform_edt(mask, sampling=spacing) > -border_mm)
    if not mask.any():
        raise VolumeError("no brain was found: the mask is empty; look at the scan or try another skull_strip.backend")
    return mask, components


# --- backends -------------------------------------------------------------------------------------------------------


def _weights(backend: str, weights_dir: Path | None) -> Path | None:
    if backend == "mindgrab":
        return find_weights("mindgrab", weights_dir)
    return find_synthstrip(weights_dir) if backend == "synthstrip" else None


def _backend(name: str, settings: SkullStrip, weights: Path | None, device: str) -> Backend:
    if name == "none":
        return _none
    if name == "template":
        return partial(template_mask, spacing_mm=settings.template_spacing_mm)
    assert weights is not None
    if name == "mindgrab":
        return partial(_mindgrab, network=_mindgrab_network(weights.parent, device))
    return lambda image: (synthstrip_mask(image, weights, choose_device(device)), {})


def _none(image: nib.Nifti1Image) -> tuple[Mask, dict[str, float]]:
    """The brain of a scan that is stripped already: what is above zero."""
    mask = np.asarray(image.dataobj) > 0
    if mask.mean() > _STRIPPED_SHARE:
        raise VolumeError(
            f"{100 * mask.mean():.0f} % of the voxels are above zero: the scan is not skull-stripped; set"
            " skull_stripped to false in the cohort's table"
        )
    return mask, {}


@cache
def _mindgrab_network(weights_dir: Path, device: str) -> MeshNet:
    return load_meshnet("mindgrab", weights_dir, choose_device(device))


def _mindgrab(image: nib.Nifti1Image, network: MeshNet) -> tuple[Mask, dict[str, float]]:
    labels = segment(network, image)
    brain = largest_component(np.asarray(labels.dataobj) > 0).astype(np.float32)
    return np.asarray(resample_from_to(nib.Nifti1Image(brain, labels.affine), image, order=1).dataobj) > 0.5, {}
