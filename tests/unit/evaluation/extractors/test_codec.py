import pytest
import torch

from neuromf.evaluation.extractors.codec import pool_latents


def test_pooling_gives_means_then_standard_deviations_of_octants():
    z = torch.randn(2, 3, 8, 8, 8, dtype=torch.float64)
    pooled = pool_latents(z).reshape(2, 2, 3, 2, 2, 2)
    octant = z[1, 2, 4:, :4, 4:]
    assert pooled[1, 0, 2, 1, 0, 1] == pytest.approx(octant.mean().item())
    assert pooled[1, 1, 2, 1, 0, 1] == pytest.approx(octant.std(correction=0).item())
