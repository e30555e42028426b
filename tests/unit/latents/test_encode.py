"""Encoding a shard: contents, failed rows, and what is done again after a change, a kill or Snakemake's clean-up."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from neuromf.codec.maisi import FrozenCodec, build
from neuromf.config import Codec
from neuromf.latents import encode as module
from neuromf.latents.encode import encode_shard
from neuromf.latents.store import LatentStore, read_header
from neuromf.shards import ShardError
from neuromf.tables import ManifestRow, Scan, file_sha256, read_manifest, write_manifest
from neuromf.volume import write_volume

CODEC = Codec(name="tiny", channels=(4, 8, 8), residual_blocks=(1, 1, 1), norm_groups=2, latent_channels=2)


class CountingCodec(FrozenCodec):
    calls: ClassVar[list[int]] = []

    def encode(self, volumes: torch.Tensor) -> torch.Tensor:
        self.calls.append(1)
        return super().encode(volumes)


class Shard:
    """One shard of a small cohort on disk."""

    def __init__(self, root: Path, count: int = 3) -> None:
        torch.manual_seed(0)
        CountingCodec.calls = []
        self.codec = CountingCodec(build(CODEC).eval(), CODEC, "c" * 64, torch.device("cpu"))
        self.root = root
        self.scans = [Scan(f"{i}", None, f"{i}.nii.gz", "T1w") for i in range(count)]
        self.upstream = root / "preprocessed/manifests/conform/shard-0000.tsv"
        self.latents = root / "latents/tiny/shard-0000.safetensors"
        self.manifest = self.latents.with_suffix(".tsv")
        for i in range(count):
            self.write(i, seed=i)
        self.rows()

    def volume(self, i: int) -> Path:
        return self.root / f"preprocessed/sub-{i}.nii.gz"

    def write(self, i: int, seed: int, shape: tuple[int, int, int] = (16, 16, 16)) -> None:
        data = np.random.default_rng(seed).random(shape)
        write_volume(self.volume(i), data, np.diag([3.0, 3.0, 3.0, 1.0]), np.float32)

    def rows(self, failed: dict[int, str] | None = None) -> None:
        failed = failed or {}
        rows = [
            ManifestRow(s.scan_id, "failed", failed[i])
            if i in failed
            else ManifestRow(s.scan_id, "ok", "", f"../../sub-{i}.nii.gz", 1, file_sha256(self.volume(i)))
            for i, s in enumerate(self.scans)
        ]
        write_manifest(self.upstream, rows)

    def encode(self, code: str = "code") -> tuple[ManifestRow, ...]:
        CountingCodec.calls.clear()
        return encode_shard(self.scans, self.upstream, self.manifest, self.latents, self.codec, code=code)

    @property
    def calls(self) -> int:
        return len(CountingCodec.calls)


@pytest.fixture
def shard(tmp_path: Path) -> Shard:
    return Shard(tmp_path)


def test_a_shard_holds_posterior_means_and_describes_itself(shard: Shard) -> None:
    rows = shard.encode()
    assert [row.status for row in rows] == ["ok"] * 3 and read_manifest(shard.manifest) == rows
    tensors = load_file(shard.latents)
    x = torch.from_numpy(np.random.default_rng(1).random((16, 16, 16)).astype(np.float32))[None, None]
    torch.testing.assert_close(tensors["sub-1_T1w"], shard.codec.encode(x)[0])
    metadata, scans = read_header(shard.latents)
    assert sorted(scans) == ["sub-0_T1w", "sub-1_T1w", "sub-2_T1w"]
    assert (metadata["codec"], metadata["weights_sha256"]) == ("tiny", "c" * 64)
    assert (metadata["shape"], metadata["voxel_size_mm"]) == ([2, 4, 4, 4], [3.0, 3.0, 3.0])
    row = rows[1]
    assert row.sha256 == hashlib.sha256(tensors["sub-1_T1w"].numpy().tobytes()).hexdigest()
    assert (row.bytes, row.file) == (2 * 64 * 4, "shard-0000.safetensors")
    assert row.figures["latent_std"] == pytest.approx(float(tensors["sub-1_T1w"].std()), rel=1e-5)
    assert len(LatentStore([shard.latents], [s.scan_id for s in shard.scans])) == 3
    assert [p.name for p in shard.latents.parent.iterdir() if "parts" in p.name] == []


def test_only_what_changed_is_encoded_again(shard: Shard) -> None:
    first = shard.encode()
    assert shard.calls == 3
    assert shard.encode() == first and shard.calls == 0
    shard.write(1, seed=77)
    shard.rows()
    second = shard.encode()
    assert shard.calls == 1
    assert [a == b for a, b in zip(first, second, strict=True)] == [True, False, True]
    shard.encode(code="edited")
    assert shard.calls == 3


def test_other_weights_encode_everything_again(shard: Shard) -> None:
    shard.encode()
    shard.codec = CountingCodec(shard.codec.network, CODEC, "d" * 64, shard.codec.device)
    shard.encode()
    assert shard.calls == 3
    assert read_header(shard.latents)[0]["weights_sha256"] == "d" * 64


def test_snakemakes_clean_up_costs_nothing(shard: Shard) -> None:
    first = shard.encode()
    shard.latents.unlink()
    shard.manifest.unlink()
    assert shard.encode() == first and shard.calls == 0
    assert shard.latents.is_file()


def test_a_growing_shard_keeps_what_it_has(tmp_path: Path) -> None:
    shard = Shard(tmp_path, 2)
    first = shard.encode()
    shard.scans.append(Scan("2", None, "2.nii.gz", "T1w"))
    shard.write(2, seed=2)
    shard.rows()
    rows = shard.encode()
    assert shard.calls == 1 and rows[:2] == first


def test_a_killed_shard_goes_on(shard: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    original = CountingCodec.encode

    def killed(self: CountingCodec, volumes: torch.Tensor) -> torch.Tensor:
        if len(self.calls) == 2:
            raise KeyboardInterrupt
        return original(self, volumes)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(CountingCodec, "encode", killed)
        shard.encode()
    assert not shard.latents.exists() and not shard.manifest.exists()
    assert [row.status for row in shard.encode()] == ["ok"] * 3
    assert shard.calls == 1


def test_damaged_latents_are_made_again(shard: Shard) -> None:
    shard.encode()
    data = bytearray(shard.latents.read_bytes())
    data[-1] ^= 0x40
    shard.latents.write_bytes(bytes(data))  # the hidden name is the same file
    rows = shard.encode()
    assert shard.calls == 1 and all(row.ok for row in rows)
    shard.latents.write_bytes(b"rubbish")
    module._second_name(shard.latents).write_bytes(b"rubbish")
    assert all(row.ok for row in shard.encode())
    assert shard.calls == 3


def test_failed_scans_are_rows_with_reasons(shard: Shard) -> None:
    shard.write(2, seed=2, shape=(16, 20, 16))
    shard.rows({0: "skull strip: no brain found"})
    shard.scans.append(Scan("9", None, "9.nii.gz", "T1w"))
    rows = shard.encode()
    assert [row.status for row in rows] == ["failed", "ok", "failed", "failed"]
    assert rows[0].reason == "skull strip: no brain found"
    assert "the shard's others are (2, 4, 4, 4)" in rows[2].reason
    assert "has no row of this scan" in rows[3].reason


def test_a_volume_that_is_not_what_conform_wrote_stops_the_shard(shard: Shard) -> None:
    shard.encode()
    whole = shard.volume(1).read_bytes()
    shard.write(1, seed=99)  # a whole volume, but another one than the manifest's
    with pytest.raises(ShardError, match=r"sub-1\.nii\.gz has sha256 .*Remove it, if it is there, and run again"):
        shard.encode()
    shard.volume(1).unlink()
    with pytest.raises(ShardError, match=r"sub-1\.nii\.gz is gone"):
        shard.encode()
    shard.volume(1).write_bytes(whole)
    shard.encode()
    assert shard.calls == 0  # nothing that was there is lost


def test_a_shard_of_failures_is_an_empty_file(shard: Shard) -> None:
    shard.rows({0: "a", 1: "b", 2: "c"})
    assert [row.reason for row in shard.encode()] == ["a", "b", "c"]
    assert read_header(shard.latents)[1] == []


def test_a_volume_that_cannot_be_read_today_is_tried_again_and_costs_no_latent(
    shard: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = shard.encode()
    shard.scans.append(Scan("3", None, "3.nii.gz", "T1w"))
    shard.write(3, seed=3)
    shard.rows()

    def fail(path: Path) -> str:
        if path.name in ("sub-1.nii.gz", "sub-3.nii.gz"):
            raise OSError(errno.ESTALE, "Stale file handle")
        return file_sha256(path)

    monkeypatch.setattr(module, "file_sha256", fail)
    rows = shard.encode()
    assert rows[:3] == first and "sub-1_T1w" in load_file(shard.latents)
    assert not rows[3].ok and rows[3].figures == {"transient": "yes"} and "tries it again" in rows[3].reason
    monkeypatch.undo()
    assert all(row.ok for row in shard.encode()) and shard.calls == 1
