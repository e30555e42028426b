"""Training one's own VAE: L1 + β·KL + optional perceptual and adversarial terms on random crops.

β is adapted so that the posterior means keep a standard deviation inside ``kl_target`` (`KlController`). Two more
things hold the latents' scale. Before the first update the mean's last 1×1×1 convolution is rescaled so that the means
of real crops have mean 0 and standard deviation 1 per channel, and the posterior's σ starts at 0.05 everywhere: noise
of σ = 1 hides the signal from the decoder for hundreds of updates. After the last one, means whose scale is still
outside the target are rescaled exactly: the 1×1×1 convolutions before and after the latent absorb the factor and its
inverse, which changes no reconstruction.
"""

from __future__ import annotations

import copy
import csv
import logging
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi
from safetensors.torch import save
from torch.nn.functional import l1_loss
from tqdm import tqdm

from neuromf import __version__
from neuromf.codec.checkpoint import key_of, load_checkpoint, save_checkpoint
from neuromf.codec.crops import Crops
from neuromf.codec.losses import Adversary, KlController, kl_divergence
from neuromf.codec.maisi import FrozenCodec, architecture, build
from neuromf.codec.validate import METRICS, latent_std, reconstruction_figures
from neuromf.config import Codec, CodecTraining
from neuromf.precision import Precision, cost_of_bf16, resolve
from neuromf.published import count
from neuromf.tables import atomic_path, file_sha256, write_json, write_text

log = logging.getLogger(__name__)

INITIAL_SIGMA = 0.05  # of the posterior, everywhere
START_CROPS = 16  # real crops that scale the untrained means
WARMUP = 0.03  # share of the run in which the learning rate rises
FINAL_RATE = 0.002  # learning rate at the end, as a share of the peak
LOG_COLUMNS = (
    "update", "seconds", "loss", "l1", "kl", "kl_weight", "latent_std", "sigma", "gradient_norm", "learning_rate",
    "perceptual", "adversarial", "discriminator", "val_psnr", "val_ssim", "val_mae",
)  # fmt: skip


@dataclass
class Progress:
    """Where a training stands; kept in its checkpoint."""

    update: int = 0
    seconds: float = 0.0  # of training, over all its sessions
    updates_in: Counter[str] = field(default_factory=Counter)  # precision → updates done in it

    def share(self, updates: int, minutes: float | None) -> float:
        """Share of the run that is done, in [0, 1]: of its updates or of its time, whichever is further."""
        timed = self.seconds / (60 * minutes) if minutes else 0.0
        return min(max(self.update / updates, timed), 1.0)


class CodecTrainer:
    """One VAE in training: the network, its average, the optimisers and the generators of crops and noise."""

    def __init__(self, codec: Codec, training: CodecTraining, device: torch.device, weights_dir: Path | None) -> None:
        self.settings, self.training, self.device = codec, training, device
        torch.manual_seed(training.seed)
        self.network = build(codec).to(device)
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=training.learning_rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True
        )
        self.controller = KlController(training.kl_weight, training.kl_target)
        self.generator = torch.Generator().manual_seed(training.seed)  # crops, flips and posterior noise
        self.progress = Progress()
        self.adversary: Adversary | None = None
        if training.adversarial_weight > 0:
            if min(training.crop) < 32:
                raise ValueError(
                    f"the patch discriminator needs crops of at least 32 voxels a side, not {training.crop}"
                )
            self.adversary = Adversary(training.adversarial_weight, training.learning_rate, device)
        self.perceptual: torch.nn.Module | None = None
        if training.perceptual_weight > 0:
            from neuromf.codec.perceptual import SliceLpips

            self.perceptual = SliceLpips.load(weights_dir).to(device)

    @torch.no_grad()
    def start(self, crops: torch.Tensor) -> None:
        """Scale the untrained means of ``crops`` to mean 0 and standard deviation 1 and make the posterior narrow."""
        means = torch.cat([self.network.encode(one)[0] for one in crops.to(self.device).split(1)])
        flat = means.transpose(0, 1).flatten(1)
        rescale_means(self.network, flat.mean(1), flat.std(1).clamp_min(1e-6), compensate=False)
        log_variance = self.network.get_submodule("quant_conv_log_sigma.conv")
        torch.nn.init.zeros_(log_variance.get_parameter("weight"))
        torch.nn.init.constant_(log_variance.get_parameter("bias"), 2 * math.log(INITIAL_SIGMA))
        self.average.load_state_dict(self.network.state_dict())

    def step(self, x: torch.Tensor, share: float) -> dict[str, float]:
        """Make one update on crops (B, 1, d, h, w); return its figures."""
        training = self.training
        x = x.to(self.device)
        rate = learning_rate(share, training.learning_rate)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.network.train()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            mean, sigma = self.network.encode(x)
            noise = torch.randn(mean.shape, generator=self.generator).to(self.device)
            y = self.network.decode(mean + sigma * noise)
            adversarial = self.adversary.generator_loss(y) if self.adversary else None
        y = y.float()
        l1, kl = l1_loss(y, x), kl_divergence(mean, sigma)
        loss = l1 + self.controller.weight * kl
        figures: dict[str, float] = {}
        if self.perceptual is not None:
            perceptual = self.perceptual(y, x, self.generator)
            loss = loss + training.perceptual_weight * perceptual
            figures["perceptual"] = perceptual.item()
        if adversarial is not None:
            loss = loss + adversarial
            figures["adversarial"] = adversarial.item()
        if not torch.isfinite(loss):
            raise FloatingPointError(f"update {self.progress.update}: the loss is {loss.item()}; lower learning_rate")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), training.gradient_clip)
        self.optimizer.step()
        if self.adversary is not None:
            self.adversary.optimizer.param_groups[0]["lr"] = rate
            figures["discriminator"] = self.adversary.update(y, x)
        self._average()
        self.controller.update(mean)
        return figures | {
            "loss": loss.item(), "l1": l1.item(), "kl": kl.item(), "kl_weight": self.controller.weight,
            "latent_std": self.controller.std, "sigma": float(sigma.detach().float().mean()),
            "gradient_norm": float(norm), "learning_rate": rate,
        }  # fmt: skip

    @property
    def precision(self) -> Precision:
        """What it computes in. With ``auto`` one that was begun in float32, or went on in it, stays in it, and where the
        deepest level of a crop has two layers a CPU's bf16 is wrong (`neuromf.training.precision`)."""
        asked = self.training.precision
        wrong = self.device.type == "cpu" and self.training.crop[0] // 4 == 2
        if asked == "auto" and (wrong or "32" in self.progress.updates_in):
            return "32"
        return resolve(asked, self.device)

    def frozen(self) -> FrozenCodec:
        """Return the averaged network as a codec without a weights file yet."""
        return FrozenCodec(self.average.eval(), self.settings, "", self.device)

    @torch.no_grad()
    def _average(self) -> None:
        """Move the averaged weights towards the current ones; at first faster, so that random weights are forgotten."""
        n = self.progress.update
        decay = 0.5 ** (1 / max(self.training.ema_half_life * self.training.updates, 1e-9))
        weight = 1 - min(decay, (1 + n) / (10 + n))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.network.parameters()), weight)


def train_codec(
    train: Sequence[Path],
    val: Sequence[Path],
    codec: Codec,
    training: CodecTraining,
    folder: Path,
    *,
    device: str | torch.device = "cpu",
    minutes: float | None = None,
    weights_dir: Path | None = None,
    workspace: Path | None = None,
    code: str = "",
) -> dict[str, Any]:
    """Train a VAE and write ``folder``/codec.safetensors (averaged weights), codec.json and training.csv.

    A killed training goes on from its last checkpoint when it is called again with the same settings, scans and code.

    Args:
        train: preprocessed volumes in [0, 1], all of one shape.
        val: volumes that are only reconstructed, every ``training.validate_every`` updates.
        codec: the architecture.
        training: the recipe.
        folder: where the codec goes.
        device: where it is trained.
        minutes: end the run after this much training time (over all its sessions): the learning rate then follows the
            clock or the updates, whichever is further.
        weights_dir: folder of published weights, for the perceptual term.
        workspace: where checkpoint and log lie; default ``folder``. Snakemake deletes a failed rule's outputs, so a
            rule gives a folder that is no declared output.
        code: hash of the code that trains; a checkpoint of other code is not used.

    Returns:
        The training's figures, as codec.json holds them.

    Raises:
        ValueError: no volumes, volumes of different shapes, or crops that do not fit.
        VolumeError: an unreadable volume.
        FloatingPointError: the loss is no longer finite.
    """
    workspace = workspace or folder
    workspace.mkdir(parents=True, exist_ok=True)
    device = torch.device(device)
    crops = Crops.read(train, training.crop, training.flip_probability)
    held_out = Crops.read(val, training.crop, 0.0)
    trainer = CodecTrainer(codec, training, device, weights_dir)
    key = key_of(codec, training, crops, code)
    checkpoint = workspace / "checkpoint.safetensors"
    if not load_checkpoint(checkpoint, trainer, key):
        trainer.start(crops.draw(START_CROPS, trainer.generator))
    if trainer.precision == "bf16" and (cost := cost_of_bf16(device)):
        log.warning(
            "codec_training.precision: bf16, but %s; codec_training.precision: auto trains in float32 here", cost
        )
    elif trainer.precision == "32" and "bf16" in trainer.progress.updates_in:
        log.warning("begun in bf16, going on in float32: %s", cost_of_bf16(device) or "as it did before")
    _run(trainer, crops, held_out, workspace / "training.csv", checkpoint, key, minutes)
    latents = [trainer.frozen().encode(crops.volume(i)[None]) for i in range(len(crops))]
    rescaled = hold_scale(trainer.average, latents, training.kl_target)
    std = latent_std(latents) / rescaled
    figures = {
        "updates": trainer.progress.update,
        "minutes": round(trainer.progress.seconds / 60, 2),
        "precision": dict(trainer.progress.updates_in),
        "parameters": count(trainer.average.state_dict()),
        "latent_std": std,
        "rescaled_by": rescaled,
        "kl_weight": trainer.controller.weight,
        "n_train": len(crops),
        "n_val": len(held_out),
        **{f"val_{name}": value for name, value in reconstruct(trainer.frozen(), held_out).items()},
    }
    write_text(folder / "training.csv", (workspace / "training.csv").read_text(encoding="utf-8"))
    write_codec(folder, trainer.average, codec, training, figures)
    return figures


def _run(
    trainer: CodecTrainer,
    crops: Crops,
    held_out: Crops,
    log_file: Path,
    checkpoint: Path,
    key: str,
    minutes: float | None,
) -> None:
    """Update until the run is over, logging, validating and saving checkpoints."""
    training, progress = trainer.training, trainer.progress
    rows = _read_log(log_file, progress.update)
    with log_file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, LOG_COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
        bar = tqdm(
            total=training.updates, initial=progress.update, desc="codec training", unit="update", smoothing=0.05
        )
        while (share := progress.share(training.updates, minutes)) < 1:
            started = time.perf_counter()
            whole = share >= 1 - training.whole_volume_share
            x = crops.draw(training.batch_size, trainer.generator, whole=whole)
            figures = trainer.step(x, share)
            progress.update += 1
            progress.updates_in[trainer.precision] += 1
            progress.seconds += time.perf_counter() - started
            bar.update()
            done = progress.share(training.updates, minutes) >= 1
            validates = progress.update % training.validate_every == 0 or done
            if validates:
                figures |= {f"val_{k}": v for k, v in reconstruct(trainer.frozen(), held_out).items()}
                bar.write(f"update {progress.update}: " + ", ".join(f"{k} {figures[f'val_{k}']:.4g}" for k in METRICS))
            if validates or progress.update % training.log_every == 0:
                writer.writerow(figures | {"update": progress.update, "seconds": round(progress.seconds, 1)})
                stream.flush()
                bar.set_postfix(l1=f"{figures['l1']:.4f}", std=f"{figures['latent_std']:.3f}", share=f"{share:.3f}")
            if done or progress.update % training.checkpoint_every == 0:
                save_checkpoint(checkpoint, trainer, key)
        bar.close()


def learning_rate(share: float, peak: float) -> float:
    """Return the one-cycle learning rate at a share of the run in [0, 1]: a linear rise, then half a cosine down."""
    if share < WARMUP:
        return peak * max(share / WARMUP, 0.04)
    falling = 0.5 * (1 + math.cos(math.pi * (share - WARMUP) / (1 - WARMUP)))
    return peak * (FINAL_RATE + (1 - FINAL_RATE) * falling)


def reconstruct(codec: FrozenCodec, held_out: Crops) -> dict[str, float]:
    """Return the mean PSNR, SSIM and MAE of whole held-out volumes."""
    figures = []
    for i in range(len(held_out)):
        x = held_out.volume(i)
        figures.append(reconstruction_figures(x[0].numpy(), codec.decode(codec.encode(x[None]))[0, 0].numpy()))
    return {metric: float(np.mean([f[metric] for f in figures])) for metric in METRICS}


def hold_scale(network: AutoencoderKlMaisi, latents: Sequence[torch.Tensor], target: tuple[float, float]) -> float:
    """Divide the posterior by a factor, exactly undone before the decoder, if the means' scale is outside ``target``.

    Returns:
        The factor; 1 where the standard deviation of ``latents`` (posterior means) already lies inside.
    """
    std = latent_std(latents)
    if target[0] <= std <= target[1]:
        return 1.0
    factor = std / math.sqrt(target[0] * target[1])
    log.warning("the latents' standard deviation is %.3f, outside %s; rescaled by %.3f", std, target, 1 / factor)
    scale = torch.full((latents[0].shape[1],), factor)
    rescale_means(network, torch.zeros_like(scale), scale, compensate=True)
    return factor


@torch.no_grad()
def rescale_means(network: AutoencoderKlMaisi, shift: torch.Tensor, scale: torch.Tensor, *, compensate: bool) -> None:
    """Make the latent (z − shift)/scale per channel; ``compensate``: σ follows and the decoder undoes it exactly."""
    mean, sigma, back = (
        dict(network.get_submodule(f"{name}.conv").named_parameters())
        for name in ("quant_conv_mu", "quant_conv_log_sigma", "post_quant_conv")
    )
    shift, scale = shift.to(mean["weight"]), scale.to(mean["weight"])
    mean["weight"].div_(scale.view(-1, 1, 1, 1, 1))
    mean["bias"].sub_(shift).div_(scale)
    if compensate:
        sigma["bias"].sub_(2 * scale.log())
        back["bias"].add_(back["weight"].flatten(1) @ shift)
        back["weight"].mul_(scale.view(1, -1, 1, 1, 1))


def write_codec(
    folder: Path, network: AutoencoderKlMaisi, codec: Codec, training: CodecTraining, figures: Mapping[str, Any]
) -> None:
    """Write codec.safetensors, then codec.json with its hash, architecture, recipe and figures."""
    weights = folder / "codec.safetensors"
    with atomic_path(weights) as temporary:
        temporary.write_bytes(save({key: value.cpu().contiguous() for key, value in network.state_dict().items()}))
    content = {
        "name": codec.name,
        "architecture": architecture(codec),
        "sha256": file_sha256(weights),
        "recipe": training.model_dump(mode="json"),
        "figures": dict(figures),
        "code_version": __version__,
    }
    write_json(folder / "codec.json", content)


def _read_log(path: Path, update: int) -> list[dict[str, str]]:
    """Return the log's rows up to an update: what a checkpoint does not know is made again."""
    if not path.is_file() or update == 0:
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        return [row for row in csv.DictReader(stream) if row["update"].isdigit() and int(row["update"]) <= update]
