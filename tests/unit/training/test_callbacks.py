from __future__ import annotations

import math
from pathlib import Path

import pytest

from neuromf.training.callbacks import Table, WeightAverages


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


@pytest.mark.parametrize("half_life", [1.0, 50.0])
def test_half_life(half_life: float) -> None:
    assert WeightAverages({"a": half_life}).decays["a"] ** half_life == pytest.approx(0.5)
