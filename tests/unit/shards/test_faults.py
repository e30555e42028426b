"""Which failures say something of the scan, and which pass."""

from __future__ import annotations

import errno
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from neuromf import signatures
from neuromf.shards.faults import failure
from neuromf.volume import VolumeError, read_volume


@pytest.mark.parametrize(
    "error",
    [
        *(OSError(number, "x") for number in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE)),
        PermissionError(errno.EACCES, "x"),
        OSError(errno.ENOMEM, "x"),
        MemoryError(),
        np._core._exceptions._ArrayMemoryError((10**9,), np.dtype(float)),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"),
        RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("Exception thrown in SimpleITK: std::bad_alloc"),
        ConnectionResetError("by peer"),
        TimeoutError(),
        BrokenProcessPool(),
    ],
    ids=repr,
)
def test_what_passes_is_tried_again(error: Exception) -> None:
    found = failure(error)
    assert found.transient and not found.final
    assert "the next call tries it again" in found.row("sub-1_T1w", "k").reason


@pytest.mark.parametrize(
    "error",
    [VolumeError("all zero"), FileNotFoundError(2, "x"), IndexError("x"), RuntimeError("no convergence"), OSError("x")],
)
def test_what_a_scan_is_does_not_pass(error: Exception) -> None:
    found = failure(error)
    assert not found.transient and found.final == isinstance(error, ValueError)
    assert found.row("sub-1_T1w", "k").figures == {}


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_reader_that_hides_what_it_met_does_not_mislead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, name: str
) -> None:
    nib.save(nib.Nifti1Image(np.random.default_rng(0).random((20, 20, 20)), np.eye(4)), tmp_path / name)

    def fail(*arguments: object, **named: object) -> None:
        raise OSError(number, "x")

    monkeypatch.setattr(signatures, "beginning", fail)
    with pytest.raises(VolumeError, match="truncated or damaged") as caught:
        read_volume(tmp_path / name)
    assert failure(caught.value).transient
