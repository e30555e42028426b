"""What happens beside the updates: the averaged weights, the log, the validation and the checkpoints."""

from __future__ import annotations

import csv
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import Dataset
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from neuromf.tables import write_text
from neuromf.training.checkpoint import Progress, save_progress
from neuromf.training.guard import DivergenceGuard
from neuromf.training.interruption import Interrupted, Watch
from neuromf.training.module import FlowModule, generator_for

FIGURES = ("loss", "raw_fm", "raw_mf", "jvp_norm", "cosine")  # of ObjectiveOutput
METRICS = ("step", *FIGURES, "grad_norm", "lr", "samples_per_second", "skipped")  # metrics.csv
VALIDATION = ("step", "average", *FIGURES)  # val.csv
ONLINE = "online"  # the weights themselves, beside their averages
VALIDATION_ROWS = 32  # at least this many draws of (z, ε, r, t)
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # of AdamW
log = logging.getLogger(__name__)


class Best(NamedTuple):
    """The best validation of a training."""

    raw_loss: float
    average: str
    update: int


class Table:
    """A CSV file that grows row by row and, when a run is resumed, loses what came after its checkpoint."""

    def __init__(self, path: Path, columns: tuple[str, ...], resumed_at: int) -> None:
        self.path, self.columns = path, columns
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)[1:] if path.is_file() else []
        whole = [line for line in lines if line.endswith("\n") and line.count(",") == len(columns) - 1]
        kept = [line for line in whole if int(line.split(",", 1)[0]) <= resumed_at]
        write_text(path, ",".join(columns) + "\n" + "".join(kept))

    def append(self, row: Mapping[str, float | str]) -> None:
        """Add one row; NaN becomes an empty cell."""
        with self.path.open("a", newline="", encoding="utf-8") as stream:
            values = [row[column] for column in self.columns]
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(
                value if isinstance(value, str) else "" if math.isnan(value) else f"{value:.6g}" for value in values
            )


class WeightAverages(Callback):
    """Exponential moving averages of the weights, once per optimiser step; equation (17) of docs/methods.md.

    The decay is 2^(−1/half-life), at most (1 + n)/(10 + n) after n updates, so that a short run forgets its start.

    Args:
        half_lives: name of each average → its half-life in updates.
    """

    def __init__(self, half_lives: Mapping[str, float]) -> None:
        self.decays = {name: 0.5 ** (1 / half_life) for name, half_life in half_lives.items()}
        self.weights: dict[str, dict[str, Tensor]] = {}

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        now = pl_module.network.state_dict()
        for name in self.decays:
            start = self.weights.get(name, now)  # a resumed run has them already
            self.weights[name] = {key: value.detach().clone().to(pl_module.device) for key, value in start.items()}

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *_: Any) -> None:
        now = pl_module.network.state_dict()
        for name, decay in self.decays.items():
            decay = min(decay, (1 + pl_module.update) / (10 + pl_module.update))
            average = self.weights[name]
            torch._foreach_lerp_(list(average.values()), [now[key] for key in average], 1 - decay)

    @contextmanager
    def swapped_in(self, module: FlowModule, name: str) -> Iterator[None]:
        """Let the network have an average's weights within the block; `ONLINE` leaves its own."""
        now = {key: value.clone() for key, value in module.network.state_dict().items()}
        module.network.load_state_dict(now if name == ONLINE else self.weights[name])
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
        values = {name: torch.stack(values) for name, values in self.sums.items()}
        row = {name: value[torch.isfinite(value)].mean().item() for name, value in values.items()}  # empty: NaN
        count = len(self.sums["loss"]) * train.batch_size
        row |= {
            "step": pl_module.update,
            "lr": pl_module.trainer.optimizers[0].param_groups[0]["lr"],
            "samples_per_second": count / (time.perf_counter() - self.since),
            "skipped": pl_module.skipped,
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
    """Raw losses on fixed draws of (z, ε, r, t) from the validation split, of every average and of the weights themselves.

    Args:
        latents: normalised latents of the validation split.
        averages: the averaged weights.
        table: val.csv.
        board: TensorBoard's writer.
        keep: called with the weights whenever they are the best so far.

    Attributes:
        best: the smallest raw loss so far, of which average and update; None before the first validation.
        stopped: why ``train.patience`` stopped the training; None while it did not.
    """

    def __init__(
        self,
        latents: Dataset[Tensor],
        averages: WeightAverages,
        table: Table,
        board: SummaryWriter,
        keep: Callable[[Mapping[str, Tensor]], None],
    ) -> None:
        self.latents, self.averages, self.table, self.board = latents, averages, table, board
        self.keep = keep
        self.best: Best | None = None
        self.stopped: str | None = None
        self.last: dict[str, float] = {}  # average -> raw loss

    def state_dict(self) -> dict[str, Any]:
        """Return all that decides what is exported and when the training stops, as JSON takes it."""
        return {"last": self.last, "best": self.best and self.best._asdict(), "stopped": self.stopped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Set what `state_dict` returned."""
        self.last, self.stopped = dict(state_dict["last"]), state_dict["stopped"]
        self.best = Best(**state_dict["best"]) if state_dict["best"] else None

    @property
    def chosen(self) -> str:
        """The average with the smallest raw loss at the last validation; without any, the first."""
        return min(self.averages.decays, key=lambda average: self.last.get(average, 0.0))

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *_: Any) -> None:
        train = pl_module.config.train
        if len(self.latents) == 0 or (pl_module.update % train.validate_every and pl_module.update != train.updates):  # type: ignore[arg-type]
            return
        for name in (*self.averages.decays, ONLINE):
            with self.averages.swapped_in(pl_module, name), torch.no_grad():
                figures = self._evaluate(pl_module)
            self.table.append({"step": pl_module.update, "average": name} | figures)
            for figure, value in figures.items():
                self.board.add_scalar(f"val/{figure}/{name}", value, pl_module.update)
            self.last[name] = raw_loss(figures)
        name = self.chosen
        if self.best is None or self.last[name] < self.best.raw_loss:
            self.best = Best(self.last[name], name, pl_module.update)
            self.keep(self.averages.weights[name])
        elif train.patience and pl_module.update - self.best.update >= train.patience * train.validate_every:
            self.stopped = (
                f"no smaller raw validation loss than {self.best.raw_loss:.4g} of update {self.best.update} in the last"
                f" {train.patience} validations"
            )
            log.warning("training stopped at update %d: %s", pl_module.update, self.stopped)
            trainer.should_stop = True

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


def raw_loss(figures: Mapping[str, float]) -> float:
    """Return the raw loss that models are chosen on: both terms, or the one that the variant has."""
    return sum(value for name in ("raw_fm", "raw_mf") if not math.isnan(value := figures[name]))


class Checkpoints(Callback):
    """Restores the last checkpoint; saves one every ``train.checkpoint_every`` updates and at the end.

    Args:
        folder: of the checkpoints.
        key: tells this training from others in the same folder.
        averages: the averaged weights.
        guard: saved and restored, in the middle of its window too.
        validation: its last and best figures are saved and restored.
        watch: says when the training has to end.
        progress: what to resume from.
    """

    def __init__(
        self,
        folder: Path,
        key: str,
        averages: WeightAverages,
        guard: DivergenceGuard,
        validation: Validation,
        watch: Watch,
        progress: Progress | None,
    ) -> None:
        self.folder, self.key, self.averages, self.guard = folder, key, averages, guard
        self.validation, self.watch = validation, watch
        self.progress = progress
        self.started = time.perf_counter() - (progress.seconds if progress else 0)

    @property
    def seconds(self) -> float:
        """Seconds of training so far, over all resumed parts."""
        return time.perf_counter() - self.started

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if self.progress is None:
            return
        state = trainer.optimizers[0].state
        for name, parameter in pl_module.network.named_parameters():
            moments = self.progress.part(f"optimizer.{name}.")
            state[parameter] = {m: v if m == "step" else v.to(parameter) for m, v in moments.items()}
        self.progress = None

    def restore(self, module: FlowModule) -> None:
        """Set everything but the optimiser, which does not exist before the training starts, to the last checkpoint."""
        if self.progress is None:
            return
        module.network.load_state_dict(self.progress.part("network."))
        self.averages.weights = {name: self.progress.part(f"average.{name}/") for name in self.averages.decays}
        notes = self.progress.notes
        module.update, module.skipped = self.progress.update, notes["skipped"]
        module.skipped_in_a_row = notes["skipped_in_a_row"]
        self.guard.load_state_dict(notes["guard"])
        self.validation.load_state_dict(notes["validation"])

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *_: Any) -> None:
        train = pl_module.config.train
        reason = self.watch.reason if pl_module.update != train.updates else None
        if reason or pl_module.update % train.checkpoint_every == 0 or pl_module.update == train.updates:
            self.save(trainer, pl_module)
        if reason:
            log.warning("%s: saved at update %d of %d; run again to go on", reason, pl_module.update, train.updates)
            raise Interrupted(reason)

    def save(self, trainer: lightning.Trainer, module: Any) -> None:
        """Write a checkpoint of now."""
        tensors = {f"network.{name}": value for name, value in module.network.state_dict().items()}
        for average, weights in self.averages.weights.items():
            tensors |= {f"average.{average}/{name}": value for name, value in weights.items()}
        state = trainer.optimizers[0].state
        for name, parameter in module.network.named_parameters():
            tensors |= {f"optimizer.{name}.{m}": state[parameter][m] for m in MOMENTS if parameter in state}
        notes = {
            "skipped": module.skipped,
            "skipped_in_a_row": module.skipped_in_a_row,
            "guard": self.guard.state_dict(),
            "validation": self.validation.state_dict(),
        }
        progress = Progress(module.update, self.seconds, tensors, notes)
        save_progress(self.folder, self.key, progress, keep=module.config.train.keep_checkpoints)
