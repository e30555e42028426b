"""Published .pt files: what is read, and that damage of any kind is one kind of error."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from monai.data.meta_tensor import MetaTensor

from neuromf.published import PublishedError, count, misfit, plain_state, read_published


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_flipped_and_missing_bytes_are_refused_or_change_no_type(zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"a": torch.ones(3), "n": 1.0}, path, _use_new_zipfile_serialization=zipped)
    whole, dice = path.read_bytes(), random.Random(0)
    refused = 0
    for trial in range(150):
        damaged = bytearray(whole)
        for _ in range(dice.choice([1, 3, 20])):
            damaged[dice.randrange(min(len(damaged), 1500))] = dice.randrange(256)
        path.write_bytes(damaged[: dice.randrange(len(damaged))] if trial % 5 == 0 else damaged)
        try:
            assert isinstance(read_published(path), dict)
        except PublishedError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 50


def test_what_is_no_mapping_is_refused(tmp_path: Path) -> None:
    torch.save([torch.ones(1)], tmp_path / "list.pt")
    with pytest.raises(PublishedError, match="holds a list"):
        read_published(tmp_path / "list.pt")


def test_a_state_becomes_plain() -> None:
    state = plain_state({"module.a": MetaTensor(torch.ones(2)), "b": torch.zeros(3)})
    assert list(state) == ["a", "b"] and all(type(value) is torch.Tensor for value in state.values())
    assert count(state) == "5 parameters in 2 tensors"


def test_misfit_names_what_differs() -> None:
    expected = {"a": torch.zeros(1), "b": torch.zeros(2)}
    assert misfit(expected, expected) == ""
    assert misfit({"a": torch.zeros(2), "c": torch.zeros(1)}, expected) == (
        "1 missing, e.g. b; 1 unexpected, e.g. c; 1 of another shape, e.g. a (2,) instead of (1,)"
    )
