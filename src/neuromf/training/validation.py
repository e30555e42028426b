"""Validation: raw losses on fixed draws, and which weights are the best."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import Dataset
from torch.utils.tensorboard import SummaryWriter

from neuromf.training.averages import ONLINE, WeightAverages
from neuromf.training.logbook import FIGURES, Table
from neuromf.training.module import FlowModule, generator_for

VALIDATION = ("step", "average", *FIGURES)  # columns of val.csv
VALIDATION_ROWS = 32  # at least this many draws of (z, ε, r, t)
log = logging.getLogger(__name__)


class Best(NamedTuple):
    """The best validation of a training."""

    raw_loss: float
    average: str
    update: int


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
