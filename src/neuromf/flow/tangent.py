"""Values and their tangents through the layers of the MAISI UNet: the JVP written out, at the price of a forward pass.

`torch.func.jvp` costs 3.5 to 4 forward passes of this network, since it derives group norm, SiLU and attention from small
steps. Here every layer has its own rule. A linear layer is applied to the tangent without its bias. Group norm, SiLU and
softmax have symmetric Jacobians (group norm up to its weights), so that their fused backward kernels, given the
tangent, return its image.

The value keeps its graph where gradients are on, so one pass gives what the loss differentiates and the tangent beside
it. The tangent has none, and is float32 whatever autocast does to the value (docs/methods.md, equation 8).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from monai.networks.blocks import Convolution
from monai.networks.nets.diffusion_model_unet import AttnDownBlock, AttnUpBlock
from torch import Tensor, nn

from neuromf.flow.recompute import Recomputed

aten = torch.ops.aten


class Pair(NamedTuple):
    """A value and its derivative along a direction, of all of its rows or of the first ones."""

    value: Tensor  # (B, …)
    tangent: Tensor  # (n, …), n ≤ B

    def __add__(self, other: Pair) -> Pair:  # type: ignore[override]
        return Pair(self.value + other.value, self.tangent + other.tangent)

    def at(self) -> Tensor:
        """Return the point of linearisation: the tangent's rows of the value, without graph, in the tangent's type."""
        return self.value.detach()[: len(self.tangent)].to(self.tangent.dtype)


@contextmanager
def plain(like: Tensor) -> Iterator[None]:
    """Compute without graph and without autocast."""
    with torch.no_grad(), torch.autocast(like.device.type, enabled=False):
        yield


def each(function: Callable[[Tensor], Tensor], x: Pair) -> Pair:
    """Apply a linear function without parameters to both."""
    with plain(x.tangent):
        tangent = function(x.tangent)
    return Pair(function(x.value), tangent)


def linear(layer: Any, x: Pair) -> Pair:
    """Apply an ``nn.Linear``."""
    with plain(x.tangent):
        tangent = F.linear(x.tangent, layer.weight)
    return Pair(layer(x.value), tangent)


def convolution(layer: Any, x: Pair) -> Pair:
    """Apply an ``nn.Conv3d``, or MONAI's block of one."""
    conv: Any = layer.conv if isinstance(layer, Convolution) else layer
    with plain(x.tangent):
        tangent = conv._conv_forward(x.tangent, conv.weight, None)
    return Pair(layer(x.value), tangent)


def silu(x: Pair) -> Pair:
    """SiLU: dy = silu′(x) dx."""
    with plain(x.tangent):
        tangent = aten.silu_backward(x.tangent, x.at())
    return Pair(F.silu(x.value), tangent)


def group_norm(layer: Any, x: Pair) -> Pair:
    """Group norm: dy = γ/σ (dx − mean(dx) − x̂ mean(x̂ dx)), means over the group; the value's own mean and 1/σ serve both."""
    (rows, c), n, groups = x.value.shape[:2], len(x.tangent), layer.num_groups
    voxels = x.value[0, 0].numel()
    x = Pair(_normed_type(x.value).contiguous(), x.tangent)
    value, mean, rstd = aten.native_group_norm(x.value, layer.weight, layer.bias, rows, c, voxels, groups, layer.eps)
    with plain(x.tangent):
        statistics = (s.detach()[:n].to(x.tangent.dtype) for s in (mean, rstd))
        tangent, _, _ = aten.native_group_norm_backward(
            x.tangent.contiguous(), x.at(), *statistics, None, n, c, voxels, groups, [True, False, False]
        )
        tangent.mul_(layer.weight.reshape(-1, *[1] * (x.value.ndim - 2)))
    return Pair(value, tangent)


def _normed_type(value: Tensor) -> Tensor:
    """Return a value as autocast hands it to ``nn.GroupNorm``: in float32 on a GPU, as it is on a CPU."""
    return value.float() if value.is_cuda and torch.is_autocast_enabled("cuda") else value


def attention(block: Any, x: Pair) -> Pair:
    """``SABlock``: with P = softmax(s QKᵀ), dP = P ∘ (dS − rowsum(P ∘ dS)) and dO = dP V + P dV."""
    q, k, v = (linear(to, x) for to in (block.to_q, block.to_k, block.to_v))
    with plain(x.tangent):
        (q0, q1), (k0, k1), (v0, v1) = (map(block.input_rearrange, (p.at(), p.tangent)) for p in (q, k, v))
        probability = (block.scale * q0 @ k0.mT).softmax(-1)
        scores = block.scale * (q1 @ k0.mT + q0 @ k1.mT)
        moved = aten._softmax_backward_data(scores, probability, -1, probability.dtype)
        tangent = block.out_rearrange(moved @ v0 + probability @ v1)
    query, key, values = (block.input_rearrange(p.value) for p in (q, k, v))
    value = F.scaled_dot_product_attention(query, key, values, scale=block.scale)
    return linear(block.out_proj, Pair(block.out_rearrange(value), tangent))


def recomputable(rule: Callable[..., Pair]) -> Callable[..., Pair]:
    """Let the rule of a whole block keep no activations where the block's own forward pass keeps none."""

    @wraps(rule)
    def applied(block: Any, *inputs: Pair) -> Pair:
        if not isinstance(block.forward, Recomputed):
            return rule(block, *inputs)
        values, tangents = zip(*inputs, strict=True)
        return Pair(*block.forward.with_tangent(lambda *both: rule(block, *map(Pair, *both)), values, tangents))

    return applied


@recomputable
def attention_block(block: Any, x: Pair) -> Pair:
    """``SpatialAttentionBlock``: self-attention over all voxels of (B, C, D, H, W), added to its input."""
    space = x.value.shape[1:]
    tokens = each(lambda y: y.flatten(2).mT, group_norm(block.norm, x))
    return x + each(lambda y: y.mT.reshape(len(y), *space), attention(block.attn, tokens))


@recomputable
def residual_block(block: Any, x: Pair, emb: Pair) -> Pair:
    """``DiffusionUNetResnetBlock``: the residual block with its time embedding, and its up- or downsampling."""
    h = silu(group_norm(block.norm1, x))
    if resample := block.upsample or block.downsample:
        x, h = each(resample, x), each(resample, h)
    h = convolution(block.conv1, h)
    h = h + each(lambda y: y[..., None, None, None], linear(block.time_emb_proj, silu(emb)))
    h = convolution(block.conv2, silu(group_norm(block.norm2, h)))
    return h + (x if isinstance(block.skip_connection, nn.Identity) else convolution(block.skip_connection, x))


def down_block(block: Any, h: Pair, emb: Pair) -> tuple[Pair, list[Pair]]:
    """``DownBlock`` or ``AttnDownBlock``: return its output and what it hands to the way up."""
    skips = []
    for place, resnet in enumerate(block.resnets):
        h = residual_block(resnet, h, emb)
        if isinstance(block, AttnDownBlock):
            h = attention_block(block.attentions[place], h)
        skips.append(h)
    if block.downsampler is not None:
        h = residual_block(block.downsampler, h, emb)
        skips.append(h)
    return h, skips


def middle_block(block: Any, h: Pair, emb: Pair) -> Pair:
    """``AttnMidBlock``: residual block, attention, residual block."""
    h = attention_block(block.attention, residual_block(block.resnet_1, h, emb))
    return residual_block(block.resnet_2, h, emb)


def up_block(block: Any, h: Pair, skips: list[Pair], emb: Pair) -> Pair:
    """``UpBlock`` or ``AttnUpBlock``; takes its share of ``skips`` from the end."""
    for place, resnet in enumerate(block.resnets):
        skip = skips.pop()
        with plain(h.tangent):
            tangent = torch.cat([h.tangent, skip.tangent], dim=1)
        h = residual_block(resnet, Pair(torch.cat([h.value, skip.value], dim=1), tangent), emb)
        if isinstance(block, AttnUpBlock):
            h = attention_block(block.attentions[place], h)
    return h if block.upsampler is None else residual_block(block.upsampler, h, emb)
