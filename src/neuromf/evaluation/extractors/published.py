"""Published weights of the extractors: which file, from where, and whether it is there. Loads no network: the workflow asks
at every start."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from neuromf.tables import file_sha256


class ExtractorError(ValueError):
    """An extractor that cannot be used; the message says what is missing or wrong and the remedy."""


@dataclass(frozen=True)
class Weights:
    """A published weights file: its name, where it is had, and its size and SHA-256 (or the first digits of it).

    ``bytes`` 0 and ``sha256`` "" stand for what the publisher does not say; the file's keys and shapes are compared in any
    case, and its hash is part of the extractor's key. ``fetched``: the extractor's library downloads it when asked to.
    """

    file: str
    address: str
    bytes: int = 0
    sha256: str = ""
    fetched: bool = False

    @property
    def fetch(self) -> str:
        """What to do to have the file."""
        known = [f"{self.bytes} bytes"] * bool(self.bytes) + [f"sha256 {self.sha256}"] * bool(self.sha256)
        about = f" ({', '.join(known)})" if known else ""
        return (
            f"fetch {self.file}{about} from {self.address}, put it in a folder and name that folder in `weights_dir`,"
            " `--weights-dir` or NEUROMF_WEIGHTS"
        )


WEIGHTS = {
    "inception": Weights(
        "weights-inception-2015-12-05-6726825d.pth",
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
        sha256="6726825d",
        fetched=True,
    ),
    "squeezenet": Weights(
        "squeezenet_imagenet_keras_notop.h5",
        "https://github.com/rcmalli/keras-squeezenet/releases (squeezenet_weights_tf_dim_ordering_tf_kernels_notop.h5)",
        3_032_184,
        "2d935d8c102ad1232484a77da8e6fbdf3ff4ab608974a0d8b6283115ffff204f",
    ),
    "radimagenet_resnet50": Weights(
        "ResNet50.pt", "https://github.com/BMEII-AI/RadImageNet (RadImageNet models, PyTorch)"
    ),
    "medicalnet_resnet50": Weights(
        "resnet_50_23dataset.pth", "https://github.com/Tencent/MedicalNet (pretrained models)"
    ),
    "subcortical": Weights(
        "net_subcortical.safetensors",
        "https://github.com/neuroneural/brainchop-models (also https://github.com/niivue/brainchop)",
        785_768,
        "aa5235ab3a034135277c47f8e7c32849895c6e31ee6c4e942d63a6aec5ff4ee4",
    ),
}


def weights_file(name: str, weights_dir: Path | None = None) -> Path:
    """Return the path of an extractor's weights after checking what is known of them.

    Looked for in ``weights_dir``, or in the folder that the environment variable NEUROMF_WEIGHTS names.

    Raises:
        ExtractorError: no folder is given, the file is missing, or it is not the published one.
    """
    weights = WEIGHTS[name]
    path = _expected(name, weights_dir)
    size = path.stat().st_size
    if (weights.bytes and size != weights.bytes) or not file_sha256(path).startswith(weights.sha256):
        raise ExtractorError(f"{path} ({size} bytes) is not the published file: {weights.fetch}")
    return path


def require_weights(names: Iterable[str], weights_dir: Path | None = None) -> None:
    """Check that the weights of the extractors named are there, without reading them.

    Raises:
        ExtractorError: a file is missing that no library fetches by itself.
    """
    for name in names:
        if name in WEIGHTS and not WEIGHTS[name].fetched:
            _expected(name, weights_dir)


def _expected(name: str, weights_dir: Path | None) -> Path:
    folder = weights_dir or (Path(os.environ["NEUROMF_WEIGHTS"]) if os.environ.get("NEUROMF_WEIGHTS") else None)
    if folder is None:
        raise ExtractorError(f"the extractor {name} needs its published weights: {WEIGHTS[name].fetch}")
    path = folder / WEIGHTS[name].file
    if not path.is_file():
        raise ExtractorError(f"the extractor {name} needs {path}: {WEIGHTS[name].fetch}")
    return path
