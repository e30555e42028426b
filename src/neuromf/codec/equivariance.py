"""Which flips and rotations commute with a codec, so that training may apply them to latents instead of scans."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from neuromf.codec.maisi import FrozenCodec
from neuromf.codec.validate import bounding_box

# On batches (B, C, D, H, W) in RAS: volumes and latents alike
OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "flip_left_right": partial(torch.flip, dims=(2,)),
    "flip_anterior_posterior": partial(torch.flip, dims=(3,)),
    "flip_inferior_superior": partial(torch.flip, dims=(4,)),
    "rotate_axial": partial(torch.rot90, k=1, dims=(2, 3)),
}


def equivariance(codec: FrozenCodec, volume: Tensor) -> dict[str, dict[str, float]]:
    """Return the errors of each operation T on a preprocessed volume x with latent z = encode(x).

    Figures of an operation:
        latent_error: ‖encode(T x) − T z‖ / ‖z − mean_c(z)‖; 0 if T commutes with the encoder, √2 for unrelated latents.
        commutation_psnr: of decode(T z) against T decode(z), dB; 120 if T commutes with the decoder.
        scan_psnr: of decode(T z) against T x, dB; in row ``none`` the codec's own PSNR, so the difference is what the
            operation costs the head that a changed latent stands for.

    PSNR as in `neuromf.codec.validate`: in the brain's bounding box, reconstructions clipped to [0, 1].

    Args:
        codec: the VAE.
        volume: (1, 1, D, H, W) in [0, 1], zero outside the brain; D = H for the rotation.
    """
    latent = codec.encode(volume)
    decoded = codec.decode(latent).clamp(0, 1)
    spread = (latent - latent.mean((2, 3, 4), keepdim=True)).norm()
    figures = {}
    for name, operation in OPERATIONS.items():
        of_latent = codec.decode(operation(latent)).clamp(0, 1)
        x, y, z = bounding_box(operation(volume)[0, 0].numpy() > 0)
        box = (..., x, y, z)
        figures[name] = {
            "latent_error": float((codec.encode(operation(volume)) - operation(latent)).norm() / spread),
            "commutation_psnr": _psnr(operation(decoded)[box], of_latent[box]),
            "scan_psnr": _psnr(operation(volume)[box], of_latent[box]),
        }
    return figures


def _psnr(x: Tensor, y: Tensor) -> float:
    return float(-10 * (x - y).double().square().mean().clamp(min=1e-12).log10())
