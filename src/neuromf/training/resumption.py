"""Going on from the last checkpoint, and saving one now and then."""

from __future__ import annotations

import logging
import time
from collections import Counter
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from neuromf.training.averages import WeightAverages
from neuromf.training.checkpoint import Progress, save_progress
from neuromf.training.guard import DivergenceGuard
from neuromf.training.interruption import Interrupted, Watch, note_progress
from neuromf.training.logbook import Logbook
from neuromf.training.module import FlowModule
from neuromf.training.validation import Validation

MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # of AdamW
log = logging.getLogger(__name__)


class Resumption(Callback):
    """Sets network, counters and optimiser to a checkpoint, if there is one; every rank does."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress = progress

    def restore(self, module: FlowModule) -> None:
        """Set everything but the optimiser, which does not exist before the training starts."""
        if self.progress is None:
            return
        module.network.load_state_dict(self.progress.part("network."))
        module.update, notes = self.progress.update, self.progress.notes
        module.skipped, module.balance = notes["skipped"], notes["balance"]
        module.updates_in = Counter(notes["updates_in"])

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if self.progress is None:
            return
        state = trainer.optimizers[0].state
        for name, parameter in pl_module.network.named_parameters():
            moments = self.progress.part(f"optimizer.{name}.")
            state[parameter] = {name: value.to(parameter) for name, value in moments.items()}
        self.progress = None


class Checkpoints(Callback):
    """Saves a checkpoint every ``train.checkpoint_every`` updates, when the training is interrupted and at the end.

    Args:
        folder: of the checkpoints.
        key: tells this training from others in the same folder.
        averages: the averaged weights.
        logbook: what it has seen since its last row is saved and restored.
        guard: saved and restored, in the middle of its window too.
        validation: its last and best figures are saved and restored.
        watch: says when the training has to end.
        seconds_before: of training before this attempt.
    """

    def __init__(
        self,
        folder: Path,
        key: str,
        averages: WeightAverages,
        logbook: Logbook,
        guard: DivergenceGuard,
        validation: Validation,
        watch: Watch,
        seconds_before: float,
    ) -> None:
        self.folder, self.key, self.averages = folder, key, averages
        self.logbook, self.guard, self.validation, self.watch = logbook, guard, validation, watch
        self.started = time.perf_counter() - seconds_before

    @property
    def seconds(self) -> float:
        """Seconds of training so far, over all resumed parts."""
        return time.perf_counter() - self.started

    def restore(self, progress: Progress) -> None:
        """Set what is beside network and optimiser to a checkpoint."""
        self.averages.weights = {name: progress.part(f"average.{name}/") for name in self.averages.decays}
        self.logbook.load_state_dict(progress.part("log."))
        self.guard.load_state_dict(progress.notes["guard"])
        self.validation.load_state_dict(progress.notes["validation"])

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
        tensors |= {f"log.{name}": value for name, value in self.logbook.state_dict().items()}
        state = trainer.optimizers[0].state
        for name, parameter in module.network.named_parameters():
            tensors |= {f"optimizer.{name}.{m}": state[parameter][m] for m in MOMENTS if parameter in state}
        notes = {
            "updates_in": module.updates_in,
            "skipped": module.skipped,
            "balance": module.balance,
            "guard": self.guard.state_dict(),
            "validation": self.validation.state_dict(),
        }
        progress = Progress(module.update, self.seconds, tensors, notes)
        save_progress(self.folder, self.key, progress, keep=module.config.train.keep_checkpoints)
        note_progress(self.folder)
