"""The perceptual term, with random weights in the published files' layouts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchvision.models import squeezenet1_1

from neuromf.codec import perceptual
from neuromf.codec.perceptual import SliceLpips
from neuromf.tables import file_sha256

CHANNELS = (64, 128, 256, 384, 384, 512, 512)


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    torch.manual_seed(0)
    torch.save(squeezenet1_1(weights=None).state_dict(), tmp_path / perceptual.BACKBONE)
    heads = {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1) for i, c in enumerate(CHANNELS)}
    torch.save(heads, tmp_path / perceptual.HEADS)
    monkeypatch.setattr(perceptual, "BACKBONE_SHA256", file_sha256(tmp_path / perceptual.BACKBONE)[:8])
    return tmp_path


def test_distance(weights: Path) -> None:
    lpips = SliceLpips.load(weights)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, 1, 16, 20, 24)
    assert float(lpips(x, x, generator)) == 0
    y = (x + 0.3 * torch.randn_like(x)).requires_grad_(True)
    distance = lpips(y, x, generator)
    distance.backward()
    assert distance > 0 and y.grad is not None and y.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in lpips.parameters())


def test_missing_files_say_what_to_fetch(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"squeezenet1_1-b8a52dc0\.pth: fetch it from https"):
        SliceLpips.load(tmp_path)


def test_altered_files_are_refused(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with pytest.raises(ValueError, match="b8a52dc0; fetch it again"):
        SliceLpips.load(weights)


def test_other_heads_are_refused(weights: Path) -> None:
    torch.save({"a": torch.zeros(1)}, weights / perceptual.HEADS)
    with pytest.raises(ValueError, match="not LPIPS's seven heads"):
        SliceLpips.load(weights)
