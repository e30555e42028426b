from __future__ import annotations

import pytest

from neuromf.cohort.names import not_raw


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("001_n4", "a derived image (n4)"),
        ("patient_001_T1_N4.nii", "a derived image (n4)"),
        ("001_T1w_pve_0", "a tissue map (pve)"),
        ("001_brain_pve_2", "a tissue map (pve)"),
        ("001_brain_mixeltype", "a tissue map (mixeltype)"),
        ("001_GM", "a tissue map (gm)"),
        ("001.wm", "a tissue map (wm)"),
        ("001_T1_csf", "a tissue map (csf)"),
        ("001_CT", "another modality (CT)"),
        ("Anna_ct", "another modality (CT)"),
        ("001-PET", "another modality (PET)"),
        ("001_CT_20190304", "another modality (CT)"),
        ("001_fdg_pet", "another modality (PET)"),
        ("sub-01_task-rest_bold", "another modality (BOLD)"),
        ("001_dwi_b1000", "another modality (B1000)"),
        ("001_swi", "another modality (SWI)"),
        ("001_asl_1", "another modality (ASL)"),
        ("001_ADC", "another modality (ADC)"),
        ("001_brain_mask", "a mask or label map (mask)"),
        ("001brainmask", "a mask or label map (001brainmask)"),
        ("001_T1w_seg_1", "a mask or label map (seg)"),
        ("aparc+aseg", "a mask or label map (aseg)"),
        ("brainmask", "a mask or label map (brainmask)"),
        ("nu", "a derived image (nu)"),
        ("001_norm", "a derived image (norm)"),
        ("001_T1w_Warped", "a derived image (warped)"),
        ("001_to_MNI152_2mm", "a derived image (2mm)"),
        ("001_T1_brain_to_MNI", "a derived image (mni)"),
        ("001_BrainExtractionMask", "a mask or label map (brainextractionmask)"),
        ("001_BrainSegmentationPosteriors1", "a tissue map (brainsegmentationposteriors1)"),
        ("001_T1w_brain_final", "a derived image (brain)"),
        ("mwp1sub-01_T1w", "a derived image (mwp1… of SPM, CAT12 or FreeSurfer)"),
        ("smwc1001", "a derived image (smwc1… of SPM, CAT12 or FreeSurfer)"),
        ("y_001", "a derived image (y_… of SPM, CAT12 or FreeSurfer)"),
        ("wsub-01_T1w", "a derived image (w… of a scan that is there)"),
        ("001_space-MNI152_T1w", "a derivative (space-…): derivatives are no raw scans"),
        ("sub-01_desc-preproc_T1w", "a derivative (desc-…): derivatives are no raw scans"),
        ("001_T1w (1)", "a copy of a file by its name"),
        ("001_T1w copy", "a copy of a file by its name"),
        ("001_T1w - Kopie", "a copy of a file by its name"),
        ("Copy of 001_T1w", "a copy of a file by its name"),
        ("sub-01_part-phase_T1w", "no magnitude image (part-phase)"),
        ("sub-01_PART-Real_T1w", "no magnitude image (part-real)"),
    ],
)
def test_what_is_no_raw_scan(name: str, reason: str) -> None:
    assert not_raw(name if name.endswith(".nii") else f"{name}.nii.gz") == reason


@pytest.mark.parametrize(
    "name",
    [
        "x", "001", "patient_001_T1w", "001_brain", "001_T1w_brain", "001_brain_T1w", "x-skull-stripped", "001_t1_defaced",
        "CT_0012", "mysite_CT_0012", "PD_001", "white_001", "kids_brain_001", "sub-01_part-mag_T1w", "Müller Anna_T1w",
        "w001", "c1001", "sub-01_acq-norm_rec-brain_T1w", "wmaria",
    ],
)  # fmt: skip
def test_what_may_be_a_raw_scan(name: str) -> None:
    assert not_raw(f"{name}.nii.gz") == ""


def test_a_prefix_counts_where_the_scan_without_it_is_there() -> None:
    assert not_raw("w001.nii", {(".", "001")}) == "a derived image (w… of a scan that is there)"
    assert not_raw("mri/c1001_T1.nii", {(".", "001_T1")}) == "a derived image (c1… of a scan that is there)"
    assert not_raw("w001.nii", {(".", "002")}) == ""
