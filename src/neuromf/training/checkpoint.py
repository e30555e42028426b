"""What a training leaves on disk: the model that generation needs, and the progress that a killed run resumes from.

Both are safetensors and JSON; nothing is pickled.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from neuromf.config import Config, Flow, validate
from neuromf.flow import AverageVelocity, MeanFlowUNet
from neuromf.tables import ID_PATTERN, TableError, atomic_path, file_sha256, read_json, write_json
from neuromf.tensors import TensorError, load_tensors, save_tensors

DEMO = Path(__file__).parent / "demo"  # the shipped models: demo/meanflow and demo/rectified_flow
WEIGHTS, ABOUT = "model.safetensors", "model.json"
FIRST_MODALITY = "T1w"  # of models whose model.json names none: there was no other
AVERAGES, BEST = "averages", "best"  # folders of other weights of the same run
log = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A model folder that cannot be used; the message names the file, what is wrong and the remedy."""


# --- the model ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainedModel:
    """A trained flow, ready to be sampled.

    Attributes:
        name: the folder's name.
        velocity: average velocity u(z, r, t) on normalised latents; for rectified flow v(z, t), whatever r.
        network: the network behind it, in evaluation mode.
        config: the run's resolved configuration.
        statistics: of the latents it was trained on; ``mean`` and ``std`` have one number per channel.
        codec: name and sha256 of the codec whose latents it makes.
        release: name, sha256 and modality of the release it was trained on.
        training: figures of the training.
        sha256: of the weights file.
    """

    name: str
    velocity: Callable[[Tensor, Tensor, Tensor], Tensor]
    network: MeanFlowUNet
    config: Config
    statistics: Mapping[str, Any]
    codec: Mapping[str, Any]
    release: Mapping[str, Any]
    training: Mapping[str, Any]
    sha256: str

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def modality(self) -> str:
        """Of the scans it was trained on, and so of what it generates."""
        return str(self.release.get("modality", FIRST_MODALITY))

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(C, D, H, W) of one latent: the volume's shape over the codec's factor of 4."""
        return (self.config.codec.latent_channels, *(side // 4 for side in self.config.preprocess.conform.shape))

    def normalise(self, latents: Tensor) -> Tensor:
        """Return (z − mean_c) / std_c of latents (B, C, D, H, W)."""
        mean, std = channel_scale(self.statistics, latents)
        return (latents - mean) / std

    def denormalise(self, latents: Tensor) -> Tensor:
        """Return z · std_c + mean_c of normalised latents (B, C, D, H, W): what the codec decodes."""
        mean, std = channel_scale(self.statistics, latents)
        return latents * std + mean


def channel_scale(statistics: Mapping[str, Any], like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the channels' mean and standard deviation as (C, 1, 1, 1), on the device and in the type of ``like``."""
    mean, std = (torch.tensor(statistics[key]).to(like).reshape(-1, 1, 1, 1) for key in ("mean", "std"))
    return mean, std


def model_folder(name: str | Path, variant: str = "imf") -> Path:
    """Return the folder of a model: a path, or for ``demo`` the shipped model of the variant.

    Files of the shipped ones are named with their folder: ``demo/rectified_flow/averages/online.safetensors``.
    """
    first, *rest = str(name).rstrip("/").split("/")
    if first == "demo":
        return Path(DEMO, *(rest or ["rectified_flow" if variant == "rectified_flow" else "meanflow"]))
    return Path(name)


def export_model(
    folder: Path,
    weights: Mapping[str, Tensor],
    about: Mapping[str, Any],
    others: Mapping[str, Mapping[str, Tensor]] = MappingProxyType({}),
) -> None:
    """Write ``model.safetensors``, other weights of the run and, last, ``model.json`` with their hashes: then it is whole.

    Args:
        folder: of the model.
        weights: to be sampled from.
        about: content of ``model.json``.
        others: ``averages/<half-life>``, ``averages/online`` and ``best/<criterion>``, each written as .safetensors.
    """
    files = {WEIGHTS: weights} | {f"{name}.safetensors": tensors for name, tensors in others.items()}
    for name, tensors in files.items():
        save(folder / name, tensors)
    write_json(folder / ABOUT, {**about, "files": {name: file_sha256(folder / name) for name in files}})


def read_weights(model: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the weights of a model and the content of its ``model.json``.

    Args:
        model: a model folder, or one of the files in its ``averages`` or ``best``.

    Raises:
        CheckpointError: a file is missing, damaged, or not the one that ``model.json`` describes.
    """
    weights, about = model_files(model)
    for path in (weights, about):
        if not path.is_file():
            raise CheckpointError(f"{path} does not exist; a model folder holds {WEIGHTS} and {ABOUT}")
    try:
        content = read_json(about)
        if absent := [key for key in ("config", "statistics", "codec", "release", "files") if key not in content]:
            raise CheckpointError(f"{about}: no {', '.join(absent)}; it was not written by this NeuroMF")
        if wrong := [
            key for key in ("config", "statistics", "codec", "release", "files") if not _is_object(content[key])
        ]:
            raise CheckpointError(f"{about}: {', '.join(wrong)} is no object; copy or train the model again")
        name = weights.relative_to(about.parent).as_posix()
        if (found := file_sha256(weights)) != (asked := content["files"].get(name)):
            raise CheckpointError(
                f"{weights} has sha256 {found}, {about} says {asked}: it was damaged, altered or is of another model; copy"
                " or train the model again"
            )
        return load_file(weights), content
    except (SafetensorError, TableError, OSError) as error:
        raise CheckpointError(f"{model}: a damaged file ({error}); copy or train the model again") from None


def check_statistics(statistics: Mapping[str, Any], channels: int, where: Path) -> None:
    """Refuse latent statistics that cannot normalise latents of so many channels.

    Raises:
        CheckpointError: not one number per channel, or a standard deviation that is not positive.
    """
    for key in ("mean", "std"):
        values: Any = statistics.get(key)
        numbers = isinstance(values, list) and all(isinstance(v, int | float) and math.isfinite(v) for v in values)
        if not numbers or len(values) != channels or (key == "std" and min(values) <= 0):
            raise CheckpointError(
                f"{where}: statistics.{key} is {values!r:.200}, not a number for each of {channels} channels"
            )


def model_files(model: Path) -> tuple[Path, Path]:
    """Return the weights and the ``model.json`` of a model folder, or of a file in its ``averages`` or ``best``."""
    if model.suffix == ".safetensors":
        return model, model.parents[1] / ABOUT
    return model / WEIGHTS, model / ABOUT


def described(about: Mapping[str, Any]) -> Config:
    """Return the configuration in a ``model.json`` but for ``train``: its settings may be those of an older NeuroMF."""
    return validate({part: settings for part, settings in about["config"].items() if part != "train"})


def load_weights(network: MeanFlowUNet, weights: Mapping[str, Tensor], where: Path) -> None:
    """Load weights into a network.

    Raises:
        CheckpointError: as `check_weights`.
    """
    check_weights(network, weights, where)
    network.load_state_dict(dict(weights))


def check_weights(network: MeanFlowUNet, weights: Mapping[str, Tensor], where: Path) -> None:
    """Refuse weights that are not the network's.

    Raises:
        CheckpointError: tensors are missing, unknown or of another shape; the first is named.
    """
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    if expected != found:
        name = next(n for n in [*expected, *found] if expected.get(n) != found.get(n))
        raise CheckpointError(
            f"{where} fits another network: {name} has shape {found.get(name, 'none')} there and"
            f" {expected.get(name, 'none')} here; use the `network` and `codec.latent_channels` settings of its {ABOUT}"
        )


def with_heads(weights: Mapping[str, Tensor], two_heads: bool) -> dict[str, Tensor]:
    """Return weights for a network with or without a head for the instantaneous velocity.

    A head that the weights lack begins as a copy of the output; one that the network lacks is left out.
    """
    copies = {f"v_{name}": value for name, value in weights.items() if name.startswith("out.")} if two_heads else {}
    return copies | {name: value for name, value in weights.items() if two_heads or not name.startswith("v_out.")}


def load_model(folder: str | Path, device: torch.device | str = "cpu") -> TrainedModel:
    """Return the model in a folder or in one of its other files (<folder>/averages/0.1.safetensors), or the shipped one.

    Raises:
        CheckpointError: a file is missing, damaged or does not fit the network that its ``model.json`` describes.
        ConfigError: the configuration in ``model.json`` is not valid.
    """
    path = model_folder(folder)
    weights, about = read_weights(path)
    config = described(about)
    check_statistics(about["statistics"], config.codec.latent_channels, path / ABOUT)
    if absent := [key for key in ("name", "sha256") if not isinstance(about["codec"].get(key), str)]:
        raise CheckpointError(f"{path / ABOUT}: codec has no {' and no '.join(absent)}; copy or train the model again")
    modality = about["release"].get("modality", FIRST_MODALITY)
    if not (isinstance(modality, str) and ID_PATTERN.fullmatch(modality)):  # samples are named after it
        raise CheckpointError(
            f"{path / ABOUT}: release.modality is {modality!r:.200}; letters and digits are expected, such as T1w"
        )
    make = partial(MeanFlowUNet, config.network, config.codec.latent_channels, v_head=config.flow.two_heads)
    with torch.device("meta"):  # takes no memory, whatever a damaged model.json claims
        check_weights(make(), weights, model_files(path)[0])
    network = make()
    network.load_state_dict(weights)
    network.to(device).eval().requires_grad_(False)
    return TrainedModel(
        name=path.resolve().name if str(folder) != "demo" else "demo",
        velocity=velocity_of(network, config.flow),
        network=network,
        config=config,
        statistics=about["statistics"],
        codec=about["codec"],
        release=about["release"],
        training=about.get("training", {}),
        sha256=file_sha256(model_files(path)[0]),
    )


def velocity_of(network: MeanFlowUNet, flow: Flow) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return what is sampled with: the average velocity u(z, r, t); for rectified flow v(z, t), whatever r."""
    velocity = AverageVelocity(network, flow.prediction, flow.times.t_min)
    return (lambda z, r, t: velocity(z, t, t)) if flow.variant == "rectified_flow" else velocity


# --- progress -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Progress:
    """The state after ``update`` updates; random numbers and data order follow from (seed, update)."""

    update: int
    seconds: float  # of training so far, over all resumed parts
    tensors: dict[str, Tensor]  # network.*, average.<half-life>/*, optimizer.<parameter>.<moment>, log.*
    notes: Mapping[str, Any] = field(default_factory=dict)  # counters and minima

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose name begins with ``prefix``, without it."""
        return {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}


def save_progress(folder: Path, key: str, progress: Progress, *, keep: int) -> None:
    """Write a checkpoint atomically and remove all but the newest ``keep``; ``key`` tells trainings apart."""
    about = {
        "key": key,
        "update": str(progress.update),
        "seconds": repr(progress.seconds),
        "notes": json.dumps(progress.notes),
    }
    save_tensors(folder / f"update-{progress.update:08d}.safetensors", progress.tensors, about)
    for older in sorted(folder.glob("update-*.safetensors"))[:-keep]:
        older.unlink()


def load_progress(folder: Path, key: str) -> Progress | None:
    """Return the last whole checkpoint of this training; None when there is none."""
    for leftover in folder.glob(".tmp-*"):
        leftover.unlink()  # of a run that was killed while it wrote
    for path in sorted(folder.glob("update-*.safetensors"), reverse=True):
        try:
            tensors, about = load_tensors(path)
        except TensorError as error:
            log.warning("%s: left out", error)
            path.unlink()
            continue
        if about.get("key") == key:
            return Progress(int(about["update"]), float(about["seconds"]), tensors, json.loads(about["notes"]))
        log.warning("%s is of other settings, data or code: training starts anew", path)
        path.unlink()
    return None


def _is_object(value: Any) -> bool:
    return isinstance(value, Mapping)


def save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors, atomically."""
    with atomic_path(path) as temporary:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, temporary)
