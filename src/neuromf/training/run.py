"""One training run: latents and settings in, a model folder out; killed at any moment, it goes on where it was."""

from __future__ import annotations

import csv
import dataclasses
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import lightning
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.tensorboard import SummaryWriter

from neuromf import __version__
from neuromf.config import Config
from neuromf.tables import content_hash, file_sha256, write_text
from neuromf.training.callbacks import (
    METRICS,
    VALIDATION,
    Checkpoints,
    Logbook,
    Table,
    Validation,
    WeightAverage,
)
from neuromf.training.checkpoint import (
    WEIGHTS,
    Progress,
    channel_scale,
    export_model,
    load_progress,
    load_weights,
    model_folder,
    read_weights,
)
from neuromf.training.module import BatchStream, FlowModule

IN_MEMORY_BYTES = 2**31  # a larger set of latents is read from disk batch by batch
# What model.json keeps of the configuration: the parts that generation reads or that a reader of the model asks for
DESCRIBED = ("preprocess", "codec", "flow", "network", "train")
LOGS = {"metrics.csv": METRICS, "val.csv": VALIDATION}
log = logging.getLogger(__name__)


class Latents(Protocol):
    """What training needs of a latent store: items are (C, D, H, W) float32."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Tensor: ...


class NormalisedLatents(Dataset[Tensor]):
    """(z − mean_c) / std_c of each latent, (C, D, H, W); held in memory when it is small."""

    def __init__(self, store: Latents, statistics: Mapping[str, Any]) -> None:
        self.store, self.statistics = store, statistics
        self.in_memory = len(store) > 0 and store[0].numel() * 4 * len(store) <= IN_MEMORY_BYTES
        self.held = [self._read(index) for index in range(len(store))] if self.in_memory else []

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> Tensor:
        return self.held[index] if self.in_memory else self._read(index)

    def _read(self, index: int) -> Tensor:
        mean, std = channel_scale(self.statistics, self.store[index])
        return (self.store[index] - mean) / std


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
) -> dict[str, Any]:
    """Train one model; writes model.safetensors, model.json, metrics.csv, val.csv and tensorboard/ into ``folder``.

    Everything random depends on (seed, update) only, so a resumed run ends where an undisturbed one would.

    Args:
        config: the run's own configuration (`Config.for_run`).
        train: raw latents of the train split, (C, D, H, W) each.
        val: raw latents of the validation split; may be empty.
        statistics: dataclass or mapping with ``mean`` and ``std`` per channel, of the train split.
        folder: of the model.
        seed: of weights, noise, times, augmentation, loss mask and data order.
        release: name and sha256 of the release.
        codec: name and sha256 of the codec that made the latents.
        device: where to train.
        checkpoint_folder: keeps the last checkpoint and the logs of an unfinished run; must survive a failed job.
        code: hash of the code behind the run; a checkpoint of other code, settings or data is not resumed.

    Returns:
        The figures that ``model.json`` holds under ``training``.

    Raises:
        CheckpointError: the warm start is missing, damaged or of another architecture.
        DivergenceError: the loss or the gradient is not finite.
        ValueError: the train split is empty or its latents have another shape than the configuration says.
    """
    if dataclasses.is_dataclass(statistics) and not isinstance(statistics, type):
        statistics = dataclasses.asdict(statistics)
    _check_latents(config, train)
    module = FlowModule(config, seed)
    warm_start = _warm_start(config, module, codec)
    resolved = config.model_dump(mode="json", include=set(DESCRIBED))
    deciding = {part: resolved[part] for part in ("flow", "network")}
    deciding["train"] = {k: v for k, v in resolved["train"].items() if not k.endswith("_every")}
    key = content_hash([deciding, seed, statistics, dict(release), dict(codec), code, warm_start])
    progress = load_progress(checkpoint_folder, key)
    if progress and progress.update == config.train.updates:
        log.info("the last checkpoint is of a finished training: exporting it")
        module.network.load_state_dict(progress.part("average."))
        seconds = progress.seconds
    else:
        splits = NormalisedLatents(train, statistics), NormalisedLatents(val, statistics)
        seconds = _fit(module, *splits, folder / "tensorboard", checkpoint_folder, key, progress, device)

    for name in LOGS:
        write_text(folder / name, (checkpoint_folder / name).read_text(encoding="utf-8"))
    figures = {
        "updates": config.train.updates,
        "seconds": round(seconds, 1),
        "seconds_per_update": round(seconds / config.train.updates, 4),
        "parameters": sum(p.numel() for p in module.network.parameters()),
        "latents": {"train": len(train), "val": len(val)},
        "seed": seed,
        "device": device.type,
        "warm_start": warm_start,
        "validation": _last_row(folder / "val.csv"),
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
    export_model(folder, module.network.state_dict(), about)
    return figures


def _fit(
    module: FlowModule,
    train: NormalisedLatents,
    val: NormalisedLatents,
    board_folder: Path,
    checkpoint_folder: Path,
    key: str,
    progress: Progress | None,
    device: torch.device,
) -> float:
    """Do the updates that are left and return the seconds of all; the network ends with the averaged weights."""
    done, settings = progress.update if progress else 0, module.config.train
    if done:
        log.info("resuming from update %d of %d", done, settings.updates)
    tables = {name: Table(checkpoint_folder / name, columns, done) for name, columns in LOGS.items()}
    board = SummaryWriter(str(board_folder), purge_step=done + 1)
    average = WeightAverage(settings.ema_half_life * settings.updates)
    checkpoints = Checkpoints(checkpoint_folder, key, average, progress)
    callbacks: list[Any] = [average, Logbook(tables["metrics.csv"], board, done)]
    if len(val):
        callbacks.append(Validation(val, average, tables["val.csv"], board))
    else:
        log.warning("no validation latents: val.csv stays empty")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # no advertisements beside the progress bar
    trainer = lightning.Trainer(
        max_steps=settings.updates - done,
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=[device.index or 0] if device.type == "cuda" else 1,
        precision="bf16-mixed" if settings.precision == "bf16" else "32-true",
        callbacks=[*callbacks, checkpoints],
        plugins=[LightningEnvironment()],  # one process, also inside a Slurm job
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    batches = BatchStream(len(train), settings.batch_size, module.seed, done, settings.updates)
    workers = 0 if train.in_memory else 2
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(does not have many workers|isinstance.treespec).*")
        trainer.fit(module, DataLoader(train, batch_sampler=batches, num_workers=workers))
    board.close()
    module.network.load_state_dict(average.weights)
    return checkpoints.seconds


def _warm_start(config: Config, module: FlowModule, codec: Mapping[str, str]) -> dict[str, str] | None:
    """Load the weights that ``train.warm_start`` names; returns their name and sha256."""
    name = config.train.warm_start
    if name is None:
        return None
    folder = model_folder(name, config.flow.variant)
    weights, about = read_weights(folder)
    load_weights(module.network, weights, folder / WEIGHTS)
    if (other := about.get("codec", {}).get("sha256")) != codec["sha256"]:
        log.warning("train.warm_start %s was trained on latents of another codec (%s, here %s)", name, other, codec)
    return {"name": name, "variant": about["config"]["flow"]["variant"], "sha256": file_sha256(folder / WEIGHTS)}


def _check_latents(config: Config, train: Latents) -> None:
    if len(train) == 0:
        raise ValueError("no latents to train on: the release's train split is empty or all its scans failed")
    expected = (config.codec.latent_channels, *(side // 4 for side in config.preprocess.conform.shape))
    if (found := tuple(train[0].shape)) != expected:
        raise ValueError(
            f"latents have shape {found}, preprocess.conform.shape and codec.latent_channels ask for {expected};"
            " encode the cohort again with these settings"
        )


def _last_row(table: Path) -> dict[str, float | None]:
    rows = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
    return {key: float(value) if value else None for key, value in rows[-1].items()} if rows else {}
