"""The linear codec against its definition."""

from __future__ import annotations

import pytest
import torch

from neuromf.codec import linear


def volumes(count: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(1, 16, 12, 8, generator=generator) for _ in range(count)]


def test_all_components_reproduce_the_volume() -> None:
    codec = linear.fit(volumes(), 64)
    x = volumes()[0]
    torch.testing.assert_close(codec.reconstruct(x), x, atol=1e-5, rtol=0)


def test_blocks_keep_places() -> None:
    x = torch.arange(8 * 8 * 8, dtype=torch.float32).reshape(1, 8, 8, 8)
    first = linear.blocks(x)[0].reshape(4, 4, 4)
    assert torch.equal(first, x[0, :4, :4, :4])
    assert torch.equal(linear.blocks(x)[-1].reshape(4, 4, 4), x[0, 4:, 4:, 4:])


def test_components_are_those_of_the_covariance() -> None:
    codec = linear.fit(volumes(), 4)
    x = torch.cat([linear.blocks(v) for v in volumes()]).double()
    values, vectors = torch.linalg.eigh(torch.cov(x.T, correction=0))
    overlap = (codec.components.double() @ vectors[:, -4:]).abs()
    torch.testing.assert_close(overlap.pow(2).sum(1), torch.ones(4, dtype=torch.float64), atol=1e-4, rtol=0)
    torch.testing.assert_close(codec.components @ codec.components.T, torch.eye(4), atol=1e-5, rtol=0)
    residual = torch.cat([(codec.reconstruct(v) - v).flatten() for v in volumes()]).double().pow(2).mean()
    torch.testing.assert_close(residual, values[:-4].sum() / 64, rtol=1e-3, atol=0)


def test_coefficients_have_the_latents_shape() -> None:
    assert linear.fit(volumes(), 5).encode(volumes()[0]).shape == (5, 4, 3, 2)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 4"):
        linear.blocks(torch.zeros(1, 6, 8, 8))
    with pytest.raises(ValueError, match="kept is 65"):
        linear.fit(volumes(), 65)
    with pytest.raises(ValueError, match="no volume"):
        linear.fit([], 4)
