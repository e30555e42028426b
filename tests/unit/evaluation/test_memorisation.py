import numpy as np
import pytest

from neuromf.evaluation.extractors.codec import mirror_pooled
from neuromf.evaluation.extractors.registry import VOLUME, codec_extractor
from neuromf.evaluation.memorisation import closer_than_null, nearest_by_correlation, nearest_by_features, thumbnail


@pytest.fixture
def described(brain, codec):
    """Thumbnails, features and mirrored features of volumes."""
    import torch

    extractor = codec_extractor(codec)

    def describe(volumes):
        tensors = [torch.from_numpy(np.ascontiguousarray(v)) for v in volumes]
        features = np.concatenate([extractor.compute(v, 6.0)[VOLUME].numpy() for v in tensors])
        return np.stack([thumbnail(v) for v in volumes]), features, mirror_pooled(features)

    return describe


def test_planted_mirrored_and_noisy_copies_are_found(brain, described):
    train = [brain(seed) for seed in range(12)]
    noisy = (train[7] + np.random.default_rng(0).normal(0, 0.02, train[7].shape)).clip(0, 1).astype(np.float32)
    copies = [train[3], np.ascontiguousarray(train[5][::-1]), noisy]
    thumbs, features, _ = described(train)
    t, f, m = described(copies)
    pixels, codec = nearest_by_correlation(t, thumbs), nearest_by_features(f, m, features)
    assert list(pixels.index) == [3, 5, 7] and list(pixels.mirrored) == [False, True, False]
    assert list(codec.index[:2]) == [3, 5] and list(codec.mirrored[:2]) == [False, True]
    assert pixels.value[:2] == pytest.approx(1, abs=1e-3)
    assert codec.value[:2] == pytest.approx(0, abs=1e-4)

    null_t, null_f, null_m = described([brain(seed) for seed in range(50, 62)])
    null = nearest_by_correlation(null_t, thumbs).value, nearest_by_features(null_f, null_m, features).value
    assert closer_than_null(pixels.value, null[0], larger_is_closer=True).all()
    assert closer_than_null(codec.value, null[1], larger_is_closer=False)[:2].all()
    fresh_t, fresh_f, fresh_m = described([brain(seed) for seed in range(80, 100)])
    fresh = closer_than_null(nearest_by_correlation(fresh_t, thumbs).value, null[0], larger_is_closer=True)
    assert fresh.mean() <= 0.3


def test_thumbnails_are_block_means_of_at_most_32_voxels(brain):
    volume = brain(0, side=64)
    small = thumbnail(volume)
    assert small.shape == (32, 32, 32) and small.dtype == np.float16
    assert small[10, 12, 14] == pytest.approx(volume[20:22, 24:26, 28:30].mean(), abs=1e-3)
    assert thumbnail(volume[:16, :40]).shape == (16, 32, 32)


def test_a_constant_volume_correlates_with_nothing(brain):
    train = np.stack([thumbnail(brain(seed)) for seed in range(3)])
    assert nearest_by_correlation(np.full_like(train[:1], 0.5), train).value[0] == 0
