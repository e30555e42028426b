"""The published network `subcortical` against FreeSurfer's aseg on three real heads."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from neuromf.evaluation.morphometry.atlas import SUBCORTICAL
from neuromf.evaluation.morphometry.backends import find_segmenter
from neuromf.evaluation.morphometry.compare import asymmetry, dice
from neuromf.evaluation.morphometry.segmentation import Segmentation
from neuromf.volume import read_volume

SHARED = Path(os.environ.get("NEUROMF_SHARED", Path(__file__).parents[4] / "../shared"))
HEADS = SHARED / "data/freesurfer"
needs_heads = pytest.mark.skipif(
    not (HEADS.is_dir() and (SHARED / "weights").is_dir()),
    reason=f"needs {HEADS} and {SHARED}/weights (set NEUROMF_SHARED)",
)
ALL = ("aomic_sub-0001", "omega_sub-0002", "omega_sub-0003")
SUBJECTS = ALL if "NEUROMF_SHARED" in os.environ else ALL[:1]  # a minute each: all three for who asks for the real data
# region: FreeSurfer's left and right label, the Dice that this project asks for
ASKED = {
    "hippocampus": ((17, 53), 0.80),
    "thalamus": ((10, 49), 0.85),
    "caudate": ((11, 50), 0.80),
    "putamen": ((12, 51), 0.80),
    "lateral_ventricle": ((4, 43), 0.70),
}


@cache
def segmented(subject: str) -> tuple[Segmentation, np.ndarray]:
    """One head's segmentation and its aseg, on one grid: these heads are conformed already."""
    found = find_segmenter("subcortical", SHARED / "weights").compute(read_volume(HEADS / f"{subject}_T1.nii.gz"))
    aseg = read_volume(HEADS / f"{subject}_aseg.nii.gz")
    assert np.allclose(aseg.affine, found.labels.affine, atol=1e-3)
    return found, np.asarray(aseg.dataobj).astype(np.int32)


@needs_heads
@pytest.mark.parametrize("subject", SUBJECTS)
def test_subcortical_regions_overlap_with_aseg(subject: str) -> None:
    found, aseg = segmented(subject)
    labels = np.asarray(found.labels.dataobj)
    for region, (known, asked) in ASKED.items():
        overlap = dice(np.isin(labels, SUBCORTICAL.regions[region]), np.isin(aseg, known))
        assert overlap >= asked, (region, overlap)


@needs_heads
@pytest.mark.parametrize("subject", SUBJECTS)
def test_volumes_and_sides_are_near_asegs(subject: str) -> None:
    found, aseg = segmented(subject)
    for region, (known, _) in ASKED.items():
        left, right = ((aseg == label).sum() / 1000 for label in known)
        assert 0.8 < found.volumes[region] / (left + right) < 1.3, region
        assert asymmetry(found.sides[region]) == pytest.approx(float(asymmetry([left, right])), abs=0.3), region


@needs_heads
@pytest.mark.parametrize("subject", SUBJECTS)
def test_every_class_lies_where_aseg_has_its_name(subject: str) -> None:
    found, aseg = segmented(subject)
    labels = np.asarray(found.labels.dataobj)
    found_in = {
        "cerebral_white_matter": (2, 41),
        "cerebral_cortex": (3, 42),
        "cerebellum_white_matter": (7, 46),
        "cerebellum_cortex": (8, 47),
        "pallidum": (13, 52),
        "3rd_ventricle": (14,),
        "4th_ventricle": (15,),
        "brain_stem": (16,),
        "amygdala": (18, 54),
        "accumbens_area": (26, 58),
        "ventraldc": (28, 60),
    }
    for region, known in found_in.items():
        inside = np.bincount(labels[np.isin(aseg, known)], minlength=18)
        assert (inside[1:].argmax() + 1,) == SUBCORTICAL.regions[region], region
