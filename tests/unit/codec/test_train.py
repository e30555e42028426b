"""Training one's own VAE: it learns, resumes after a kill, holds its latents' scale, writes what load_codec reads."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from neuromf import precision
from neuromf.codec import train as module
from neuromf.codec.crops import Crops
from neuromf.codec.maisi import build, load_codec
from neuromf.codec.train import CodecTrainer, Progress, hold_scale, learning_rate, rescale_means, train_codec
from neuromf.config import Codec, CodecTraining

CODEC = Codec(name="tiny", channels=(4, 8, 8), residual_blocks=(1, 1, 1), norm_groups=2, latent_channels=2)
RECIPE = CodecTraining(
    updates=4, batch_size=2, crop=(16, 16, 16), learning_rate=1e-3, whole_volume_share=0.25,
    validate_every=2, checkpoint_every=1, log_every=1,
)  # fmt: skip
Scans = Callable[..., list[Path]]


def recipe(**changes: object) -> CodecTraining:
    return CodecTraining.model_validate(RECIPE.model_dump() | changes)


def test_a_codec_is_written_that_loads(scans: Scans, tmp_path: Path) -> None:
    paths = scans(3)
    figures = train_codec(paths[:2], paths[2:], CODEC, RECIPE, tmp_path / "codec", workspace=tmp_path / "work")
    assert sorted(p.name for p in (tmp_path / "codec").iterdir()) == ["codec.json", "codec.safetensors", "training.csv"]
    about = json.loads((tmp_path / "codec" / "codec.json").read_text())
    assert about["figures"] == figures
    assert about["recipe"]["updates"] == figures["updates"] == 4
    codec = load_codec(Codec(weights="trained"), trained=tmp_path / "codec")
    assert codec.sha256 == about["sha256"]
    assert 0.9 <= figures["latent_std"] <= 1.1
    crops = Crops.read(paths[:2], (16, 16, 16), 0.0)
    latents = torch.cat([codec.encode(crops.volume(i)[None]) for i in range(2)])
    spread = latents.transpose(0, 1).flatten(1).double().var(1, correction=0).mean().sqrt()
    assert float(spread) == pytest.approx(figures["latent_std"], abs=2e-3)
    rows = list(csv.DictReader((tmp_path / "work" / "training.csv").open()))
    assert [row["update"] for row in rows] == ["1", "2", "3", "4"]
    assert [bool(row["val_psnr"]) for row in rows] == [False, True, False, True]


def test_a_killed_training_goes_on_as_if_nothing_had_happened(
    scans: Scans, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = scans(3)
    train_codec(paths[:2], paths[2:], CODEC, RECIPE, tmp_path / "whole")
    step = CodecTrainer.step

    def killed(self: CodecTrainer, x: torch.Tensor, share: float) -> dict[str, float]:
        if self.progress.update == 3:
            raise KeyboardInterrupt
        return step(self, x, share)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(CodecTrainer, "step", killed)
        train_codec(paths[:2], paths[2:], CODEC, recipe(checkpoint_every=2), tmp_path / "killed")
    assert not (tmp_path / "killed" / "codec.safetensors").exists()
    figures = train_codec(paths[:2], paths[2:], CODEC, RECIPE, tmp_path / "killed")  # from update 2: 3 is made again
    assert figures["updates"] == 4
    whole, resumed = (load_file(tmp_path / name / "codec.safetensors") for name in ("whole", "killed"))
    for key, value in whole.items():
        torch.testing.assert_close(resumed[key], value, atol=1e-6, rtol=1e-5)
    rows = list(csv.DictReader((tmp_path / "killed" / "training.csv").open()))
    assert [row["update"] for row in rows] == ["1", "2", "3", "4"]


def test_other_settings_start_anew(scans: Scans, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = scans(2)
    short = recipe(updates=1)
    train_codec(paths[:1], paths[1:], CODEC, short, tmp_path)
    train_codec(paths[:1], paths[1:], CODEC, recipe(updates=1, seed=1), tmp_path)
    assert caplog.text.count("training starts anew") == 1
    train_codec(paths[1:], paths[1:], CODEC, recipe(updates=1, seed=1), tmp_path)  # other volumes
    assert caplog.text.count("training starts anew") == 2
    train_codec(paths[1:], paths[1:], CODEC, recipe(updates=1, seed=1), tmp_path, code="edited")
    assert caplog.text.count("training starts anew") == 3


def test_a_finished_training_is_not_trained_again(
    scans: Scans, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = scans(2)
    first = train_codec(paths[:1], paths[1:], CODEC, recipe(updates=1), tmp_path)
    monkeypatch.setattr(CodecTrainer, "step", lambda *_: pytest.fail("trained again"))
    assert train_codec(paths[:1], paths[1:], CODEC, recipe(updates=1), tmp_path)["val_psnr"] == first["val_psnr"]


def test_the_loss_falls(scans: Scans, tmp_path: Path) -> None:
    paths = scans(3)
    training = recipe(updates=40, learning_rate=3e-3, validate_every=100, whole_volume_share=0.0)
    train_codec(paths[:2], paths[2:], CODEC, training, tmp_path)
    l1 = [float(row["l1"]) for row in csv.DictReader((tmp_path / "training.csv").open())]
    assert sum(l1[-5:]) < 0.7 * sum(l1[:5])


def test_adversarial_and_bf16(scans: Scans, tmp_path: Path) -> None:
    paths = scans(2, (32, 32, 32))
    training = recipe(updates=2, crop=(32, 32, 32), adversarial_weight=0.05, precision="bf16", whole_volume_share=0.0)
    figures = train_codec(paths[:1], paths[1:], CODEC, training, tmp_path)
    rows = list(csv.DictReader((tmp_path / "training.csv").open()))
    assert float(rows[-1]["discriminator"]) > 0
    assert figures["updates"] == 2


def test_crops_too_small_for_the_discriminator_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 32"):
        CodecTrainer(CODEC, recipe(adversarial_weight=0.1), torch.device("cpu"), None)


def test_a_time_budget_ends_the_run(scans: Scans, tmp_path: Path) -> None:
    paths = scans(2)
    figures = train_codec(paths[:1], paths[1:], CODEC, recipe(updates=10_000), tmp_path, minutes=0.5 / 60)
    assert 0 < figures["updates"] < 10_000
    assert figures["minutes"] < 0.2


def test_a_loss_that_is_not_finite_stops_the_run(scans: Scans, tmp_path: Path) -> None:
    trainer = CodecTrainer(CODEC, RECIPE, torch.device("cpu"), None)
    with pytest.raises(FloatingPointError, match="update 0"):
        trainer.step(torch.full((1, 1, 16, 16, 16), torch.nan), 0.1)


def test_learning_rate_and_progress() -> None:
    rates = [learning_rate(share / 100, 1.0) for share in range(101)]
    assert max(rates) == pytest.approx(1, abs=0.01) and rates[0] < 0.05 and rates[-1] < 0.01
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert Progress(50, 60.0).share(100, None) == 0.5
    assert Progress(50, 60.0).share(100, 1.25) == pytest.approx(0.8)
    assert Progress(500, 0.0).share(100, None) == 1


def test_rescaling_changes_no_reconstruction() -> None:
    torch.manual_seed(0)
    network = build(CODEC)
    x = torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad():
        mean, sigma = network.encode(x)
        y = network.decode(mean)
        shift, scale = torch.tensor([0.3, -2.0]), torch.tensor([4.0, 0.5])
        rescale_means(network, shift, scale, compensate=True)
        new_mean, new_sigma = network.encode(x)
        torch.testing.assert_close(network.decode(new_mean), y, atol=1e-5, rtol=1e-4)
    view = (1, -1, 1, 1, 1)
    torch.testing.assert_close(new_mean, (mean - shift.view(view)) / scale.view(view), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(new_sigma, sigma / scale.view(view), atol=1e-6, rtol=1e-4)


def test_scale_inside_the_target_is_left_alone() -> None:
    network = build(CODEC)
    before = network.quant_conv_mu.conv.weight.clone()
    torch.manual_seed(0)
    assert hold_scale(network, [torch.randn(1, 2, 8, 8, 8)], (0.9, 1.1)) == 1.0
    assert torch.equal(network.quant_conv_mu.conv.weight, before)
    assert hold_scale(network, [3 * torch.randn(1, 2, 8, 8, 8)], (0.9, 1.1)) == pytest.approx(3, rel=0.1)


def test_a_start_narrow_and_of_unit_scale(scans: Scans) -> None:
    trainer = CodecTrainer(CODEC, RECIPE, torch.device("cpu"), None)
    x = Crops.read(scans(2), (16, 16, 16), 0.0).draw(8, trainer.generator)
    trainer.start(x)
    with torch.no_grad():
        mean, sigma = trainer.network.encode(x)
    torch.testing.assert_close(sigma, torch.full_like(sigma, module.INITIAL_SIGMA))
    flat = mean.transpose(0, 1).flatten(1)
    torch.testing.assert_close(flat.mean(1), torch.zeros(2), atol=1e-3, rtol=0)
    torch.testing.assert_close(flat.std(1), torch.ones(2), atol=1e-3, rtol=0)


def test_auto_precision_follows_the_processor_and_is_written_down(
    scans: Scans, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    paths, auto = scans(3), recipe(precision="auto", updates=3)
    step, fast = CodecTrainer.step, [True]
    monkeypatch.setattr(precision, "gains_by_bf16", lambda device: fast[0])

    def killed(self: CodecTrainer, x: torch.Tensor, share: float) -> dict[str, float]:
        if self.progress.update == 2:
            raise KeyboardInterrupt
        return step(self, x, share)

    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
        context.setattr(CodecTrainer, "step", killed)
        train_codec(paths[:2], paths[2:], CODEC, auto, tmp_path / "codec")
    fast[0] = False  # it goes on on a processor without bf16 kernels
    figures = train_codec(paths[:2], paths[2:], CODEC, auto, tmp_path / "codec")
    assert figures["precision"] == {"bf16": 2, "32": 1} and "going on in float32" in caplog.text
    about = json.loads((tmp_path / "codec" / "codec.json").read_text())
    assert about["recipe"]["precision"] == "auto"
    assert CodecTrainer(CODEC, recipe(precision="auto", crop=(8, 16, 16)), torch.device("cpu"), None).precision == "32"
