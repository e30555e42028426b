"""Terms of the VAE's training loss: L1 + β·KL + optional adversarial term (the perceptual one: ``perceptual.py``)."""

from __future__ import annotations

import math

import torch
from monai.losses import PatchAdversarialLoss
from monai.networks.nets import PatchDiscriminator

KL_BOUNDS = (1e-10, 1e-2)  # the adapted weight stays inside: beyond, one term is all there is
KL_RATE = 0.02  # of the controller, per update: an excess of e-fold changes the weight by 2 % per update
STD_MEMORY = 0.98  # of the running moments the controller looks at: about 50 updates


def kl_divergence(mean: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Return KL(N(μ, σ²) ‖ N(0, 1)), summed over channels and space, averaged over the batch (MAISI's reduction).

    ½ Σ (μ² + σ² − log σ² − 1), for ``mean`` and ``sigma`` of shape (B, C, D, H, W).
    """
    mean, variance = mean.float(), sigma.float().pow(2)
    return 0.5 * (mean.pow(2) + variance - variance.clamp_min(1e-20).log() - 1).sum() / len(mean)


class KlController:
    """Adapts the KL weight β until the standard deviation of the posterior means lies in a target interval.

    The KL term pulls the means towards 0, so β rises while they are too wide and falls while they are too narrow, by an
    integral controller in log space: outside the interval, log β ← log β + rate · log(s/centre), with the geometric
    centre of the interval; inside, β stays. s² is the mean over channels of the running variance over batch and space.
    """

    def __init__(self, weight: float, target: tuple[float, float]) -> None:
        self.weight = weight
        self.target = target
        self.moments: tuple[float, float] | None = None  # running mean over channels of μ̄_c² and of the mean square

    @property
    def std(self) -> float:
        """Running standard deviation of the posterior means; NaN before the first update."""
        if self.moments is None:
            return math.nan
        return math.sqrt(max(self.moments[1] - self.moments[0], 0.0))

    def update(self, mean: torch.Tensor) -> None:
        """Take in the posterior means (B, C, D, H, W) of one batch and adapt the weight."""
        flat = mean.detach().float().transpose(0, 1).flatten(1)
        now = (float(flat.mean(1).pow(2).mean()), float(flat.pow(2).mean()))
        old = self.moments or now
        self.moments = (
            STD_MEMORY * old[0] + (1 - STD_MEMORY) * now[0],
            STD_MEMORY * old[1] + (1 - STD_MEMORY) * now[1],
        )
        low, high = self.target
        if self.weight > 0 and not low <= self.std <= high:
            excess = math.log(max(self.std, 1e-6) / math.sqrt(low * high))
            self.weight = min(max(self.weight * math.exp(KL_RATE * excess), KL_BOUNDS[0]), KL_BOUNDS[1])


class Adversary:
    """A patch discriminator trained beside the VAE with the least-squares loss (LSGAN), as in MAISI's recipe."""

    def __init__(self, weight: float, learning_rate: float, device: torch.device) -> None:
        self.weight = weight
        self.network = PatchDiscriminator(
            spatial_dims=3, channels=32, in_channels=1, out_channels=1, num_layers_d=3, norm="INSTANCE"
        ).to(device)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=learning_rate, weight_decay=0.0)
        self.criterion = PatchAdversarialLoss(criterion="least_squares")

    def generator_loss(self, reconstruction: torch.Tensor) -> torch.Tensor:
        """Return the weighted loss of reconstructions (B, 1, D, H, W) that want to be taken for real."""
        self.network.requires_grad_(False)
        logits = self.network(reconstruction)[-1]
        return self.weight * self.criterion(logits, target_is_real=True, for_discriminator=False)

    def update(self, reconstruction: torch.Tensor, real: torch.Tensor) -> float:
        """Train the discriminator on one batch; return its loss."""
        self.network.requires_grad_(True)
        fake_logits = self.network(reconstruction.detach())[-1]
        real_logits = self.network(real)[-1]
        loss = 0.5 * (
            self.criterion(fake_logits, target_is_real=False, for_discriminator=True)
            + self.criterion(real_logits, target_is_real=True, for_discriminator=True)
        )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.item()
