from __future__ import annotations

import pytest

from neuromf.training.averages import WeightAverages


@pytest.mark.parametrize("half_life", [1.0, 50.0])
def test_half_life(half_life: float) -> None:
    assert WeightAverages({"a": half_life}).decays["a"] ** half_life == pytest.approx(0.5)
