"""Exponential moving averages of the weights, which are what is validated and exported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from neuromf.training.module import FlowModule

ONLINE = "online"  # the weights themselves, beside their averages


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
