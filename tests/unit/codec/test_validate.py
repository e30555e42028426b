"""Reconstruction figures against scikit-image and hand-made cases; the comparison with the linear codec."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio

from neuromf.codec import linear
from neuromf.codec.maisi import FrozenCodec, build
from neuromf.codec.validate import bounding_box, latent_std, read_tensor, reconstruction_figures, validate_codec
from neuromf.config import Codec

CODEC = Codec(name="tiny", channels=(4, 8, 8), residual_blocks=(1, 1, 1), norm_groups=2, latent_channels=2)


def ball() -> np.ndarray:
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, 24),) * 3, indexing="ij"))
    radius = np.sqrt((grid**2).sum(0))
    return np.where(radius < 0.6, 0.4 + 0.5 * radius, 0).astype(np.float32)


def test_figures_are_taken_in_the_brains_box() -> None:
    x = ball()
    y = x + 0.1
    figures = reconstruction_figures(x, y)
    box = bounding_box(x > 0)
    assert figures["psnr"] == pytest.approx(20, abs=0.01) and figures["mae"] == pytest.approx(0.1, abs=1e-5)
    far = x.copy()
    far[0, 0, 0] = 1  # outside the box
    assert reconstruction_figures(x, far)["psnr"] == pytest.approx(120)
    noisy = np.clip(x + 0.05 * np.random.default_rng(0).standard_normal(x.shape), 0, 1)
    expected = peak_signal_noise_ratio(x[box].astype(float), noisy[box], data_range=1)
    assert reconstruction_figures(x, noisy)["psnr"] == pytest.approx(expected)


def test_reconstructions_are_clipped() -> None:
    x = ball()
    assert reconstruction_figures(x, np.where(x == 0, -5, x))["psnr"] == pytest.approx(120)


def test_a_perfect_reconstruction_has_ssim_one() -> None:
    assert reconstruction_figures(ball(), ball())["ssim"] == pytest.approx(1)


def test_the_box_is_at_least_ssims_window() -> None:
    brain = np.zeros((24, 24, 24), bool)
    brain[22:, 3, 0] = True
    assert bounding_box(brain) == (slice(17, 24), slice(0, 7), slice(0, 7))
    assert bounding_box(np.zeros((8, 8, 8), bool)) == (slice(0, 8),) * 3


def test_latent_std_ignores_the_channels_means() -> None:
    torch.manual_seed(0)
    z = torch.randn(4, 2, 8, 8, 8) * torch.tensor([1.0, 3.0]).view(1, 2, 1, 1, 1) + 7
    assert latent_std(z.split(1)) == pytest.approx(5**0.5, rel=0.02)


def test_validation_compares_with_the_linear_codec(scans: Callable[[int], list[Path]], tmp_path: Path) -> None:
    paths = scans(4)
    torch.manual_seed(0)
    codec = FrozenCodec(build(CODEC).eval(), CODEC, "f" * 64, torch.device("cpu"))
    result = validate_codec(codec, paths[:2], paths[2:], tmp_path / "validation.json")
    assert json.loads((tmp_path / "validation.json").read_text()) == result
    assert [(row["scan"], row["codec"]) for row in result["rows"]] == [
        (f"sub-0{i}_desc-preproc_T1w", name) for i in (2, 3) for name in ("vae", "linear")
    ]
    x = read_tensor(paths[3])
    expected = linear.fit([read_tensor(p) for p in paths[:2]], 2).reconstruct(x)
    assert result["rows"][3]["psnr"] == pytest.approx(reconstruction_figures(x[0].numpy(), expected[0].numpy())["psnr"])
    assert result["difference"]["psnr"] == pytest.approx(
        result["mean"]["vae"]["psnr"] - result["mean"]["linear"]["psnr"]
    )
    assert result["difference"]["psnr"] < 0  # random weights
    assert len((tmp_path / "validation.tsv").read_text().splitlines()) == 5


def test_validation_without_scans_is_refused(scans: Callable[[int], list[Path]], tmp_path: Path) -> None:
    codec = FrozenCodec(build(CODEC), CODEC, "", torch.device("cpu"))
    with pytest.raises(ValueError, match="got 0 and 1"):
        validate_codec(codec, [], scans(1), tmp_path / "v.json")
