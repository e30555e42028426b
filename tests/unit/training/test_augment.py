from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

from neuromf.config import Augmentation, ConfigError, validate
from neuromf.training.augment import augment, distinct_versions, effective_factor, mix, row_transforms

OFF = {"flip_left_right": 0.0}
OPERATIONS = (
    "flip_left_right",
    "flip_anterior_posterior",
    "flip_inferior_superior",
    "rotate_axial",
    "noise",
    "scale",
    "mixup",
)


def only(**settings: Any) -> Augmentation:
    return Augmentation(**OFF | settings)


def latents(rows: int = 3, side: int = 4) -> Tensor:
    return torch.randn(rows, 2, side, side, side, generator=torch.Generator().manual_seed(rows))


@pytest.mark.parametrize(
    ("name", "axis"), [("flip_left_right", 2), ("flip_anterior_posterior", 3), ("flip_inferior_superior", 4)]
)
def test_a_flip_reverses_its_axis(name: str, axis: int) -> None:
    z0 = torch.randn(2, 4, 3, 4, 5)
    assert torch.equal(augment(z0, only(**{name: 1.0}), 0), z0.flip(axis))


def test_a_rotation_turns_the_axial_plane_by_any_quarter() -> None:
    z0 = torch.randn(64, 1, 4, 4, 3)
    turned = augment(z0, only(rotate_axial=1.0), 0)
    quarters = [
        next(k for k in range(4) if torch.equal(after, torch.rot90(before, k, (1, 2))))
        for before, after in zip(z0, turned, strict=True)
    ]
    assert set(quarters) == {1, 2, 3}


def test_scaling_multiplies_each_channel_by_a_factor_in_the_range() -> None:
    z0 = latents(50)
    factors = augment(z0, only(scale=1.0, scale_range=(0.8, 1.5)), 0) / z0
    assert torch.allclose(factors, factors[:, :, :1, :1, :1].expand_as(factors), rtol=1e-4)  # one per row and channel
    factors = factors[:, :, 0, 0, 0]
    assert 0.8 <= factors.min() < 0.85 and 1.45 < factors.max() <= 1.5
    assert not torch.allclose(factors[:, 0], factors[:, 1])


def test_noise_has_its_share_of_sigma() -> None:
    z0 = latents(4, side=24)
    added = augment(z0, only(noise=1.0, noise_share=0.2), 0) - z0
    assert added.std((2, 3, 4)).flatten().tolist() == pytest.approx([0.2] * 8, rel=0.05)
    assert float(added.mean()) == pytest.approx(0, abs=0.005)
    assert abs(float(torch.corrcoef(added.reshape(8, -1))[0, 1:].abs().max())) < 0.05  # rows and channels are their own


def test_noise_is_a_share_of_each_channels_own_sigma() -> None:
    """Latents normalised as a warm start's were have another σ than 1: the noise was 5 % of 1 for all of them."""
    z0 = latents(8, side=24)
    added = augment(z0, only(noise=1.0, noise_share=0.1), 0, std=(0.5, 3.0)) - z0
    assert added.std((0, 2, 3, 4)).tolist() == pytest.approx([0.05, 0.3], rel=0.05)


def test_the_order_is_the_methods_flips_rotation_noise_scaling() -> None:
    names = [type(transform).__name__ for transform in row_transforms(Augmentation(), [1.0])]
    assert names == ["RandFlip"] * 3 + ["RandRotate90", "RandChannelNoise", "RandScaleIntensity"]
    assert Augmentation().scale_range == (0.95, 1.05) and Augmentation().noise_share == 0.05


def test_one_switch_turns_all_off() -> None:
    every = dict.fromkeys(OPERATIONS, 1.0)
    off = Augmentation(enabled=False, **every)
    assert augment(latents(), off, 0) is not None and torch.equal(augment(latents(), off, 0), latents())
    assert distinct_versions(off) == effective_factor(off) == 1
    assert not torch.equal(augment(latents(), Augmentation(**every), 0), latents())


def test_mixup_is_a_mixture_with_another_row() -> None:
    z0 = latents(6)
    mixed = mix(z0, 1.0, 0.5, np.random.RandomState(0))
    for row, after in enumerate(mixed):
        found = 0
        for other in set(range(6)) - {row}:
            direction = (z0[row] - z0[other]).flatten()
            share = torch.dot((after - z0[other]).flatten(), direction) / direction.square().sum()
            found += bool(0 <= share <= 1) and torch.allclose(
                after, share * z0[row] + (1 - share) * z0[other], atol=1e-5
            )
        assert found >= 1


def test_a_single_row_has_nothing_to_mix_with() -> None:
    assert torch.equal(augment(latents(1), only(mixup=1.0), 0), latents(1))


def test_the_share_of_a_mixture_follows_the_beta_distribution() -> None:
    """The squared norm tells λ: rows are orthogonal unit vectors. E λ² of Beta(α, α) is (α + 1) / (2 (2α + 1))."""
    z0 = torch.eye(2000).reshape(2000, 2000, 1, 1, 1)
    mixed = mix(z0, 1.0, 2.0, np.random.RandomState(0))
    share = mixed.reshape(2000, 2000).diagonal()
    assert float(share.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(share.square().mean()) == pytest.approx(3 / 10, abs=0.02)


def test_probability_zero_is_the_identity() -> None:
    z0 = latents()
    assert augment(z0, only(), 0) is z0


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_probability_is_the_share_of_changed_rows(name: str) -> None:
    z0 = torch.randn(1000, 1, 2, 2, 2)
    after = augment(z0, only(**{name: 0.3}), 0)
    changed = (after != z0).flatten(1).any(1)
    assert float(changed.float().mean()) == pytest.approx(0.3, abs=0.05)
    assert torch.equal(after[~changed], z0[~changed])
    assert type(after) is Tensor and after.dtype == z0.dtype


@given(
    probabilities=st.tuples(*[st.sampled_from([0.0, 0.5, 1.0])] * len(OPERATIONS)),
    seed=st.integers(0, 2**63 - 1),
    rows=st.integers(1, 4),
)
@hypothesis_settings(max_examples=30, deadline=None)
def test_the_seed_decides_everything(probabilities: tuple[float, ...], seed: int, rows: int) -> None:
    settings, z0 = Augmentation(**dict(zip(OPERATIONS, probabilities, strict=True))), latents(rows)
    before = z0.clone()
    after = augment(z0, settings, seed)
    np.random.rand(), torch.rand(1)  # noqa: NPY002 other draws do not matter
    assert torch.equal(after, augment(z0, settings, seed))
    assert torch.equal(z0, before) and after.shape == z0.shape


def test_another_seed_gives_other_latents() -> None:
    z0, settings = latents(), only(noise=1.0)
    assert not torch.equal(augment(z0, settings, 0), augment(z0, settings, 1))


@pytest.mark.parametrize("name", OPERATIONS[1:])
def test_switching_an_operation_on_leaves_the_draws_of_another(name: str) -> None:
    z0, seed = latents(20), 3
    flipped = augment(z0, only(flip_left_right=0.5), seed)
    both = augment(z0, only(flip_left_right=0.5, **{name: 0.5}), seed)
    assert torch.equal(both, augment(flipped, only(**{name: 0.5}), seed)) and not torch.equal(both, flipped)


def test_unusable_settings_are_refused_with_a_remedy() -> None:
    with pytest.raises(ConfigError, match="0 < low <= high"):
        validate({"train": {"augmentation": {"scale_range": [1.1, 0.9]}}})
    flat = {"preprocess": {"conform": {"shape": [32, 48, 32]}}, "train": {"augmentation": {"rotate_axial": 0.1}}}
    with pytest.raises(ConfigError, match=r"^train\.augmentation\.rotate_axial: latents of \[8, 12, 8\] voxels"):
        validate(flat)
    with pytest.raises(ConfigError, match=r"train\.flip_probability: unknown key"):
        validate({"train": {"flip_probability": 0.5}})


def test_number_of_distinct_versions() -> None:
    assert distinct_versions(Augmentation()) == 1
    assert distinct_versions(only(flip_left_right=0.5)) == pytest.approx(2)
    assert distinct_versions(only(flip_left_right=1.0)) == 1
    assert distinct_versions(only(flip_left_right=0.1)) == pytest.approx(0.1**-0.1 * 0.9**-0.9)
    flips = {"flip_left_right": 0.5, "flip_anterior_posterior": 0.5, "flip_inferior_superior": 0.5}
    assert distinct_versions(only(**flips)) == pytest.approx(8)
    # two flips of the axial plane are half a turn: 4 × 4 ways to go, 8 versions of the plane
    assert distinct_versions(only(**flips, rotate_axial=0.75)) == pytest.approx(16)
    assert distinct_versions(only(scale=1.0, noise=1.0, mixup=1.0)) == 1


def test_the_methods_effective_samples() -> None:
    """∏ (1 + p_i (k_i − 1)): 4.5 of flips at ½ and 1.75 of rotations at ¼, some 7.9."""
    flips = {"flip_left_right": 0.5, "flip_anterior_posterior": 0.5, "flip_inferior_superior": 0.5}
    assert effective_factor(Augmentation()) == 1
    assert effective_factor(only(**flips)) == pytest.approx(4.5)
    assert effective_factor(only(**flips, rotate_axial=0.25, noise=0.3, scale=0.2)) == pytest.approx(4.5 * 1.75)
    assert effective_factor(only(flip_left_right=0.5)) == pytest.approx(1.5)
