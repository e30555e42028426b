"""Background, brain or head, from intensities alone."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from neuromf.intensities import border_noise, find_background, kind, stripped_brain, zero_level
from neuromf.volume import VolumeError

SHAPE, SPACING = (60, 70, 56), np.full(3, 3.0)
RNG = np.random.default_rng(0)
X, Y, Z = (axis * 3.0 for axis in np.meshgrid(*(np.arange(n) - n / 2 for n in SHAPE), indexing="ij"))


def ellipsoid(grown_mm: float = 0.0) -> np.ndarray:
    return (X / (62 + grown_mm)) ** 2 + (Y / (80 + grown_mm)) ** 2 + (Z / (60 + grown_mm)) ** 2 < 1


BRAIN = ellipsoid()
TISSUE = (90 + 60 * (1 - (X / 62) ** 2 - (Y / 80) ** 2 - (Z / 60) ** 2) + 25 * np.sin(X / 9) * np.cos(Y / 11)).astype(
    np.float32
)
Z_SCORES = (TISSUE - TISSUE[BRAIN].mean()) / TISSUE[BRAIN].std()


def head() -> np.ndarray:
    """Brain, dark skull and bright scalp."""
    return np.where(BRAIN, TISSUE, np.where(ellipsoid(8), 12, np.where(ellipsoid(14), 130, 0))).astype(np.float32)


STRIPPED = {
    "positive": np.where(BRAIN, TISSUE, 0),
    "offset": np.where(BRAIN, TISSUE + 1000, 1000),
    "negative": np.where(BRAIN, TISSUE - 5000, -5000),
    "z_scores": np.where(BRAIN, Z_SCORES, 0),
    "z_scores_of_tenths": np.where(BRAIN, np.rint(10 * Z_SCORES), 0),
    "z_scores_with_background": np.where(BRAIN, Z_SCORES + 1.5, -0.43),
    "minus_one_to_one": np.where(BRAIN, TISSUE / 95 - 0.9, -1),
    "minus_one_with_noise": np.where(BRAIN, TISSUE / 95 - 0.9, -1 + 1e-3 * RNG.standard_normal(SHAPE)),
    "bright_background": np.where(BRAIN, TISSUE, 400),
    "low_contrast": np.where(BRAIN, 100 + TISSUE / 1000, 100),
    "one_voxel_of_1e8": np.where((X == 0) & (Y == 0) & (Z == 0), 1e8, np.where(BRAIN, TISSUE, 0)),
    "cut_by_the_border": np.where(BRAIN, Z_SCORES, 0)[12:-12, :, 10:],
}


@pytest.mark.parametrize("name", STRIPPED)
def test_the_whole_brain_comes_out_whatever_its_background(name: str) -> None:
    data = STRIPPED[name].astype(np.float32)
    truth = BRAIN[12:-12, :, 10:] if name == "cut_by_the_border" else BRAIN
    found = ndimage.binary_fill_holes(stripped_brain(data, find_background(data)))
    assert (found != truth).sum() <= (0.005 if name == "z_scores_of_tenths" else 1e-3) * truth.sum()


def test_an_interpolated_background_is_no_brain() -> None:
    """A spline leaves tiny numbers everywhere."""
    data = ndimage.shift(STRIPPED["positive"].astype(np.float32), 0.4, order=3)
    background = find_background(data)
    found = stripped_brain(data, background)
    assert background.value == pytest.approx(0, abs=1e-3) and background.tolerance > 0
    assert BRAIN.sum() < found.sum() < 1.2 * BRAIN.sum()  # its sharp edge, blurred by a voxel


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.where(BRAIN, TISSUE, RNG.uniform(0, 200, SHAPE)), "no background"),
        (np.where(X == 0, 3e38, STRIPPED["positive"]), "voxels lie beyond"),
    ],
)
def test_no_background_is_said(data: np.ndarray, message: str) -> None:
    with pytest.raises(VolumeError, match=message):
        find_background(data.astype(np.float32))


def test_a_volume_full_of_brain_has_no_background() -> None:
    data = np.maximum(TISSUE[10:-10, 20:-20, 20:-20], 60)
    data[0, :, :] = 0
    with pytest.raises(VolumeError, match="not skull-stripped"):
        stripped_brain(data, find_background(data))


@pytest.mark.parametrize("scaled", [lambda x: x, lambda x: x / 80 - 1, lambda x: x + 1000, lambda x: (x - 60) / 50])
def test_heads_and_brains_are_told_apart_on_any_scale(scaled) -> None:
    noise = 2 * np.abs(RNG.standard_normal(SHAPE)).astype(np.float32)
    assert kind(scaled(head() + noise), SPACING) == "head"
    assert kind(scaled(head()), SPACING) == "head"  # with its background set to 0
    assert kind(scaled(STRIPPED["positive"].astype(np.float32)), SPACING) == "brain"


@pytest.mark.parametrize(
    "data",
    [
        RNG.uniform(0, 100, SHAPE),
        ellipsoid() * 100.0 * (X > -20) * (X < 20),
        ellipsoid(40) * 100.0,
        np.where(BRAIN, TISSUE, 0) + 4 * np.abs(RNG.standard_normal(SHAPE)),
    ],
)
def test_what_is_neither_is_unknown(data: np.ndarray) -> None:
    assert kind(data.astype(np.float32), SPACING) == "unknown"


def test_z_scores_about_their_background_are_a_brain() -> None:
    assert kind(STRIPPED["z_scores"].astype(np.float32), SPACING) == "brain"


def test_no_signal_is_zero_unless_the_scale_was_shifted() -> None:
    noisy = head() + 2 * np.abs(RNG.standard_normal(SHAPE)).astype(np.float32)
    assert zero_level(noisy) == 0.0
    assert zero_level(noisy + 1000) == pytest.approx(1000, abs=5)
    assert zero_level(noisy / 80 - 1) == pytest.approx(-1, abs=0.05)


def test_noise_as_bright_as_tissue_is_measured() -> None:
    noise = RNG.uniform(0, 200, SHAPE)
    assert border_noise(np.where(ellipsoid(14), head(), noise).astype(np.float32)) > 0.2
    assert border_noise((head() + 2 * np.abs(RNG.standard_normal(SHAPE))).astype(np.float32)) < 0.03
