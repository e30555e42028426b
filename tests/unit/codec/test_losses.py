"""The KL term against PyTorch's own, and the controller of its weight."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Normal
from torch.distributions import kl_divergence as reference

from neuromf.codec.losses import Adversary, KlController, kl_divergence


def test_kl_divergence() -> None:
    mean, sigma = torch.randn(3, 4, 2, 2, 2), torch.rand(3, 4, 2, 2, 2) + 0.1
    expected = reference(Normal(mean, sigma), Normal(0.0, 1.0)).sum() / 3
    torch.testing.assert_close(kl_divergence(mean, sigma), expected)


@pytest.mark.parametrize(("scale", "direction"), [(2.0, 1), (0.4, -1), (1.0, 0)])
def test_the_weight_follows_the_latents_scale(scale: float, direction: int) -> None:
    torch.manual_seed(0)
    controller = KlController(1e-6, (0.9, 1.1))
    for _ in range(50):
        controller.update(scale * torch.randn(2, 4, 8, 8, 8) + torch.arange(4).view(1, 4, 1, 1, 1))
    assert controller.std == pytest.approx(scale, rel=0.02)  # channel means do not count
    change = math.log(controller.weight / 1e-6)
    assert change == 0 if direction == 0 else change * direction > 0.1


def test_the_controller_holds_a_scale_that_the_weight_moves() -> None:
    """A toy plant: the means' scale relaxes towards (1e-6/β)^½."""
    torch.manual_seed(0)
    controller, scale = KlController(1e-7, (0.9, 1.1)), 3.0
    for _ in range(3000):
        scale += 0.05 * (math.sqrt(1e-6 / controller.weight) - scale)
        controller.update(scale * torch.randn(1, 2, 8, 8, 8))
    assert 0.88 < controller.std < 1.12


def test_a_zero_weight_stays_zero() -> None:
    controller = KlController(0.0, (0.9, 1.1))
    controller.update(5 * torch.randn(1, 4, 4, 4, 4))
    assert controller.weight == 0


def test_the_discriminator_learns_to_tell_noise_from_constants() -> None:
    torch.manual_seed(0)
    adversary = Adversary(0.1, 1e-6, torch.device("cpu"))
    real, fake = torch.rand(1, 1, 32, 32, 32), torch.full((1, 1, 32, 32, 32), 0.5)
    losses = [adversary.update(fake, real) for _ in range(6)]
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.99 * losses[0]
    reconstruction = fake.clone().requires_grad_(True)
    adversary.generator_loss(reconstruction).backward()
    assert reconstruction.grad is not None and reconstruction.grad.abs().sum() > 0
