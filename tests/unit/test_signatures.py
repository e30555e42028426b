"""Well-meant files in the place of scans: each is told for what it is, with the remedy that helps."""

from __future__ import annotations

import bz2
import gzip
import io
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from neuromf.volume import VolumeError, header_warning, read_labels, read_volume

DATA = np.random.default_rng(0).integers(1, 99, (20, 21, 22)).astype(np.int16)
IMAGE = nib.Nifti1Image(DATA, np.diag([1.0, 1, 1, 1]))
NIFTI = IMAGE.to_bytes()
KEY = "MD5E-s123--0123456789abcdef.nii.gz"


def zipped(content: bytes) -> bytes:
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
        archive.writestr("scan.nii", content)
    return buffer.getvalue()


def tarred(content: bytes) -> bytes:
    with tarfile.open(fileobj=(buffer := io.BytesIO()), mode="w") as archive:
        member = tarfile.TarInfo("scan.nii")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def analyze() -> bytes:
    files = nib.AnalyzeImage.make_file_map({"header": io.BytesIO(), "image": io.BytesIO()})
    nib.AnalyzeImage(DATA, np.eye(4)).to_file_map(files)
    return files["header"].fileobj.getvalue() + DATA.tobytes()


def pair() -> bytes:
    files = nib.Nifti1Pair.make_file_map({"header": io.BytesIO(), "image": io.BytesIO()})
    nib.Nifti1Pair(DATA, np.eye(4)).to_file_map(files)
    return files["header"].fileobj.getvalue()


def mgh() -> bytes:
    return nib.MGHImage(DATA.astype(np.float32), np.eye(4)).to_bytes()


KINDS: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "plain .nii named .nii.gz": ("x.nii.gz", lambda: NIFTI, r"is not gzipped; rename it to x\.nii, or"),
    "big-endian, named .nii.gz": (
        "x.nii.gz", lambda: nib.Nifti1Image(DATA, np.eye(4), IMAGE.header.as_byteswapped(">")).to_bytes(), "is not gzipped",
    ),
    "NIfTI-2 named .NII.GZ": ("x.NII.GZ", lambda: nib.Nifti2Image(DATA, np.eye(4)).to_bytes(), r"rename it to x\.NII,"),
    "gzip named .nii": ("x.nii", lambda: gzip.compress(NIFTI), r"is gzipped; rename it to x\.nii\.gz"),
    "gzipped twice": ("x.nii.gz", lambda: gzip.compress(gzip.compress(NIFTI)), "is gzipped twice"),
    "annex pointer": ("x.nii.gz", lambda: f"/annex/objects/{KEY}\n".encode(), "git-annex.*datalad get .*x.nii.gz"),
    "annex link as text": (
        "x.nii.gz", lambda: f"../../.git/annex/objects/Xa/Yb/{KEY}/{KEY}".encode(), "git-annex.*datalad get",
    ),
    "Git LFS pointer": (
        "x.nii.gz", lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n", "Git LFS.*git lfs pull",
    ),
    "DICOM": ("x.nii.gz", lambda: bytes(128) + b"DICM" + bytes(500), "is a DICOM file.*dcm2niix"),
    "DICOM without a preamble": ("x.nii", lambda: b"\x08\x00\x05\x00" + b"CS" + bytes(500), "is a DICOM file"),
    "Analyze": ("x.nii", analyze, "Analyze 7.5"),
    "Analyze, gzipped": ("x.nii.gz", lambda: gzip.compress(analyze()), "Analyze 7.5"),
    "pair": ("x.nii", pair, r"header of a pair \(\.hdr, \.img\)"),
    "pair by its own name": ("x.hdr", pair, r"header of a pair \(\.hdr, \.img\)"),
    "voxels of a pair": ("x.img", lambda: DATA.tobytes(), r"holds the voxels of a pair"),
    "MGZ": ("x.mgz", lambda: gzip.compress(mgh()), "FreeSurfer.*mri_convert"),
    "MGZ named .nii.gz": ("x.nii.gz", lambda: gzip.compress(mgh()), "FreeSurfer.*mri_convert"),
    "MGH": ("x.nii", mgh, "FreeSurfer"),
    "web page": ("x.nii.gz", lambda: b"\n<!DOCTYPE html><html><body>403 Forbidden", "is a web page.*download"),
    "web page, gzipped": ("x.nii.gz", lambda: gzip.compress(b"<html>login</html>"), "is a web page"),
    "XML": ("x.nii.gz", lambda: b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "is a web page or XML"),
    "zip": ("x.nii.gz", lambda: zipped(NIFTI), "is a zip file; unpack"),
    "tar": ("x.nii", lambda: tarred(NIFTI), "is a tar file; unpack"),
    "tar, gzipped": ("x.nii.gz", lambda: gzip.compress(tarred(NIFTI)), "is a tar file; unpack"),
    "bzip2": ("x.nii.gz", lambda: bz2.compress(NIFTI), "is a bzip2 file"),
    "zeros": ("x.nii.gz", lambda: bytes(5000), "begins with zeros.*copy it again"),
    "text": ("x.nii", lambda: b'{"RepetitionTime": 2}', "a text that begins with .*Repetition"),
    "header alone": ("x.nii", lambda: NIFTI[:200], "truncated within its header"),
    "noise": ("x.nii.gz", lambda: bytes(range(200, 256)), "is not a NIfTI file; give"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_told_for_what_it_is(tmp_path: Path, kind: str) -> None:
    name, content, reason = KINDS[kind]
    path = tmp_path / name
    path.write_bytes(content())
    for read in (read_volume, read_labels, header_warning):
        with pytest.raises(VolumeError, match=reason) as caught:
            read(path)
        assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_a_link_to_a_content_that_was_not_fetched_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x.nii.gz"
    path.symlink_to(f"../.git/annex/objects/Xa/Yb/{KEY}/{KEY}")
    with pytest.raises(VolumeError, match=r"git-annex, its content was not fetched: datalad get .*x\.nii\.gz"):
        read_volume(path)
    path.unlink()
    path.symlink_to("/nowhere/scan.nii.gz")
    with pytest.raises(VolumeError, match="is a link to /nowhere/scan.nii.gz, which does not exist"):
        read_volume(path)


@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz", "x.NII", "x.NII.GZ"])
@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_what_is_named_rightly_is_read(tmp_path: Path, name: str, endian: str, kind: type[nib.Nifti1Image]) -> None:
    header = kind(DATA, np.eye(4)).header.as_byteswapped(endian)
    header.set_slope_inter(2, 1)
    content = kind(DATA, np.diag([2.0, 2, 2, 1]), header).to_bytes()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.lower().endswith(".gz") else content)
    image = read_volume(tmp_path / name)
    assert np.array_equal(image.get_fdata(), nib.load(tmp_path / name).get_fdata()) and image.affine[0, 0] == 2


def test_an_extension_between_header_and_voxels_is_passed_over(tmp_path: Path) -> None:
    image = nib.Nifti1Image(DATA, np.eye(4))
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 5000))
    nib.save(image, tmp_path / "x.nii.gz")
    assert np.array_equal(read_volume(tmp_path / "x.nii.gz").get_fdata(), DATA)
    content = bytearray(image.to_bytes())
    content[352:356] = struct.pack("<i", 7)  # an extension of a damaged size is nothing that is read
    (tmp_path / "x.nii").write_bytes(content)
    assert np.array_equal(read_volume(tmp_path / "x.nii").get_fdata(), DATA)
