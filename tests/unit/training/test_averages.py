from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from neuromf.training.averages import ONLINE, WeightAverages


@pytest.mark.parametrize("half_life", [1.0, 50.0])
def test_half_life(half_life: float) -> None:
    assert WeightAverages({"a": half_life}).decays["a"] ** half_life == pytest.approx(0.5)


def followed(half_lives: dict[str, float], values: list[float]) -> tuple[WeightAverages, Any]:
    """Averages of a weight that takes these values, the first at the start and the others after updates 1, 2, …"""
    network = torch.nn.Linear(1, 1, bias=False).double()
    module: Any = SimpleNamespace(network=network, device=torch.device("cpu"), update=0)
    averages, trainer = WeightAverages(half_lives), SimpleNamespace()
    for module.update, value in enumerate(values):
        torch.nn.init.constant_(network.weight, value)
        if module.update == 0:
            averages.on_train_start(trainer, module)  # type: ignore[arg-type]
        else:
            averages.on_train_batch_end(trainer, module)  # type: ignore[arg-type]
    return averages, module


def test_the_averages_are_those_of_equation_17() -> None:
    """θ̄ ← d θ̄ + (1 − d) θ with d = min(2^(−1/H), (1 + n)/(10 + n)) after update n, computed by hand."""
    values = [3.0, -1.0, 4.0, 1.5, 9.0, 2.0, 6.5, 3.0, 5.0, 8.0, 9.5, 7.0, 9.0]  # beyond n = 8 a half-life of 1 decides
    averages, _ = followed({"short": 1.0, "long": 100.0}, values)
    for name, half_life in (("short", 1.0), ("long", 100.0)):
        expected = values[0]
        for n, value in enumerate(values[1:], start=1):
            decay = min(2 ** (-1 / half_life), (1 + n) / (10 + n))
            expected = decay * expected + (1 - decay) * value
        assert averages.weights[name]["weight"].item() == pytest.approx(expected, rel=1e-12)
    assert averages.weights["short"]["weight"].item() != averages.weights["long"]["weight"].item()


def test_an_average_lies_in_the_network_within_the_block_alone() -> None:
    averages, module = followed({"a": 10.0}, [3.0, -1.0])
    weight = module.network.weight
    with averages.swapped_in(module, "a"):
        assert weight.item() == averages.weights["a"]["weight"].item() != -1
    assert weight.item() == -1
    with averages.swapped_in(module, ONLINE):
        assert weight.item() == -1
    with pytest.raises(RuntimeError, match="inside"), averages.swapped_in(module, "a"):
        raise RuntimeError("inside")
    assert weight.item() == -1
