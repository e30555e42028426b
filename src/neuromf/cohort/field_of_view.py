"""How large the brains of a cohort are beside the grid that they are brought to."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from neuromf.cohort.headers import some
from neuromf.config import Conform
from neuromf.intensities import find_background, stripped_brain
from neuromf.orientation import without_shear
from neuromf.tables import Cohort, read_manifest
from neuromf.volume import VolumeError, read_volume, to_ras, voxel_sizes


def cut_fractions(cohort: Cohort, conform: Conform) -> list[float]:
    """Return the share of the brain that each scan of a cohort lost which was conformed to the grid of now."""
    shares: list[float] = []
    for manifest in sorted(Path(f"results/cohorts/{cohort.name}/preprocessed/manifests/conform").glob("shard-*.tsv")):
        rows = [row for row in read_manifest(manifest) if row.ok and (manifest.parent / row.file).is_file()]
        if rows and _on_grid(manifest.parent / rows[0].file, conform):
            shares += [float(row.figures["cut_fraction"]) for row in rows]
    return shares


def _on_grid(path: Path, conform: Conform) -> bool:
    image = read_volume(path)
    return image.shape == conform.shape and np.allclose(voxel_sizes(image.affine), conform.spacing_mm, rtol=1e-3)


def stripped_brains(cohort: Cohort) -> list[nib.Nifti1Image]:
    """Return the brain masks of some of a cohort's stripped scans; those that cannot be read will be failed rows."""
    brains = []
    for scan in some([scan for scan in cohort.scans if scan.skull_stripped]):
        with suppress(VolumeError):
            image = without_shear(read_volume(cohort.root / scan.image))
            data = np.asarray(image.dataobj)
            brain = stripped_brain(data, find_background(data))
            brains.append(nib.Nifti1Image(brain.astype(np.uint8), image.affine))
    return brains


def template_brain() -> nib.Nifti1Image:
    """Return the brain mask of the ICBM152 template, 2 mm voxels."""
    from nilearn.datasets import load_mni152_brain_mask

    return load_mni152_brain_mask(resolution=2)


def extent(brain: nib.Nifti1Image) -> NDArray[np.float64]:
    """Return the extent of a brain mask in mm along R, A and S, (3,)."""
    brain = to_ras(brain)
    inside = np.argwhere(np.asarray(brain.dataobj) > 0)
    return (np.ptp(inside, axis=0) + 1) * voxel_sizes(brain.affine)
