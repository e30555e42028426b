"""Pictures of one-step samples in the course of a training."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from neuromf.tables import atomic_path
from neuromf.training.averages import WeightAverages
from neuromf.training.checkpoint import channel_scale
from neuromf.training.validation import Validation, one_step_samples

PICTURED = 4  # samples, of the same noise in every picture
log = logging.getLogger(__name__)


class Pictures(Callback):
    """Writes ``update-<n>.png`` every ``train.samples_every`` updates: one-step samples of the average chosen so far.

    Pictures of updates that a resumed run has yet to make are removed.

    Args:
        folder: of the pictures.
        draw: makes a PNG of latents in the codec's scale, (n, C, D, H, W).
        statistics: ``mean`` and ``std`` per channel, which the latents were normalised with.
        averages: the averaged weights.
        validation: chooses among them.
        resumed_at: updates already done.
    """

    def __init__(
        self,
        folder: Path,
        draw: Callable[[Tensor], bytes],
        statistics: Mapping[str, Any],
        averages: WeightAverages,
        validation: Validation,
        resumed_at: int,
    ) -> None:
        self.folder, self.draw, self.statistics = folder, draw, statistics
        self.averages, self.validation = averages, validation
        for path in folder.glob("update-*.png"):
            if int(path.stem.removeprefix("update-")) > resumed_at:
                path.unlink()

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *_: Any) -> None:
        every = pl_module.config.train.samples_every
        if every is None or pl_module.update % every:
            return
        with (
            self.averages.swapped_in(pl_module, self.validation.chosen(pl_module.config.train.export)),
            torch.no_grad(),
        ):
            samples = one_step_samples(pl_module, PICTURED)
        mean, std = channel_scale(self.statistics, samples)
        try:
            picture = self.draw(samples * std + mean)
        except torch.OutOfMemoryError as error:  # a training is worth more than its pictures
            log.warning("no picture at update %d: %s", pl_module.update, error)
            return
        with atomic_path(self.folder / f"update-{pl_module.update:06d}.png") as temporary:
            temporary.write_bytes(picture)
