"""LPIPS on slices of volumes, as the VAE's optional perceptual term and as a figure of reconstructions: SqueezeNet 1.1
features from published files.

Zhang et al. 2018: the features of two images at seven depths of the network are normalised to unit length per pixel,
their squared difference is weighted per channel by the learnt linear heads, averaged over space and summed over depths.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neuromf.codec.weights import perceptual_files
from neuromf.published import read_published
from neuromf.tables import file_sha256

log = logging.getLogger(__name__)

BACKBONE_SHA256 = "b8a52dc0"
PLANES = ("sagittal", "coronal", "axial")  # of the slices across a RAS volume's first, second and third axis
BATCH = 32  # slices that pass the network together; changes no figure
SLICES = 4  # random slices of each of the three planes per update and term
SMALLEST_SIDE = 32  # pixels: slices are enlarged to this, or the network's three poolings leave nothing
_SPLITS = (2, 5, 8, 10, 11, 12, 13)  # ends of LPIPS's seven depths among torchvision's layers
_CHANNELS = (64, 128, 256, 384, 384, 512, 512)  # at those ends
_MEAN, _STD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # LPIPS's scaling layer, for images in [-1, 1]


class SliceLpips(nn.Module):
    """Mean LPIPS distance of random slices of two batches of volumes, in all three planes."""

    def __init__(self, features: nn.Sequential, heads: list[Tensor]) -> None:
        super().__init__()
        starts = (0, *_SPLITS[:-1])
        self.depths = nn.ModuleList(features[a:b] for a, b in zip(starts, _SPLITS, strict=True))
        for number, head in enumerate(heads):
            self.register_buffer(f"head{number}", head)
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(_STD).view(1, 3, 1, 1))
        self.eval().requires_grad_(False)

    @classmethod
    def load(cls, weights_dir: str | Path | None) -> SliceLpips:
        """Return the network with the published weights in ``weights_dir`` (None: the environment's NEUROMF_WEIGHTS).

        Raises:
            FileNotFoundError: no such folder or file; says what to fetch.
            ValueError: a file that is not what its name says.
        """
        backbone_file, heads_file = perceptual_files(weights_dir)
        sources = ("https://download.pytorch.org/models", "richzhang/PerceptualSimilarity")
        for file, source in zip((backbone_file, heads_file), sources, strict=True):
            if not file.is_file():
                raise FileNotFoundError(
                    f"LPIPS needs {file}: fetch it from {source} into weights_dir (or NEUROMF_WEIGHTS); training a codec"
                    " without it: codec_training.perceptual_weight: 0"
                )
        if not file_sha256(backbone_file).startswith(BACKBONE_SHA256):
            raise ValueError(f"{backbone_file}: its sha256 does not begin with {BACKBONE_SHA256}; fetch it again")
        from torchvision.models import squeezenet1_1  # takes seconds to load

        backbone = squeezenet1_1(weights=None)
        backbone.load_state_dict(read_published(backbone_file))
        heads = read_published(heads_file)
        if sorted(heads) != [f"lin{i}.model.1.weight" for i in range(len(_SPLITS))]:
            raise ValueError(f"{heads_file} holds {', '.join(heads)}, not LPIPS's seven heads; fetch it again")
        ordered = [heads[f"lin{i}.model.1.weight"] for i in range(len(_SPLITS))]
        expected = [(1, channels, 1, 1) for channels in _CHANNELS]
        if [tuple(getattr(head, "shape", ())) for head in ordered] != expected:
            raise ValueError(f"{heads_file}: its heads are not of the shapes {expected}; fetch it again")
        return cls(backbone.features, ordered)

    @classmethod
    def load_if_there(cls, weights_dir: str | Path | None) -> SliceLpips | None:
        """Return the network, or None with a warning where its files are missing: LPIPS is then not measured.

        Raises:
            ValueError: as `load`.
        """
        try:
            return cls.load(weights_dir)
        except FileNotFoundError as error:
            log.warning("LPIPS is not measured: %s", error)
            return None

    @torch.no_grad()
    def planes(self, y: Tensor, x: Tensor) -> dict[str, float]:
        """Return the mean distance over all slices of each plane of two RAS volumes y and x, both (d, h, w) in [0, 1]."""
        device = self.get_buffer("mean").device
        means = {}
        for axis, plane in enumerate(PLANES):
            pair = [volume.to(device).movedim(axis, 0)[None, :, None] for volume in (y, x)]
            batches = zip(*(volume.split(BATCH, dim=1) for volume in pair), strict=True)
            distances = [self._distance(self._images(a), self._images(b)) for a, b in batches]
            means[plane] = float(torch.cat(distances).mean())
        return means

    def forward(self, y: Tensor, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return the mean distance of slices of y and x, both (B, 1, d, h, w) in [0, 1]."""
        distances = []
        for axis in (2, 3, 4):
            chosen = torch.randint(x.shape[axis], (SLICES,), generator=generator).to(x.device)
            pair = [self._images(volume.index_select(axis, chosen).movedim(axis, 1)) for volume in (y, x)]
            distances.append(self._distance(*pair))
        return torch.cat(distances).mean()

    def _images(self, slices: Tensor) -> Tensor:
        """Return slices (B, S, 1, p, q) in [0, 1] as scaled three-channel images (B·S, 3, p', q')."""
        grey = slices.float().flatten(0, 1)
        if min(grey.shape[2:]) < SMALLEST_SIDE:
            factor = SMALLEST_SIDE / min(grey.shape[2:])
            grey = F.interpolate(grey, scale_factor=factor, mode="bilinear")
        return ((2 * grey - 1).expand(-1, 3, -1, -1) - self.get_buffer("mean")) / self.get_buffer("std")

    def _distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the LPIPS distance of each pair of images, (N,)."""
        total = torch.zeros(len(a), device=a.device)
        for number, depth in enumerate(self.depths):
            a, b = depth(a), depth(b)
            difference = (F.normalize(a, dim=1, eps=1e-10) - F.normalize(b, dim=1, eps=1e-10)).pow(2)
            total = total + F.conv2d(difference, self.get_buffer(f"head{number}")).mean((1, 2, 3))
        return total
