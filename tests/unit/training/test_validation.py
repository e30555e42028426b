from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neuromf.flow import TimeSampler
from neuromf.training import validation
from neuromf.training.averages import WeightAverages
from neuromf.training.logbook import FIGURES, Table
from neuromf.training.validation import VALIDATION, Validation, dealt, energy_distance, raw_loss


def test_energy_distance_by_hand() -> None:
    x, y = torch.tensor([[0.0, 0.0], [6.0, 8.0]]), torch.tensor([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]])
    between, within_x, within_y = (0 + 5 + 10 + 10 + 5 + 0) / 6, 10.0, (5 + 10 + 5) / 3
    assert energy_distance(x, y) == pytest.approx((2 * between - within_x - within_y) / math.sqrt(2), rel=1e-5)
    assert energy_distance(x, y[:1]) == pytest.approx((2 * 5 - 10) / math.sqrt(2), abs=1e-5), "a single latent"


def test_energy_distance_sees_a_shift_and_a_spread_and_nothing_else() -> None:
    """N(0, 1) against N(0, 1), N(0.5, 1) and N(0, 0.25), whose samples are blurred; few latents do."""
    random = torch.Generator().manual_seed(0)
    y, same, shifted = (torch.randn(n, 4, 8, 8, 8, generator=random) for n in (6, 32, 32))
    nothing = energy_distance(same, y)
    assert abs(nothing) < 0.01 and energy_distance(shifted + 0.5, y) > 0.1 and energy_distance(0.5 * shifted, y) > 0.1


@pytest.mark.parametrize(("raw_fm", "raw_mf", "expected"), [(1, 2, (2, 3)), (1, math.nan, (1, 1))])
def test_raw_loss(raw_fm: float, raw_mf: float, expected: tuple[int, float]) -> None:
    assert raw_loss({"raw_fm": raw_fm, "raw_mf": raw_mf}) == expected
    assert raw_loss({"raw_fm": math.nan, "raw_mf": math.nan}) == (0, math.inf), "never the smallest"


def test_the_best_by_loss_and_by_distance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One average; the MeanFlow term begins at update 3, and a loss that has it is another one."""
    nan = math.nan
    rows = [(2.0, nan, 0.5), (1.0, nan, 0.6), (1.0, 4.0, nan), (1.0, 3.0, 0.4), (nan, nan, nan)]
    averages = WeightAverages({"a": 1.0})
    kept: list[tuple[str, float]] = []
    watched = Validation(
        torch.zeros(2, 1),  # type: ignore[arg-type]
        averages,
        Table(tmp_path / "val.csv", VALIDATION, 0),
        SimpleNamespace(),  # type: ignore[arg-type]
        lambda criterion, weights: kept.append((criterion, float(weights["w"]))),
    )
    train = SimpleNamespace(validate_every=1, updates=5, patience=None, export="raw_loss")
    module: Any = SimpleNamespace(config=SimpleNamespace(train=train))
    for module.update, (raw_fm, raw_mf, distance) in enumerate(rows, start=1):
        averages.weights = {"a": {"w": torch.tensor(float(module.update))}}
        figures = dict.fromkeys(FIGURES, nan) | {"raw_fm": raw_fm, "raw_mf": raw_mf, "sample_distance": distance}
        monkeypatch.setattr(validation.Validation, "_measure", lambda self, module, name, figures=figures: figures)
        watched.on_train_batch_end(SimpleNamespace(), module)  # type: ignore[arg-type]
    assert kept == [
        ("raw_loss", 1),
        ("sample_distance", 1),
        ("raw_loss", 2),
        ("raw_loss", 3),
        ("raw_loss", 4),
        ("sample_distance", 4),
    ]
    assert watched.best["raw_loss"].update == watched.best["sample_distance"].update == 4
    assert watched.chosen("raw_loss") == "a"


@given(rows=st.integers(1, 70), batch=st.integers(1, 40), share=st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_rows_are_dealt_to_batches_once_and_evenly(rows: int, batch: int, share: float) -> None:
    r, t = TimeSampler(r_equals_t=share).spread(rows, 0, torch.Generator().manual_seed(0))
    batches = list(dealt(r, t, math.ceil(rows / batch)))
    assert sorted(torch.cat(batches).tolist()) == list(range(rows))
    assert all(0 < len(places) <= batch + 1 for places in batches)
    counts = [int((r[places] < t[places]).sum()) for places in batches]
    assert max(counts) - min(counts) <= 1
    for places, count in zip(batches, counts, strict=True):
        assert bool((r[places[:count]] < t[places[:count]]).all()), "the rows with r < t come first"
