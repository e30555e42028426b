"""Starting a VAE as a linear codec, so that training begins where the principal components end.

From random weights a small VAE needs thousands of updates to reach the linear codec of its own rate. But the network
contains linear codecs: with every residual branch silent (its last convolution zero), what is left are convolutions,
trilinear upsampling and two group norms. So

- the encoder's two strided convolutions are set to the polyphase split of 2³ voxels and to the leading principal
  components of the resulting 4³ blocks;
- the decoder's two upsampling convolutions are fitted by least squares, one after the other, to the scans themselves:
  the first predicts the 2³ voxels behind each of its own, the second the image;
- a group norm is made transparent: a signal stands in its group with its own negative and with constants ±B, so that
  the group's mean is 0 and its standard deviation is that of the constants, whatever the signal does.

All other channels keep their random weights, as features for the residual branches to learn from.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.apps.generation.maisi.networks.autoencoderkl_maisi import (
    AutoencoderKlMaisi,
    MaisiDownsample,
    MaisiResBlock,
    MaisiUpsample,
)
from torch import Tensor, nn
from torch.nn import functional as F

from neuromf.codec import linear
from neuromf.config import Codec

CONSTANT = 10.0  # B: signals have a standard deviation of at most about 1, so a group's varies by 1 %
RIDGE = (
    1e-5  # of a regressor's power: keeps the fitted weights from cancelling each other, which bf16 would not survive
)


def check_linear_start(codec: Codec) -> None:
    """Refuse an architecture that cannot be started as a linear codec.

    Raises:
        ValueError: says what the linear start needs.
    """
    c = codec.channels
    if (
        len(c) != 3
        or not 8 <= c[0] < c[1] < c[2]
        or min(c[0], c[2]) < 4 * codec.norm_groups
        or codec.latent_channels > c[1]
    ):
        raise ValueError(
            "codec_training.start is `linear`, which needs three growing levels of at least 8 channels and 4 channels"
            f" per norm group, not channels {c} in {codec.norm_groups} groups; change them or set start: random"
        )


@torch.no_grad()
def start_encoder(network: AutoencoderKlMaisi, crops: Tensor) -> None:
    """Make the posterior mean of ``crops`` (N, 1, d, h, w) the leading principal components of their 4³ blocks."""
    _silence(network)
    blocks = list(network.encoder.get_submodule("blocks").children())
    kept = network.latent_channels
    codec = linear.fit(crops.unbind(0), kept)
    deviation = torch.stack([codec.encode(crop).flatten(1) for crop in crops], 1).flatten(1).std(1).clamp_min(1e-6)
    components = codec.components / deviation[:, None]
    first, second = (_conv(block.conv) for block in blocks if isinstance(block, MaisiDownsample))
    _set(_conv(blocks[0]), 0, _tap(1, 0, (1, 1, 1)))
    for channel, (a, b, c) in enumerate(_CORNERS):
        _set(first, channel, _tap(first.in_channels, 0, (a, b, c)))
    cubes = components.reshape(
        kept, 2, 2, 2, 2, 2, 2
    )  # component, then (half of the block, voxel of the half) per axis
    for channel in range(kept):
        weight = torch.zeros(second.in_channels, 3, 3, 3)
        for source, (a, b, c) in enumerate(_CORNERS):
            weight[source, :2, :2, :2] = cubes[channel, :, a, :, b, :, c]
        _set(second, channel, weight, -float(components[channel] @ codec.mean))
    places = _make_transparent(blocks, kept)
    out = _conv(blocks[-1])
    for channel, place in enumerate(places):
        _set(out, channel, _tap(out.in_channels, place, (1, 1, 1)))
    for name in ("quant_conv_mu", "post_quant_conv"):
        conv = _conv(network.get_submodule(name), "conv")
        for channel in range(kept):
            _set(conv, channel, _tap(kept, channel, (0, 0, 0), side=1))


@torch.no_grad()
def start_decoder(network: AutoencoderKlMaisi, crops: Tensor, latents: Tensor) -> None:
    """Fit the decoder's linear path: from ``latents`` (N, C, d/4, h/4, w/4) to ``crops`` (N, 1, d, h, w)."""
    blocks = list(network.decoder.get_submodule("blocks").children())
    kept = network.latent_channels
    entry = _conv(blocks[0])
    shifts = _NEIGHBOURS if len(_NEIGHBOURS) * kept <= entry.out_channels else _NEIGHBOURS[:1]
    for number, shift in enumerate(shifts):
        for channel in range(kept):
            _set(entry, number * kept + channel, _tap(kept, channel, shift))
    x = network.post_quant_conv(latents)
    features = len(shifts) * kept
    targets = [_polyphase(crops), crops]
    place = _make_transparent(blocks, 1)[0]
    for block in blocks[:-2]:
        if isinstance(block, MaisiUpsample):
            wanted = targets.pop(0)
            weight, bias = _least_squares(F.interpolate(x[:, :features], scale_factor=2.0, mode="trilinear"), wanted)
            conv = _conv(block.conv)
            for channel in range(wanted.shape[1]):
                full = torch.zeros(conv.in_channels, 3, 3, 3)
                full[:features] = weight[channel]
                _set(conv, channel, full, float(bias[channel]))
            features = wanted.shape[1]
        x = torch.cat([block(one) for one in x.split(1)])
    out = _conv(blocks[-1])
    _set(out, 0, _tap(out.in_channels, place, (1, 1, 1)))


_CORNERS = [(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)]
_NEIGHBOURS = [(1, 1, 1), (0, 1, 1), (2, 1, 1), (1, 0, 1), (1, 2, 1), (1, 1, 0), (1, 1, 2)]  # the centre first


def _silence(network: nn.Module) -> None:
    """Zero every residual branch; shortcuts between levels pass their first channels on."""
    for block in network.modules():
        if isinstance(block, MaisiResBlock):
            conv = _conv(block.conv2)
            for row in range(conv.out_channels):
                _set(conv, row, torch.zeros_like(conv.weight[row]))
            if not isinstance(block.nin_shortcut, nn.Identity):
                shortcut = _conv(block.nin_shortcut)
                for channel in range(min(shortcut.in_channels, shortcut.out_channels)):
                    _set(shortcut, channel, _tap(shortcut.in_channels, channel, (0, 0, 0), side=1))


def _make_transparent(blocks: Sequence[nn.Module], signals: int) -> list[int]:
    """Let ``signals`` channels pass the last shortcut and final group norm unchanged; return where they come out."""
    residuals = [block for block in blocks if isinstance(block, MaisiResBlock)]
    last = max(i for i, block in enumerate(residuals) if not isinstance(block.nin_shortcut, nn.Identity))
    shortcut = _conv(residuals[last].nin_shortcut)
    norm = blocks[-2]
    assert isinstance(norm, nn.GroupNorm)
    size = norm.num_channels // norm.num_groups
    per_group = size // 4
    places: list[int] = []
    for group in range(-(-signals // per_group)):
        start = group * size
        for offset in range(size):
            channel, source = start + offset, group * per_group + offset % per_group
            weight, bias = torch.zeros(shortcut.in_channels, 1, 1, 1), 0.0
            if offset < 2 * per_group:
                weight[source] = 1.0 if offset < per_group else -1.0
            else:
                bias = CONSTANT if offset % 2 == 0 else -CONSTANT
            _set(shortcut, channel, weight, bias)
        places += [start + offset for offset in range(per_group)]
        deviation = CONSTANT * ((size - 2 * per_group) / size) ** 0.5
        for gain in [norm, *(block.norm1 for block in residuals[last + 1 :])]:
            gain.weight[start : start + 2 * per_group] = deviation
    return places[:signals]


def _least_squares(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the 3³ convolution (M, C, 3, 3, 3) and bias (M,) that best predict y (N, M, …) from x (N, C, …)."""
    channels, outputs = x.shape[1], y.shape[1]
    regressors = channels * 27 + 1
    moment = torch.zeros(regressors, regressors, dtype=torch.float64)
    product = torch.zeros(regressors, outputs, dtype=torch.float64)
    for one, wanted in zip(x, y, strict=True):
        windows = F.pad(one, (1,) * 6).unfold(1, 3, 1).unfold(2, 3, 1).unfold(3, 3, 1)
        rows = windows.permute(1, 2, 3, 0, 4, 5, 6).reshape(-1, channels * 27)
        rows = torch.cat([rows, torch.ones(len(rows), 1)], 1)
        moment += rows.T @ rows
        product += rows.T @ wanted.flatten(1).T
    ridge = RIDGE * moment.diagonal().clamp_min(1e-9 * float(moment[-1, -1]))
    solution = torch.linalg.solve(moment + torch.diag(ridge), product).float()
    return solution[:-1].T.reshape(outputs, channels, 3, 3, 3), solution[-1]


def _polyphase(x: Tensor) -> Tensor:
    """Return the 2³ voxels behind each voxel of the half-sized grid: (N, 1, 2d, 2h, 2w) → (N, 8, d, h, w)."""
    return torch.cat([x[:, :, a::2, b::2, c::2] for a, b, c in _CORNERS], 1)


def _tap(channels: int, channel: int, place: tuple[int, int, int], side: int = 3) -> Tensor:
    """Return convolution weights (channels, side³) that pick one input channel at one place of the window."""
    weight = torch.zeros(channels, side, side, side)
    weight[(channel, *place)] = 1.0
    return weight


def _set(conv: nn.Conv3d, row: int, weight: Tensor, bias: float = 0.0) -> None:
    assert conv.bias is not None
    conv.weight[row] = weight.to(conv.weight)
    conv.bias[row] = bias


def _conv(module: nn.Module, path: str = "conv.conv") -> nn.Conv3d:
    """Return the plain convolution inside MONAI's wrappers."""
    conv = module.get_submodule(path)
    assert isinstance(conv, nn.Conv3d)
    return conv
