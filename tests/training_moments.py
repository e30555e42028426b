"""Moments of a training at which tests interfere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from neuromf.training import logbook


def at_update(monkeypatch: pytest.MonkeyPatch, update: int, act: Callable[[], None]) -> None:
    """Do something right after an update of a training, before its checkpoint."""
    before: Callable[..., None] = logbook.Logbook.on_train_batch_end

    def then(self: Any, trainer: Any, module: Any, *rest: Any) -> None:
        before(self, trainer, module, *rest)
        if module.update == update:
            act()

    monkeypatch.setattr(logbook.Logbook, "on_train_batch_end", then)
