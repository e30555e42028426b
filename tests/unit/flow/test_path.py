from __future__ import annotations

import torch

from neuromf.flow import interpolate


def test_ends_of_the_path_are_data_and_noise() -> None:
    z0, noise = torch.randn(2, 3, 4, 4, 4), torch.randn(2, 3, 4, 4, 4)
    assert torch.equal(interpolate(z0, noise, torch.zeros(2)), z0)
    assert torch.equal(interpolate(z0, noise, torch.ones(2)), noise)


def test_each_row_has_its_own_time() -> None:
    z_t = interpolate(torch.zeros(3, 5), torch.ones(3, 5), torch.tensor([0.1, 0.5, 0.9]))
    assert torch.allclose(z_t, torch.tensor([0.1, 0.5, 0.9])[:, None].expand(3, 5))
