"""What a training computes in: chosen by the device, kept or changed with a word when it goes on, written down."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training_moments import at_update

from neuromf import precision
from neuromf.config import Config, load, validate
from neuromf.training import validation
from neuromf.training.precision import costly_settings, resumed_precision, training_precision
from neuromf.training.run import train_run

CPU = torch.device("cpu")
NETWORK = {
    "channels": [4, 8],
    "attention": [False] * 2,
    "head_channels": [0] * 2,
    "residual_blocks": 1,
    "norm_groups": 4,
}
TRAIN = {"updates": 4, "batch_size": 2, "warmup_updates": 1, "validate_every": 4, "checkpoint_every": 1, "log_every": 1}


def config(asked: str, **network: Any) -> Config:
    return validate(
        {
            "preprocess": {"conform": {"shape": [32, 32, 32]}},
            "network": NETWORK | network,
            "train": TRAIN | {"precision": asked},
        }
    )


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Give this process another processor: ``amx`` or ``avx2``."""

    def give(kind: str) -> None:
        monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
        monkeypatch.setattr(precision, "_has_bf16_kernels", lambda: kind == "amx")
        monkeypatch.setattr(precision, "_has_amx", lambda: kind == "amx")

    return give


@pytest.fixture(autouse=True)
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "VALIDATION_ROWS", 2)


class Latents:
    def __init__(self) -> None:
        self.values = torch.randn(3, 4, 8, 8, 8, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.values[index]


def train(folder: Path, settings: Config) -> dict[str, Any]:
    train_run(
        settings, Latents(), Latents(), {"mean": [0.0] * 4, "std": [1.0] * 4}, folder / "model", seed=0,
        release={"name": "r", "sha256": "1"}, codec={"name": "c", "sha256": "2"}, device=CPU,
        checkpoint_folder=folder / "checkpoints",
    )  # fmt: skip
    return json.loads((folder / "model" / "model.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("kind", "taken"), [("amx", "bf16"), ("avx2", "32")])
def test_auto_is_kept_as_a_setting_and_what_it_meant_stands_in_the_model(
    tmp_path: Path, processor: Callable[[str], None], kind: str, taken: str
) -> None:
    processor(kind)
    about = train(tmp_path, config("auto"))
    assert about["config"]["train"]["precision"] == "auto" and about["training"]["precision"] == {taken: 4}


class Stop(Exception):
    pass


def broken_off(folder: Path, settings: Config, update: int) -> None:
    def stop() -> None:
        raise Stop

    with pytest.MonkeyPatch.context() as context:
        at_update(context, update, stop)
        with pytest.raises(Stop):
            train(folder, settings)


@pytest.mark.parametrize(
    ("begun", "goes_on", "done"),
    [("amx", "avx2", {"bf16": 2, "32": 2}), ("avx2", "amx", {"32": 4}), ("amx", "amx", {"bf16": 4})],
)
def test_a_training_that_goes_on_elsewhere_starts_not_anew_and_says_what_it_computed_in(
    tmp_path: Path, processor: Callable[[str], None], caplog: pytest.LogCaptureFixture, begun: str, goes_on: str,
    done: dict[str, int],
) -> None:  # fmt: skip
    processor(begun)
    broken_off(tmp_path, config("auto"), 3)
    processor(goes_on)
    with caplog.at_level(logging.WARNING):
        assert train(tmp_path, config("auto"))["training"]["precision"] == done
    assert ("begun in bf16 (2 updates), going on in float32" in caplog.text) == (len(done) == 2)
    assert "starts anew" not in caplog.text


def test_bf16_asked_for_by_name_is_done_and_its_cost_is_said(
    tmp_path: Path, processor: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    processor("avx2")
    assert train(tmp_path, config("bf16"))["training"]["precision"] == {"bf16": 4}
    assert "train.precision: bf16, but oneDNN has no bf16 kernels" in caplog.text and "30 times" in caplog.text
    assert resumed_precision(config("bf16"), CPU, {"bf16": 2})[0] == "bf16"


def test_auto_is_never_what_a_cpu_computes_wrongly(processor: Callable[[str], None]) -> None:
    processor("amx")
    three = {"channels": [4, 8, 8], "attention": [False] * 3, "head_channels": [0] * 3}  # 8, 4 and 2 voxels
    assert training_precision(config("auto", **three), CPU) == "32"
    assert training_precision(config("auto"), CPU) == "bf16"


def test_costly_settings_are_named_with_their_run(processor: Callable[[str], None]) -> None:
    settings = load(
        {
            "runs": {"slow": {"train": {"precision": "bf16"}}, "plain": {"train": {"precision": "auto"}}},
            "codec": {"weights": "trained"},
            "codec_training": {"precision": "bf16"},
        },
        Path(),
    )
    processor("avx2")
    found = [setting for setting, _ in costly_settings(settings, settings.runs, CPU, codec=True)]
    assert found == ["codec_training.precision: bf16", "train.precision: bf16 (run slow)"]
    assert [one for one, _ in costly_settings(settings, settings.runs, CPU, codec=False)] == found[1:]
    processor("amx")
    assert not list(costly_settings(settings, settings.runs, CPU, codec=True))
