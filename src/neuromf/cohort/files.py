"""What lies in a folder of scans: its NIfTI files, and what was passed over with the reason and the remedy."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from neuromf.tables import leads_out

NOT_RAW = ("derivatives", "sourcedata", "code", "stimuli")
IMAGE_NAME = re.compile(r"\.nii(\.gz)?$")
DICOM = "a folder with DICOM files: convert them, for instance with dcm2niix into BIDS"

# names of what could be a scan and is not read, on lower case → why
_OTHER_FORMATS = tuple(
    (re.compile(name), reason)
    for name, reason in {
        r"\.nii(\.gz)?$": "an ending in upper case: rename it to .nii or .nii.gz",
        r"\.(img|hdr)(\.gz)?$": "half of an .img/.hdr pair: convert it to .nii.gz, for instance with mri_convert or nibabel",
        r"\.(mgz|mgh)$": "FreeSurfer's format: convert it to .nii.gz with mri_convert",
        r"\.(nrrd|nhdr|mha|mhd)$": "NRRD or MetaImage: convert it to .nii.gz, for instance with SimpleITK",
        r"\.mnc(\.gz)?$": "MINC: convert it to .nii.gz with mnc2nii",
        r"(\.head|\.brik(\.gz)?)$": "AFNI's format: convert it to .nii.gz with 3dAFNItoNIFTI",
        r"\.(nii\.(bz2|xz|zst|zip)|nii\.gz\.gz)$": "packed in another way: unpack it, or pack it with gzip",
        r"\.(zip|tar|tgz|tar\.(gz|bz2|xz)|7z|rar)$": "an archive: unpack it if it holds scans",
    }.items()
)
_DICOM_NAME = re.compile(r"\.(dcm|dicom|ima)$|^dicomdir$|^[0-9.]+$")
_SURELY_DICOM = re.compile(r"\.(dcm|dicom|ima)$|^dicomdir$")


@dataclass(frozen=True)
class Skipped:
    """A file or folder that gave no row, relative to the cohort's root, and why; reasons of one ``kind`` are counted."""

    path: str
    reason: str
    kind: str = ""  # the reason where it names no file

    @property
    def counted_as(self) -> str:
        return self.kind or self.reason


def nifti_files(root: Path) -> tuple[list[str], list[Skipped]]:
    """Return the relative paths of the NIfTI files in order, and what was passed over. Hidden files and folders are not
    looked at (macOS leaves a ``._`` file beside each)."""
    paths: list[str] = []
    skipped: list[Skipped] = []
    for folder, folders, files in os.walk(root):
        here = Path(folder)
        for one in sorted(folders):
            place = (here / one).relative_to(root).as_posix()
            if one.startswith(".") or one in NOT_RAW:
                folders.remove(one)
                skipped += [Skipped(place, "a folder that holds no raw scans")] if one in NOT_RAW else []
            elif (here / one).is_symlink():  # a link may lead round in a circle
                skipped.append(Skipped(place, "a linked folder is not followed"))
            elif IMAGE_NAME.search(one) and not any(IMAGE_NAME.search(below.name) for below in (here / one).rglob("*")):
                paths.append(place)  # a folder where a scan should be: a row that fails with that reason, not a gap
        folders.sort()
        seen = sorted(name for name in files if not name.startswith("."))
        others = []
        for one in seen:
            place = (here / one).relative_to(root).as_posix()
            if not IMAGE_NAME.search(one):
                others.append(one)
            elif reason := _unusable(root, here / one, place):
                skipped.append(Skipped(place if _can_be_written(place) else repr(place), reason))
            else:
                paths.append(place)
        skipped += _other_formats(here, here.relative_to(root), others)
    return sorted(paths), skipped


def _unusable(root: Path, file: Path, place: str) -> str:
    if not file.exists():
        return "a link to a file that is not there (with datalad: get it first)"
    if file.is_symlink() and leads_out(root, place):
        return "a link that leaves the folder (copy the file, or index a folder above both)"
    return "" if _can_be_written(place) else "a name with a tab, a line break or bytes that are no UTF-8"


def _can_be_written(place: str) -> bool:
    """Return whether a table can hold a path."""
    try:
        place.encode()
    except UnicodeEncodeError:
        return False
    return not re.search(r"[\t\r\n]", place)


def _other_formats(folder: Path, place: Path, names: Iterable[str]) -> list[Skipped]:
    """Return what of a folder's other files could be scans: one for each file, one for all of a folder's DICOM files."""
    found = []
    dicom = ""
    for name in names:
        lower = name.lower()
        reason = next((reason for ending, reason in _OTHER_FORMATS if ending.search(lower)), "")
        if lower.endswith((".hdr", ".hdr.gz")) and any(
            (folder / (name[: lower.rindex(".hdr")] + image)).exists() for image in (".img", ".IMG", ".img.gz")
        ):
            continue  # its .img is counted
        if reason:
            written = (place / name).as_posix()
            found.append(Skipped(written if _can_be_written(written) else repr(written), reason))
        elif not dicom and (_DICOM_NAME.search(lower) or "." not in name):
            dicom = name if _SURELY_DICOM.search(lower) or _is_dicom(folder / name) else "no"
    if dicom not in ("", "no"):
        found.append(Skipped((place / dicom).as_posix(), DICOM))
    return found


def _is_dicom(path: Path) -> bool:
    """Return whether a file without an ending is DICOM, by its mark. Only the first such file of a folder is opened."""
    try:
        with path.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False
