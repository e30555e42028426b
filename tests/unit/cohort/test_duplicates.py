from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from neuromf.cohort.duplicates import find_duplicates, write_duplicates
from neuromf.tables import ManifestRow, file_sha256, read_tsv, write_manifest
from neuromf.volume import write_volume


def conformed(folder: Path, scan: str, seed: int, origin: float = 0.0, brain_ml: float = 1200.0) -> ManifestRow:
    """A conformed volume and its row; the seed decides the values."""
    affine = np.eye(4)
    affine[0, 3] = origin
    path = folder / f"{scan}.nii.gz"
    write_volume(path, np.random.default_rng(seed).random((16, 16, 16)), affine, np.float32)
    figures = {"brain_ml": brain_ml, "intensity_low": 0.0, "intensity_high": 500.0, "warning": ""}
    return ManifestRow(scan, "ok", "", path.name, path.stat().st_size, file_sha256(path), "k", figures)


def shard(folder: Path, *rows: ManifestRow) -> Path:
    write_manifest(folder / "shard-0000.tsv", rows)
    return folder / "shard-0000.tsv"


def names(groups: list) -> list[list[str]]:
    return [[f"{scan.cohort}/{scan.scan_id}" for scan in group] for group in groups]


def test_one_file_under_two_ids(tmp_path: Path) -> None:
    rows = [conformed(tmp_path, f"sub-{name}_T1w", seed) for name, seed in (("a", 1), ("b", 2), ("c", 1), ("d", 1))]
    groups = find_duplicates({"study": [shard(tmp_path, *rows)]})
    assert names(groups) == [["study/sub-a_T1w", "study/sub-c_T1w", "study/sub-d_T1w"]]


def test_the_same_values_with_another_origin(tmp_path: Path) -> None:
    rows = [conformed(tmp_path, f"sub-{n}_T1w", seed, origin) for n, seed, origin in ((1, 1, 0), (2, 1, 9), (3, 2, 9))]
    assert rows[0].sha256 != rows[1].sha256
    groups = find_duplicates({"study": [shard(tmp_path, *rows)]})
    assert names(groups) == [["study/sub-1_T1w", "study/sub-2_T1w"]]


def test_files_are_read_only_where_their_figures_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [conformed(tmp_path, f"sub-{n}_T1w", n, brain_ml=1200.0 + n) for n in range(4)]
    monkeypatch.setattr("neuromf.cohort.duplicates.read_volume", lambda path: pytest.fail(f"{path} was read"))
    assert find_duplicates({"study": [shard(tmp_path, *rows)]}) == []


def test_cohorts_of_a_release_are_compared_too(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    manifests = {name: [shard(tmp_path / name, conformed(tmp_path / name, "sub-1_T1w", 5))] for name in "ab"}
    assert names(find_duplicates(manifests)) == [["a/sub-1_T1w", "b/sub-1_T1w"]]


def test_failed_scans_and_lost_files_are_no_duplicates(tmp_path: Path) -> None:
    failed = [ManifestRow(f"sub-{n}_T1w", "failed", "damaged") for n in range(2)]
    lost = [conformed(tmp_path, f"sub-{n}_T1w", n) for n in (3, 4)]
    for row in lost:
        (tmp_path / row.file).unlink()
    assert find_duplicates({"study": [shard(tmp_path, *failed, *lost)]}) == []


def test_the_table_and_the_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = tmp_path / "duplicates.tsv"
    with caplog.at_level(logging.WARNING):
        write_duplicates(table, [])
    assert not caplog.records and read_tsv(table, ["group", "cohort", "scan_id", "file", "sha256"]) == []
    rows = [conformed(tmp_path, f"sub-{name}_T1w", 1) for name in "ab"]
    with caplog.at_level(logging.WARNING):
        write_duplicates(table, find_duplicates({"study": [shard(tmp_path, *rows)]}))
    assert [(r["group"], r["scan_id"]) for r in read_tsv(table, ["group"])] == [("1", "sub-a_T1w"), ("1", "sub-b_T1w")]
    assert "sub-a_T1w = sub-b_T1w" in caplog.text and "train and test" in caplog.text
