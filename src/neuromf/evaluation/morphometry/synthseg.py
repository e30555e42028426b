"""FreeSurfer's `mri_synthseg` (Billot et al. 2023, Med Image Anal 86:102789; PNAS 120:e2216399120) as a segmenter.

The program is not part of this project. What it prints to its CSV files (header of names, one row per scan, volumes in
mm³, quality scores from 0 to 1) is read as its source writes it.
"""

from __future__ import annotations

import csv
import math
import os
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np

from neuromf.evaluation.morphometry.atlas import SYNTHSEG, SYNTHSEG_MIDLINE, SYNTHSEG_PAIRED, region_name
from neuromf.evaluation.morphometry.segmentation import Segmentation, Segmenter
from neuromf.meshnet import WeightsError
from neuromf.scratch import temporary_folder
from neuromf.tables import content_hash, file_sha256
from neuromf.volume import VolumeError, read_volume

COMMAND = "mri_synthseg"
QUALITY_PASS = 0.65  # a segmentation passes when no region's score is lower


def find_synthseg() -> Path:
    """Return the path of ``mri_synthseg``: on PATH, or in the folder ``bin`` of FREESURFER_HOME.

    Raises:
        WeightsError: it is in neither.
    """
    home = os.environ.get("FREESURFER_HOME")
    found = shutil.which(COMMAND) or (shutil.which(COMMAND, path=str(Path(home, "bin"))) if home else None)
    if found is None:
        raise WeightsError(
            f"the segmenter synthseg needs FreeSurfer's {COMMAND}, which is neither on PATH nor in FREESURFER_HOME/bin"
            f" (FREESURFER_HOME is {home or 'not set'}): install FreeSurfer 7.3 or newer from"
            " https://surfer.nmr.mgh.harvard.edu and source its SetUpFreeSurfer.sh, or choose another segmenter"
        )
    return Path(found)


def synthseg_segmenter(*, robust: bool = False, threads: int = 1) -> Segmenter:
    """Return the segmenter ``synthseg``: FreeSurfer's labels, volumes and quality scores of a head of any contrast.

    Args:
        robust: the slower network for scans of poor quality.

    Raises:
        WeightsError: as `find_synthseg`.
    """
    program = find_synthseg()
    stamp = Path(os.environ.get("FREESURFER_HOME", program.parent), "build-stamp.txt")  # FreeSurfer's version
    version = stamp.read_text(encoding="utf-8").strip() if stamp.is_file() else ""
    options = ["--threads", str(threads), "--cpu"] + (["--robust"] if robust else [])

    def compute(image: nib.Nifti1Image) -> Segmentation:
        return _run(program, image, options)

    key = content_hash({"program": file_sha256(program), "version": version, "robust": robust})
    return Segmenter("synthseg_robust" if robust else "synthseg", key, SYNTHSEG, compute)


def _run(program: Path, image: nib.Nifti1Image, options: list[str]) -> Segmentation:
    with temporary_folder(8 * math.prod(image.shape) / 2**20) as folder:
        scan, labels, volumes, quality = (
            Path(folder, name) for name in ("scan.nii.gz", "labels.nii.gz", "volumes.csv", "quality.csv")
        )
        nib.save(image, scan)
        files = ["--i", str(scan), "--o", str(labels), "--vol", str(volumes), "--qc", str(quality)]
        done = subprocess.run([str(program), *files, *options], capture_output=True, text=True, check=False)
        missing = [path.name for path in (labels, volumes, quality) if not path.is_file()]
        if done.returncode or missing:
            said = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no message"]
            raise VolumeError(f"{program} failed with exit code {done.returncode}: {said[0]}")
        found = read_volume(labels)
        label_image = nib.Nifti1Image(np.rint(np.asarray(found.dataobj)).astype(np.int16), found.affine)
        return read_figures(volumes, quality, label_image)


def read_figures(volumes: Path, quality: Path, labels: nib.Nifti1Image) -> Segmentation:
    """Return the segmentation that ``--vol`` (mm³) and ``--qc`` describe.

    Raises:
        VolumeError: a file without exactly one scan, or without one of the regions.
    """
    found = _read_row(volumes)
    wanted = [*SYNTHSEG_MIDLINE, *(f"{side} {name}" for name in SYNTHSEG_PAIRED for side in ("left", "right"))]
    if lacking := [name for name in wanted if name.lower() not in found]:
        raise VolumeError(f"{volumes} has no column {lacking[0]!r}; use the mri_synthseg of FreeSurfer 7.3 or newer")
    ml = {name.lower(): found[name.lower()] / 1000 for name in wanted}
    sides = {region_name(name): (ml[f"left {name}".lower()], ml[f"right {name}".lower()]) for name in SYNTHSEG_PAIRED}
    totals = {region_name(name): ml[name.lower()] for name in SYNTHSEG_MIDLINE}
    totals |= {name: left + right for name, (left, right) in sides.items()}
    scores = {region_name(name): score for name, score in _read_row(quality).items()}
    return Segmentation(labels, totals, sides, scores)


def _read_row(path: Path) -> dict[str, float]:
    """Return the one row of a CSV file as column (lower case) → number, without the first column, the scan's name."""
    with path.open(newline="", encoding="utf-8") as stream:
        rows = [row for row in csv.reader(stream) if row]
    if len(rows) != 2 or len(rows[0]) != len(rows[1]) or len(rows[0]) < 2:
        raise VolumeError(f"{path} should be a header and one row of as many columns; it is not")
    try:
        return {name.strip().lower(): float(value) for name, value in zip(rows[0][1:], rows[1][1:], strict=True)}
    except ValueError as error:
        raise VolumeError(f"{path} holds what is no number: {error}") from None
