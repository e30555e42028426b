"""One training run: latents and settings in, a model folder out; killed at any moment, it goes on where it was."""

from __future__ import annotations

import csv
import dataclasses
import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.tensorboard import SummaryWriter

from neuromf import __version__
from neuromf.config import NO_RESULT, Config
from neuromf.tables import content_hash, file_sha256, write_text
from neuromf.tensors import load_tensors, save_tensors
from neuromf.training.averages import ONLINE, WeightAverages
from neuromf.training.checkpoint import (
    AVERAGES,
    BEST,
    CheckpointError,
    Progress,
    channel_scale,
    described,
    export_model,
    load_progress,
    load_weights,
    model_files,
    model_folder,
    read_weights,
    with_heads,
)
from neuromf.training.guard import DivergenceGuard
from neuromf.training.interruption import Watch, begin_attempt, watching
from neuromf.training.logbook import Logbook, Table, metrics_columns
from neuromf.training.module import BatchStream, FlowModule
from neuromf.training.nv_generate import load_into, read_unet
from neuromf.training.pictures import Pictures
from neuromf.training.precision import resumed_precision, training_precision, with_precision
from neuromf.training.rank import follow
from neuromf.training.ranks import Together, build_trainer, other_ranks
from neuromf.training.resumption import Checkpoints, Resumption
from neuromf.training.validation import CRITERIA, MEASURED, VALIDATION, Validation

IN_MEMORY_BYTES = 2**31  # a larger set of latents is read from disk batch by batch
# What model.json keeps of the configuration: the parts that generation reads or that a reader of the model asks for
DESCRIBED = ("preprocess", "codec", "flow", "network", "train")
LOGS = ("metrics.csv", "val.csv")
log = logging.getLogger(__name__)


class Latents(Protocol):
    """What training needs of a latent store: items are (C, D, H, W) float32."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Tensor: ...


class NormalisedLatents(Dataset[Tensor]):
    """(z − mean_c) / std_c of each latent, (C, D, H, W); held in memory when it is small."""

    def __init__(self, store: Latents, statistics: Mapping[str, Any]) -> None:
        self.store, self.statistics = store, statistics
        self.mean, self.std = channel_scale(statistics, torch.empty(0))
        self.in_memory = len(store) > 0 and store[0].numel() * 4 * len(store) <= IN_MEMORY_BYTES
        self.held = [self._read(index) for index in range(len(store))] if self.in_memory else []

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> Tensor:
        return self.held[index] if self.in_memory else self._read(index)

    def _read(self, index: int) -> Tensor:
        return (self.store[index] - self.mean).div_(self.std)


def train_run(
    config: Config,
    train: Latents,
    val: Latents,
    statistics: Any,
    folder: Path,
    *,
    seed: int,
    release: Mapping[str, str],
    codec: Mapping[str, str],
    device: torch.device,
    checkpoint_folder: Path,
    code: str = "",
    retry: bool = False,
    picture: Callable[[Tensor], bytes] | None = None,
) -> dict[str, Any]:
    """Train one model; writes the model, metrics.csv, val.csv, tensorboard/ and progress/ into ``folder``.

    Everything random depends on (seed, update) only, so a resumed run ends where an undisturbed one would.

    Args:
        config: the run's own configuration (`Config.for_run`).
        train: raw latents of the train split, (C, D, H, W) each.
        val: raw latents of the validation split; may be empty.
        statistics: dataclass or mapping with ``mean`` and ``std`` per channel, of the train split; the two are
            replaced by the warm start's where ``train.normalise`` says so.
        folder: of the model.
        seed: of weights, noise, times, augmentation, loss mask and data order.
        release: name, sha256 and modality of the release.
        codec: name and sha256 of the codec that made the latents.
        device: where to train.
        checkpoint_folder: keeps the last checkpoint and the logs of an unfinished run; must survive a failed job.
        code: hash of the code behind the run; a checkpoint of other code, settings or data is not resumed.
        retry: whether the workflow runs this again by itself; refused when the attempts before saved no checkpoint.
        picture: makes a PNG of latents in the codec's scale, (n, C, D, H, W), for progress/; None: no pictures.

    Returns:
        The figures that ``model.json`` holds under ``training``.

    Raises:
        Interrupted: SIGTERM, SIGUSR1 or ``train.max_hours``; the state is saved.
        NoProgressError: a retry after attempts that saved no checkpoint.
        RankError: another process of a data-parallel training ended early.
        CheckpointError: the warm start is missing, damaged or of another architecture or kind of output.
        ValueError: the train split is empty, its latents have another shape than the configuration says, or
            ``train.precision`` is one that a CPU computes wrongly here.
    """
    if dataclasses.is_dataclass(statistics) and not isinstance(statistics, type):
        statistics = dataclasses.asdict(statistics)
    _check_latents(config, train)
    training_precision(config, device)  # refuses what is wrong before anything is read
    config = with_channel_weights(config, statistics)
    config = config.model_copy(update={"train": config.train.counted(len(train))})
    module = FlowModule(config, seed)
    warm_start, scale = _warm_start(config, module, codec)
    if config.train.normalise == "warm_start":
        module.std = [own / theirs for own, theirs in zip(statistics["std"], scale["std"], strict=True)]
        statistics = {**statistics, **scale}
    resolved = config.model_dump(mode="json", include=set(DESCRIBED))
    deciding = {part: resolved[part] for part in ("flow", "network")}
    deciding["train"] = {k: v for k, v in resolved["train"].items() if k not in NO_RESULT}
    key = content_hash([deciding, seed, statistics, dict(release), dict(codec), code, warm_start])
    progress = load_progress(checkpoint_folder, key)
    precision, warning = resumed_precision(config, device, progress.notes["updates_in"] if progress else {})
    if warning:
        log.warning(warning)
    module.config = with_precision(config, precision)
    splits = NormalisedLatents(train, statistics), NormalisedLatents(val, statistics)
    begin_attempt(checkpoint_folder, retry=retry)
    with watching(config.train.max_hours) as watch:
        outcome = _fit(module, *splits, folder, checkpoint_folder, key, progress, device, watch, picture)

    for name in LOGS:
        write_text(folder / name, (checkpoint_folder / name).read_text(encoding="utf-8"))
    figures = {
        "updates": outcome.updates,
        "stopped": outcome.stopped,
        "skipped": module.skipped,
        "exported": outcome.exported,
        "best": outcome.best,
        "seconds": round(outcome.seconds, 1),
        "seconds_per_update": round(outcome.seconds / outcome.updates, 4),
        "parameters": sum(p.numel() for p in module.network.parameters()),
        "latents": {"train": len(train), "val": len(val)},
        "seed": seed,
        "device": device.type,
        "precision": dict(module.updates_in),
        "warm_start": warm_start,
        "validation": _row(folder / "val.csv", outcome.exported),
    }
    about = {
        "config": resolved,
        "statistics": statistics,
        "codec": dict(codec),
        "release": dict(release),
        "code_version": __version__,
        "code": code,
        "training": figures,
    }
    export_model(folder, outcome.weights, about, outcome.others)
    return figures


def with_channel_weights(config: Config, statistics: Mapping[str, Any]) -> Config:
    """Return the configuration with ``flow.channel_weights: inverse_variance`` resolved: λ_c ∝ 1/σ_c², mean 1."""
    if config.flow.channel_weights != "inverse_variance":
        return config
    inverse = [1 / std**2 for std in statistics["std"]]
    weights = tuple(value * len(inverse) / sum(inverse) for value in inverse)
    return config.model_copy(update={"flow": config.flow.model_copy(update={"channel_weights": weights})})


@dataclass(frozen=True)
class Outcome:
    """What a training leaves.

    Attributes:
        weights: to be exported.
        exported: which these are: the average's half-life as a share of the run, and the update.
        best: criterion → value, average and update of the best validation by it.
        others: ``averages/<half-life>`` at the end and ``best/<criterion>``.
        updates: done, fewer than asked for where ``stopped`` says why.
        seconds: of training, over all resumed parts.
    """

    weights: Mapping[str, Tensor]
    exported: dict[str, Any]
    best: dict[str, dict[str, Any]]
    others: Mapping[str, Mapping[str, Tensor]]
    updates: int
    seconds: float
    stopped: str | None


def _fit(
    module: FlowModule,
    train: NormalisedLatents,
    val: NormalisedLatents,
    folder: Path,
    checkpoint_folder: Path,
    key: str,
    progress: Progress | None,
    device: torch.device,
    watch: Watch,
    picture: Callable[[Tensor], bytes] | None,
) -> Outcome:
    """Do the updates that are left and choose the weights to be exported."""
    done, settings = progress.update if progress else 0, module.config.train
    if done:
        log.info("resuming from update %d of %d", done, settings.updates)
    columns = (metrics_columns(module.config), VALIDATION)
    metrics_table, validation_table = (
        Table(checkpoint_folder / name, titles, done) for name, titles in zip(LOGS, columns, strict=True)
    )
    board = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)
    averages = WeightAverages({f"{share:g}": share * settings.updates for share in settings.ema_half_lives})
    logbook = Logbook(metrics_table, board, averages, len(train), done)
    guard = DivergenceGuard(settings.guard)
    best_files = {criterion: checkpoint_folder / BEST / f"{criterion}.safetensors" for criterion in CRITERIA}
    validation = Validation(
        val, averages, validation_table, board, lambda criterion, weights: save_tensors(best_files[criterion], weights)
    )
    pictures = [Pictures(folder / "progress", picture, train.statistics, averages, validation, done)] if picture else []
    seconds = progress.seconds if progress else 0.0
    checkpoints = Checkpoints(checkpoint_folder, key, averages, logbook, guard, validation, watch, seconds)
    resumption = Resumption(progress)
    resumption.restore(module)
    if progress:
        checkpoints.restore(progress)
    if not len(val):
        log.warning("no validation latents: val.csv stays empty and the first average is exported")
    callbacks = [resumption, averages, logbook, guard, validation, *pictures, Together(watch), checkpoints]
    batches = BatchStream(len(train), settings.batch_size, module.seed, done, settings.updates)
    loader = DataLoader(
        train,
        batch_sampler=batches,
        num_workers=0 if train.in_memory else 2,
        pin_memory=device.type == "cuda",  # so that a batch is copied while the GPU computes
    )
    job = {
        "config": module.config.model_dump(mode="json"),
        "seed": module.seed,
        "std": module.std,
        "device": device.type,
        "update": done,
        "checkpoints": str(checkpoint_folder),
        "key": key,
    }
    if done < settings.updates and not (guard.stopped or validation.stopped):
        with other_ranks(follow, settings.devices, job) as place, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*(does not have many workers|isinstance.treespec).*")
            trainer = build_trainer(settings, device, settings.updates - done, callbacks, place)
            trainer.fit(module, loader)
    board.close()
    ends = {**averages.weights, ONLINE: module.network.state_dict()}
    others = {f"{AVERAGES}/{name}": weights for name, weights in ends.items()}
    others |= {f"{BEST}/{criterion}": load_tensors(best_files[criterion])[0] for criterion in validation.best}
    stopped = guard.stopped or validation.stopped
    if best := validation.best.get(settings.export):
        average, update, weights = best.average, best.update, others[f"{BEST}/{settings.export}"]
    else:  # nothing was validated
        average, update = validation.chosen(settings.export), module.update
        weights = averages.weights[average]
    return Outcome(
        weights=weights,
        exported={"average": average, "update": update},
        best={
            criterion: {"value": best.value, "average": best.average, "update": best.update}
            for criterion, best in validation.best.items()
        },
        others=others,
        updates=module.update,
        seconds=checkpoints.seconds,
        stopped=stopped,
    )


def _warm_start(
    config: Config, module: FlowModule, codec: Mapping[str, str]
) -> tuple[dict[str, str] | None, dict[str, list[float]]]:
    """Load the weights that ``train.warm_start`` names.

    Returns:
        Their name, variant and sha256, and the mean and std per channel that their latents were normalised with.
    """
    name = config.train.warm_start
    if name is None:
        return None, {}
    if config.train.from_nv_generate:
        return _from_nv_generate(config, module, Path(name))
    folder = model_folder(name, config.flow.variant)
    weights, about = read_weights(folder)
    file, _ = model_files(folder)
    load_weights(module.network, with_heads(weights, config.flow.two_heads), file)
    _check_meaning(config, described(about), name)
    if (other := about.get("codec", {}).get("sha256")) != codec["sha256"]:
        log.warning("train.warm_start %s was trained on latents of another codec (%s, here %s)", name, other, codec)
    start = {"name": name, "variant": about["config"]["flow"]["variant"], "sha256": file_sha256(file)}
    return start, {key: about["statistics"][key] for key in ("mean", "std")}


def _from_nv_generate(config: Config, module: FlowModule, path: Path) -> tuple[dict[str, str], dict[str, list[float]]]:
    channels = config.codec.latent_channels
    unet = read_unet(path, config.network, channels)
    load_into(module.network, unet, config.preprocess.conform.spacing_mm)
    start = {"name": str(path), "variant": "nv_generate", "sha256": file_sha256(path)}
    return start, {"mean": [0.0] * channels, "std": [1 / unet.scale_factor] * channels}


def _check_meaning(config: Config, theirs: Config, name: str) -> None:
    """Refuse weights of the same shapes that mean something else."""
    kinds = {
        "flow.prediction": (theirs.flow.prediction, config.flow.prediction),
        "network.time_embedding": (theirs.network.time_embedding, config.network.time_embedding),
    }
    for setting, (there, here) in kinds.items():
        if there != here:
            raise CheckpointError(f"train.warm_start {name} was trained with {setting}: {there}, here it is {here}")


def _check_latents(config: Config, train: Latents) -> None:
    if len(train) == 0:
        raise ValueError("no latents to train on: the release's train split is empty or all its scans failed")
    expected = (config.codec.latent_channels, *(side // 4 for side in config.preprocess.conform.shape))
    if (found := tuple(train[0].shape)) != expected:
        raise ValueError(
            f"latents have shape {found}, preprocess.conform.shape and codec.latent_channels ask for {expected};"
            " encode the cohort again with these settings"
        )


def _row(table: Path, exported: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the validation figures of the weights that are exported."""
    rows = csv.DictReader(table.read_text(encoding="utf-8").splitlines())
    wanted = (str(exported["update"]), exported["average"])
    found = [row for row in rows if (row["step"], row["average"]) == wanted]
    return {key: float(row[key]) if row[key] else None for row in found[-1:] for key in MEASURED}
