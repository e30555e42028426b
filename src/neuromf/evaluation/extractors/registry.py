"""The registry of extractors: `CARDS` holds those with published weights; `codec_extractor` makes one of a codec."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from neuromf.evaluation.extractors import inception, medicalnet, radimagenet, slices, squeezenet, subcortical
from neuromf.evaluation.extractors.base import VOLUME, Card, Extractor, extractor_of
from neuromf.evaluation.extractors.codec import VolumeCodec, codec_extractor
from neuromf.evaluation.extractors.published import WEIGHTS, ExtractorError, weights_file

CARDS: dict[str, Card] = {
    module.CARD.name: module.CARD for module in (inception, squeezenet, radimagenet, medicalnet, subcortical)
}
CODEC = "codec"
log = logging.getLogger(__name__)

__all__ = [
    "CARDS",
    "CODEC",
    "VOLUME",
    "Card",
    "Extractor",
    "ExtractorError",
    "VolumeCodec",
    "available",
    "codec_extractor",
    "load_extractor",
]


def available(weights_dir: Path | None = None) -> dict[str, str]:
    """Return, for each registered extractor, "" where its weights are there, otherwise what is missing and the remedy."""
    missing = {}
    for name in CARDS:
        try:
            weights_file(name, weights_dir)
            missing[name] = ""
        except ExtractorError as error:
            missing[name] = str(error)
    return missing


def load_extractor(
    name: str,
    *,
    weights_dir: Path | None = None,
    codec: VolumeCodec | None = None,
    device: str | torch.device = "cpu",
) -> Extractor:
    """Return an extractor by name, ready for inference.

    Args:
        name: one of `CARDS`, or `codec`.
        weights_dir: folder of published weights; None: the environment's NEUROMF_WEIGHTS.
        codec: what the extractor `codec` pools the latents of.
        device: where the network runs.

    Raises:
        ExtractorError: an unknown name, no codec, weights that are missing or not the published ones.
    """
    if name == CODEC:
        if codec is None:
            raise ExtractorError("the extractor codec needs a codec; name one with --codec or leave the extractor out")
        return codec_extractor(codec)
    if name not in CARDS:
        raise ExtractorError(f"no extractor {name!r}; there are {', '.join([CODEC, *CARDS])}")
    card = CARDS[name]
    path: Path | None = None
    try:
        path = weights_file(name, weights_dir)
    except ExtractorError as error:
        if not WEIGHTS[name].fetched or "is not the published file" in str(error):
            raise
        log.warning(
            "%s: its weights are in no folder of weights; its library looks in its own cache or downloads", name
        )
    rule = [card.preprocessing, slices.RULE if card.regions == slices.PLANES else None]
    return extractor_of(card, path, torch.device(device), rule)
