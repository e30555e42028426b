"""FreeSurfer's mri_synthseg: called as its help says, its CSV files read as its source writes them.

The program is played by a script; the real one has not been run here.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from neuromf.evaluation.morphometry.atlas import SYNTHSEG_PAIRED
from neuromf.evaluation.morphometry.segmentation import Scan, file_scans, segment_scan
from neuromf.evaluation.morphometry.synthseg import find_synthseg, read_figures, synthseg_segmenter
from neuromf.meshnet import WeightsError
from neuromf.volume import VolumeError

# as `--vol` and `--qc` write them: "total intracranial" first, then by label value
HEADER = (
    "subject,total intracranial,left cerebral white matter,left cerebral cortex,left lateral ventricle,"
    "left inferior lateral ventricle,left cerebellum white matter,left cerebellum cortex,left thalamus,left caudate,"
    "left putamen,left pallidum,3rd ventricle,4th ventricle,brain-stem,left hippocampus,left amygdala,csf,"
    "left accumbens area,left ventral DC,right cerebral white matter,right cerebral cortex,right lateral ventricle,"
    "right inferior lateral ventricle,right cerebellum white matter,right cerebellum cortex,right thalamus,"
    "right caudate,right putamen,right pallidum,right hippocampus,right amygdala,right accumbens area,right ventral DC"
)
VOLUMES = f"{HEADER}\nscan," + ",".join(str(1000.5 + 100 * i) for i in range(HEADER.count(","))) + "\n"
QUALITY = (
    "subject,general white matter,general grey matter,general csf,cerebellum,brainstem,thalamus,putamen+pallidum,"
    "hippocampus+amygdala\nscan,0.8512,0.8301,0.7702,0.9001,0.8899,0.8703,0.8602,0.8104\n"
)
SCRIPT = f"""#!{sys.executable}
import sys
from pathlib import Path
import nibabel as nib, numpy as np
arguments = dict(zip(sys.argv[1::2], sys.argv[2::2]))
image = nib.load(arguments["--i"])
nib.save(nib.Nifti1Image(np.where(image.get_fdata() > 0.5, 53, 0).astype(np.int32), image.affine), arguments["--o"])
Path(arguments["--vol"]).write_text({VOLUMES!r})
Path(arguments["--qc"]).write_text({QUALITY!r})
with Path(__file__).with_name("calls.txt").open("a") as log:
    log.write(" ".join(sys.argv[1:]) + "\\n")
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "bin" / "mri_synthseg"
    path.parent.mkdir()
    path.write_text(SCRIPT)
    path.chmod(0o755)
    monkeypatch.setenv("FREESURFER_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    return path


@pytest.fixture
def scan(tmp_path: Path) -> Scan:
    data = np.random.default_rng(0).random((20, 18, 16)).astype(np.float32)
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "scan.nii.gz")
    return file_scans({"scan": tmp_path / "scan.nii.gz"})[0]


def test_volumes_sides_and_quality_are_read(program: Path, scan: Scan, tmp_path: Path) -> None:
    found = segment_scan(scan, synthseg_segmenter(), tmp_path / "cache")
    columns = dict(zip(HEADER.split(",")[1:], (1.0005 + 0.1 * i for i in range(HEADER.count(","))), strict=True))
    assert found.volumes["total_intracranial"] == pytest.approx(columns["total intracranial"])
    for name in SYNTHSEG_PAIRED:
        left, right = columns[f"left {name}"], columns[f"right {name}"]
        region = name.lower().replace(" ", "_")
        assert found.sides[region] == pytest.approx((left, right))
        assert found.volumes[region] == pytest.approx(left + right)
    assert found.quality["hippocampus_amygdala"] == 0.8104 and len(found.quality) == 8
    assert np.unique(np.asarray(found.labels.dataobj)).tolist() == [0, 53]
    segment_scan(scan, synthseg_segmenter(), tmp_path / "cache")
    segment_scan(scan, synthseg_segmenter(robust=True), tmp_path / "cache")
    calls = program.with_name("calls.txt").read_text().splitlines()
    assert len(calls) == 2 and calls[0].endswith("--threads 1 --cpu") and calls[1].endswith("--robust")


def test_missing_program_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("FREESURFER_HOME", raising=False)
    with pytest.raises(WeightsError, match=r"neither on PATH nor in FREESURFER_HOME/bin .*install FreeSurfer"):
        find_synthseg()


def test_failure_and_unexpected_tables_are_explained(program: Path, scan: Scan, tmp_path: Path) -> None:
    program.write_text("#!/bin/sh\necho FREESURFER_HOME is not set >&2\nexit 1\n")
    with pytest.raises(VolumeError, match="exit code 1: FREESURFER_HOME is not set"):
        segment_scan(scan, synthseg_segmenter(), tmp_path / "cache")
    volumes, quality, labels = tmp_path / "v.csv", tmp_path / "q.csv", scan.read()
    quality.write_text(QUALITY)
    for content, message in (
        (HEADER + "\n", "a header and one row"),
        (VOLUMES.replace("left putamen", "putamen"), "no column 'left putamen'"),
        (VOLUMES.replace("1000.5", "many"), "no number"),
    ):
        volumes.write_text(content)
        with pytest.raises(VolumeError, match=message):
            read_figures(volumes, quality, labels)
