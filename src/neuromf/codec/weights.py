"""Which file a codec's weights are, found without loading a network (the workflow asks at every start)."""

from __future__ import annotations

import os
from pathlib import Path

from neuromf.config import Codec
from neuromf.tables import file_sha256

DEMO_FOLDER = Path(__file__).parent / "demo"
BACKBONE = (
    "squeezenet1_1-b8a52dc0.pth"  # https://download.pytorch.org/models/, the name ends in its sha256's first digits
)
HEADS = "lpips_v0.1_squeeze.pth"  # the linear heads, richzhang/PerceptualSimilarity (BSD-2)
_WHAT_TO_FETCH = (
    "Fetch autoencoder_v2.pt (or autoencoder_v1.pt) of the repository NVIDIA NV-Generate-CTMR / MAISI on Hugging Face,"
    " put it into the folder `weights_dir` (or NEUROMF_WEIGHTS) and set codec.weights to its name or path;"
    " `codec.weights: demo` uses the small codec that ships with NeuroMF"
)


class CodecError(ValueError):
    """Weights that cannot be used; the message names the file, what is wrong and the remedy."""


def weights_path(settings: Codec, *, weights_dir: str | Path | None = None, trained: Path | None = None) -> Path:
    """Return the file that ``settings.weights`` means.

    Raises:
        CodecError: no weights named, or the file does not exist; says what to fetch and where to put it.
    """
    if settings.weights is None:
        raise CodecError(f"codec.weights is null, but codec {settings.name!r} needs weights. {_WHAT_TO_FETCH}")
    if settings.weights == "trained" and trained is None:
        raise CodecError("codec.weights is `trained`: run the rule train_codec and give the folder it wrote")
    folder = weights_dir or os.environ.get("NEUROMF_WEIGHTS")
    named = {"demo": DEMO_FOLDER, "trained": trained}.get(settings.weights) or Path(settings.weights).expanduser()
    candidates = [named] if named.is_absolute() or folder is None else [named, Path(folder) / named]
    for candidate in candidates:
        file = candidate / "codec.safetensors" if candidate.is_dir() else candidate
        if file.is_file():
            return file
    tried = " and ".join(str(candidate) for candidate in candidates)
    raise CodecError(f"codec.weights {settings.weights!r}: no such file (looked at {tried}). {_WHAT_TO_FETCH}")


def codec_identity(settings: Codec, *, weights_dir: str | Path | None = None) -> str:
    """Return the hash of a codec's weights, which tells one codec from another.

    Raises:
        CodecError: as `weights_path`.
    """
    return settings.sha256 or file_sha256(weights_path(settings, weights_dir=weights_dir))


def perceptual_files(weights_dir: str | Path | None = None) -> tuple[Path, Path]:
    """Return where LPIPS's backbone and heads are expected; whether they are there is for the caller to see."""
    folder = Path(weights_dir or os.environ.get("NEUROMF_WEIGHTS") or "weights")
    return folder / BACKBONE, folder / HEADS


def perceptual_identity(weights_dir: str | Path | None = None) -> str | None:
    """Return what tells one pair of LPIPS files from another, or None where one is missing: LPIPS cannot be measured."""
    files = perceptual_files(weights_dir)
    return "-".join(file_sha256(file)[:16] for file in files) if all(file.is_file() for file in files) else None
