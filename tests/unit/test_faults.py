"""Disks that are full or read-only, and files that are altered after they were made: every stage says what is wrong, keeps
what there is and goes on once it is repaired. docs/reliability.md lists these and the other tests of faults."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from disks import Disk, small_disk

from neuromf import tables
from neuromf.codec.maisi import FrozenCodec, build
from neuromf.codec.train import write_codec
from neuromf.config import BiasField, Codec, CodecTraining, Conform, SkullStrip
from neuromf.evaluation.extractors.base import Extractor
from neuromf.evaluation.features import cached_features
from neuromf.evaluation.morphometry.atlas import Atlas
from neuromf.evaluation.morphometry.segmentation import Scan as Brain
from neuromf.evaluation.morphometry.segmentation import Segmentation, Segmenter, segment_scan
from neuromf.evaluation.rows import METRIC_COLUMNS, Part, write_parquet, write_parts
from neuromf.evaluation.scans import Grid, Reference, ScanSet, write_reference
from neuromf.generation.energy import Cost
from neuromf.generation.generate import SampledLatents, write_latents
from neuromf.latents.encode import encode_shard
from neuromf.planning.lost import note_lost_files
from neuromf.preprocess.bias_field import bias_correct_shard
from neuromf.preprocess.conform import conform_shard
from neuromf.preprocess.skull_strip import skull_strip_shard
from neuromf.shards import ShardError
from neuromf.tables import ManifestRow, Scan, StorageError
from neuromf.training.checkpoint import Progress, export_model, save_progress
from neuromf.training.logbook import Table
from neuromf.volume import write_volume

TINY = Codec(name="tiny", channels=(16, 16, 16), residual_blocks=(1, 1, 1), norm_groups=4, latent_channels=2)
NUMBERS = torch.randn(50_000, generator=torch.Generator().manual_seed(0))
NOISE = np.random.default_rng(0).random((48, 48, 48))
AFFINE = np.diag([4.0, 4, 4, 1])


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with small_disk(tmp_path / "disk", 8) as one:
        yield one


# --- every way to write ---------------------------------------------------------------------------------------------
# Each writes a file of 100 kB or more into the folder.


def _tables(folder: Path) -> None:
    tables.write_tsv(folder / "table.tsv", ["a"], [["x" * 1000]] * 150)


def _manifest(folder: Path) -> None:
    tables.write_manifest(
        folder / "shard-0000.tsv", [ManifestRow(f"sub-{i}_T1w", "failed", "x" * 99) for i in range(1500)]
    )


def _release(folder: Path) -> None:
    tables.write_release(folder / "r.tsv", [tables.ReleaseRow(f"{i}", None, "T1w", "c", "train") for i in range(9000)])


def _json(folder: Path) -> None:
    tables.write_json(folder / "x.json", NUMBERS.tolist())


def _volume(folder: Path) -> None:
    write_volume(folder / "x.nii.gz", NOISE, AFFINE, np.float32)


def _model(folder: Path) -> None:
    export_model(folder, {"w": NUMBERS}, {"config": {}}, {"averages/online": {"w": NUMBERS}})


def _checkpoint(folder: Path) -> None:
    save_progress(folder, "key", Progress(3, 1.0, {"network.w": NUMBERS}), keep=2)


def _codec(folder: Path) -> None:
    torch.manual_seed(0)
    write_codec(folder, build(TINY), TINY, CodecTraining(), {})


def _samples(folder: Path) -> None:
    about = {"seed": 0, "nfe": 1}
    latents = NUMBERS[:32768].reshape(2, 4, 16, 16, 16)
    write_latents(folder / "latents.safetensors", SampledLatents(latents, (0, 1), about, (Cost(1.0, None),) * 2))


def _features(folder: Path) -> None:
    extractor = Extractor("random", "k" * 64, lambda volume, voxel_mm: {"volume": NUMBERS[None]})
    cached_features(NOISE, "aa", extractor, folder, 4.0)


def _reference(folder: Path) -> None:
    arrays = [NUMBERS.numpy()[None]] * 5
    scans = ScanSet(("a",), ("b",), *arrays)
    write_reference(folder / "reference.safetensors", Reference({"train": scans}, Grid((4, 4, 4), 4.0), {}, {}))


def _metrics(folder: Path) -> None:
    rows = [dict.fromkeys(METRIC_COLUMNS, None) | {"value": float(v), "release": "r", "n": 1} for v in NUMBERS[:20_000]]
    write_parquet(folder / "metrics.parquet", rows, METRIC_COLUMNS)


def _parts(folder: Path) -> None:
    part = Part("release", "run", metrics=[{"value": float(v)} for v in NUMBERS[:5000]])
    write_parts(folder / "part.json", [part], {})


def _segmentation(folder: Path) -> None:
    labels = nib.Nifti1Image((NOISE * 250).astype(np.uint8), AFFINE)
    segmenter = Segmenter("s", "k" * 64, Atlas({}, (), {}), lambda image: Segmentation(labels, {}, {}, {}))
    segment_scan(Brain("a", "aa", lambda: labels), segmenter, folder)


def _log(folder: Path) -> None:
    log = Table(folder / "metrics.csv", ("step", "note"), 10**9)
    for step in range(2500):
        log.append({"step": f"{step}", "note": "x" * 40})


WRITERS: dict[str, Callable[[Path], None]] = {
    one.__name__.strip("_"): one
    for one in (
        _tables, _manifest, _release, _json, _volume, _model, _checkpoint, _codec, _samples, _features,
        _reference, _metrics, _parts, _segmentation, _log,
    )
}  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_told_and_leaves_no_half_file(disk: Disk, writer: str) -> None:
    folder, write = disk.folder / "results", WRITERS[writer]
    folder.mkdir()
    with (
        disk.full(),
        pytest.raises(StorageError, match=r"cannot be written: .*MiB free at .*; \w+ .*run again") as caught,
    ):
        write(folder)
    assert str(folder) in str(caught.value)
    assert all(not name.startswith(".tmp-") for name in contents(folder))
    if writer != "log":  # which is appended to, and whose torn line the next attempt drops
        assert not any(contents(folder).values())
    write(folder)
    assert any(len(content) > 2**16 for content in contents(folder).values())


@pytest.mark.parametrize("writer", sorted(set(WRITERS) - {"features", "segmentation", "log", "checkpoint"}))
@pytest.mark.parametrize("fault", ["full", "read_only"])
def test_old_results_stay_on_a_full_or_read_only_disk(disk: Disk, writer: str, fault: str) -> None:
    folder, write = disk.folder / "results", WRITERS[writer]
    write(folder)
    before = contents(folder)
    with getattr(disk, fault)(), pytest.raises(StorageError, match="cannot be written"):
        write(folder)
    assert contents(folder) == before


def test_other_errors_are_left_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), tables.atomic_path(tmp_path / "x"):
        (tmp_path / "nothing").read_bytes()
    with pytest.raises(ValueError, match="ours"), tables.atomic_path(tmp_path / "x"):
        raise ValueError("ours")


# --- the stages of a cohort -----------------------------------------------------------------------------------------


class Cohort:
    """Three stripped brains on the way from scan to latent, on a disk."""

    def __init__(self, disk: Disk) -> None:
        torch.manual_seed(0)
        self.disk, self.root, self.results = disk, disk.folder / "raw", disk.folder / "results"
        self.scans = [Scan(f"{i}", None, f"{i}.nii.gz", "T1w", skull_stripped=True) for i in range(3)]
        self.codec = FrozenCodec(build(TINY).eval(), TINY, "c" * 64, torch.device("cpu"))
        grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 32)] * 3, indexing="ij"))
        for i in range(3):
            inside = np.linalg.norm(grid / (0.7 + 0.05 * i), axis=0) < 1
            brain = np.where(inside, 300 + 200 * np.sin(7 * grid[0] + i) + 20 * NOISE[:32, :32, :32], 0)
            write_volume(self.root / f"{i}.nii.gz", brain, AFFINE, np.int16)

    def manifest(self, stage: str) -> Path:
        folder = "latents/tiny" if stage == "encode" else f"preprocessed/manifests/{stage}"
        return self.results / folder / "shard-0000.tsv"

    def run(self, stage: str) -> tuple[ManifestRow, ...]:
        tree, manifest, how = self.results / "preprocessed", self.manifest(stage), {"code": "c", "workers": 1}
        if stage == "skull_strip":
            return skull_strip_shard(self.scans, self.root, tree, manifest, SkullStrip(backend="none"), **how)
        if stage == "bias_correct":
            settings = BiasField(iterations=(2,), shrink_factor=4)
            return bias_correct_shard(self.scans, self.manifest("skull_strip"), tree, manifest, settings, **how)
        if stage == "conform":
            settings = Conform(shape=(32, 32, 32), spacing_mm=4.0)
            return conform_shard(self.scans, self.manifest("bias_correct"), tree, manifest, settings, **how)
        latents = manifest.with_suffix(".safetensors")
        return encode_shard(self.scans, self.manifest("conform"), manifest, latents, self.codec, code="c")


STAGES = ("skull_strip", "bias_correct", "conform", "encode")


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_stopped_by_a_full_disk_fails_no_scan_and_goes_on(disk: Disk, stage: str) -> None:
    if not disk.mounted and stage == "encode":
        pytest.skip("its files are below the limit that stands in for a full disk without the right to mount one")
    cohort = Cohort(disk)
    for before in STAGES[: STAGES.index(stage)]:
        cohort.run(before)
    with disk.full(leave=4096), pytest.raises(StorageError, match="cannot be written"):
        cohort.run(stage)
    assert not cohort.manifest(stage).exists()
    rows = cohort.run(stage)
    assert [row.status for row in rows] == ["ok"] * 3
    assert [path for path in cohort.results.rglob(".tmp-*") if path.is_file()] == []


def test_scans_finished_before_the_disk_was_full_are_not_made_again(
    disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    if not disk.mounted:
        pytest.skip(
            "without the right to mount a file system the limit is on every file, so no scan is finished before it"
        )
    cohort = Cohort(disk)
    cohort.run("skull_strip")
    size = next((cohort.results / "preprocessed").rglob("*desc-brain_T1w.nii.gz")).stat().st_size
    with disk.full(leave=int(1.9 * size) + 3 * 4096), pytest.raises(StorageError):
        cohort.run("bias_correct")
    finished = {p: p.stat().st_mtime_ns for p in (cohort.results / "preprocessed").rglob("*desc-n4_T1w.nii.gz")}
    assert 1 <= len(finished) < 3
    assert all(row.ok for row in cohort.run("bias_correct"))
    assert finished == {path: path.stat().st_mtime_ns for path in finished}


@pytest.mark.parametrize("damage", ["flipped", "truncated", "replaced"])
def test_a_finished_volume_that_was_altered_is_refused_and_made_again(disk: Disk, damage: str) -> None:
    cohort = Cohort(disk)
    for stage in STAGES[:3]:
        cohort.run(stage)
    path = cohort.results / "preprocessed/sub-1/anat/sub-1_desc-n4_T1w.nii.gz"
    whole = path.read_bytes()
    content = bytearray(whole)
    content[len(content) // 2] ^= 1
    other = (cohort.results / "preprocessed/sub-0/anat/sub-0_desc-n4_T1w.nii.gz").read_bytes()
    path.write_bytes({"flipped": bytes(content), "truncated": whole[:-50], "replaced": other}[damage])
    with pytest.raises(ShardError, match=r"sub-1_desc-n4_T1w\.nii\.gz has sha256 .*Remove it, .*run again"):
        cohort.run("conform")
    path.unlink()  # as the message says; then the workflow finds it gone when it starts
    assert [lost.name for lost in note_lost_files([cohort.manifest("bias_correct")])] == [path.name]
    cohort.run("bias_correct")
    assert path.read_bytes() == whole
    assert all(row.ok for row in cohort.run("conform"))


def test_a_damaged_mask_is_no_failed_scan(disk: Disk) -> None:
    cohort = Cohort(disk)
    cohort.run("skull_strip")
    mask = cohort.results / "preprocessed/sub-1/anat/sub-1_desc-brain_T1w_mask.nii.gz"
    mask.write_bytes(mask.read_bytes()[:-20])
    with pytest.raises(ShardError, match=r"damaged.*It is the brain mask of .*desc-brain_T1w\.nii\.gz: remove both"):
        cohort.run("bias_correct")
    for path in (mask, mask.with_name("sub-1_desc-brain_T1w.nii.gz")):
        path.unlink()
    assert note_lost_files([cohort.manifest("skull_strip")])
    cohort.run("skull_strip")
    assert [row.status for row in cohort.run("bias_correct")] == ["ok"] * 3


def test_a_scan_behind_a_link_out_of_the_cohort_is_a_failed_row(disk: Disk, tmp_path: Path) -> None:
    cohort = Cohort(disk)
    (tmp_path / "secret.nii.gz").write_bytes((cohort.root / "1.nii.gz").read_bytes())
    (cohort.root / "1.nii.gz").unlink()
    (cohort.root / "1.nii.gz").symlink_to(tmp_path / "secret.nii.gz")
    rows = cohort.run("skull_strip")
    assert [row.status for row in rows] == ["ok", "failed", "ok"]
    assert "is a link to" in rows[1].reason and "leaves the cohort's root; copy the file there" in rows[1].reason
    assert not list((cohort.results / "preprocessed").rglob("sub-1*"))


def read_manifests(cohort: Cohort) -> dict[str, tuple[ManifestRow, ...]]:
    return {stage: tables.read_manifest(cohort.manifest(stage)) for stage in STAGES}


def test_times_in_the_future_decide_nothing(disk: Disk) -> None:
    """A clock that jumped back leaves files dated in the future: what is done is told by hashes."""
    cohort = Cohort(disk)
    for stage in STAGES:
        cohort.run(stage)
    before = read_manifests(cohort)
    for path in disk.folder.rglob("*"):
        os.utime(path, (4e9, 4e9))
    made = {path: path.stat().st_mtime for path in cohort.results.rglob("*.nii.gz")}
    for stage in STAGES:
        cohort.run(stage)
    assert read_manifests(cohort) == before
    assert {path: path.stat().st_mtime for path in made} == made


def test_a_training_on_a_full_disk_keeps_its_checkpoint(disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        folder = disk.folder / "checkpoints"
        save_progress(folder, "key", Progress(3, 1.0, {"network.w": NUMBERS}), keep=1)
        before = contents(folder)
        with disk.full(), pytest.raises(StorageError):
            save_progress(folder, "key", Progress(6, 2.0, {"network.w": NUMBERS + 1}), keep=1)
        assert contents(folder) == before
