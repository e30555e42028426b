"""LPIPS, with random weights in the published files' layouts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models import squeezenet1_1

from neuromf.codec.perceptual import PLANES, SliceLpips
from neuromf.codec.weights import BACKBONE, HEADS, perceptual_identity


def test_distance(lpips: SliceLpips) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, 1, 16, 20, 24)
    assert float(lpips(x, x, generator)) == 0
    y = (x + 0.3 * torch.randn_like(x)).requires_grad_(True)
    distance = lpips(y, x, generator)
    distance.backward()
    assert distance > 0 and y.grad is not None and y.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in lpips.parameters())


def direct(a: torch.Tensor, b: torch.Tensor, weights: Path) -> float:
    """LPIPS of two slices (p, q) in [0, 1] as Zhang et al. 2018 define it, read off torchvision's network layer by layer."""
    network = squeezenet1_1(weights=None).eval()
    network.load_state_dict(torch.load(weights / BACKBONE, weights_only=True))
    heads = torch.load(weights / HEADS, weights_only=True)
    shift, scale = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])
    images = []
    for image in (a, b):
        colour = (2 * image.numpy()[None] - 1 - shift[:, None, None]) / scale[:, None, None]
        images.append(torch.from_numpy(colour).float()[None])
    total, depth = 0.0, 0
    for number, layer in enumerate(network.features):
        with torch.no_grad():
            images = [layer(image) for image in images]
        if number in (
            1,
            4,
            7,
            9,
            10,
            11,
            12,
        ):  # relu1, fire 3, 5, 6, 7, 8 and 9 of lpips's pretrained_networks.squeezenet
            u, v = (f[0].numpy() / np.sqrt((f[0].numpy() ** 2).sum(0, keepdims=True)).clip(1e-10) for f in images)
            head = heads[f"lin{depth}.model.1.weight"][0].numpy()
            total += float((head * (u - v) ** 2).sum(0).mean())
            depth += 1
    assert depth == 7
    return total


def test_planes_are_the_mean_of_lpips_over_their_slices(lpips: SliceLpips, lpips_weights: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(40, 33, 36, generator=generator)  # 40 sagittal slices: two batches
    y = (x + 0.2 * torch.randn(x.shape, generator=generator)).clamp(0, 1)
    found = lpips.planes(y, x)
    assert tuple(found) == PLANES
    for axis, plane in enumerate(PLANES):
        slices = zip(y.unbind(axis), x.unbind(axis), strict=True)
        assert found[plane] == pytest.approx(np.mean([direct(a, b, lpips_weights) for a, b in slices]), rel=1e-4)


def test_missing_files_say_what_to_fetch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(FileNotFoundError, match=r"squeezenet1_1-b8a52dc0\.pth: fetch it from https"):
        SliceLpips.load(tmp_path)
    assert SliceLpips.load_if_there(tmp_path) is None
    assert "LPIPS is not measured" in caplog.text


def test_the_identity_is_that_of_both_files(lpips_weights: Path) -> None:
    before = perceptual_identity(lpips_weights)
    assert before is not None and SliceLpips.load_if_there(lpips_weights) is not None
    torch.save({}, lpips_weights / HEADS)
    assert perceptual_identity(lpips_weights) not in (before, None)
    (lpips_weights / HEADS).unlink()
    assert perceptual_identity(lpips_weights) is None


def test_altered_files_are_refused(lpips_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with pytest.raises(ValueError, match="b8a52dc0; fetch it again"):
        SliceLpips.load(lpips_weights)


def test_other_heads_are_refused(lpips_weights: Path) -> None:
    torch.save({"a": torch.zeros(1)}, lpips_weights / HEADS)
    with pytest.raises(ValueError, match="not LPIPS's seven heads"):
        SliceLpips.load(lpips_weights)
