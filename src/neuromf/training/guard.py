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

RAW_LOSSES = ("raw_fm", "raw_mf")  # of ObjectiveOutput
REMEMBERED = 10  # windows in which skipped updates are counted: they need not follow each other
log = logging.getLogger(__name__)


@dataclass
class DivergenceGuard(Callback):
    """Warns and stops a training whose raw losses climb, or whose updates keep being skipped.

    The adaptive weight makes the weighted loss read about 1 whatever happens, so the guard looks at the raw ones, at each by
    itself: it compares means over a window of updates with the smallest such mean so far, from the first window on (a
    training may diverge in its warm-up, and a window after that would pass for the minimum). Updates whose raw loss is not
    finite are left out of the mean and counted as skipped; a loss that the variant has not, or has not yet, is NaN and is
    not judged.

    Attributes:
        settings: thresholds and the window, in updates.
        minimum: smallest mean so far of each raw loss.
        warned: the highest threshold warned of.
        stopped: why the training was stopped; None while it was not.
        window: raw losses of the window's updates so far, (2,) each.
        skipped: of the whole training, when each of the last `REMEMBERED` windows began.
    """

    settings: Guard
    minimum: dict[str, float] = field(default_factory=lambda: dict.fromkeys(RAW_LOSSES, math.inf))
    warned: dict[str, float] = field(default_factory=lambda: dict.fromkeys(RAW_LOSSES, 0.0))
    stopped: str | None = None
    window: list[Tensor] = field(default_factory=list)
    skipped: list[int] = field(default_factory=lambda: [0])

    def state_dict(self) -> dict[str, Any]:
        """Return all that decides what the guard does next, as JSON takes it."""
        window = torch.stack(self.window).tolist() if self.window else []  # a float32 survives as a decimal number
        rest = {name: getattr(self, name) for name in ("minimum", "warned", "stopped", "skipped")}
        return rest | {"window": window}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Set what `state_dict` returned."""
        self.minimum, self.warned = dict(state_dict["minimum"]), dict(state_dict["warned"])
        self.stopped, self.skipped = state_dict["stopped"], list(state_dict["skipped"])
        self.window = [torch.tensor(values) for values in state_dict["window"]]

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self.window = [values.to(pl_module.device) for values in self.window]

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *_: Any) -> None:
        self.window.append(torch.stack([getattr(pl_module.output, name).float() for name in RAW_LOSSES]))
        if (count := pl_module.skipped - self.skipped[0]) >= self.settings.max_skipped:
            self._stop(trainer, pl_module, skipping(count, self.settings.window * REMEMBERED))
        elif pl_module.update % self.settings.window == 0:
            losses = torch.stack(self.window)
            means = torch.where(losses.isfinite(), losses, torch.nan).nanmean(0).tolist()
            self.window.clear()
            self.skipped = [*self.skipped, pl_module.skipped][-REMEMBERED:]
            for name, mean in zip(RAW_LOSSES, means, strict=True):
                self._judge(trainer, pl_module, name, mean)

    def _judge(self, trainer: lightning.Trainer, module: Any, name: str, mean: float) -> None:
        if math.isnan(mean):  # there is no such loss, or all its updates were skipped, and are counted
            return
        self.minimum[name] = min(self.minimum[name], mean)
        minimum = self.minimum[name]
        times = mean / minimum if minimum > 0 else 1.0
        where = f"{name} {mean:.4g} at update {module.update}, {times:.1f} times its minimum {minimum:.4g}"
        if times >= self.settings.stop_at:
            self._stop(trainer, module, f"divergence: {where}")
        elif any(self.warned[name] < level <= times for level in self.settings.warn_at):
            self.warned[name] = max(level for level in self.settings.warn_at if level <= times)
            log.warning("%s; the training is stopped at %g times", where, self.settings.stop_at)

    def _stop(self, trainer: lightning.Trainer, module: Any, reason: str) -> None:
        self.stopped = f"{self.stopped}; {reason}" if self.stopped else reason
        log.error("training stopped at update %d: %s", module.update, reason)
        trainer.should_stop = True


def skipping(count: int, updates: int) -> str:
    """Return the diagnosis of a training that can make no update."""
    return (
        f"{count} of the last {updates} updates had a loss or gradient that is not finite and were skipped: lower"
        " train.learning_rate or train.gradient_clip, raise flow.norm_eps, or set train.precision to 32"
    )
