"""Tensors with their hashes: what comes back, and that no flipped bit does."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from neuromf.tensors import TensorError, load_tensors, save_tensors

TENSORS = {
    "a": torch.arange(6.0).reshape(2, 3),
    "b": torch.tensor([True, False]),
    "none": torch.from_numpy(np.zeros(4, np.int64)[:0].copy()),  # of stride 0
}


def test_tensors_and_texts_come_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.safetensors"
    save_tensors(path, TENSORS, {"key": "k"})
    tensors, about = load_tensors(path)
    assert about == {"key": "k"} and tensors.keys() == TENSORS.keys()
    assert all(
        torch.equal(tensors[name], value) and tensors[name].dtype == value.dtype for name, value in TENSORS.items()
    )
    assert load_tensors(path, ["b"])[0].keys() == {"b"}
    with pytest.raises(TensorError, match="c"):
        load_tensors(path, ["c"])


def test_no_flipped_bit_and_no_lost_byte_goes_unseen(tmp_path: Path) -> None:
    path, dice = tmp_path / "x.safetensors", random.Random(0)
    save_tensors(path, TENSORS, {"key": "k"})
    whole, (tensors, about) = path.read_bytes(), load_tensors(path)
    for trial in range(300):
        damaged = bytearray(whole)
        damaged[dice.randrange(len(damaged))] ^= 1 << dice.randrange(8)
        path.write_bytes(damaged if trial % 3 else damaged[: dice.randrange(len(damaged))])
        try:
            found, texts = load_tensors(path)
        except TensorError as error:
            assert str(path) in str(error)
            continue
        # a bit of white space or of the order of keys: the same content
        assert texts == about and all(torch.equal(found[name], value) for name, value in tensors.items())


def test_files_without_hashes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TensorError, match="does not exist"):
        load_tensors(tmp_path / "none.safetensors")
    save_file(TENSORS, tmp_path / "plain.safetensors")
    with pytest.raises(TensorError, match="not written by NeuroMF"):
        load_tensors(tmp_path / "plain.safetensors")
