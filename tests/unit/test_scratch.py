"""The folder for temporary files: told where it is too small, whatever the library that wrote there made of it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from disks import Disk, small_disk

from neuromf.scratch import temporary_folder
from neuromf.tables import StorageError


@pytest.fixture
def tmpdir_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    with small_disk(tmp_path / "scratch", 8) as disk:
        monkeypatch.setenv("TMPDIR", str(disk.folder))
        monkeypatch.setattr(tempfile, "tempdir", str(disk.folder))
        yield disk


def test_a_folder_is_there_and_goes(tmpdir_disk: Disk) -> None:
    with temporary_folder(2) as folder:
        (folder / "x").write_text("1")
        assert folder.parent == tmpdir_disk.folder
    assert list(tmpdir_disk.folder.iterdir()) == []
    with pytest.raises(IndexError, match="own"), temporary_folder(2):
        raise IndexError("the block's own error")
    assert list(tmpdir_disk.folder.iterdir()) == []


def test_a_small_folder_is_told_before_anything_is_written(tmpdir_disk: Disk) -> None:
    if not tmpdir_disk.mounted:
        pytest.skip("a small disk cannot be mounted here")
    told = r"scratch \(TMPDIR is .*scratch\): it is too small; .* MiB are free there, 100 MiB"
    with pytest.raises(StorageError, match=told), temporary_folder(100):
        raise AssertionError("never reached")


def test_one_that_fills_up_is_told_whatever_the_error(tmpdir_disk: Disk) -> None:
    def register() -> None:
        with temporary_folder(2):
            full = tmpdir_disk.full()
            full.__enter__()  # as other jobs fill it meanwhile
            raise RuntimeError("file does not exist: syn1Warp.nii.gz")

    if not tmpdir_disk.mounted:
        pytest.skip("a small disk cannot be mounted here")
    with pytest.raises(StorageError, match="set TMPDIR to a folder on a larger disk, and run again") as caught:
        register()
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_one_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(StorageError, match=r"none \(TMPDIR is .*none\): No such file"), temporary_folder():
        pass
