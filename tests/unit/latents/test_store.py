"""Reading latents: order, several cohorts, worker processes, and what is refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from neuromf.latents.store import LatentError, LatentStore, read_header, tensor_sha256
from neuromf.tables import ReleaseRow


def shard(path: Path, scans: dict[str, float], **changes: Any) -> Path:
    header = {"codec": "tiny", "weights_sha256": "a" * 64, "shape": [2, 4, 4, 4], "voxel_size_mm": [3, 3, 3]} | changes
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {scan: torch.full((2, 4, 4, 4), value) for scan, value in scans.items()}
    header["scans"] = {scan: {"key": "k", "sha256": tensor_sha256(latent)} for scan, latent in tensors.items()}
    save_file(tensors, path, {key: json.dumps(value) for key, value in header.items()})
    return path


def values(store: LatentStore) -> list[float]:
    return [float(store[i].mean()) for i in range(len(store))]


def test_items_come_in_the_order_asked_for(tmp_path: Path) -> None:
    paths = [shard(tmp_path / "shard-0000.safetensors", {"sub-1_T1w": 1.0, "sub-2_T1w": 2.0})]
    paths.append(shard(tmp_path / "shard-0001.safetensors", {"sub-3_T1w": 3.0}))
    store = LatentStore(paths, ["sub-3_T1w", "sub-1_T1w"])
    assert values(store) == [3, 1]
    assert store[0].dtype == torch.float32 and store.shape == (2, 4, 4, 4)
    assert store.metadata["codec"] == "tiny"
    assert sorted(values(LatentStore(paths))) == [1, 2, 3]


def test_a_release_takes_scans_of_the_same_name_from_two_cohorts(tmp_path: Path) -> None:
    shard(tmp_path / "a/latents/tiny/shard-0000.safetensors", {"sub-1_T1w": 1.0, "sub-9_T1w": 9.0})
    shard(tmp_path / "b/latents/tiny/shard-0000.safetensors", {"sub-1_T1w": 2.0})
    rows = [ReleaseRow("1", None, "T1w", cohort, "train") for cohort in ("b", "a")]
    store = LatentStore.of_release(rows, tmp_path, "tiny")
    assert values(store) == [2, 1]
    with pytest.raises(LatentError, match="of_release for two cohorts"):
        LatentStore([tmp_path / f"{c}/latents/tiny/shard-0000.safetensors" for c in "ab"], ["sub-1_T1w"])


def test_worker_processes_and_pickles_open_their_own_map(tmp_path: Path) -> None:
    path = shard(tmp_path / "shard-0000.safetensors", {f"sub-{i}_T1w": float(i) for i in range(4)})
    store = LatentStore([path])
    assert store[0].shape == (2, 4, 4, 4)  # the map is open before it is pickled
    assert values(pickle.loads(pickle.dumps(store))) == values(store)
    batches = list(DataLoader(store, batch_size=2, num_workers=1))
    assert [tuple(b.shape) for b in batches] == [(2, 2, 4, 4, 4)] * 2


def test_an_empty_shard_is_fine(tmp_path: Path) -> None:
    empty = shard(tmp_path / "shard-0000.safetensors", {}, shape=None, voxel_size_mm=None)
    full = shard(tmp_path / "shard-0001.safetensors", {"sub-1_T1w": 1.0})
    assert values(LatentStore([empty, full])) == [1]


def test_what_cannot_be_used_is_refused(tmp_path: Path) -> None:
    one = shard(tmp_path / "one.safetensors", {"sub-1_T1w": 1.0})
    with pytest.raises(LatentError, match=r"no latent of sub-7_T1w \(1 scans missing\)"):
        LatentStore([one], ["sub-7_T1w"])
    with pytest.raises(LatentError, match="run the rule encode"):
        LatentStore([tmp_path / "none.safetensors"])
    other = shard(tmp_path / "other.safetensors", {"sub-2_T1w": 1.0}, weights_sha256="b" * 64)
    with pytest.raises(LatentError, match="weights_sha256 is bbbb"):
        LatentStore([one, other])
    (tmp_path / "text.safetensors").write_text("no tensors")
    with pytest.raises(LatentError, match="no readable shard"):
        read_header(tmp_path / "text.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "plain.safetensors")
    with pytest.raises(LatentError, match="its header lacks codec"):
        read_header(tmp_path / "plain.safetensors")


def test_a_flipped_bit_is_seen_when_the_latent_is_read(tmp_path: Path) -> None:
    path = shard(tmp_path / "shard-0000.safetensors", {"sub-1_T1w": 1.0, "sub-2_T1w": 2.0})
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # in the last of the tensors
    path.write_bytes(content)
    store = LatentStore([path])
    intact, damaged = sorted(range(2), key=lambda i: store.scan_ids[i])
    assert float(store[intact].mean()) == 1
    with pytest.raises(LatentError, match=r"shard-0000\.safetensors: sub-2_T1w is not what was encoded.*remove it"):
        store[damaged]


def test_a_shard_cut_after_it_was_opened_is_an_error(tmp_path: Path) -> None:
    path = shard(tmp_path / "shard-0000.safetensors", {"sub-1_T1w": 1.0})
    store = LatentStore([path])
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(LatentError, match="sub-1_T1w cannot be read.*encodes the damaged latents anew"):
        store[0]
    with pytest.raises(LatentError, match="no readable shard"):
        LatentStore([path])
