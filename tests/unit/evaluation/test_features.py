import numpy as np
import pytest
import torch

from neuromf.evaluation.features import cached_features, codec_extractor, mirror_pooled, pool_latents


def test_pooling_gives_means_then_standard_deviations_of_octants():
    z = torch.randn(2, 3, 8, 8, 8, dtype=torch.float64)
    pooled = pool_latents(z).reshape(2, 2, 3, 2, 2, 2)
    octant = z[1, 2, 4:, :4, 4:]
    assert pooled[1, 0, 2, 1, 0, 1] == pytest.approx(octant.mean().item())
    assert pooled[1, 1, 2, 1, 0, 1] == pytest.approx(octant.std(correction=0).item())


@pytest.mark.parametrize("shape", [(8, 8, 8), (9, 6, 5)])
def test_mirrored_features_are_those_of_the_mirrored_latent(shape):
    z = torch.randn(3, 4, *shape)
    mirrored = mirror_pooled(pool_latents(z).numpy())
    assert np.allclose(mirrored, pool_latents(z.flip(2)).numpy())


def test_features_come_from_the_cache_until_volume_or_codec_change(brain, codec, tmp_path):
    extractor = codec_extractor(codec)
    volume = brain(0)
    first = cached_features(volume, "aa", extractor, tmp_path)
    assert (cached_features(volume, "aa", extractor, tmp_path) == first).all() and codec.encoded == 1
    cached_features(brain(1), "bb", extractor, tmp_path)
    assert codec.encoded == 2
    codec.sha256 = "1" * 64
    cached_features(volume, "aa", codec_extractor(codec), tmp_path)
    assert codec.encoded == 3


def test_a_damaged_cache_file_is_computed_again(brain, codec, tmp_path):
    extractor = codec_extractor(codec)
    first = cached_features(brain(0), "aa", extractor, tmp_path)
    (path,) = tmp_path.rglob("aa.safetensors")
    path.write_bytes(path.read_bytes()[:40])
    assert (cached_features(brain(0), "aa", extractor, tmp_path) == first).all()
