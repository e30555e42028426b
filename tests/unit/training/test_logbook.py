from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from neuromf.training.logbook import Table, by_channel_and_time, relative_distance


def test_a_table_loses_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    table = Table(path, ("step", "loss"), 0)
    for step in (1, 2, 3):
        table.append({"step": step, "loss": math.nan if step == 1 else 0.5})
    with path.open("a", encoding="utf-8") as stream:
        stream.write("4,0.")  # killed in the middle of a row
    assert path.read_text(encoding="utf-8") == "step,loss\n1,\n2,0.5\n3,0.5\n4,0."
    Table(path, ("step", "loss"), 2)
    assert path.read_text(encoding="utf-8") == "step,loss\n1,\n2,0.5\n"


def test_losses_by_channel_and_time() -> None:
    """Rows without the term and parts of the times without a row count for nothing; t = 1 is in the last part."""
    nan = torch.nan
    rows = torch.tensor([[1.0, 2.0], [3.0, 6.0], [nan, nan], [5.0, 7.0]])
    figures = by_channel_and_time("raw_fm", rows, torch.tensor([0.1, 0.2, 0.6, 1.0]), [1.0, 10.0])
    assert figures["raw_fm_c0"] == 3 and figures["raw_fm_c1"] == 5
    assert figures["raw_fm_t0"] == 42 and figures["raw_fm_t3"] == 75
    assert math.isnan(figures["raw_fm_t1"]) and math.isnan(figures["raw_fm_t2"])


def test_relative_distance() -> None:
    theta, other = [torch.tensor([3.0]), torch.tensor([[4.0, 0.0]])], [torch.tensor([6.0]), torch.tensor([[8.0, 0.0]])]
    assert relative_distance(other, theta) == pytest.approx(1.0) and relative_distance(theta, other) == 0.5
