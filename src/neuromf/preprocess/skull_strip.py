"""Brain extraction: several ways to find the mask behind one interface."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from neuromf.intensities import check_range, find_background, kind, stripped_brain, zero_level
from neuromf.meshnet import MeshNet, find_weights, load_meshnet, segment
from neuromf.orientation import without_shear
from neuromf.preprocess.derivatives import describe, mask_path, volume_path
from neuromf.preprocess.synthstrip import find_synthstrip, synthstrip_mask
from neuromf.preprocess.template import largest_component, template_mask
from neuromf.shards import Figures, Task, run_shard
from neuromf.tables import ManifestRow, Scan, file_sha256, leads_out
from neuromf.volume import VolumeError, read_volume, to_ras, voxel_sizes, write_volume

Volume = NDArray[np.float32]
Mask = NDArray[np.bool_]
Backend = Callable[[nib.Nifti1Image], tuple[Mask, dict[str, float]]]

_log = logging.getLogger(__name__)
_PLAUSIBLE_ML = (600.0, 2500.0)  # adult and child brains; outside: a warning in the row, for the quality control
_LEAST_CORRELATION = (
    0.4  # with the template's head: 38 heads 0.45 and more; noise, blobs, heads turned over 0.37 and less
)
_BRIGHTEST = 20.0  # times the brain's median: brighter voxels are spikes, which filters would spread; vessels reach 7
_DARKER = 0.01  # of the brain's voxels: so many below the background are no noise


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

    Figures of a row: brain_ml, components (of the mask before the largest was kept), backend, zero (what was subtracted
    from the intensities), warning, and the backend's own.

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

    A sheared scan is resampled first. A scan that is skull-stripped already keeps its own border, whatever the backend.
    Intensities are shifted so that the background is 0 and the brain is not negative.

    Raises:
        VolumeError: no brain was found; names the scan and says why.
    """
    scan = read_volume(inputs[0])
    image, find_brain = to_ras(without_shear(scan)), _backend(backend, settings, weights, device)
    try:
        return _strip(image, outputs, backend, modality, find_brain, settings, told=scan.extra["warning"])
    except VolumeError as error:
        raise VolumeError(f"{inputs[0]}: {error}") from None
    except (ArithmeticError, LookupError, ValueError) as error:  # of a library, on intensities that it cannot work with
        _log.exception("%s", inputs[0])
        raise VolumeError(
            f"{inputs[0]}: no brain was found, its intensities break the method ({error}); look at the scan"
        ) from None


def _strip(
    image: nib.Nifti1Image,
    outputs: Sequence[Path],
    backend: str,
    modality: str,
    find_brain: Backend,
    settings: SkullStrip,
    *,
    told: str,
) -> Figures:
    data, spacing = np.asarray(image.dataobj, np.float32), voxel_sizes(image.affine)
    warnings = [told] if told else []
    check_range(data)
    seen = kind(data, spacing)
    if backend == "none" and seen == "head":
        raise VolumeError(
            "a dark skull lies below its surface: a whole head, not skull-stripped; set skull_stripped to false in the"
            " cohort's table"
        )
    if backend != "none" and seen == "brain":
        backend, find_brain = "none", _none
        warnings.append(
            "skull-stripped already, so its own border was kept; set skull_stripped to true in the cohort's table"
        )
    zero = find_background(data).value if backend == "none" else zero_level(data)
    mask, figures = find_brain(image)
    mask, components = _clean(mask, spacing, 0.0 if backend == "none" else settings.border_mm)
    if not np.ptp(data[mask]):
        raise VolumeError("every voxel of the brain found has the same value; look at the scan")
    data, zero, changes = _from_zero(data, mask, zero)
    brain_ml = round(float(mask.sum() * np.prod(spacing) / 1000), 2)
    warnings += [*changes, *_warnings(brain_ml, backend, modality, figures)]
    if warnings:
        _log.warning("%s: %s", outputs[0].name, "; ".join(warnings))
    write_volume(outputs[1], mask, image.affine, np.uint8)
    write_volume(outputs[0], data, image.affine, np.float32)
    about: Figures = {"brain_ml": brain_ml, "components": float(components), "backend": backend, "zero": zero}
    return about | {"warning": "; ".join(warnings)} | figures


def _from_zero(data: Volume, mask: Mask, background: float) -> tuple[Volume, float, list[str]]:
    """Return the brain above a zero that is the background's value or, where brain is darker, the brain's own lowest (the
    0.1st percentile); 0 outside. Spikes are cut. Beside it that zero and what there is to tell.

    N4's field is a factor: it has a meaning on values that begin at 0 only.
    """
    brain = data[mask]
    zero = min(background, float(np.percentile(brain, 0.1)))
    told = []
    if (share := float((brain < background).mean())) > _DARKER:
        told.append(
            f"{share:.0%} of the brain is darker than the background ({background:g}), so the brain's lowest value"
            f" ({zero:g}) stands for 0"
        )
    above = np.maximum(data - np.float32(zero), 0)
    limit = np.float32(_BRIGHTEST * np.median(above[mask]))
    if limit > 0 and (spikes := int((above[mask] > limit).sum())):
        told.append(
            f"{spikes} voxels of the brain are brighter than {_BRIGHTEST:g} times its median and were cut to that"
        )
        above = np.minimum(above, limit)
    return np.where(mask, above, 0), zero, told


def _task(scan: Scan, root: Path, folder: Path, backend: str) -> Task:
    volume = volume_path(folder, scan, "brain")
    return Task(
        scan.scan_id,
        (root / scan.image,),
        (volume, mask_path(volume)),
        {"backend": backend, "modality": scan.modality},
        failed_upstream=leads_out(root, scan.image),
    )


def _warnings(brain_ml: float, backend: str, modality: str, figures: Mapping[str, float]) -> Iterator[str]:
    low, high = _PLAUSIBLE_ML
    if not low <= brain_ml <= high:
        yield f"brain of {brain_ml:.0f} ml, expected {low:.0f} to {high:.0f}"
    if backend == "template" and modality != "T1w":
        yield f"the template backend is made for T1w, not {modality}; synthstrip takes any contrast"
    if (correlation := figures.get("template_correlation", 1.0)) < _LEAST_CORRELATION:
        yield (
            f"it hardly agrees with the template (correlation {correlation:.2f}, of heads above {_LEAST_CORRELATION:g}):"
            " look at the mask, or try another skull_strip.backend"
        )


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
    """The brain of a scan that is stripped already: what differs from the background."""
    data = np.asarray(image.dataobj, np.float32)
    return stripped_brain(data, find_background(data)), {}


@cache
def _mindgrab_network(weights_dir: Path, device: str) -> MeshNet:
    return load_meshnet("mindgrab", weights_dir, choose_device(device))


def _mindgrab(image: nib.Nifti1Image, network: MeshNet) -> tuple[Mask, dict[str, float]]:
    labels = segment(network, image)
    brain = largest_component(np.asarray(labels.dataobj) > 0).astype(np.float32)
    return np.asarray(resample_from_to(nib.Nifti1Image(brain, labels.affine), image, order=1).dataobj) > 0.5, {}
