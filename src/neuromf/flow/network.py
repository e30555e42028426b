"""The network: MONAI's MAISI UNet with two time inputs."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from monai.apps.generation.maisi.networks.diffusion_model_unet_maisi import DiffusionModelUNetMaisi
from monai.networks.blocks import SABlock, SpatialAttentionBlock
from monai.networks.nets.diffusion_model_unet import DiffusionUNetResnetBlock
from torch import Tensor, nn
from torch.autograd import forward_ad

from neuromf.config import Network
from neuromf.flow import tangent
from neuromf.flow.compiled import whole_graph
from neuromf.flow.recompute import recompute
from neuromf.flow.tangent import Pair

# Angular frequencies of the time embedding, from half a turn to one turn over [0, 1]. MONAI's own embedding expects
# t·1000, which inflates ∂u/∂t and with it the JVP and its errors.
LOWEST_FREQUENCY, HIGHEST_FREQUENCY = math.pi, 2 * math.pi
MAISI_TIMESTEPS, MAISI_LONGEST_PERIOD = 1000, 10_000  # of MONAI's `get_timestep_embedding`, as NV-Generate calls it

PASSES = ("forward", "with_tangent", "heads", "heads_with_tangent")


def maisi_options(config: Network, channels: int) -> dict[str, Any]:
    """Return the arguments of MONAI's UNet that ours and NV-Generate's have in common."""
    return {
        "spatial_dims": 3,
        "in_channels": channels,
        "out_channels": channels,
        "num_res_blocks": config.residual_blocks,
        "num_channels": config.channels,
        "attention_levels": config.attention,
        "norm_num_groups": config.norm_groups,
        "num_head_channels": [head or width for head, width in zip(config.head_channels, config.channels, strict=True)],
        "resblock_updown": True,
        "include_fc": True,
    }


class Waves(nn.Module):
    """Cosines and sines of a time at fixed frequencies: (B,) → (B, 2F). No parameters.

    Args:
        frequencies: (F,), radians per unit of scaled time.
        scale: what time is multiplied with, in the time's own precision.
    """

    frequencies: Tensor

    def __init__(self, frequencies: Tensor, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.register_buffer("frequencies", frequencies, persistent=False)

    @classmethod
    def of(cls, embedding: Literal["neuromf", "maisi"], width: int) -> Waves:
        """Return our waves of t in [0, 1], or MONAI's of 1000·t, which NV-Generate's weights expect; F = width / 2."""
        half = width // 2
        if embedding == "maisi":
            exponents = -math.log(MAISI_LONGEST_PERIOD) * torch.arange(half, dtype=torch.float32)  # (26)
            return cls(torch.exp(exponents / half), MAISI_TIMESTEPS)
        exponents = torch.linspace(0, 1, half)
        return cls(LOWEST_FREQUENCY * (HIGHEST_FREQUENCY / LOWEST_FREQUENCY) ** exponents)

    def forward(self, t: Tensor) -> Tensor:
        angles = self._angles(t)
        return torch.cat([angles.cos(), angles.sin()], dim=1)

    def with_tangent(self, t: Tensor, dt: Tensor) -> Pair:
        """Return the waves of t, (B,), and the derivative of the first ones along dt, (n,)."""
        angles, rates = self._angles(t[: len(dt)]), self._angles(dt)
        return Pair(self(t), torch.cat([-angles.sin() * rates, angles.cos() * rates], dim=1))

    def _angles(self, t: Tensor) -> Tensor:
        return (self.scale * t)[:, None] * self.frequencies


class MeanFlowUNet(DiffusionModelUNetMaisi):
    """MONAI's MAISI UNet as a function of (z, r, t); it embeds t and h = t − r.

    The parameters keep MONAI's names; ``interval_embed`` (of h) is the only addition. Class, region and spacing inputs
    are left out (`neuromf.training.nv_generate` folds them into the weights). A fresh network outputs zero.

    Args:
        config: channels, attention, residual blocks and the embedding of t; h is always embedded at our frequencies.
        in_channels: C, channels of the latent.
        v_head: give it a second output, of the instantaneous velocity, beside that of the average one (improved
            MeanFlow's auxiliary head); it is used in training only (`heads`).

    Example:
        >>> unet = MeanFlowUNet(Network(channels=(8, 16), attention=(False, True), head_channels=(0, 8), norm_groups=8))
        >>> unet(torch.randn(2, 4, 8, 8, 8), torch.zeros(2), torch.ones(2)).shape
        torch.Size([2, 4, 8, 8, 8])
    """

    def __init__(self, config: Network, in_channels: int = 4, *, v_head: bool = False) -> None:
        super().__init__(**maisi_options(config, in_channels))
        width = config.channels[0]
        self.interval_embed = self._create_embedding_module(width, 4 * width)
        self.time_waves = Waves.of(config.time_embedding, width)
        self.interval_waves = Waves.of("neuromf", width)
        self.v_out = copy.deepcopy(self.out) if v_head else None
        self._attention = [module for module in self.modules() if isinstance(module, SABlock)]

    def forward(self, z: Tensor, r: Tensor, t: Tensor) -> Tensor:  # type: ignore[override]
        """Return the output, (B, C, D, H, W); z likewise, r and t (B,) with r ≤ t.

        Raises:
            ValueError: a side of z that the network's levels do not halve evenly.
        """
        return self.out(self._trunk(z, r, t))

    def heads(self, z: Tensor, r: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the outputs of the average and of the instantaneous velocity; only with ``v_head``."""
        h = self._trunk(z, r, t)
        return self.out(h), self._v_head(h)

    def with_tangent(
        self, z: Tensor, r: Tensor, t: Tensor, dz: Tensor, dr: Tensor, dt: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the output at (z, r, t), with its graph, and its derivative along (dz, dr, dt), without one.

        The derivative is of the first n rows, where dz, dr and dt have n ≤ B of them. It equals ``torch.func.jvp`` to
        rounding in less than half its time (`neuromf.flow.tangent`).
        """
        return self._out_with_tangent(self._trunk_with_tangent(z, r, t, dz, dr, dt))

    def heads_with_tangent(
        self, z: Tensor, r: Tensor, t: Tensor, dz: Tensor, dr: Tensor, dt: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return what `heads` returns, with graph, and the derivative of the first, without one."""
        h = self._trunk_with_tangent(z, r, t, dz, dr, dt)
        output, slope = self._out_with_tangent(h)
        return output, self._v_head(h.value), slope

    def _v_head(self, h: Tensor) -> Tensor:
        if self.v_out is None:
            raise ValueError("this network has no head for the instantaneous velocity; build it with v_head=True")
        return self.v_out(h)

    def _trunk(self, z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        self._check(z)
        # fused attention has no forward-mode derivative: inside a JVP of torch.func the plain formula is used
        self._fuse_attention(forward_ad.unpack_dual(z).tangent is None)
        of_t, of_h = self.time_waves(t).to(z.dtype), self.interval_waves(t - r).to(z.dtype)
        emb = self.time_embed(of_t) + self.interval_embed(of_h)
        h = self.conv_in(z)
        h, skips = self._apply_down_blocks(h, emb, None, None)
        h = self.middle_block(h, emb, None)
        return self._apply_up_blocks(h, emb, None, skips)

    def _trunk_with_tangent(self, z: Tensor, r: Tensor, t: Tensor, dz: Tensor, dr: Tensor, dt: Tensor) -> Pair:
        self._check(z)
        self._fuse_attention(True)  # of blocks that are run again; the rules of `tangent` have their own
        with tangent.plain(z):
            of_t, of_h = self.time_waves.with_tangent(t, dt), self.interval_waves.with_tangent(t - r, dt - dr)
        emb = self._embed(self.time_embed, of_t) + self._embed(self.interval_embed, of_h)
        x = tangent.convolution(self.conv_in, Pair(z, dz))
        skips = [x]
        for block in self.down_blocks:
            x, new = tangent.down_block(block, x, emb)
            skips += new
        x = tangent.middle_block(self.middle_block, x, emb)
        for block in self.up_blocks:
            x = tangent.up_block(block, x, skips, emb)
        return x

    def _out_with_tangent(self, h: Pair) -> Pair:
        norm, _, convolution = self.out
        return tangent.convolution(convolution, tangent.silu(tangent.group_norm(norm, h)))

    def recompute_activations(self) -> None:
        """Keep the inputs of residual and attention blocks alone from now on; the backward pass runs each block again."""
        for block in self.modules():
            if isinstance(block, (DiffusionUNetResnetBlock, SpatialAttentionBlock)):
                recompute(block)

    def compile_passes(self, wrap: Callable[[Callable[..., Any]], Callable[..., Any]] = whole_graph) -> None:
        """Compile the passes, each as one whole graph.

        Parameters keep their names and may be loaded anew. A compiled network has no forward-mode derivative but
        `with_tangent`.
        """
        for name in PASSES:
            setattr(self, name, wrap(getattr(self, name)))

    @staticmethod
    def _embed(layers: nn.Sequential, waves: Pair) -> Pair:
        first, _, second = layers
        return tangent.linear(second, tangent.silu(tangent.linear(first, waves)))

    def _fuse_attention(self, fused: bool) -> None:
        for attention in self._attention:
            attention.use_flash_attention = fused

    def _check(self, z: Tensor) -> None:
        factor = 2 ** (len(self.block_out_channels) - 1)
        if any(side % factor for side in z.shape[2:]):
            raise ValueError(f"latent of shape {tuple(z.shape)}: every side must be a multiple of {factor}")
