"""NV-Generate's MR UNet as a warm start: its published checkpoint, turned into the weights of a `MeanFlowUNet`.

The source S is MONAI's ``DiffusionModelUNetMaisi`` with a class and a spacing input. On x_t = (1 − t) x0 + t ε it was
trained to give x0 − ε at timestep 1000 t, so the velocity of docs/design.md §4 is −S. For one class c and one spacing s
the conversion is exact, ṽ(z, t) = −S(z, 1000 t, c, s) for every z and t (docs/methods.md, equations 25 to 28):

- sign: the output convolution is negated, weight and bias.
- time: `Waves.of("maisi")` are the features of 1000 t that S's time embedding was trained on.
- class: S adds row c of its class embedding to the time embedding: here it is added to the last bias.
- spacing: S concatenates an embedding e_s to the time embedding e_t, and every residual block projects both,
  W [silu(e_t); silu(e_s)] + b = W_t silu(e_t) + (W_s silu(e_s) + b): the bracket is the new bias.
- h: what embeds it is new; its last layer starts at zero, so that u(z, r, t) = ṽ(z, t) for every r at the start.

S lives on latents multiplied with its ``scale_factor``: the run has to normalise with mean 0 and standard deviation
1 / scale_factor (``train.normalise: warm_start``).

Source of the layout, of the factor 100 on the spacing and of the classes: the training script and the configurations of
NVIDIA's NV-Generate-CTMR, variant rflow-mr-brain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from monai.apps.generation.maisi.networks.diffusion_model_unet_maisi import DiffusionModelUNetMaisi
from torch import Tensor

from neuromf.config import Network
from neuromf.flow import MeanFlowUNet
from neuromf.flow.network import MAISI_TIMESTEPS, maisi_options
from neuromf.published import PublishedError, count, misfit, plain_state, read_published
from neuromf.training.checkpoint import CheckpointError, with_heads

CLASSES = 128
T1W_SKULL_STRIPPED = 29  # its class of skull-stripped T1-weighted brains
SPACING_SCALE = 100.0  # the spacing input is the voxel size in mm times this
REQUIRED = ("num_train_timesteps", "scale_factor", "unet_state_dict")
LAYOUT = "{epoch, loss, num_train_timesteps, scale_factor, unet_state_dict}"


@dataclass(frozen=True)
class PublishedUNet:
    """What the published file holds.

    Attributes:
        weights: of `source_network`, by name.
        scale_factor: what latents are multiplied with before the network sees them.
    """

    weights: dict[str, Tensor]
    scale_factor: float


def source_network(config: Network, channels: int) -> DiffusionModelUNetMaisi:
    """Return NV-Generate's UNet of these sizes with random weights; ``channels`` are those of the latent."""
    return DiffusionModelUNetMaisi(
        **maisi_options(config, channels), num_class_embeds=CLASSES, include_spacing_input=True
    )


def read_unet(path: Path, config: Network, channels: int = 4) -> PublishedUNet:
    """Return the content of a published checkpoint; every key and shape must agree with `source_network`.

    Raises:
        CheckpointError: no file, an unreadable one, other classes than the allow-list inside, another layout, a time
            scale other than 1000, weights of another architecture or not finite.
    """
    if not path.is_file():
        raise CheckpointError(f"train.warm_start: {path} does not exist; give the path of NV-Generate's MR UNet (.pt)")
    try:
        content = read_published(path)
    except PublishedError as error:
        raise CheckpointError(str(error)) from None
    if absent := [key for key in REQUIRED if key not in content]:
        found = ", ".join(map(str, list(content)[:5])) or "nothing"
        raise CheckpointError(f"{path}: no {', '.join(absent)}; expected NV-Generate's layout {LAYOUT}, found {found}")
    if content["num_train_timesteps"] != MAISI_TIMESTEPS:
        raise CheckpointError(
            f"{path}: num_train_timesteps is {content['num_train_timesteps']}, its time embedding is known for"
            f" {MAISI_TIMESTEPS} only"
        )
    scale_factor = _scalar(content["scale_factor"])
    if not (math.isfinite(scale_factor) and scale_factor > 0):
        raise CheckpointError(f"{path}: scale_factor is {content['scale_factor']!r}, expected one positive number")
    state = content["unet_state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path}: unet_state_dict is no state dict; fetch the file again")
    return PublishedUNet(_checked(plain_state(state), config, channels, path), scale_factor)


def convert(weights: dict[str, Tensor], spacing_mm: float, label: int = T1W_SKULL_STRIPPED) -> dict[str, Tensor]:
    """Return the weights of a `MeanFlowUNet`, ``interval_embed`` excepted, whose velocity is that of the source.

    Args:
        weights: of `source_network`.
        spacing_mm: isotropic voxel size of the volumes behind the latents.
        label: class, 0 to 127.
    """
    kept = {name: w for name, w in weights.items() if not name.startswith(("class_embedding.", "spacing_layer."))}
    for name in ("out.2.conv.weight", "out.2.conv.bias"):
        kept[name] = -weights[name]  # (25)
    kept["time_embed.2.bias"] = weights["time_embed.2.bias"] + weights["class_embedding.weight"][label]  # (27)
    of_spacing = F.silu(_spacing_embedding(weights, spacing_mm))
    for block in [name.removesuffix(".weight") for name in weights if name.endswith(".time_emb_proj.weight")]:
        time_part, spacing_part = weights[f"{block}.weight"].chunk(2, dim=1)
        bias = weights[f"{block}.bias"]
        kept[f"{block}.weight"] = time_part
        kept[f"{block}.bias"] = (spacing_part.double() @ of_spacing + bias.double()).to(bias.dtype)  # (28)
    return kept


def load_into(network: MeanFlowUNet, unet: PublishedUNet, spacing_mm: float) -> None:
    """Give a network the source's velocity at r = t, and at first the same at every r."""
    interval = {n: w for n, w in network.state_dict().items() if n.startswith("interval_embed.")}
    silent = {n: torch.zeros_like(w) for n, w in interval.items() if n.startswith("interval_embed.2.")}
    converted = with_heads(convert(unet.weights, spacing_mm), network.v_out is not None)
    network.load_state_dict(converted | interval | silent)


def _spacing_embedding(weights: dict[str, Tensor], spacing_mm: float) -> Tensor:
    """Return the source's embedding of an isotropic voxel size, (4 · channels[0],) float64."""
    first, second = (
        [weights[f"spacing_layer.{layer}.{part}"].double() for part in ("weight", "bias")] for layer in (0, 2)
    )
    spacing = torch.full((3,), SPACING_SCALE * spacing_mm, dtype=torch.float64, device=first[0].device)
    return F.linear(F.silu(F.linear(spacing, *first)), *second)


def _scalar(value: object) -> float:
    """Return a number or a tensor of one element as a float; anything else is NaN."""
    if isinstance(value, Tensor) and value.numel() == 1:
        return float(value.as_subclass(Tensor))
    return float(value) if isinstance(value, int | float) else math.nan


def _checked(state: dict[str, Tensor], config: Network, channels: int, path: Path) -> dict[str, Tensor]:
    with torch.device("meta"):
        expected = source_network(config, channels).state_dict()
    if problem := misfit(state, expected):
        raise CheckpointError(
            f"{path} does not fit ({count(state)}, expected {count(expected)}): {problem}. Correct the `network` and"
            " `codec.latent_channels` settings, or the file"
        )
    if not all(bool(torch.isfinite(value).all()) for value in state.values()):
        raise CheckpointError(f"{path} holds NaN or infinite weights; fetch the file again")
    return state
