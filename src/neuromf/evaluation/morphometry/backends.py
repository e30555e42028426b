"""The segmenters by name: published networks, ANTs' Atropos, FreeSurfer's SynthSeg, and tissues by intensity alone."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import ants
import nibabel as nib
import numpy as np
import torch

from neuromf.evaluation.morphometry.atlas import APARC50, SUBCORTICAL, TISSUE_MAP
from neuromf.evaluation.morphometry.segmentation import Segmentation, Segmenter, measure_labels
from neuromf.evaluation.morphometry.synthseg import synthseg_segmenter
from neuromf.evaluation.morphometry.tissues import DEEP_MM, brain_mask, depth_mm, tissue_labels, tissue_volumes
from neuromf.meshnet import PUBLISHED, MeshNet, conform_256, find_weights, load_meshnet, segment
from neuromf.tables import content_hash
from neuromf.volume import voxel_sizes

SEGMENTERS = ("tissues", "subcortical", "aparc50", "atropos", "synthseg")
_FLUID = 0.5  # of the white matter's median: the brightest fluid in T1w
_ATLASES = {"subcortical": SUBCORTICAL, "aparc50": APARC50}


def find_segmenter(name: str, weights_dir: Path | None = None, device: str | torch.device = "cpu") -> Segmenter:
    """Return one of `SEGMENTERS`; ``weights_dir`` and ``device`` are for the networks.

    Raises:
        ValueError: no such segmenter.
        WeightsError: the network's weights, or SynthSeg's program, are missing.
    """
    if name in _ATLASES:
        return network_segmenter(name, weights_dir, device)
    makers = {"tissues": tissue_segmenter, "atropos": atropos_segmenter, "synthseg": synthseg_segmenter}
    if name not in makers:
        raise ValueError(f"no segmenter {name!r}; there are {', '.join(SEGMENTERS)}")
    return makers[name]()


def network_segmenter(name: str, weights_dir: Path | None, device: str | torch.device) -> Segmenter:
    """Return the segmenter ``subcortical`` or ``aparc50``: labels on the grid of `conform_256`, sides by `left_half`.

    Raises:
        WeightsError: as `find_weights`.
    """
    find_weights(name, weights_dir)
    atlas = _ATLASES[name]

    def compute(image: nib.Nifti1Image) -> Segmentation:
        labels = segment(_network(name, weights_dir, device), image)
        if name == "subcortical":
            labels = without_choroid_plexus(labels, conform_256(image))
        return measure_labels(labels, atlas)

    key = content_hash({"weights": PUBLISHED[name].sha256, "rule": "conform 256, head's box, fluid 0.5, plane 1"})
    return Segmenter(name, key, atlas, compute)


def without_choroid_plexus(labels: nib.Nifti1Image, scan: nib.Nifti1Image) -> nib.Nifti1Image:
    """Return `SUBCORTICAL` labels (X, Y, Z) with the lateral ventricles' bright voxels set to background.

    The network puts the choroid plexus and a rim of the wall into the ventricles, aseg does not. In T1w fluid is darker than
    half of the white matter's median, half-way between fluid and grey matter.
    """
    values, intensities = np.asarray(labels.dataobj).copy(), np.asarray(scan.dataobj, np.float32)
    (white,), (ventricle,) = SUBCORTICAL.regions["cerebral_white_matter"], SUBCORTICAL.regions["lateral_ventricle"]
    if (values == white).any():
        brightest = _FLUID * float(np.median(intensities[values == white]))
        values[(values == ventricle) & (intensities >= brightest)] = 0
    return nib.Nifti1Image(values, labels.affine)


@cache
def _network(name: str, weights_dir: Path | None, device: str | torch.device) -> MeshNet:
    return load_meshnet(name, weights_dir, device)


def tissue_segmenter() -> Segmenter:
    """Return the segmenter ``tissues``: k-means on the intensities of a preprocessed T1w brain, in under a second.

    Volumes share voxels between tissues (`tissue_volumes`); labels name the nearest.
    """

    def compute(image: nib.Nifti1Image) -> Segmentation:
        data, voxel_mm = np.asarray(image.dataobj, np.float32), float(voxel_sizes(image.affine).mean())
        found = measure_labels(nib.Nifti1Image(tissue_labels(data, voxel_mm), image.affine), TISSUE_MAP)
        volumes = tissue_volumes(data, voxel_mm)
        totals = {region: float(getattr(volumes, region)) for region in TISSUE_MAP.regions}
        return Segmentation(found.labels, totals, found.sides, {})

    return Segmenter("tissues", content_hash({"rule": "k-means 1, plane 1"}), TISSUE_MAP, compute)


def atropos_segmenter() -> Segmenter:
    """Return the segmenter ``atropos``: ANTs' Markov random field on three k-means tissues of a preprocessed T1w brain.

    Avants et al. 2011, Neuroinformatics 9:381. Smoothing 0.2 over the next voxels, five iterations.
    """

    def compute(image: nib.Nifti1Image) -> Segmentation:
        return measure_labels(nib.Nifti1Image(_atropos_labels(image), image.affine), TISSUE_MAP)

    rule = {"ants": ants.__version__, "rule": f"{_ATROPOS}, plane 1"}
    return Segmenter("atropos", content_hash(rule), TISSUE_MAP, compute)


_ATROPOS = {"i": "kmeans[3]", "m": "[0.2,1x1x1]", "c": "[5,0]"}


def _atropos_labels(image: nib.Nifti1Image) -> np.ndarray:
    """Return labels (X, Y, Z) of `TISSUE_MAP`: tissues by rising intensity, deep fluid set apart."""
    data = np.asarray(image.dataobj, np.float32)
    mask, spacing = brain_mask(data), [float(size) for size in voxel_sizes(image.affine)]
    labels = np.zeros(data.shape, np.uint8)
    if mask.sum() < 3 or np.ptp(data[mask]) == 0:
        return labels
    scan, inside = (ants.from_numpy(array.astype(np.float32), spacing=spacing) for array in (data, mask))
    found = ants.atropos(a=scan, x=inside, **_ATROPOS)["segmentation"].numpy().astype(np.uint8) * mask
    brightness = [data[found == tissue].mean() if (found == tissue).any() else np.inf for tissue in (1, 2, 3)]
    for label, tissue in enumerate(np.argsort(brightness) + 1, start=1):
        labels[found == tissue] = label
    labels[(labels == 1) & (depth_mm(mask, float(np.mean(spacing))) > DEEP_MM)] = 4
    return labels
