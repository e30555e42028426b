"""The network: MONAI's MAISI UNet with two time inputs."""

from __future__ import annotations

import math

import torch
from monai.apps.generation.maisi.networks.diffusion_model_unet_maisi import DiffusionModelUNetMaisi
from monai.networks.blocks import SABlock
from torch import Tensor
from torch.autograd import forward_ad

from neuromf.config import Network

# Angular frequencies of the time embedding, from half a turn to eight turns over [0, 1]. MONAI's own embedding expects
# t·1000, which inflates ∂u/∂t and with it the JVP and its errors.
LOWEST_FREQUENCY, HIGHEST_FREQUENCY = math.pi, 16 * math.pi


class MeanFlowUNet(DiffusionModelUNetMaisi):
    """MONAI's MAISI UNet as a function of (z, r, t); it embeds t and h = t − r.

    The parameters keep MONAI's names; ``interval_embed`` (of h) is the only addition. Class, region and spacing inputs
    are left out. A fresh network outputs zero.

    Args:
        config: channels, attention and residual blocks.
        in_channels: C, channels of the latent.

    Example:
        >>> unet = MeanFlowUNet(Network(channels=(8, 16), attention=(False, True), head_channels=(0, 8), norm_groups=8))
        >>> unet(torch.randn(2, 4, 8, 8, 8), torch.zeros(2), torch.ones(2)).shape
        torch.Size([2, 4, 8, 8, 8])
    """

    frequencies: Tensor

    def __init__(self, config: Network, in_channels: int = 4) -> None:
        super().__init__(
            spatial_dims=3,
            in_channels=in_channels,
            out_channels=in_channels,
            num_res_blocks=config.residual_blocks,
            num_channels=config.channels,
            attention_levels=config.attention,
            norm_num_groups=config.norm_groups,
            num_head_channels=[
                head or width for head, width in zip(config.head_channels, config.channels, strict=True)
            ],
            resblock_updown=True,
            include_fc=True,
        )
        width = config.channels[0]
        self.interval_embed = self._create_embedding_module(width, 4 * width)
        exponents = torch.linspace(0, 1, width // 2)
        frequencies = LOWEST_FREQUENCY * (HIGHEST_FREQUENCY / LOWEST_FREQUENCY) ** exponents
        self.register_buffer("frequencies", frequencies, persistent=False)
        self._attention = [module for module in self.modules() if isinstance(module, SABlock)]

    def forward(self, z: Tensor, r: Tensor, t: Tensor) -> Tensor:  # type: ignore[override]
        """Return the output, (B, C, D, H, W); z likewise, r and t (B,) with r ≤ t.

        Raises:
            ValueError: a side of z that the network's levels do not halve evenly.
        """
        factor = 2 ** (len(self.block_out_channels) - 1)
        if any(side % factor for side in z.shape[2:]):
            raise ValueError(f"latent of shape {tuple(z.shape)}: every side must be a multiple of {factor}")
        # fused attention has no forward-mode derivative: inside a JVP the plain formula is used
        fused = forward_ad.unpack_dual(z).tangent is None
        for attention in self._attention:
            attention.use_flash_attention = fused
        emb = self.time_embed(self._waves(t, z)) + self.interval_embed(self._waves(t - r, z))
        h = self.conv_in(z)
        h, skips = self._apply_down_blocks(h, emb, None, None)
        h = self.middle_block(h, emb, None)
        h = self._apply_up_blocks(h, emb, None, skips)
        return self.out(h)

    def _waves(self, t: Tensor, like: Tensor) -> Tensor:
        angles = t[:, None] * self.frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=1).to(like.dtype)
