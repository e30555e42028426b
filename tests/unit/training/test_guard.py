from __future__ import annotations

import json
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from neuromf.config import Guard
from neuromf.training.guard import DivergenceGuard

SETTINGS = Guard(window=2, warn_at=(2.0, 4.0), stop_at=8.0, max_skipped=3)


def module(update: int, raw_fm: float, raw_mf: float, skipped: int = 0) -> Any:
    output = SimpleNamespace(raw_fm=torch.tensor(raw_fm), raw_mf=torch.tensor(raw_mf))
    config = SimpleNamespace(train=SimpleNamespace(warmup_updates=1000))
    return SimpleNamespace(update=update, output=output, config=config, skipped=skipped, device=torch.device("cpu"))


def watch(guard: DivergenceGuard, losses: list[tuple[float, float]], first: int = 1) -> Any:
    trainer = SimpleNamespace(should_stop=False)
    for update, (raw_fm, raw_mf) in enumerate(losses, start=first):
        guard.on_train_batch_end(trainer, module(update, raw_fm, raw_mf))  # type: ignore[arg-type]
    return trainer


@pytest.mark.parametrize(("climbing", "name"), [((16.0, 1.0), "raw_fm"), ((1.0, 16.0), "raw_mf")])
def test_either_raw_loss_stops_and_is_named(climbing: tuple[float, float], name: str) -> None:
    guard = DivergenceGuard(SETTINGS)
    assert watch(guard, [(1.0, 1.0)] * 2 + [climbing] * 2).should_stop
    assert guard.stopped == f"divergence: {name} 16 at update 4, 16.0 times its minimum 1"


def test_each_loss_has_its_own_minimum(caplog: pytest.LogCaptureFixture) -> None:
    guard = DivergenceGuard(SETTINGS)
    watch(guard, [(1.0, 10.0)] * 2 + [(3.0, 10.0)] * 4 + [(1.0, 9.0)] * 2)
    assert guard.stopped is None and guard.minimum == {"raw_fm": 1.0, "raw_mf": 9.0}
    assert [record.getMessage().split()[0] for record in caplog.records] == ["raw_fm"], "warned once of a threshold"


def test_a_loss_that_begins_later_is_judged_from_then_on() -> None:
    guard = DivergenceGuard(SETTINGS)
    watch(guard, [(1.0, math.nan)] * 4 + [(1.0, 50.0)] * 2)
    assert guard.stopped is None and guard.minimum["raw_mf"] == 50.0
    watch(guard, [(1.0, 400.0)] * 2, first=7)
    assert "raw_mf 400" in str(guard.stopped)


def test_its_state_goes_through_json_in_the_middle_of_a_window() -> None:
    losses = [(1.0, math.nan), (1.3, math.nan), (0.7, 0.1), (3.1, 0.3), (2.9, 0.2)]
    undisturbed, before, after = (DivergenceGuard(SETTINGS) for _ in range(3))
    watch(undisturbed, [*losses, (9.0, 0.4)])
    watch(before, losses)
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    assert len(after.window) == 1 and after.warned == before.warned
    watch(after, [(9.0, 0.4)], first=6)
    assert after.state_dict() == undisturbed.state_dict()


def test_a_divergence_inside_the_warm_up_stops() -> None:
    """The module's warm-up has 1,000 updates: the first window after a divergence in it was taken for the minimum."""
    guard = DivergenceGuard(SETTINGS)
    assert watch(guard, [(1.0, 1.0)] * 2 + [(1.0, 80.0)] * 2).should_stop
    assert guard.minimum == {"raw_fm": 1.0, "raw_mf": 1.0}


@pytest.mark.parametrize("infinite", [math.inf, math.nan])
def test_a_window_with_an_update_that_is_not_finite_is_judged_by_the_others(infinite: float) -> None:
    guard = DivergenceGuard(SETTINGS)
    assert watch(guard, [(1.0, 1.0), (infinite, 1.0), (infinite, 1.0), (20.0, 1.0)]).should_stop
    assert guard.stopped == "divergence: raw_fm 20 at update 4, 20.0 times its minimum 1"


@pytest.mark.parametrize("every", [1, 4])
def test_updates_that_are_skipped_again_and_again_stop(every: int) -> None:
    """Three of the last ten windows' twenty updates, whether or not they follow each other."""
    guard, trainer = DivergenceGuard(SETTINGS), SimpleNamespace(should_stop=False)
    for update in range(1, 3 * every + 1):
        assert not trainer.should_stop
        guard.on_train_batch_end(trainer, module(update, 1.0, 1.0, skipped=update // every))  # type: ignore[arg-type]
    assert trainer.should_stop and "3 of the last 20 updates" in str(guard.stopped)


def test_rare_skips_stop_no_training() -> None:
    guard, trainer = DivergenceGuard(SETTINGS), SimpleNamespace(should_stop=False)
    for update in range(1, 400):
        guard.on_train_batch_end(trainer, module(update, 1.0, 1.0, skipped=update // 11))  # type: ignore[arg-type]
    assert not trainer.should_stop and len(guard.skipped) == 10
