import numpy as np
import pytest
import torch

from neuromf.evaluation.extractors.codec import mirror_pooled, pool_latents


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
