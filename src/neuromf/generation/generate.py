"""From a trained model to brain volumes: noise → latents → NIfTI with sidecars. The rules and the command share it.

Sample i depends on (model, seed, i) only: its noise has a generator of its own, and the network sees one latent at a
time on a CPU, where the rounding of a convolution may depend on the batch.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from neuromf.codec.maisi import FrozenCodec, load_codec
from neuromf.flow import sample
from neuromf.generation.energy import Cost, Meter
from neuromf.tables import write_json, write_tsv
from neuromf.tensors import TensorError, load_tensors, save_tensors
from neuromf.training.checkpoint import FIRST_MODALITY, TrainedModel, load_model
from neuromf.volume import write_volume

log = logging.getLogger(__name__)


class GenerationError(ValueError):
    """Volumes that cannot be generated; the message names what is wrong and the remedy."""


class TrainingLatents(Protocol):
    """Raw latents of the training scans, (C, D, H, W) each, and their names."""

    scan_ids: list[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Tensor: ...


@dataclass(frozen=True)
class SampledLatents:
    """Generated latents and how they came about.

    Attributes:
        latents: in the codec's scale, (N, C, D, H, W) float32.
        indices: of the samples.
        about: model, model_sha256, codec_sha256, seed, nfe, modality (T1w where none is given: latents of older versions).
        costs: of the network, for each sample.
        hardware: that the network ran on (`neuromf.generation.energy.hardware`); empty when unknown.
    """

    latents: Tensor
    indices: tuple[int, ...]
    about: Mapping[str, Any]
    costs: tuple[Cost, ...] = field(repr=False)
    hardware: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ids(self) -> list[str]:
        return [sample_id(self.about["seed"], index) for index in self.indices]

    @property
    def modality(self) -> str:
        return str(self.about.get("modality", FIRST_MODALITY))


def sample_id(seed: int, index: int) -> str:
    """Return the participant ID of a sample, ``sub-synth<seed><index>``: at least three and five digits."""
    return f"sub-synth{seed:03d}{index:05d}"


def noise(seed: int, index: int, shape: Sequence[int]) -> Tensor:
    """Return ε of one sample, ``shape`` float32 on the CPU; it depends on (seed, index) only.

    PyTorch's CPU generator reads 32 bits of its seed, so index is added to a hash of ``seed``: no two indices collide.
    """
    start = int(np.random.SeedSequence(seed).generate_state(1)[0])
    generator = torch.Generator().manual_seed((start + index) % 2**32)
    return torch.randn(*shape, generator=generator)


# --- noise to latents -----------------------------------------------------------------------------------------------


def sample_latents(
    model: TrainedModel, indices: Iterable[int], seed: int, nfe: int = 1, batch_size: int = 8
) -> SampledLatents:
    """Generate the latents of the samples ``indices``.

    Args:
        model: on the device to use.
        indices: of the samples.
        seed: of the noise.
        nfe: network evaluations per sample.
        batch_size: latents per forward pass on a GPU, where it changes a sample by rounding only; a CPU takes one
            latent at a time and gives the same bits for any value.

    Raises:
        GenerationError: no index, or the model gives values that are not finite.
    """
    chosen = tuple(indices)
    if not chosen:
        raise GenerationError("no sample was asked for; give at least one index")
    size = 1 if model.device.type == "cpu" else batch_size
    meter = Meter(model.device)
    warm_up = noise(seed, chosen[0], model.latent_shape).expand(min(size, len(chosen)), *model.latent_shape)
    sample(model.velocity, warm_up.to(model.device))  # not timed: a GPU chooses its kernels by the batch's shape
    parts: list[Tensor] = []
    costs: list[Cost] = []
    for first in tqdm(range(0, len(chosen), size), desc=f"sample, nfe {nfe}", unit="batch"):
        batch = chosen[first : first + size]
        epsilon = torch.stack([noise(seed, index, model.latent_shape) for index in batch]).to(model.device)
        meter.start()
        z0 = model.denormalise(sample(model.velocity, epsilon, nfe))
        whole = meter.stop()
        each = None if whole.joules is None else whole.joules / len(batch)
        costs += [Cost(whole.seconds / len(batch), each)] * len(batch)
        parts.append(z0.cpu())
    latents = torch.cat(parts)
    if not bool(torch.isfinite(latents).all()):
        raise GenerationError(f"model {model.name} gave values that are not finite; it diverged in training")
    about = {
        "model": model.name,
        "model_sha256": model.sha256,
        "codec": model.codec["name"],
        "codec_sha256": model.codec["sha256"],
        "seed": seed,
        "nfe": nfe,
        "modality": model.modality,
        "spacing_mm": model.config.preprocess.conform.spacing_mm,
    }
    return SampledLatents(latents, chosen, about, tuple(costs), meter.hardware)


def write_latents(path: Path, sampled: SampledLatents) -> None:
    """Write generated latents as safetensors: key = sample ID, (C, D, H, W); how they came about in the header."""
    metadata = {"about": json.dumps(dict(sampled.about)), "indices": json.dumps(sampled.indices)}
    metadata |= {key: json.dumps([getattr(cost, key) for cost in sampled.costs]) for key in ("seconds", "joules")}
    metadata["hardware"] = json.dumps(dict(sampled.hardware))
    tensors = {name: latent.contiguous() for name, latent in zip(sampled.ids, sampled.latents, strict=True)}
    save_tensors(path, tensors, metadata)


def read_latents(path: Path) -> SampledLatents:
    """Read what `write_latents` wrote.

    Raises:
        GenerationError: the file is missing, damaged or was not written by `write_latents`.
    """
    try:
        tensors, metadata = load_tensors(path)
        entries = {key: json.loads(metadata[key]) for key in ("about", "indices", "seconds", "joules", "hardware")}
    except (TensorError, KeyError, json.JSONDecodeError) as error:
        raise GenerationError(f"{path} holds no generated latents ({error}); remove it and sample again") from None
    about, indices = entries["about"], entries["indices"]
    latents = torch.stack([tensors[sample_id(about["seed"], index)] for index in indices])
    costs = tuple(Cost(*both) for both in zip(entries["seconds"], entries["joules"], strict=True))
    return SampledLatents(latents, tuple(indices), about, costs, entries["hardware"])


# --- latents to volumes ---------------------------------------------------------------------------------------------


def decode_latents(
    codec: FrozenCodec, sampled: SampledLatents, out: Path, training: TrainingLatents | None = None
) -> None:
    """Write each latent as a volume with its sidecar, then ``sample_timing.json`` and ``participants.tsv``.

    The folder holds exactly these samples afterwards. Volumes are float32 in [0, 1], in RAS, with the model's voxel
    size and the middle of the grid at the origin. ``sample_timing.json`` has each volume's seconds and joules by stage, and
    the hardware of both stages.

    Args:
        codec: the one whose latents the model was trained on.
        sampled: latents to decode.
        out: folder to write to.
        training: latents of the training scans, to name the nearest one in each sidecar; None: the entry is null.

    Raises:
        GenerationError: another codec than the model's.
    """
    if codec.sha256 != sampled.about["codec_sha256"]:
        raise GenerationError(
            f"the codec's weights have sha256 {codec.sha256}, model {sampled.about['model']} was trained on latents of"
            f" {sampled.about['codec']} ({sampled.about['codec_sha256']}); decode with those"
        )
    nearest = nearest_training_scans(sampled.latents, training) if training else [None] * len(sampled.indices)
    meter = Meter(codec.device)
    codec.decode(sampled.latents[:1])  # warm-up, not timed
    _remove_others(out, [f"{name}_{sampled.modality}" for name in sampled.ids])
    costs = []
    rows = list(zip(sampled.ids, sampled.indices, sampled.latents, nearest, strict=True))
    for name, index, latent, closest in tqdm(rows, desc="decode", unit="volume"):
        meter.start()
        volume = codec.decode(latent[None])[0, 0].clamp(0, 1).cpu().numpy()
        costs.append(meter.stop())
        affine = centred_affine(volume.shape, sampled.about["spacing_mm"])
        write_volume(out / f"{name}_{sampled.modality}.nii.gz", volume, affine, np.float32)
        about = {key: value for key, value in sampled.about.items() if key != "spacing_mm"}
        write_json(out / f"{name}_{sampled.modality}.json", about | {"index": index, "nearest_training_scan": closest})
    write_json(out / "sample_timing.json", _timing(sampled, costs, meter.hardware))
    columns = ("participant_id", "modality", "seed", "index", "nfe", "model")
    shared = (sampled.about["nfe"], sampled.about["model"])
    write_tsv(
        out / "participants.tsv",
        columns,
        [[n, sampled.modality, sampled.about["seed"], i, *shared] for n, i, _, _ in rows],
    )


def _timing(sampled: SampledLatents, decoding: Sequence[Cost], hardware: Mapping[str, Any]) -> dict[str, Any]:
    """Return each volume's seconds by stage, its joules (None where a device tells none), and both stages' hardware."""

    def stages(key: str) -> dict[str, list[float | None]]:
        network, decode = ([getattr(cost, key) for cost in costs] for costs in (sampled.costs, decoding))
        total = [None if a is None or b is None else a + b for a, b in zip(network, decode, strict=True)]
        return {"network": network, "decode": decode, "total": total}

    about = {"network": dict(sampled.hardware), "decode": dict(hardware)}
    return stages("seconds") | {"joules": stages("joules"), "hardware": about}


def centred_affine(shape: Sequence[int], spacing_mm: float) -> NDArray[np.float64]:
    """Return the RAS affine (4, 4) of a grid whose middle is the origin."""
    affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    affine[:3, 3] = -spacing_mm * (np.array(shape) - 1) / 2
    return affine


def nearest_training_scans(latents: Tensor, training: TrainingLatents) -> list[str]:
    """Return the training scan whose latent is nearest (root mean square) to each of (N, C, D, H, W)."""
    closest = torch.full((len(latents),), torch.inf)
    names = [""] * len(latents)
    for position, scan in enumerate(training.scan_ids):
        distances = (latents - training[position]).square().flatten(1).mean(1)
        for row in torch.nonzero(distances < closest).flatten().tolist():
            names[row] = scan
        closest = torch.minimum(closest, distances)
    return names


# --- both -----------------------------------------------------------------------------------------------------------


def generate(
    model: str | Path,
    n: int,
    seed: int,
    out: Path,
    nfe: int = 1,
    *,
    codec: str | None = None,
    batch_size: int = 8,
    device: torch.device | str = "cpu",
) -> list[Path]:
    """Generate ``n`` volumes with the model in a folder (or ``demo``) and return their files.

    Args:
        model: folder with model.safetensors and model.json, or ``demo``.
        n: number of volumes, indices 0 to n − 1.
        seed: of the noise.
        out: folder to write to.
        nfe: network evaluations per volume.
        codec: weights of the VAE; None: those that the model's configuration names.
        batch_size: latents per forward pass; changes no volume.
        device: where the networks run.

    Raises:
        CheckpointError, CodecError: model or codec is missing or damaged.
        GenerationError: the codec is not the model's, or ``out`` holds other samples.
    """
    trained = load_model(model, device)
    settings = trained.config.codec if codec is None else trained.config.codec.model_copy(update={"weights": codec})
    frozen = load_codec(settings, device=device)
    names = {f"{sample_id(seed, index)}_{trained.modality}" for index in range(n)}
    if others := [path for path in _samples_in(out) if path.name.split(".")[0] not in names]:
        raise GenerationError(f"{out} holds other samples ({others[0].name}); give an empty folder")
    sampled = sample_latents(trained, range(n), seed, nfe, batch_size)
    decode_latents(frozen, sampled, out)
    log.info("%d volumes in %s", n, out)
    return [out / f"{name}_{sampled.modality}.nii.gz" for name in sampled.ids]


def _samples_in(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("sub-synth*_*.*") if p.name.endswith((".nii.gz", ".json")))


def _remove_others(out: Path, names: Sequence[str]) -> None:
    """Remove samples of an earlier call, larger or of another modality, which an evaluation of the folder would count."""
    for path in _samples_in(out):
        if path.name.split(".")[0] not in names:
            path.unlink()
