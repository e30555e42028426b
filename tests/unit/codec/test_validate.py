"""Reconstruction figures against scikit-image and hand-made cases; the comparison with the linear codec."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from neuromf.codec import linear
from neuromf.codec.maisi import FrozenCodec, build
from neuromf.codec.perceptual import SliceLpips
from neuromf.codec.validate import (
    PERCEPTUAL,
    bounding_box,
    brain_figures,
    latent_std,
    perceptual_figures,
    read_tensor,
    reconstruction_figures,
    validate_codec,
)
from neuromf.config import Codec
from neuromf.volume import read_volume

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


def noisy_ball() -> np.ndarray:
    return np.clip(ball() + 0.05 * np.random.default_rng(0).standard_normal(ball().shape), 0, 1).astype(np.float32)


def test_figures_inside_the_brain_are_scikit_images_over_its_voxels() -> None:
    x, y = ball(), noisy_ball()
    found = brain_figures(x, y)
    inside = x > 0
    assert found["psnr_brain"] == pytest.approx(peak_signal_noise_ratio(x[inside], y[inside], data_range=1), abs=1e-4)
    _, full = structural_similarity(x.astype(float), y.astype(float), data_range=1, full=True)  # of the whole grid
    assert found["ssim_brain"] == pytest.approx(full[inside].mean(), abs=1e-9)
    assert found["ssim_brain"] != pytest.approx(reconstruction_figures(x, y)["ssim"], abs=1e-3)
    assert brain_figures(x, x) == {"psnr_brain": pytest.approx(120), "ssim_brain": pytest.approx(1)}


def test_ssim_is_the_formula_of_wang_2004_in_a_uniform_window() -> None:
    """Written out: 7³ window, sample (co)variance, C1 = 0.01², C2 = 0.03² for a data range of 1."""
    x, y = ball().astype(float), noisy_ball().astype(float)
    count = 7**3
    mean_x, mean_y = uniform_filter(x, 7), uniform_filter(y, 7)
    unbiased = count / (count - 1)
    var_x, var_y = (unbiased * (uniform_filter(v * v, 7) - m * m) for v, m in ((x, mean_x), (y, mean_y)))
    covariance = unbiased * (uniform_filter(x * y, 7) - mean_x * mean_y)
    similarity = (2 * mean_x * mean_y + 1e-4) * (2 * covariance + 9e-4)
    similarity /= (mean_x**2 + mean_y**2 + 1e-4) * (var_x + var_y + 9e-4)
    assert brain_figures(x, y)["ssim_brain"] == pytest.approx(similarity[x > 0].mean(), abs=1e-9)


def test_errors_outside_the_brain_count_only_where_a_window_sees_them() -> None:
    x = ball()
    far = x.copy()
    far[0, 0, 0] = 1
    assert brain_figures(x, far)["ssim_brain"] == pytest.approx(1)
    near = np.where((x == 0) & (np.roll(x, 1, 0) > 0), 0.5, x)
    assert brain_figures(x, near)["psnr_brain"] == pytest.approx(120) and brain_figures(x, near)["ssim_brain"] < 0.99


def test_a_volume_without_a_brain_is_measured_everywhere() -> None:
    empty = np.zeros((16, 16, 16), np.float32)
    assert brain_figures(empty, empty + 0.1)["psnr_brain"] == pytest.approx(20, abs=0.01)


def test_lpips_is_taken_on_the_box_of_clipped_reconstructions(lpips: SliceLpips) -> None:
    x, y = ball(), noisy_ball()
    box = bounding_box(x > 0)
    found = perceptual_figures(x, np.where(x == 0, -3, y), lpips)
    direct = lpips.planes(torch.from_numpy(np.where(x == 0, 0, y)[box]), torch.from_numpy(x[box]))
    assert found == {f"lpips_{plane}": pytest.approx(value) for plane, value in direct.items()}
    assert perceptual_figures(x, y, None) == dict.fromkeys(PERCEPTUAL)


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
    lines = (tmp_path / "validation.tsv").read_text().splitlines()
    assert len(lines) == 5 and lines[1].endswith("n/a\tn/a\tn/a"), "LPIPS without its weights is empty, not passed"
    assert result["mean"]["vae"]["lpips_axial"] is None and result["difference"]["lpips_axial"] is None
    assert result["mean"]["vae"]["ssim_brain"] == pytest.approx(
        np.mean([row["ssim_brain"] for row in result["rows"] if row["codec"] == "vae"])
    )


def test_the_worst_scans_are_kept_worst_first(
    scans: Callable[[int], list[Path]], tmp_path: Path, lpips: SliceLpips
) -> None:
    paths = scans(6)
    torch.manual_seed(0)
    codec = FrozenCodec(build(CODEC).eval(), CODEC, "f" * 64, torch.device("cpu"))
    folder = tmp_path / "worst"
    result = validate_codec(codec, paths[:1], paths[1:], tmp_path / "v.json", lpips=lpips, worst=folder)
    vae = sorted((row for row in result["rows"] if row["codec"] == "vae"), key=lambda row: row["ssim_brain"])
    expected = [
        f"{i}_{row['scan']}_{kind}.nii.gz" for i, row in enumerate(vae[:3]) for kind in ("real", "reconstruction")
    ]
    assert sorted(path.name for path in folder.iterdir()) == expected
    image = read_volume(folder / expected[0])
    original = next(path for path in paths if vae[0]["scan"] in path.name)
    np.testing.assert_array_equal(image.dataobj, read_volume(original).dataobj)
    np.testing.assert_array_equal(image.affine, read_volume(original).affine)
    assert all(row["lpips_axial"] > 0 for row in result["rows"])


def test_validation_without_scans_is_refused(scans: Callable[[int], list[Path]], tmp_path: Path) -> None:
    codec = FrozenCodec(build(CODEC), CODEC, "", torch.device("cpu"))
    with pytest.raises(ValueError, match="got 0 and 1"):
        validate_codec(codec, [], scans(1), tmp_path / "v.json")
