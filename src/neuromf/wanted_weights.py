"""Which published weights a configuration asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from neuromf import meshnet
from neuromf.codec.weights import weights_path
from neuromf.config import Codec, Config
from neuromf.evaluation.extractors.published import WEIGHTS, weights_file
from neuromf.evaluation.morphometry.synthseg import find_synthseg
from neuromf.preprocess.synthstrip import find_synthstrip
from neuromf.tables import file_sha256


def wanted_weights(config: Config, folder: Path | None) -> Iterator[tuple[str, Callable[[], Path]]]:
    """Yield what has published weights, and how they are found and checked.

    Args:
        config: the configuration that names them.
        folder: of published weights.
    """
    if config.codec.weights != "trained":
        yield f"codec {config.codec.name}", partial(_codec_weights, config.codec, folder)
    backend = config.preprocess.skull_strip.backend
    if backend == "synthstrip":
        yield f"skull strip {backend}", partial(find_synthstrip, folder)
    for extractor in config.evaluate.extractors:
        if extractor in WEIGHTS and not WEIGHTS[extractor].fetched:
            yield f"extractor {extractor}", partial(weights_file, extractor, folder)
    if "synthseg" in config.evaluate.segmenters:
        yield "segmenter synthseg", find_synthseg
    for network in (backend, *config.evaluate.segmenters):
        if network in meshnet.PUBLISHED:
            yield f"network {network}", partial(meshnet.find_weights, network, folder)
    for run in config.runs:
        train = config.for_run(run).train
        if train.from_nv_generate:
            yield f"warm start of {run}", partial(_existing, Path(str(train.warm_start)))


def _codec_weights(settings: Codec, folder: Path | None) -> Path:
    path = weights_path(settings, weights_dir=folder)
    if settings.sha256 and (found := file_sha256(path)) != settings.sha256:
        raise ValueError(f"{path} has sha256 {found}, codec.sha256 says {settings.sha256}: fetch it again")
    return path


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: fetch NV-Generate's weights, or change train.warm_start")
    return path
