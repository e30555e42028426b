"""The frozen VAE: MONAI's MAISI autoencoder, its published and our own weights, encoding and decoding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi, MaisiGroupNorm3D
from monai.inferers import SlidingWindowInferer
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file

from neuromf.codec.weights import CodecError, weights_path
from neuromf.config import Codec
from neuromf.published import PublishedError, count, misfit, plain_state, read_published
from neuromf.tables import TableError, file_sha256, read_json

ARCHITECTURE = ("channels", "residual_blocks", "norm_groups", "latent_channels")
PUBLISHED_PARAMETERS = 20_944_897  # of the defaults of `Codec`, in 130 tensors: counted on MONAI's own network
PUBLISHED_TENSORS = 130
DOWNSAMPLING = 4  # voxels of a volume's side per latent voxel: two halvings

# Where a wrapped checkpoint keeps its state dict, in the order they are looked for.
_WRAPPERS = ("unet_state_dict", "autoencoder_state_dict", "state_dict", "model_state_dict", "model", "autoencoder")


def build(settings: Codec) -> AutoencoderKlMaisi:
    """Return MONAI's MAISI autoencoder with random weights: 1 channel in and out, two halvings, no attention.

    Its group norms are replaced by PyTorch's own: the same function and parameter names, without the published
    class's loop over groups, which exists to save memory and doubles the time of a training step on a CPU.

    Raises:
        ValueError: channels that are no multiple of ``norm_groups`` or one list longer than the other.
    """
    network = AutoencoderKlMaisi(
        spatial_dims=3,
        in_channels=1,
        out_channels=1,
        num_res_blocks=settings.residual_blocks,
        num_channels=settings.channels,
        attention_levels=(False,) * len(settings.channels),
        latent_channels=settings.latent_channels,
        norm_num_groups=settings.norm_groups,
        norm_eps=1e-6,
        with_encoder_nonlocal_attn=False,
        with_decoder_nonlocal_attn=False,
        include_fc=False,
        use_combined_linear=False,
        use_flash_attention=False,
        use_checkpointing=False,
        use_convtranspose=False,
        num_splits=1,  # the published settings split convolutions, store norms as fp16 and empty the CUDA cache
        dim_split=1,  # after every operation to fit 512³ into memory; at our sizes they only cost time and digits
        norm_float16=False,
        print_info=False,
        save_mem=False,
    )
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, MaisiGroupNorm3D):
                setattr(module, name, torch.nn.GroupNorm(child.num_groups, child.num_channels, eps=child.eps))
    return network


@dataclass(frozen=True)
class FrozenCodec:
    """A VAE with fixed weights between volumes in [0, 1] and latents four times smaller along each axis.

    Samples pass one at a time, so that a result does not depend on what else is in the batch. Encoding is always of
    the whole volume: the group norms' statistics are then those of training's whole volumes.
    """

    network: AutoencoderKlMaisi
    settings: Codec
    sha256: str  # of the weights file
    device: torch.device

    def latent_shape(self, volume: Sequence[int]) -> tuple[int, int, int, int]:
        """Return the shape (C, D/4, H/4, W/4) of the latent of a volume (D, H, W)."""
        depth, height, width = (side // DOWNSAMPLING for side in volume)
        return self.settings.latent_channels, depth, height, width

    @torch.no_grad()
    def encode(self, volumes: torch.Tensor) -> torch.Tensor:
        """Return the posterior mean (B, C, D/4, H/4, W/4) of volumes (B, 1, D, H, W) in [0, 1]; never a random draw.

        Raises:
            ValueError: another shape, or a side that is no multiple of 4.
        """
        if volumes.ndim != 5 or volumes.shape[1] != 1 or any(n % DOWNSAMPLING for n in volumes.shape[2:]):
            raise ValueError(f"volumes of shape {tuple(volumes.shape)}; expected (B, 1, D, H, W), sides multiples of 4")
        means = [self.network.encode(one.float().to(self.device))[0] for one in volumes.split(1)]
        return torch.cat(means).to(volumes.device)

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Return volumes (B, 1, 4D, 4H, 4W) of latents (B, C, D, H, W).

        A volume with a side longer than ``settings.window_voxels`` is decoded by a Gaussian-weighted sliding window.

        Raises:
            ValueError: another shape or number of channels.
        """
        if latents.ndim != 5 or latents.shape[1] != self.settings.latent_channels:
            expected = f"(B, {self.settings.latent_channels}, D, H, W)"
            raise ValueError(f"latents of shape {tuple(latents.shape)}; expected {expected}")
        window = self.settings.window_voxels // DOWNSAMPLING
        decode: Callable[[torch.Tensor], Any] = self.network.decode
        if max(latents.shape[2:]) > window:
            roi = [min(window, n) for n in latents.shape[2:]]
            slide = SlidingWindowInferer(roi, sw_batch_size=1, overlap=0.25, mode="gaussian", sigma_scale=0.25)
            decode = partial(slide, network=self.network.decode)
        return torch.cat([decode(one.float().to(self.device)) for one in latents.split(1)]).to(latents.device)


def load_codec(
    settings: Codec,
    *,
    weights_dir: str | Path | None = None,
    trained: Path | None = None,
    device: str | torch.device = "cpu",
) -> FrozenCodec:
    """Return the codec of ``settings.weights`` with gradients off.

    Args:
        settings: ``weights`` is a published .pt, one of our .safetensors or its folder, `demo` or `trained`; a relative
            path is looked for in the working folder and then in ``weights_dir``. Where a codec.json lies beside the
            weights its architecture wins over the defaults; one set to something else is refused.
        weights_dir: folder of published weights; None: the environment's NEUROMF_WEIGHTS.
        trained: folder that the rule train_codec wrote (for `trained`).
        device: where the network runs.

    Raises:
        CodecError: no weights named or found, a hash, key, shape or count that differs, or an unreadable file.
    """
    path = weights_path(settings, weights_dir=weights_dir, trained=trained)
    sha256 = file_sha256(path)
    if settings.sha256 is not None and sha256 != settings.sha256:
        raise CodecError(
            f"{path}: sha256 is {sha256}, codec.sha256 asks for {settings.sha256}; fetch the file again or correct it"
        )
    about = path.with_name("codec.json")
    if path.suffix == ".safetensors" and about.is_file():
        settings = _adopt_architecture(settings, about, sha256)
    state = read_state(path)
    with torch.device("meta"):  # takes no memory, whatever architecture a damaged codec.json claims
        check_weights(build(settings), state, path)
    network = build(settings)
    network.load_state_dict(state)
    device = torch.device(device)
    return FrozenCodec(network.to(device).eval().requires_grad_(False), settings, sha256, device)


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """Return the state dict in a .safetensors or .pt file: bare, wrapped ({epoch, unet_state_dict, …}) or from DDP.

    Raises:
        CodecError: an unreadable file, a .pt that holds other classes than the allow-list, or no state dict inside.
    """
    try:
        content: Mapping[str, Any] = load_file(path) if path.suffix == ".safetensors" else read_published(path)
    except (SafetensorError, OSError) as error:
        raise CodecError(f"{path} cannot be read as weights: {error}; fetch the file again") from None
    except PublishedError as error:
        raise CodecError(str(error)) from None
    state = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), content)
    if not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise CodecError(f"{path}: no state dict found; top-level keys: {', '.join(map(str, list(content)[:8]))}")
    return plain_state(state)


def check_weights(network: torch.nn.Module, state: Mapping[str, torch.Tensor], path: Path) -> None:
    """Refuse a state dict that is not the network's: every key and shape must agree.

    Raises:
        CodecError: names the first keys that are missing, unexpected or of another shape, and the counts.
    """
    expected = network.state_dict()
    if found := misfit(state, expected):
        raise CodecError(
            f"{path} does not fit the codec's architecture ({count(state)}, expected {count(expected)}): {found}."
            " Correct codec.channels, residual_blocks, norm_groups and latent_channels, or the file"
        )
    if not all(bool(torch.isfinite(value).all()) for value in state.values()):
        raise CodecError(f"{path} holds NaN or infinite weights; fetch the file again")


def architecture(settings: Codec) -> dict[str, Any]:
    """Return the settings that decide which weights fit, as codec.json keeps them."""
    return {key: settings.model_dump(mode="json")[key] for key in ARCHITECTURE}


def _adopt_architecture(settings: Codec, about: Path, sha256: str) -> Codec:
    """Return the settings with codec.json's architecture; a setting that is neither its nor the default is refused."""
    try:
        content = read_json(about, "architecture", "sha256")
        absent = [key for key in ARCHITECTURE if key not in content["architecture"]]
        if absent:
            raise TableError(f"{about}: architecture has no {', '.join(absent)}")
    except (TableError, TypeError) as error:
        raise CodecError(
            f"{error}; restore the codec.json of these weights, or remove it and set the architecture"
        ) from None
    if content["sha256"] != sha256:
        raise CodecError(
            f"{about} describes weights with sha256 {content['sha256']}, but the file beside it has {sha256}"
        )
    stored, asked, default = content["architecture"], architecture(settings), architecture(Codec())
    for key in ARCHITECTURE:
        if asked[key] != stored[key] and asked[key] != default[key]:
            raise CodecError(f"codec.{key} is {asked[key]}, but {about} says {stored[key]}; remove the setting")
    try:
        return Codec.model_validate(settings.model_dump() | stored)
    except ValidationError as error:
        raise CodecError(f"{about}: no architecture of a codec ({error.errors()[0]['msg']}); restore it") from None
