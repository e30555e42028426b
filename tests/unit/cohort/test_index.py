from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from neuromf.cli import app
from neuromf.cohort.index import IndexReport, identifiers, index
from neuromf.tables import ID_PATTERN, Cohort, Scan, TableError, read_cohort, write_cohort, write_tsv

SHARED = Path(os.environ.get("NEUROMF_SHARED", Path(__file__).parents[3] / "../shared"))


def tree(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"")
    return root


def rows(report: IndexReport) -> list[tuple[str, str | None, str, str]]:
    return [(s.participant_id, s.session_id, s.modality, s.image) for s in report.added]


def reasons(report: IndexReport) -> dict[str, str]:
    return {s.path: s.reason for s in report.skipped}


# --- layouts --------------------------------------------------------------------------------------------------------


def test_bids_without_sessions(tmp_path: Path) -> None:
    root = tree(
        tmp_path / "data",
        "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-01/anat/sub-01_FLAIR.nii",
        "sub-01/anat/sub-01_T2w.nii.gz",
        "sub-01/func/sub-01_task-rest_bold.nii.gz",
        "sub-02/anat/sub-02_T1w.nii.gz",
        "derivatives/fmriprep/sub-01/anat/sub-01_desc-preproc_T1w.nii.gz",
        "sourcedata/sub-01_T1w.nii.gz",
    )
    write_tsv(
        root / "participants.tsv",
        ["participant_id", "age", "sex", "image"],
        [["sub-01", 30, "F", "x"], ["02", 41, None, "y"]],
    )
    report = index(root, "c", tmp_path)
    assert rows(report) == [
        ("01", None, "FLAIR", "sub-01/anat/sub-01_FLAIR.nii"),
        ("01", None, "T1w", "sub-01/anat/sub-01_T1w.nii.gz"),
        ("02", None, "T1w", "sub-02/anat/sub-02_T1w.nii.gz"),
    ]
    assert report.layout == "BIDS" and report.found == 5
    assert [s.extra for s in report.added] == [{"age": "30", "sex": "F"}] * 2 + [{"age": "41"}]
    assert reasons(report) == {
        "derivatives": "a folder that holds no raw scans",
        "sourcedata": "a folder that holds no raw scans",
        "sub-01/anat/sub-01_T2w.nii.gz": "its modality T2w is not asked for",
        "sub-01/func/sub-01_task-rest_bold.nii.gz": "not named like a scan (layout: BIDS)",
    }
    cohort = read_cohort(tmp_path / "c.tsv")
    assert cohort.scans == report.added and cohort.root == root and cohort.source == "bids"


def test_bids_with_sessions_runs_and_contrast_agent(tmp_path: Path) -> None:
    anat = "sub-A1/ses-pre/anat/sub-A1_ses-pre"
    root = tree(
        tmp_path / "data",
        f"{anat}_run-10_T1w.nii.gz",
        f"{anat}_run-2_T1w.nii.gz",
        f"{anat}_acq-mprage_run-1_T1w.nii.gz",
        f"{anat}_ce-gadolinium_T1w.nii.gz",
        "sub-A1/ses-post/anat/sub-A1_ses-post_T1w.nii.gz",
    )
    write_tsv(root / "participants.tsv", ["participant_id", "age", "sex"], [["sub-A1", 30, "F"]])
    write_tsv(root / "sub-A1/sub-A1_sessions.tsv", ["session_id", "age"], [["ses-post", 33]])
    report = index(root, "c", tmp_path)
    assert rows(report) == [
        ("A1", "post", "T1w", "sub-A1/ses-post/anat/sub-A1_ses-post_T1w.nii.gz"),
        ("A1", "pre", "T1w", f"{anat}_run-2_T1w.nii.gz"),
    ]
    assert [s.extra["age"] for s in report.added] == ["33", "30"]
    skipped = reasons(report)
    assert skipped[f"{anat}_run-10_T1w.nii.gz"].startswith("another scan of the same person, session and modality")
    assert skipped[f"{anat}_ce-gadolinium_T1w.nii.gz"] == "its modality T1c is not asked for"


def test_ixi(tmp_path: Path) -> None:
    root = tree(
        tmp_path / "IXI-T1",
        "IXI002-Guys-0828-T1.nii.gz",
        "IXI012-HH-1211-T1.nii.gz",
        "IXI012-HH-1211-PD.nii.gz",
        "IXI012-HH-1211-DTI-00.nii.gz",
    )
    report = index(root, "ixi", tmp_path)
    assert rows(report) == [
        ("IXI002", None, "T1w", "IXI002-Guys-0828-T1.nii.gz"),
        ("IXI012", None, "T1w", "IXI012-HH-1211-T1.nii.gz"),
    ]
    assert [s.extra for s in report.added] == [{"site": "Guys"}, {"site": "HH"}]
    assert report.layout == "IXI" and not any(s.skull_stripped for s in report.added)


def test_oasis3_bids(tmp_path: Path) -> None:
    image = "sub-OAS30001/ses-d0129/anat/sub-OAS30001_ses-d0129_T1w.nii.gz"
    report = index(tree(tmp_path / "o", image, image.replace("_T1w", "_run-02_T1w")), "o", tmp_path)
    assert rows(report) == [("OAS30001", "d0129", "T1w", image)] and report.layout == "BIDS"


def test_oasis3_xnat(tmp_path: Path) -> None:
    root = tree(
        tmp_path / "o",
        "OAS30001_MR_d0129/anat1/NIFTI/sub-OAS30001_ses-d0129_acq-TSE_T2w.nii.gz",
        "OAS30001_MR_d0129/anat2/NIFTI/sub-OAS30001_ses-d0129_run-01_T1w.nii.gz",
        "OAS30001_MR_d0129/anat3/NIFTI/sub-OAS30001_ses-d0129_run-02_T1w.nii.gz",
        "OAS30001_MR_d0757/anat2/sub-OAS30001_sess-d0757_T1w.nii.gz",
        "OAS30002_MR_d0371/anat4/sub-OAS30002_ses-d0371_FLAIR.nii.gz",
    )
    report = index(root, "o", tmp_path)
    assert [(p, s, m) for p, s, m, _ in rows(report)] == [
        ("OAS30001", "d0129", "T1w"),
        ("OAS30001", "d0757", "T1w"),
        ("OAS30002", "d0371", "FLAIR"),
    ]
    assert report.added[0].image.endswith("run-01_T1w.nii.gz") and report.layout == "OASIS-3 (XNAT download)"


def test_brats2021(tmp_path: Path) -> None:
    names = [f"BraTS2021_00000/BraTS2021_00000_{m}.nii.gz" for m in ("t1", "t1ce", "t2", "flair", "seg")]
    root = tree(tmp_path / "b", *names, "BraTS2021_00002/BraTS2021_00002_t1.nii.gz")
    report = index(root, "b", tmp_path)
    assert [(s.participant_id, s.modality, s.mask, s.skull_stripped) for s in report.added] == [
        ("BraTS202100000", "FLAIR", "BraTS2021_00000/BraTS2021_00000_seg.nii.gz", True),
        ("BraTS202100000", "T1w", "BraTS2021_00000/BraTS2021_00000_seg.nii.gz", True),
        ("BraTS202100002", "T1w", None, True),
    ]
    every = index(root, "every", tmp_path, modality=["T1w", "T1c", "T2w", "FLAIR"])
    assert [s.modality for s in every.added] == ["FLAIR", "T1w", "T1c", "T2w", "T1w"]


def test_fomo60k(tmp_path: Path) -> None:
    root = tree(
        tmp_path / "f",
        "sub_1/ses_1/t1.nii.gz",
        "sub_1/ses_1/t1_2.nii.gz",
        "sub_1/ses_1/flair.nii.gz",
        "sub_1/ses_2/t1.nii.gz",
        "sub_10/ses_1/mprage.nii.gz",
        "sub_10/ses_1/swi.nii.gz",
    )
    header = ["participant_id", "session_id", "sex", "age", "group"]
    write_tsv(
        root / "participants.tsv", header, [["sub_1", "ses_1", "F", 30, "Control"], ["sub_1", "ses_2", "F", 31, None]]
    )
    report = index(root, "f", tmp_path)
    assert [(p, s, m) for p, s, m, _ in rows(report)] == [
        ("1", "1", "FLAIR"),
        ("1", "1", "T1w"),
        ("1", "2", "T1w"),
        ("10", "1", "T1w"),
    ]
    assert [s.extra.get("age") for s in report.added] == ["30", "30", "31", None]
    assert all(s.skull_stripped for s in report.added)
    assert reasons(report)["sub_1/ses_1/t1_2.nii.gz"].startswith("another scan")


def test_fomo60k_by_source_numbers_people_apart(tmp_path: Path) -> None:
    root = tree(tmp_path / "f", "PT001_OASIS1/sub_1/ses_1/t1.nii.gz", "PT005_IXI/sub_1/ses_1/t1.nii.gz")
    header = ["dataset", "participant_id", "session_id", "age"]
    write_tsv(
        root / "participants.tsv", header, [["PT001_OASIS1", "sub_1", "ses_1", 74], ["PT005_IXI", "sub_1", "ses_1", 36]]
    )
    report = index(root, "f", tmp_path)
    assert [(s.participant_id, s.extra["age"]) for s in report.added] == [("PT001S1", "74"), ("PT005S1", "36")]


def test_uk_biobank(tmp_path: Path) -> None:
    root = tree(
        tmp_path / "u",
        "1000001_20252_2_0/T1/T1.nii.gz",
        "1000001_20252_2_0/T1/T1_brain.nii.gz",
        "1000001_20252_2_0/T1/T1_brain_to_MNI.nii.gz",
        "1000001_20252_2_0/T1/T1_fast/T1_brain_seg.nii.gz",
        "1000001_20252_3_0/T1/T1.nii.gz",
        "1000001_20253_2_0/T2_FLAIR/T2_FLAIR.nii.gz",
        "1000002_20252_2_0/T1/T1_brain.nii.gz",
    )
    report = index(root, "u", tmp_path)
    assert [(s.participant_id, s.session_id, s.modality, s.skull_stripped) for s in report.added] == [
        ("1000001", "2", "T1w", False),
        ("1000001", "3", "T1w", False),
        ("1000001", "2", "FLAIR", False),
        ("1000002", "2", "T1w", True),
    ]
    copy = reasons(report)["1000001_20252_2_0/T1/T1_brain.nii.gz"]
    assert copy == "skull-stripped copy of 1000001_20252_2_0/T1/T1.nii.gz"


def test_flat_folder(tmp_path: Path) -> None:
    root = tree(
        tmp_path / "flat",
        "patient_001_T1.nii.gz",
        "patient_001_flair.nii",
        "patient_002.nii.gz",
        "sub-9_ses-1_T1w.nii.gz",
        "patient_002_mask.nii.gz",
        "more/patient_003.nii.gz",
        "notes.txt",
        ".hidden.nii.gz",
    )
    report = index(root, "flat", tmp_path)
    assert [(p, s, m) for p, s, m, _ in rows(report)] == [
        ("patient001", None, "T1w"),
        ("patient001", None, "FLAIR"),
        ("patient002", None, "T1w"),
        ("9", "1", "T1w"),
    ]
    assert report.layout == "flat folder" and report.found == 6
    assert set(reasons(report)) == {"patient_002_mask.nii.gz", "more/patient_003.nii.gz"}


def test_brats2023_has_sessions(tmp_path: Path) -> None:
    names = [f"BraTS-GLI-00005-100/BraTS-GLI-00005-100-{m}.nii.gz" for m in ("t1n", "t1c", "t2w", "t2f", "seg")]
    root = tree(
        tmp_path / "b", *names, "BraTS-GLI-00005-101/BraTS-GLI-00005-101-t1n.nii.gz", "BraTS-MET-00005-000-t1n.nii.gz",
        "BraTS-SSA-00002-000-t1n.nii", "BraTS-PED-00003-000-t1n.nii.gz", "BraTS-MEN-00004-000-t1n.nii.gz",
        "BraTS-GLI-00005-100/BraTS-GLI-00005-100-t1n-voided.nii.gz",
    )  # fmt: skip
    report = index(root, "b", tmp_path)
    assert [(p, s, m) for p, s, m, _ in rows(report)] == [
        ("BraTSGLI00005", "100", "T1w"),
        ("BraTSGLI00005", "100", "FLAIR"),
        ("BraTSGLI00005", "101", "T1w"),
        ("BraTSMEN00004", "000", "T1w"),
        ("BraTSMET00005", "000", "T1w"),
        ("BraTSPED00003", "000", "T1w"),
        ("BraTSSSA00002", "000", "T1w"),
    ]
    assert report.added[0].mask == "BraTS-GLI-00005-100/BraTS-GLI-00005-100-seg.nii.gz" and not report.warnings
    assert all(scan.skull_stripped for scan in report.added)
    every = index(root, "every", tmp_path, modality=["T1c", "T2w"])
    assert [scan.modality for scan in every.added] == ["T1c", "T2w"]


def test_adni_has_visits(tmp_path: Path) -> None:
    loni = "ADNI/002_S_0295/MP-RAGE/2006-04-18_08_20_30.0/I13722/ADNI_002_S_0295_MR_MP-RAGE__br_raw"
    root = tree(
        tmp_path / "a", "001_S_0001_bl.nii.gz", "001_S_0001_m12.nii.gz", "001_S_0001_m12_FLAIR.nii.gz",
        "x/003_S_0002.nii.gz",
        "001_S_0001_m24_brain.nii.gz", "001_S_0001_m12_n4.nii.gz",
    )  # fmt: skip
    report = index(root, "a", tmp_path)
    assert [(p, s, m) for p, s, m, _ in rows(report)] == [
        ("001S0001", "bl", "T1w"),
        ("001S0001", "m12", "T1w"),
        ("001S0001", "m12", "FLAIR"),
        ("001S0001", "m24", "T1w"),
        ("003S0002", None, "T1w"),
    ]
    assert [scan.skull_stripped for scan in report.added] == [False, False, False, True, False] and not report.warnings
    root = tree(
        tmp_path / "l",
        f"{loni}_20060418193713091_1_S13408_I13722.nii",
        f"{loni}_20070520193713091_1_S23408_I23722.nii",
        f"{loni}_20070520193713091_2_S23408_I23723.nii",
        "ADNI/002_S_0295/x/ADNI_002_S_0295_MR_MPR__GradWarp__N3_Br_20070319120000000_S13408_I45108.nii",
    )
    report = index(root, "l", tmp_path)
    assert [(p, s) for p, s, *_ in rows(report)] == [("002S0295", "20060418"), ("002S0295", "20070520")]
    assert report.added[1].image.endswith("I23722.nii")


def test_a_table_of_visits_as_people_keeps_its_rows_and_is_told(tmp_path: Path) -> None:
    """As an index wrote it that did not know BraTS 2023."""
    root = tree(tmp_path / "b", *(f"BraTS-GLI-00005-{n}-t1n.nii.gz" for n in (100, 101)))
    scans = tuple(
        Scan(f"BraTSGLI00005{n}", None, f"BraTS-GLI-00005-{n}-t1n.nii.gz", "T1w", None, True) for n in (100, 101)
    )
    write_cohort(tmp_path / "b.tsv", Cohort("b", root, scans))
    tree(root, "BraTS-GLI-00005-102-t1n.nii.gz", "BraTS-GLI-00006-100-t1n.nii.gz")
    report = index(root, "b", tmp_path)
    assert report.kept == scans
    assert [(p, s) for p, s, *_ in rows(report)] == [("BraTSGLI00005100", "102"), ("BraTSGLI00006", "100")]
    assert (
        "visits of 1 people under IDs of their own" in report.warnings[0] and "another --cohort" in report.warnings[0]
    )
    with pytest.raises(TableError, match="divide people otherwise than --participant"):
        index(root, "b", tmp_path, participant="(BraTS-GLI-[0-9]+)")


# --- derived images and other formats -------------------------------------------------------------------------------


def test_a_stripped_copy_beside_its_whole_head(tmp_path: Path) -> None:
    root = tree(
        tmp_path / "d", "001.nii.gz", "001_brain.nii.gz", "002_T1w_brain.nii.gz", "003_T1w.nii.gz", "003_bet_T1w.nii.gz",
        "003_FLAIR_brain.nii.gz",
    )  # fmt: skip
    report = index(root, "c", tmp_path)
    assert [(s.participant_id, s.modality, s.skull_stripped) for s in report.added] == [
        ("001", "T1w", False),
        ("002", "T1w", True),
        ("003", "FLAIR", True),
        ("003", "T1w", False),
    ]
    assert reasons(report) == {
        "001_brain.nii.gz": "skull-stripped copy of 001.nii.gz",
        "003_bet_T1w.nii.gz": "skull-stripped copy of 003_T1w.nii.gz",
    }
    assert str(report).count("skull-stripped copy") == 1, "counted, with one example"


def test_derived_images_of_a_flat_folder_are_nobody(tmp_path: Path) -> None:
    derived = [f"001_{s}.nii.gz" for s in ("n4", "CT", "PET", "brain_pve_0", "brain_mask", "Warped", "SWI", "seg")]
    derived += ["w001.nii.gz", "mwp1001.nii.gz", "T1.nii.gz", "001_space-MNI_T1w.nii.gz"]
    report = index(tree(tmp_path / "d", "001.nii.gz", *derived), "c", tmp_path)
    assert [s.participant_id for s in report.added] == ["001"] and set(reasons(report)) == set(derived)
    assert reasons(report)["T1.nii.gz"] == "no person in its name"


def test_derivatives_in_raw_bids(tmp_path: Path) -> None:
    anat = "sub-01/anat/sub-01"
    root = tree(
        tmp_path / "d", f"{anat}_part-mag_T1w.nii.gz", f"{anat}_part-phase_T1w.nii.gz", f"{anat}_part-imag_FLAIR.nii.gz",
        f"{anat}_space-MNI152NLin6Asym_T1w.nii.gz", f"{anat}_desc-preproc_T1w.nii.gz", f"{anat}_acq-x_space-T1w_FLAIR.nii",
    )  # fmt: skip
    report = index(root, "c", tmp_path)
    assert [s.image for s in report.added] == [f"{anat}_part-mag_T1w.nii.gz"]
    why = reasons(report)
    assert why[f"{anat}_part-phase_T1w.nii.gz"] == "no magnitude image (part-phase)"
    assert why[f"{anat}_desc-preproc_T1w.nii.gz"].startswith("a derivative (desc-…)") and len(why) == 5


def test_what_an_older_index_took_stays_and_is_not_told_of_as_skipped(tmp_path: Path) -> None:
    root = tree(tmp_path / "d", "001.nii.gz", "001_n4.nii.gz", "001_brain.nii.gz")
    names = ("001.nii.gz", "001_brain.nii.gz", "001_n4.nii.gz")
    scans = tuple(Scan(name.split(".")[0].replace("_", ""), None, name, "T1w") for name in names)
    write_cohort(tmp_path / "c.tsv", Cohort("c", root, scans))
    before = (tmp_path / "c.tsv").read_bytes()
    report = index(root, "c", tmp_path)
    assert report.kept == scans and not report.added and not report.skipped
    assert (tmp_path / "c.tsv").read_bytes() == before


def test_other_formats_are_told_with_the_remedy(tmp_path: Path) -> None:
    root = tree(
        tmp_path / "d", "001.nii.gz", "002.NII.GZ", "003.Nii", "004.img", "004.hdr", "005.hdr", "006.mgz", "007.nrrd",
        "008.mha", "dicom/1.dcm", "dicom/2.dcm", "009/IM0001", "010.zip", "._001.nii.gz", ".hidden/x.nii.gz", "notes.txt",
        "README", "011.mnc", "012+orig.HEAD",
    )  # fmt: skip
    (root / "009/IM0001").write_bytes(b"\0" * 128 + b"DICM")
    report = index(root, "c", tmp_path)
    why = reasons(report)
    assert [s.participant_id for s in report.added] == ["001"] and report.found == 1
    for name, word in {
        "002.NII.GZ": "rename it to .nii or .nii.gz", "003.Nii": "rename it", "004.img": "convert it to .nii.gz",
        "005.hdr": "convert it to .nii.gz", "006.mgz": "mri_convert", "007.nrrd": "SimpleITK", "008.mha": "SimpleITK",
        "dicom/1.dcm": "dcm2niix", "009/IM0001": "dcm2niix", "010.zip": "unpack it", "011.mnc": "mnc2nii",
        "012+orig.HEAD": "3dAFNItoNIFTI",
    }.items():  # fmt: skip
        assert word in why.pop(name)
    assert not why, "one line for a pair, one for a folder of DICOM, none for what is no image"


def test_a_folder_of_other_formats_alone_says_which(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"no \.nii or \.nii\.gz file below it \(2 × an ending in upper case: rename"):
        index(tree(tmp_path / "d", "1.NII.GZ", "2.NII.GZ"), "c", tmp_path)


def test_the_report_fits_a_terminal(tmp_path: Path) -> None:
    long = [f"{'a-very-long-name_' * 3}{n:03d}_brain_mask.nii.gz" for n in range(40)]
    many = [f"001_{n}mm.nii.gz" for n in range(40)]
    text = str(index(tree(tmp_path / "d", "001.nii.gz", *long, *many), "c", tmp_path))
    lines = text.splitlines()
    assert len(lines) < 60 and max(len(line) for line in lines[3:]) <= 120
    assert "40 × a mask or label map (mask), for instance" in " ".join(text.split()) and "for 21 other reasons" in text


# --- who is one person ----------------------------------------------------------------------------------------------


def test_ids_that_look_like_visits_are_told_of(tmp_path: Path) -> None:
    root = tree(tmp_path / "d", *(f"genius_{n:04d}.nii.gz" for n in range(800, 804)))
    report = index(root, "c", tmp_path)
    assert len(report.added) == 4
    (warning,) = report.warnings
    assert (
        "genius_0800, genius_0801" in warning
        and "--participant '(.+)\\d$'" in warning
        and "another --cohort" in warning
    )
    again = index(root, "visits", tmp_path, participant=r"(.+)\d$")
    assert [(p, s) for p, s, *_ in rows(again)] == [("genius080", str(n)) for n in range(4)] and not again.warnings


def test_the_rule_stays_with_the_table(tmp_path: Path) -> None:
    root = tree(tmp_path / "d", "p_01_a.nii.gz", "p_01_b.nii.gz")
    index(root, "c", tmp_path, participant="(.+)_[a-z]")
    tree(root, "p_01_c.nii.gz", "p_02_a.nii.gz")
    report = index(root, "c", tmp_path)
    assert [(p, s) for p, s, *_ in rows(report)] == [("p01", "c"), ("p02", "a")]
    assert read_cohort(tmp_path / "c.tsv").participant == "(.+)_[a-z]"
    with pytest.raises(TableError, match="divide people otherwise"):
        index(root, "c", tmp_path, participant="(.+)")


@pytest.mark.parametrize(
    ("paths", "rule", "people"),
    [
        (["001/T1.nii.gz", "001/FLAIR.nii.gz", "002/T1.nii.gz"], "([^/]+)/", [("001", None)] * 2 + [("002", None)]),
        (["001/bl/T1.nii.gz", "001/m12/T1.nii.gz"], "([^/]+)/", [("001", "bl"), ("001", "m12")]),
        (["d/001/anat/T1.nii.gz", "d/001/anat/brain.nii.gz"], "d/([^/]+)/", [("001", "d")]),
        (["001/T1/T1_brain.nii", "001/FLAIR/FLAIR.nii"], "([^/]+)/", [("001", None)] * 2),
        (["a/001_bl_T1.nii.gz"], "(.+)_", [("001", "bl")]),
        (["v1-001.nii.gz", "v2-001.nii.gz"], "v.-(.+)", [("001", "v1"), ("001", "v2")]),
        (["v1-001.nii.gz"], "v(?P<session>.)-(?P<participant>.+)", [("001", "1")]),
        (["001_ses-2_T1w.nii.gz"], "(.+)1", [("00", "12")]),
        (["Zoë Müller.nii.gz"], "(.+) ", [("Zo", "Mller")]),
    ],
)
def test_a_rule_reads_ids_and_paths(
    tmp_path: Path, paths: list[str], rule: str, people: list[tuple[str, str | None]]
) -> None:
    report = index(tree(tmp_path / "d", *paths), "c", tmp_path, participant=rule)
    assert [(p, s) for p, s, *_ in rows(report)] == people


def test_a_rule_in_bids_and_for_participants(tmp_path: Path) -> None:
    root = tree(tmp_path / "d", *(f"sub-x{n}/anat/sub-x{n}_T1w.nii.gz" for n in ("01bl", "01fu", "02bl")))
    write_tsv(root / "participants.tsv", ["participant_id", "age"], [["sub-x01bl", 30], ["sub-x01fu", 31], ["x02", 50]])
    report = index(root, "c", tmp_path, participant=r"(x\d+)")
    assert [(p, s) for p, s, *_ in rows(report)] == [("x01", "bl"), ("x01", "fu"), ("x02", "bl")]
    assert [s.extra["age"] for s in report.added] == ["30", "31", "50"]


@pytest.mark.parametrize(
    ("rule", "message"),
    [("(", "is no regular expression"), ("x.*", "has no group"), ("(y)", r"'\(y\)' matches none of 1 scans.*'x'")],
)
def test_a_rule_that_cannot_be_used(tmp_path: Path, rule: str, message: str) -> None:
    with pytest.raises(TableError, match=message) as caught:
        index(tree(tmp_path / "d", "x.nii.gz"), "c", tmp_path, participant=rule)
    assert "\n" not in str(caught.value) and not (tmp_path / "c.tsv").exists()


def test_scans_that_a_rule_does_not_match_are_skipped(tmp_path: Path) -> None:
    report = index(tree(tmp_path / "d", "p1.nii.gz", "q1.nii.gz"), "c", tmp_path, participant="(p.)")
    assert reasons(report) == {"q1.nii.gz": "--participant does not match its ID or path"}


def test_one_person_written_in_two_ways_is_told_of(tmp_path: Path) -> None:
    report = index(tree(tmp_path / "d", "patient_001_T1w.nii.gz", "Patient-001_FLAIR.nii.gz"), "c", tmp_path)
    assert len(report.added) == 2 and "Patient-001 and patient_001" in report.warnings[0]


def test_the_command_prints_warnings_and_refuses_in_one_line(tmp_path: Path) -> None:
    root = tree(tmp_path / "d", "001_bl.nii.gz", "001_m12.nii.gz")
    arguments = ["index", str(root), "--tables", str(tmp_path), "--cohort"]
    done = CliRunner().invoke(app, [*arguments, "c"])
    assert done.exit_code == 0 and "2 IDs look like visits of 1 person" in " ".join(done.output.split())
    done = CliRunner().invoke(app, [*arguments, "v", "--participant", "(.+?)_"])
    assert done.exit_code == 0 and "2 scans of 1 people in 2 sessions" in done.output
    refused = CliRunner().invoke(app, [*arguments, "w", "--participant", "(((("])
    assert (
        refused.exit_code == 1 and refused.output.startswith("Error: --participant") and refused.output.count("\n") == 1
    )


# --- append only ----------------------------------------------------------------------------------------------------


def test_a_second_call_appends_what_is_new(tmp_path: Path) -> None:
    root = tree(tmp_path / "d", "sub-05/anat/sub-05_T1w.nii.gz")
    first = index(root, "c", tmp_path)
    tree(root, "sub-01/anat/sub-01_T1w.nii.gz", "sub-05/anat/sub-05_run-2_T1w.nii.gz")
    write_tsv(root / "participants.tsv", ["participant_id", "age"], [["sub-01", 20], ["sub-05", 50]])
    second = index(root, "c", tmp_path)
    assert second.kept == first.added and [s.participant_id for s in second.added] == ["01"]
    assert [s.participant_id for s in read_cohort(tmp_path / "c.tsv").scans] == ["05", "01"]
    assert "age" not in read_cohort(tmp_path / "c.tsv").scans[0].extra  # a row that is there stays as it is

    text = (tmp_path / "c.tsv").read_bytes()
    third = index(root, "c", tmp_path)
    assert not third.added and (tmp_path / "c.tsv").read_bytes() == text
    assert "2 scans of 2 people" in str(third) and "added    0 rows" in str(third)


def test_rows_stay_when_their_files_go(tmp_path: Path) -> None:
    root = tree(tmp_path / "d", "sub-05/anat/sub-05_T1w.nii.gz", "sub-06/anat/sub-06_T1w.nii.gz")
    index(root, "c", tmp_path)
    (root / "sub-05/anat/sub-05_T1w.nii.gz").unlink()
    assert [s.participant_id for s in index(root, "c", tmp_path).kept] == ["05", "06"]


def test_a_table_belongs_to_one_folder(tmp_path: Path) -> None:
    index(tree(tmp_path / "a", "x.nii.gz"), "c", tmp_path)
    with pytest.raises(TableError, match=r"is the table of .*a, not of .*b; choose another cohort name"):
        index(tree(tmp_path / "b", "x.nii.gz"), "c", tmp_path)


def test_an_id_given_once_stays_when_one_like_it_comes(tmp_path: Path) -> None:
    root = tree(tmp_path / "d", "a-b.nii.gz")
    index(root, "c", tmp_path)
    report = index(tree(root, "a_b.nii.gz", "ab.nii.gz", "a-b_flair.nii.gz"), "c", tmp_path)
    ids = {s.image: s.participant_id for s in (*report.kept, *report.added)}
    assert ids["a-b.nii.gz"] == ids["a-b_flair.nii.gz"] == "ab" and len(set(ids.values())) == 3


@given(st.lists(st.text(min_size=1, max_size=6), max_size=30), st.integers(0, 30))
def test_identifiers_are_valid_unique_and_stable(raw: list[str], cut: int) -> None:
    raw = [text for text in raw if text.encode(errors="ignore").decode() == text]
    before = identifiers(raw[:cut], {})
    after = identifiers(raw, before)
    assert set(after) >= set(raw) and len(set(after.values())) == len(after)
    assert all(ID_PATTERN.fullmatch(one) for one in after.values())
    assert all(after[person] == one for person, one in before.items())


# --- options and complaints -----------------------------------------------------------------------------------------


def test_skull_stripped_can_be_told(tmp_path: Path) -> None:
    root = tree(tmp_path / "d", "x.nii.gz")
    assert index(root, "c", tmp_path, skull_stripped=True).added[0].skull_stripped


def test_links(tmp_path: Path) -> None:
    root = tree(tmp_path / "d", "x.nii.gz")
    (root / "gone.nii.gz").symlink_to("nowhere.nii.gz")
    (root / "circle").symlink_to(root)
    report = index(root, "c", tmp_path)
    assert reasons(report) == {
        "circle": "a linked folder is not followed",
        "gone.nii.gz": "a link to a file that is not there (with datalad: get it first)",
    }


def test_a_link_that_leaves_the_folder_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "elsewhere.nii.gz").touch()
    root = tmp_path / "cohort"
    root.mkdir()
    (root / "sub-01_T1w.nii.gz").touch()
    (root / "sub-02_T1w.nii.gz").symlink_to(tmp_path / "elsewhere.nii.gz")
    (root / "sub-03_T1w.nii.gz").symlink_to("sub-01_T1w.nii.gz")
    report = index(root, "study", tmp_path / "tables")
    assert [scan.image for scan in report.added] == ["sub-01_T1w.nii.gz", "sub-03_T1w.nii.gz"]
    assert [(one.path, one.reason.split(" (")[0]) for one in report.skipped] == [
        ("sub-02_T1w.nii.gz", "a link that leaves the folder")
    ]


def test_names_that_no_table_can_hold(tmp_path: Path) -> None:
    report = index(tree(tmp_path / "d", "x.nii.gz", "tab\t.nii.gz"), "c", tmp_path)
    assert [s.image for s in report.added] == ["x.nii.gz"] and len(report.skipped) == 1


@pytest.mark.parametrize(
    ("paths", "options", "message"),
    [
        ((), {}, "no .nii or .nii.gz file below it"),
        (("x_mask.nii.gz",), {}, "none of its 1 NIfTI files is a scan of T1w or FLAIR: .*docs/cohorts.md"),
        (("x.nii.gz",), {"modality": ["T9"]}, "modality 'T9' is not known; use T1w, FLAIR"),
        (("x.nii.gz",), {"name": "../c"}, "cohort name '../c'"),
    ],
)
def test_complaints(tmp_path: Path, paths: tuple[str, ...], options: dict, message: str) -> None:
    root = tmp_path / "d"
    root.mkdir()
    name = options.pop("name", "c")
    with pytest.raises(TableError, match=message):
        index(tree(root, *paths), name, tmp_path / "tables", **options)
    assert not (tmp_path / "tables").exists()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="is not a folder"):
        index(tree(tmp_path, "x.nii.gz") / "x.nii.gz", "c", tmp_path)


@pytest.mark.skipif(not (SHARED / "data/ds002748").is_dir(), reason="needs ../shared/data/ds002748 (NEUROMF_SHARED)")
def test_real_bids_folders(tmp_path: Path) -> None:
    stripped = index(SHARED / "data/ds002748", "ds002748", tmp_path, skull_stripped=True)
    whole = index(SHARED / "data/ds000011", "ds000011", tmp_path)
    assert len(stripped.added) == 30 and set(stripped.added[0].extra) == {"age", "gender", "group"}
    assert len(whole.added) == 8 and not whole.skipped
