"""Memory of a training, found without data, against the tensors that live at once in a real update."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from neuromf.config import Config, validate
from neuromf.training.memory import Peak, training_memory
from neuromf.training.module import FlowModule

NETWORK = {"channels": [8], "attention": [True], "head_channels": [8], "residual_blocks": 1, "norm_groups": 4}


def configuration(**train_and_flow: Any) -> Config:
    flow = {key: train_and_flow.pop(key) for key in ("variant", "fm_rows", "v_head", "jvp") if key in train_and_flow}
    settings = {"batch_size": 4, **train_and_flow}
    shape = {"conform": {"shape": [32, 32, 32]}}
    return validate({"network": NETWORK, "flow": flow, "train": settings, "preprocess": shape})


def live_bytes(config: Config) -> int:
    """The most bytes of tensors beyond the weights that live at once in an update's passes."""
    module = FlowModule(config, seed=0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    latents = torch.randn(config.train.batch_size, 4, 8, 8, 8)
    with Peak() as peak, torch.autocast("cpu", torch.bfloat16, enabled=config.train.precision == "bf16"):
        loss = module.training_step(latents, 0)
        with torch.autocast("cpu", enabled=False):
            loss.backward()
    return peak.highest


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"precision": "bf16"},
        {"checkpointing": True},
        {"fm_rows": "r_equals_t"},
        {"v_head": True},
        {"fm_rows": "r_equals_t", "jvp": "finite_difference"},
        {"variant": "rectified_flow"},
    ],
    ids=str,
)
def test_the_passes_take_what_a_real_update_takes(how: dict[str, Any]) -> None:
    config = configuration(**how)
    assert training_memory(config).working == pytest.approx(live_bytes(config), rel=0.05)


def test_weights_moments_and_averages_are_counted() -> None:
    few, more = (training_memory(configuration(ema_half_lives=lives)) for lives in ([0.1], [0.1, 0.2, 0.3]))
    assert few.states == 4 * few.parameters * 4
    assert more.states == 6 * few.parameters * 4
    assert more.bytes - more.states == few.bytes - few.states and few.working == more.working


def test_a_device_takes_its_share_of_the_batch() -> None:
    alone, shared = (training_memory(configuration(batch_size=8, devices=devices)) for devices in (1, 2))
    assert shared.working < 0.7 * alone.working
    assert shared.states == alone.states
