"""The divergence guard: it watches the raw loss, which the weighted one hides, and the numbers' being finite."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from neuromf.config import Guard

log = logging.getLogger(__name__)


@dataclass
class DivergenceGuard(Callback):
    """Warns and stops a training whose raw loss climbs, or whose updates keep being skipped.

    The adaptive weight makes the weighted loss read about 1 whatever happens, so the guard looks at the raw MeanFlow loss
    (rectified flow: the raw flow-matching loss). It compares means over a window of updates with the smallest such mean so
    far, from the end of the warm-up on.

    Attributes:
        settings: thresholds and the window, in updates.
        minimum: smallest mean so far; kept in the checkpoints.
        stopped: why the training was stopped; None while it was not.
    """

    settings: Guard
    minimum: float = math.inf
    stopped: str | None = None
    warned: float = 0.0  # the highest threshold warned of
    values: list[Tensor] = field(default_factory=list)

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *_: Any) -> None:
        output = pl_module.output
        self.values.append(output.raw_fm if pl_module.objective.variant == "rectified_flow" else output.raw_mf)
        if pl_module.skipped_in_a_row >= self.settings.max_skipped:
            self._stop(trainer, pl_module, skipping(pl_module.skipped_in_a_row))
        elif pl_module.update % self.settings.window == 0:
            mean = torch.stack(self.values).nanmean().item()
            self.values.clear()
            if pl_module.update > pl_module.config.train.warmup_updates:
                self._judge(trainer, pl_module, mean)

    def _judge(self, trainer: lightning.Trainer, module: Any, mean: float) -> None:
        if not math.isfinite(mean):  # its updates were skipped, and are counted
            return
        self.minimum = min(self.minimum, mean)
        times = mean / self.minimum if self.minimum > 0 else 1.0
        where = f"raw loss {mean:.4g} at update {module.update}, {times:.1f} times its minimum {self.minimum:.4g}"
        if times >= self.settings.stop_at:
            self._stop(trainer, module, f"divergence: {where}")
        elif any(self.warned < level <= times for level in self.settings.warn_at):
            self.warned = max(level for level in self.settings.warn_at if level <= times)
            log.warning("%s; the training is stopped at %g times", where, self.settings.stop_at)

    def _stop(self, trainer: lightning.Trainer, module: Any, reason: str) -> None:
        self.stopped = reason
        log.error("training stopped at update %d: %s", module.update, reason)
        trainer.should_stop = True


def skipping(count: int) -> str:
    """Return the diagnosis of a training that can make no update."""
    return (
        f"{count} updates in a row had a loss or gradient that is not finite and were skipped: lower"
        " train.learning_rate or train.gradient_clip, raise flow.norm_eps, or set train.precision to 32"
    )
