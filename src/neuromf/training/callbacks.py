"""What happens beside the updates: the averaged weights, the log, the validation and the checkpoints."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import Dataset
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from neuromf.tables import write_text
from neuromf.training.checkpoint import Progress, save_progress
from neuromf.training.module import FlowModule, generator_for

FIGURES = ("loss", "raw_fm", "raw_mf", "jvp_norm", "cosine")  # of ObjectiveOutput
METRICS = ("step", *FIGURES, "grad_norm", "lr", "samples_per_second")  # metrics.csv
VALIDATION = ("step", *FIGURES)  # val.csv
VALIDATION_ROWS = 32  # at least this many draws of (z, ε, r, t)
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # of AdamW


class DivergenceError(RuntimeError):
    """The training has left the finite numbers."""


class Table:
    """A CSV file that grows row by row and, when a run is resumed, loses what came after its checkpoint."""

    def __init__(self, path: Path, columns: tuple[str, ...], resumed_at: int) -> None:
        self.path, self.columns = path, columns
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)[1:] if path.is_file() else []
        whole = [line for line in lines if line.endswith("\n") and line.count(",") == len(columns) - 1]
        kept = [line for line in whole if int(line.split(",", 1)[0]) <= resumed_at]
        write_text(path, ",".join(columns) + "\n" + "".join(kept))

    def append(self, row: Mapping[str, float]) -> None:
        """Add one row; NaN becomes an empty cell."""
        with self.path.open("a", newline="", encoding="utf-8") as stream:
            values = [row[column] for column in self.columns]
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow("" if math.isnan(value) else f"{value:.6g}" for value in values)


class WeightAverage(Callback):
    """Exponential moving average of the weights, once per optimiser step.

    The decay is 2^(−1/half_life), at most (1 + n)/(10 + n) after n updates, so that a short run forgets its start.

    Args:
        half_life: in updates.
    """

    def __init__(self, half_life: float) -> None:
        self.decay = 0.5 ** (1 / half_life)
        self.weights: dict[str, Tensor] = {}

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        start = self.weights or pl_module.network.state_dict()  # a resumed run has them already
        self.weights = {name: value.detach().clone().to(pl_module.device) for name, value in start.items()}

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *_: Any) -> None:
        decay = min(self.decay, (1 + pl_module.update) / (10 + pl_module.update))
        now = pl_module.network.state_dict()
        torch._foreach_lerp_(list(self.weights.values()), [now[name] for name in self.weights], 1 - decay)

    @contextmanager
    def swapped_in(self, module: FlowModule) -> Iterator[None]:
        """Let the network have the averaged weights within the block."""
        now = {name: value.clone() for name, value in module.network.state_dict().items()}
        module.network.load_state_dict(self.weights)
        try:
            yield
        finally:
            module.network.load_state_dict(now)


class Logbook(Callback):
    """Writes metrics.csv and TensorBoard and shows the progress bar.

    Args:
        table: metrics.csv.
        board: TensorBoard's writer.
        resumed_at: updates already done.
    """

    def __init__(self, table: Table, board: SummaryWriter, resumed_at: int) -> None:
        self.table, self.board, self.resumed_at = table, board, resumed_at
        self.sums: dict[str, list[Tensor]] = {name: [] for name in (*FIGURES, "grad_norm")}

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        train = pl_module.config.train
        self.bar = tqdm(
            total=train.updates, initial=self.resumed_at, unit="update", desc="train", dynamic_ncols=True, mininterval=1
        )
        self.since = time.perf_counter()

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *_: Any) -> None:
        output = pl_module.output
        for name in FIGURES:
            self.sums[name].append(getattr(output, name).detach())
        self.sums["grad_norm"].append(pl_module.gradient_norm)
        self.bar.update()
        train = pl_module.config.train
        if pl_module.update % train.log_every and pl_module.update != train.updates:
            return
        row = {name: torch.stack(values).mean().item() for name, values in self.sums.items()}
        count = len(self.sums["loss"]) * train.batch_size
        if not math.isfinite(row["loss"]) or not math.isfinite(row["grad_norm"]):
            raise DivergenceError(
                f"loss {row['loss']} and gradient norm {row['grad_norm']} before update {pl_module.update}: lower"
                " train.learning_rate or train.gradient_clip, or raise flow.norm_eps; the last checkpoint is intact"
            )
        row |= {
            "step": pl_module.update,
            "lr": pl_module.trainer.optimizers[0].param_groups[0]["lr"],
            "samples_per_second": count / (time.perf_counter() - self.since),
        }
        self.table.append(row)
        for name in METRICS[1:]:
            self.board.add_scalar(f"train/{name}", row[name], pl_module.update)
        self.bar.set_postfix(fm=f"{row['raw_fm']:.3g}", mf=f"{row['raw_mf']:.3g}")
        self.sums = {name: [] for name in self.sums}
        self.since = time.perf_counter()

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self.bar.close()

    def on_exception(self, trainer: lightning.Trainer, pl_module: Any, exception: BaseException) -> None:
        self.bar.close()


class Validation(Callback):
    """Raw losses of the averaged weights on fixed draws of (z, ε, r, t) from the validation split, in val.csv.

    Args:
        latents: normalised latents of the validation split.
        average: the averaged weights.
        table: val.csv.
        board: TensorBoard's writer.
    """

    def __init__(self, latents: Dataset[Tensor], average: WeightAverage, table: Table, board: SummaryWriter) -> None:
        self.latents, self.average, self.table, self.board = latents, average, table, board
        self.last: dict[str, float] = {}

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *_: Any) -> None:
        train = pl_module.config.train
        if pl_module.update % train.validate_every and pl_module.update != train.updates:
            return
        with self.average.swapped_in(pl_module), torch.no_grad():
            self.last = self._evaluate(pl_module)
        self.table.append({"step": pl_module.update} | self.last)
        for name, value in self.last.items():
            self.board.add_scalar(f"val/{name}", value, pl_module.update)

    def _evaluate(self, module: FlowModule) -> dict[str, float]:
        size, batch = len(self.latents), module.config.train.batch_size  # type: ignore[arg-type]
        rows = max(VALIDATION_ROWS, size)
        random = generator_for(module.device, module.seed, "validation")
        sums = dict.fromkeys(FIGURES, 0.0)
        for first in range(0, rows, batch):
            z0 = torch.stack([self.latents[i % size] for i in range(first, min(first + batch, rows))]).to(module.device)
            noise = torch.randn(z0.shape, generator=random, device=module.device)
            r, t = module.times.sample(len(z0), random, module.device)
            output = module.objective(module.network, z0, noise, r, t)
            for name in FIGURES:
                sums[name] += getattr(output, name).item() * len(z0) / rows
        return sums


class Checkpoints(Callback):
    """Restores the last checkpoint at the start; saves one every ``train.checkpoint_every`` updates and at the end.

    Args:
        folder: of the checkpoints.
        key: tells this training from others in the same folder.
        average: the averaged weights.
        progress: what to resume from.
    """

    def __init__(self, folder: Path, key: str, average: WeightAverage, progress: Progress | None) -> None:
        self.folder, self.key, self.average, self.progress = folder, key, average, progress
        self.started = time.perf_counter() - (progress.seconds if progress else 0)

    @property
    def seconds(self) -> float:
        """Seconds of training so far, over all resumed parts."""
        return time.perf_counter() - self.started

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if self.progress is None:
            return
        module, state = pl_module, trainer.optimizers[0].state
        module.network.load_state_dict(self.progress.part("network."))
        self.average.weights = self.progress.part("average.")
        for name, parameter in module.network.named_parameters():
            moments = self.progress.part(f"optimizer.{name}.")
            state[parameter] = {m: v if m == "step" else v.to(parameter) for m, v in moments.items()}
        module.update, self.progress = self.progress.update, None

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *_: Any) -> None:
        train = pl_module.config.train
        if pl_module.update % train.checkpoint_every and pl_module.update != train.updates:
            return
        if not bool(torch.isfinite(pl_module.gradient_norm)):
            return  # the log stops the run; what is saved stays usable
        tensors = {f"network.{name}": value for name, value in pl_module.network.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.average.weights.items()}
        state = trainer.optimizers[0].state
        for name, parameter in pl_module.network.named_parameters():
            tensors |= {f"optimizer.{name}.{moment}": state[parameter][moment] for moment in MOMENTS}
        save_progress(self.folder, self.key, Progress(pl_module.update, self.seconds, tensors))
