"""What a file is that cannot be read as a NIfTI volume: told by its first bytes or where its link leads, with the remedy.

Archives and download tools leave well-meant files in the place of scans: a pointer to a content that was not fetched, a
page that says why a download was refused, a volume of another format or packing.
"""

from __future__ import annotations

import gzip
from pathlib import Path

BEGINNING = 1024  # bytes looked at; NIfTI-2's header has 540
_GZIP = b"\x1f\x8b"
_DICOM = "is a DICOM file; convert its series to one NIfTI file, for instance with dcm2niix"
_FREESURFER = "is a FreeSurfer volume (.mgh, .mgz); convert it with mri_convert to .nii.gz"
_PAGE = "is a web page or XML, perhaps of a download that was refused; log in and download the scan again"
_PACKED = "is a {} file; unpack it and name the NIfTI file inside"
_OTHER = "is a {} file; convert it to .nii.gz"
_JOIN = (
    "of a pair (.hdr, .img); join it to one file, for instance with pair = nibabel.load(…) of the .hdr and"
    " nibabel.save(nibabel.Nifti1Image(pair.dataobj, pair.affine), …)"
)
_PAIR, _VOXELS = f"is the header {_JOIN}", f"holds the voxels {_JOIN}"
_ANALYZE = (
    "has a header of Analyze 7.5 and not of NIfTI, which does not say which side is left; convert it to .nii.gz with its"
    " orientation, for instance with fslchfiletype and fslorient"
)
_BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (b"\x00\x00\x00\x01\x00\x00", _FREESURFER),
    (b"PK\x03\x04", _PACKED.format("zip")),
    (b"PK\x05\x06", _PACKED.format("zip")),
    (b"BZh", _PACKED.format("bzip2")),
    (b"\xfd7zXZ\x00", _PACKED.format("xz")),
    (b"\x28\xb5\x2f\xfd", _PACKED.format("zstd")),
    (b"7z\xbc\xaf\x27\x1c", _PACKED.format("7-Zip")),
    (b"Rar!\x1a\x07", _PACKED.format("RAR")),
    (b"\x1f\x9d", _PACKED.format("compress (.Z)")),
    (b"\x89HDF\r\n\x1a\n", _OTHER.format("HDF5 (MINC, MATLAB)")),
    (b"CDF\x01", _OTHER.format("MINC")),
    (b"CDF\x02", _OTHER.format("MINC")),
    (b"NRRD", _OTHER.format("NRRD")),
    (b"ObjectType", _OTHER.format("MetaImage")),
    (b"MATLAB", _OTHER.format("MATLAB")),
    (b"\x93NUMPY", _OTHER.format("NumPy")),
    (b"\x89PNG", "is a PNG picture and no volume; export the scan as NIfTI"),
    (b"\xff\xd8\xff", "is a JPEG picture and no volume; export the scan as NIfTI"),
    (b"%PDF", "is a PDF; export the scan as NIfTI"),
    (b"\x08\x00\x05\x00", _DICOM),
    (b"\x08\x00\x08\x00", _DICOM),
    (b"\x02\x00\x00\x00\x55\x4c", _DICOM),
)


def absent(path: Path) -> str:
    """Return what is wrong with a path that leads to no file: nothing there, or a link whose content was not fetched."""
    if not path.is_symlink():
        return "does not exist"
    target = path.readlink()
    if "annex" in target.parts:
        return _fetch("git-annex", f"datalad get {path}")
    return f"is a link to {target}, which does not exist; copy the scan there, or link it again"


def foreign(path: Path, content: bytes, unpacked: bytes | None) -> str:
    """Return what a file is that is no single-file NIfTI or is named as what it is not; "" for one that can be read.

    Args:
        content: the file's first bytes.
        unpacked: of what gzip holds; None for a file that is not gzipped.
    """
    inside = content if unpacked is None else unpacked
    if other := _other(path, inside):
        return other
    named_gz = path.name.lower().endswith(".gz")
    if named_gz and unpacked is None:
        return f"is not gzipped; rename it to {path.name[:-3]}, or compress it with gzip"
    if unpacked is not None and not named_gz:
        return f"is gzipped; rename it to {path.name}.gz"
    return ""


def beginning(path: Path) -> tuple[bytes, bytes | None]:
    """Return the first bytes of a file and, where it is gzipped, of what it holds.

    Raises:
        OSError, EOFError, zlib.error: it cannot be read or unpacked.
    """
    with path.open("rb") as stream:
        content = stream.read(BEGINNING)
    if not content.startswith(_GZIP):
        return content, None
    with gzip.open(path) as packed:
        return content, packed.read(BEGINNING)


def is_nifti2(content: bytes) -> bool:
    """Return whether a file that begins so is NIfTI-2 (else NIfTI-1)."""
    return _size_of_header(content, 540)


def _other(path: Path, content: bytes) -> str:
    """Return what a content is that is no single-file NIfTI."""
    if _size_of_header(content, 348) or is_nifti2(content):
        if len(content) < (540 if is_nifti2(content) else 348):
            return "is truncated within its header; copy it again"
        magic = content[4:7] if is_nifti2(content) else content[344:347]
        if magic[:2] == b"ni":
            return _PAIR
        return "" if magic[:2] == b"n+" or is_nifti2(content) else _ANALYZE
    if path.name.lower().endswith((".img", ".img.gz")):
        return _VOXELS
    if content.startswith(_GZIP):
        return "is gzipped twice; unpack it once with gunzip"
    text = content.lstrip(b"\xef\xbb\xbf \t\r\n")
    if content.startswith((b"/annex/objects/", b"annex/objects/")) or b".git/annex/objects/" in content:
        return _fetch("git-annex", f"datalad get {path}")
    if content.startswith(b"version https://git-lfs"):
        return _fetch("Git LFS", f"git lfs pull --include {path.name}")
    if content[128:132] == b"DICM":
        return _DICOM
    if text[:9].lower() == b"<!doctype" or text[:1] == b"<":
        return _PAGE
    if content[257:262] == b"ustar":
        return _PACKED.format("tar")
    for start, what in _BEGINNINGS:
        if content.startswith(start):
            return what
    if content and not content.strip(b"\x00"):
        return "begins with zeros, as a copy does that was not finished; copy it again"
    if text.isascii() and all(byte >= 32 or byte in b"\t\r\n\f" for byte in text):
        return f"is not a NIfTI file but a text that begins with {text[:30].decode()!r}; copy the scan there"
    return "is not a NIfTI file; give .nii or .nii.gz"


def _fetch(store: str, command: str) -> str:
    return f"is a pointer of {store}, its content was not fetched: {command}"


def _size_of_header(content: bytes, size: int) -> bool:
    return content[:4] in (size.to_bytes(4, "little"), size.to_bytes(4, "big"))
