from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from training_moments import at_update

from neuromf.config import Config, validate
from neuromf.flow import network
from neuromf.flow.compiled import whole_graph
from neuromf.generation.generate import sample_latents
from neuromf.tensors import tensors_sha256
from neuromf.training import logbook, module, validation
from neuromf.training.checkpoint import CheckpointError, load_model
from neuromf.training.interruption import Interrupted, NoProgressError, idle_attempts
from neuromf.training.module import BatchStream, FlowModule, generator_for
from neuromf.training.run import NormalisedLatents, train_run

SETTINGS: dict[str, Any] = {
    "preprocess": {"conform": {"shape": [32, 32, 32]}},
    "network": {
        "channels": [4, 8],
        "attention": [False, False],
        "head_channels": [0, 8],
        "residual_blocks": 1,
        "norm_groups": 4,
    },
    "train": {
        "updates": 8,
        "batch_size": 2,
        "learning_rate": 1e-2,
        "warmup_updates": 2,
        "validate_every": 4,
        "checkpoint_every": 3,
        "log_every": 2,
    },
}
STATISTICS = {"mean": [1.0, 0.0, -1.0, 2.0], "std": [2.0, 1.0, 0.5, 3.0]}


class Latents:
    """Random latents of the shape that the settings ask for."""

    def __init__(self, n: int, seed: int, side: int = 8) -> None:
        random = torch.Generator().manual_seed(seed)
        self.values = torch.randn(n, 4, side, side, side, generator=random)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.values[index]


def config(**changes: dict[str, Any]) -> Config:
    return validate({part: SETTINGS.get(part, {}) | changes.get(part, {}) for part in {*SETTINGS, *changes}})


def train(folder: Path, settings: Config | None = None, **changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "train": Latents(5, 0),
        "val": Latents(2, 1),
        "statistics": STATISTICS,
        "seed": 0,
        "release": {"name": "r", "sha256": "1"},
        "codec": {"name": "c", "sha256": "2"},
        "device": torch.device("cpu"),
        "checkpoint_folder": folder / "checkpoints",
    }
    return train_run(settings or config(), folder=folder / "model", **(arguments | changes))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


validation.VALIDATION_ROWS = 2  # enough for these tests


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums in one order, so that another process gives the same bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    train(folder)
    return folder


def state(folder: Path) -> dict[str, Any]:
    """What the last checkpoint holds: weights, averages and optimiser, and what guard and validation remember."""
    progress = load_file(last := max((folder / "checkpoints").glob("update-*")))
    with safe_open(last, framework="pt") as file:
        about = file.metadata()
    return {"tensors": tensors_sha256(progress), "update": about["update"], "notes": json.loads(about["notes"])}


class Stop(Exception):
    pass


def stop_after(monkeypatch: pytest.MonkeyPatch, update: int) -> None:
    """Break a training off right after an update, before its checkpoint."""

    def stop() -> None:
        raise Stop

    at_update(monkeypatch, update, stop)


def test_a_run_leaves_a_model_and_its_history(undisturbed: Path) -> None:
    model = load_model(undisturbed / "model")
    assert model.training["updates"] == 8 and model.latent_shape == (4, 8, 8, 8)
    assert model.training["seed"] == 0 and model.training["latents"] == {"train": 5, "val": 2}
    assert model.training["stopped"] is None
    assert model.training["validation"]["raw_fm"] > 0 and model.codec["sha256"] == "2"
    metrics, validation = (rows(undisturbed / "model" / name) for name in ("metrics.csv", "val.csv"))
    assert [row["step"] for row in metrics] == ["2", "4", "6", "8"]
    names = ["0.05", "0.1", "0.2", "online"]
    assert [(row["step"], row["average"]) for row in validation] == [(step, name) for step in "48" for name in names]
    averages = {path.stem: load_file(path) for path in (undisturbed / "model" / "averages").iterdir()}
    assert sorted(averages) == names
    best = model.training["best"]["raw_loss"]
    assert model.training["exported"] == {"average": best["average"], "update": best["update"]}
    assert same(weights(undisturbed), load_file(undisturbed / "model" / "best" / "raw_loss.safetensors"))
    assert not same(averages["0.05"], averages["0.2"])
    training = model.training
    values = {
        "raw_loss": lambda row: float(row["raw_fm"]) + float(row["raw_mf"]),
        "sample_distance": lambda row: float(row["sample_distance"]),
    }
    for criterion, value in values.items():
        row = min((row for row in validation if row["average"] != "online"), key=value)
        best = training["best"][criterion]
        assert (best["average"], str(best["update"])) == (row["average"], row["step"]), criterion
        assert best["value"] == pytest.approx(value(row), rel=1e-4)
        kept = load_model(undisturbed / "model" / "best" / f"{criterion}.safetensors")
        if best["update"] == 8:
            assert same(dict(kept.network.state_dict()), averages[best["average"]])
    assert training["validation"]["sample_distance"] > 0
    of_one = load_model(undisturbed / "model" / "averages" / "0.2.safetensors")
    assert same(dict(of_one.network.state_dict()), averages["0.2"])
    assert all(float(row["raw_mf"]) > 0 and float(row["samples_per_second"]) > 0 for row in metrics)
    assert list((undisturbed / "model" / "tensorboard").iterdir())


def test_a_logged_row_is_what_its_updates_were(tmp_path: Path) -> None:
    """Two updates of one row, computed again by hand."""
    changes = {"updates": 2, "ema_half_lives": [1.0], "gradient_clip": 1.0, "augmentation": {"flip_left_right": 0.5}}
    settings = config(train=changes, flow={"channel_weights": [1.0, 2.0, 3.0, 4.0], "fm_rows": "r_equals_t"})
    train(tmp_path, settings)
    (row,) = (
        {key: float(value or "nan") for key, value in r.items()} for r in rows(tmp_path / "model" / "metrics.csv")
    )
    module = FlowModule(settings, seed=0)
    latents = NormalisedLatents(Latents(5, 0), STATISTICS)
    optimizer = module.configure_optimizers()
    weight, average = (torch.cat([p.detach().flatten() for p in module.network.parameters()]) for _ in range(2))
    outputs, times, norms = [], [], []
    for module.update, batch in enumerate(BatchStream(5, 2, 0, 0, 2)):
        optimizer.zero_grad()
        module.training_step(torch.stack([latents[i] for i in batch]), 0).backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(module.network.parameters(), 1.0)))
        for group in optimizer.param_groups:
            group["lr"] = module.learning_rate()
        before = weight
        optimizer.step()
        weight = torch.cat([p.detach().flatten() for p in module.network.parameters()])
        decay = min(0.5 ** (1 / 2), (2 + module.update) / (11 + module.update))
        average = decay * average + (1 - decay) * weight
        outputs.append(module.output)
        times.append(module.drawn)
    r, t = (torch.cat(parts) for parts in zip(*times, strict=True))
    expected = {
        name: torch.stack([getattr(output, name).detach() for output in outputs]).mean() for name in logbook.FIGURES
    }
    lambdas = torch.tensor([1.0, 2.0, 3.0, 4.0])
    for term in ("fm", "mf"):
        losses = torch.cat([getattr(output, f"{term}_rows") for output in outputs])
        expected |= {f"raw_{term}_c{c}": losses[:, c].nanmean() for c in range(4)}
        for part in range(4):
            inside = (t >= part / 4) & ((t < (part + 1) / 4) | (part == 3))
            expected[f"raw_{term}_t{part}"] = (losses[inside] * lambdas).sum(1).nanmean()
    expected |= {
        "r_equals_t": torch.tensor(0.5),
        "grad_norm": torch.tensor(norms).mean(),
        "clipped_share": (torch.tensor(norms) > 1).float().mean(),
        "update_norm": (weight - before).norm() / before.norm(),
        "ema_distance_1": (average - weight).norm() / weight.norm(),
        "effective_samples": torch.tensor(7.5),  # five latents flipped with probability ½: 5 (1 + ½)
        "distinct_samples": torch.tensor(10.0),
        "mf_weight": torch.tensor(1.0),
        "skipped": torch.tensor(0.0),
    }
    for name, value in expected.items():
        assert row[name] == pytest.approx(float(value), rel=2e-4, nan_ok=True), name
    assert row["raw_fm"] == pytest.approx(sum((c + 1) * row[f"raw_fm_c{c}"] for c in range(4)), rel=1e-3)
    assert 10 < row["peak_memory_mb"] < 1e5 and set(row) == {
        *expected,
        "step",
        "lr",
        "samples_per_second",
        "peak_memory_mb",
    }


def test_the_same_seed_gives_the_same_weights(undisturbed: Path, tmp_path: Path) -> None:
    train(tmp_path / "again")
    train(tmp_path / "other", seed=1)
    assert same(weights(undisturbed), weights(tmp_path / "again"))
    assert not same(weights(undisturbed), weights(tmp_path / "other"))


def test_an_interrupted_run_ends_where_an_undisturbed_one_does(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as context:
        stop_after(context, 5)
        with pytest.raises(Stop):
            train(tmp_path)
    assert [p.name for p in (tmp_path / "checkpoints").glob("update-*")] == ["update-00000003.safetensors"]
    assert [row["step"] for row in rows(tmp_path / "checkpoints" / "metrics.csv")] == ["2", "4"]
    train(tmp_path)
    assert same(weights(undisturbed), weights(tmp_path))
    ours, expected = (rows(folder / "model" / "metrics.csv") for folder in (tmp_path, undisturbed))
    machine = dict.fromkeys(("samples_per_second", "peak_memory_mb"))
    assert [row | machine for row in ours] == [row | machine for row in expected]
    assert rows(tmp_path / "model" / "val.csv") == rows(undisturbed / "model" / "val.csv")


def undisturbed_and_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Config) -> list[Path]:
    """Two runs of the same settings, the second of which breaks off after its fifth update and goes on."""
    folders = [tmp_path / "undisturbed", tmp_path / "interrupted"]
    train(folders[0], settings)
    with monkeypatch.context() as context:
        stop_after(context, 5)
        with pytest.raises(Stop):
            train(folders[1], settings)
    train(folders[1], settings)
    return folders


def test_an_interrupted_run_repeats_augmentation_and_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    augmentation = {"rotate_axial": 0.5, "scale": 0.5, "noise": 0.5, "mixup": 0.5}
    settings = config(train={"augmentation": augmentation, "loss_mask": {"kind": "block", "block": 2}})
    undisturbed, interrupted = undisturbed_and_interrupted(tmp_path, monkeypatch, settings)
    assert same(weights(undisturbed), weights(interrupted))


def test_sigkill_at_any_moment_is_resumed(undisturbed: Path, tmp_path: Path) -> None:
    script = (
        "import sys, torch; from pathlib import Path; sys.path.insert(0, sys.argv[1]); torch.set_num_threads(1);"
        "import test_run; test_run.train(Path(sys.argv[2]))"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(Path(__file__).parent), str(tmp_path)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not list((tmp_path / "checkpoints").glob("update-*")) and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    train(tmp_path)
    assert state(tmp_path) == state(undisturbed)
    assert same(weights(undisturbed), weights(tmp_path))
    assert rows(tmp_path / "model" / "val.csv") == rows(undisturbed / "model" / "val.csv")


def test_the_guard_goes_on_in_the_middle_of_its_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoint after 4 updates of a window of 3; its first mean is of updates 4 to 6."""
    settings = config(train={"checkpoint_every": 4, "guard": {"window": 3, "warn_at": [1.0001], "stop_at": 100.0}})
    train(tmp_path / "undisturbed", settings)
    with monkeypatch.context() as context:
        stop_after(context, 5)
        with pytest.raises(Stop):
            train(tmp_path / "interrupted", settings)
    assert len(state(tmp_path / "interrupted")["notes"]["guard"]["window"]) == 1
    train(tmp_path / "interrupted", settings)
    assert state(tmp_path / "interrupted") == state(tmp_path / "undisturbed")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_and_ends_with_the_code_of_try_again(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    handler = signal.getsignal(number)
    with monkeypatch.context() as context:
        at_update(context, 4, lambda: os.kill(os.getpid(), number))
        with pytest.raises(Interrupted) as ended:
            train(tmp_path)
    assert ended.value.code == 75 and signal.getsignal(number) is handler
    assert list((tmp_path / "checkpoints").glob("update-00000004*"))
    train(tmp_path, retry=True)
    assert same(weights(undisturbed), weights(tmp_path))


def test_the_time_budget_ends_each_attempt_until_the_run_is_done(undisturbed: Path, tmp_path: Path) -> None:
    attempts = 0
    while not (tmp_path / "model" / "model.json").exists():
        attempts += 1
        with contextlib.suppress(Interrupted):
            train(tmp_path, config(train={"max_hours": 1e-9}), retry=attempts > 1)
    assert attempts == 8, "one update each"
    assert same(weights(undisturbed), weights(tmp_path))


def test_retries_without_progress_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as context:
        stop_after(context, 2)  # before the first checkpoint
        for retry in (False, False, True):  # by hand as often as one likes; the workflow once more, with more memory
            with pytest.raises(Stop):
                train(tmp_path, retry=retry)
        with pytest.raises(NoProgressError, match="2 attempts in a row saved no checkpoint"):
            train(tmp_path, retry=True)
    stop_after(monkeypatch, 6)
    with pytest.raises(Stop):
        train(tmp_path)
    assert idle_attempts(tmp_path / "checkpoints") == 0, "an attempt that saved a checkpoint"
    with pytest.raises(Stop):
        train(tmp_path, retry=True)


def test_a_finished_run_is_exported_again_without_training(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path)
    (tmp_path / "model" / "model.safetensors").unlink()
    stop_after(monkeypatch, 1)
    train(tmp_path)
    assert same(weights(undisturbed), weights(tmp_path))


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"code": "edited"}, {"release": {"name": "r", "sha256": "9"}}, {"statistics": STATISTICS | {"n": 1}}],
)
def test_a_checkpoint_of_something_else_is_not_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    settings = config(train={"updates": 2, "checkpoint_every": 1})
    train(tmp_path, settings)
    stop_after(monkeypatch, 1)
    with pytest.raises(Stop):
        train(tmp_path, settings, **change)


def test_a_damaged_checkpoint_is_left_out(undisturbed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "update-00000003.safetensors").write_bytes(b"half a file")
    (folder / ".tmp-abc.safetensors").write_bytes(b"killed while writing")
    train(tmp_path)
    assert same(weights(undisturbed), weights(tmp_path))
    assert not list(folder.glob(".tmp-*"))


def test_rectified_flow_then_meanflow_from_its_weights(tmp_path: Path) -> None:
    first = tmp_path / "first"
    train(first, config(flow={"variant": "rectified_flow"}))
    assert all(row["raw_mf"] == "" for row in rows(first / "model" / "metrics.csv"))
    assert load_model(first / "model").training["validation"]["raw_mf"] is None
    settings = config(train={"warm_start": str(first / "model"), "updates": 1, "learning_rate": 1e-9})
    figures = train(tmp_path / "second", settings)
    assert figures["warm_start"]["variant"] == "rectified_flow"
    start, end = weights(first), weights(tmp_path / "second")
    assert all(torch.allclose(start[name], end[name], atol=1e-6) for name in start)


def test_a_head_for_the_velocity_begins_as_the_output_and_is_left_behind(tmp_path: Path) -> None:
    flow = {"variant": "rectified_flow"}
    train(tmp_path / "first", config(flow=flow))
    begun = {"warm_start": str(tmp_path / "first" / "model"), "updates": 1, "learning_rate": 1e-9}
    train(tmp_path / "two", config(flow={"v_head": True}, train=SETTINGS["train"] | begun))
    first, two = weights(tmp_path / "first"), weights(tmp_path / "two")
    assert set(two) - set(first) == {f"v_{name}" for name in first if name.startswith("out.")}
    assert all(torch.allclose(two[f"v_{name}"], first[name], atol=1e-6) for name in first if name.startswith("out."))
    assert load_model(tmp_path / "two" / "model").network.v_out is not None
    begun = {"warm_start": str(tmp_path / "two" / "model"), "updates": 1, "learning_rate": 1e-9}
    train(tmp_path / "one", config(train=SETTINGS["train"] | begun))
    assert weights(tmp_path / "one").keys() == first.keys()


def test_channels_weighted_by_their_inverse_variance(tmp_path: Path) -> None:
    train(tmp_path, config(flow={"channel_weights": "inverse_variance"}))
    about = json.loads((tmp_path / "model" / "model.json").read_text(encoding="utf-8"))
    found, std = about["config"]["flow"]["channel_weights"], STATISTICS["std"]
    assert sum(found) == pytest.approx(4) and found[2] / found[3] == pytest.approx((std[3] / std[2]) ** 2)


def test_a_run_goes_on_from_the_weights_that_are_no_average(undisturbed: Path, tmp_path: Path) -> None:
    online = undisturbed / "model" / "averages" / "online.safetensors"
    figures = train(tmp_path, config(train={"warm_start": str(online), "updates": 1, "learning_rate": 1e-9}))
    assert figures["warm_start"]["sha256"] == hashlib.sha256(online.read_bytes()).hexdigest()
    begun, file = weights(tmp_path), load_file(online)
    assert all(torch.allclose(begun[name], file[name], atol=1e-6) for name in file)
    assert not same(file, weights(undisturbed))


def test_another_architecture_is_no_warm_start(undisturbed: Path, tmp_path: Path) -> None:
    settings = config(network={"channels": [8, 8]}, train={"warm_start": str(undisturbed / "model")})
    with pytest.raises(CheckpointError, match=r"model\.safetensors fits another network: .* has shape"):
        train(tmp_path, settings)
    with pytest.raises(CheckpointError, match="does not exist"):
        train(tmp_path, config(train={"warm_start": str(tmp_path / "nowhere")}))


def test_bf16_trains(tmp_path: Path) -> None:
    train(tmp_path, config(train={"precision": "bf16", "updates": 2}))
    assert all(torch.isfinite(value).all() and value.dtype == torch.float32 for value in weights(tmp_path).values())


def test_bf16_that_a_cpu_computes_wrongly_is_refused(tmp_path: Path) -> None:
    three = {"channels": [4, 8, 8], "attention": [False] * 3, "head_channels": [0] * 3}  # 8, 4 and 2 voxels
    settings = config(network=three, train={"precision": "bf16"})
    with pytest.raises(ValueError, match="wrong gradients on a CPU .* set train.precision: 32"):
        train(tmp_path, settings)


def test_recomputed_activations_change_no_weight_and_no_checkpoint(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recomputing = config(train={"checkpointing": True})
    train(tmp_path / "whole", recomputing)
    assert same(weights(undisturbed), weights(tmp_path / "whole"))
    with monkeypatch.context() as context:
        stop_after(context, 5)
        with pytest.raises(Stop):
            train(tmp_path / "switched", recomputing)
    train(tmp_path / "switched")  # goes on from update 3 without
    assert rows(tmp_path / "switched" / "model" / "metrics.csv")[0]["step"] == "2"
    assert same(weights(undisturbed), weights(tmp_path / "switched"))


def first_gradients(folder: Path) -> dict[str, torch.Tensor]:
    """The first moments after one update are a tenth of its gradient; AdamW makes steps of what is rounding alone."""
    saved = load_file(folder / "checkpoints" / "update-00000001.safetensors")
    return {name: 10 * value for name, value in saved.items() if name.endswith("exp_avg")}


def test_a_compiled_run_trains_and_validates_as_a_plain_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    traced = partial(whole_graph, backend="aot_eager")  # inductor takes minutes
    monkeypatch.setattr("neuromf.training.module.whole_graph", traced)
    level = {"channels": [4], "attention": [False], "head_channels": [0]}
    for name in ("plain", "compiled"):
        settings = {"updates": 1, "learning_rate": 1e-4, "compile": name == "compiled"}
        train(tmp_path / name, config(network=level, train=SETTINGS["train"] | settings))
    assert weights(tmp_path / "plain").keys() == weights(tmp_path / "compiled").keys()
    plain, compiled = (first_gradients(tmp_path / name) for name in ("plain", "compiled"))
    assert plain.keys() == compiled.keys() and max(float(value.abs().max()) for value in plain.values()) > 0.01
    assert all(torch.allclose(plain[name], compiled[name], rtol=1e-5, atol=1e-6) for name in plain)
    validations = [rows(tmp_path / name / "model" / "val.csv") for name in ("plain", "compiled")]
    assert len(validations[0]) == 4
    for one, other in zip(*validations, strict=True):
        assert float(other["raw_mf"]) == pytest.approx(float(one["raw_mf"]), rel=1e-4)


def test_updates_that_are_not_finite_are_skipped_and_counted(tmp_path: Path) -> None:
    latents = Latents(6, 0)
    latents.values[0] = torch.nan
    figures = train(tmp_path, train=latents)
    skipped = [int(row["skipped"]) for row in rows(tmp_path / "model" / "metrics.csv")]
    assert 2 <= figures["skipped"] == skipped[-1] < 8 and skipped == sorted(
        skipped
    )  # every latent once in three updates
    assert figures["stopped"] is None
    assert all(torch.isfinite(value).all() for value in weights(tmp_path).values())


def test_a_run_that_can_make_no_update_stops_with_a_diagnosis(tmp_path: Path) -> None:
    latents = Latents(3, 0)
    latents.values[:] = torch.nan
    figures = train(tmp_path, config(train={"guard": {"max_skipped": 3}}), train=latents)
    assert figures["updates"] == 3 and "lower train.learning_rate" in figures["stopped"]


def test_the_guard_stops_a_climbing_raw_loss_and_exports_the_best(tmp_path: Path) -> None:
    """A rate far too high: q = 1 holds the weighted loss near 2 while the raw loss explodes."""
    changes = {"updates": 60, "learning_rate": 0.5, "warmup_updates": 0, "validate_every": 1, "gradient_clip": 1e9}
    settings = config(flow={"norm_p": 1.0}, train=changes | {"schedule": "constant", "guard": {"window": 2}})
    figures = train(tmp_path, settings)
    assert figures["updates"] < 60 and figures["stopped"].startswith("divergence: raw_")
    validation = [row for row in rows(tmp_path / "model" / "val.csv") if row["average"] != "online"]
    best = min(validation, key=lambda row: float(row["raw_fm"]) + float(row["raw_mf"]))
    assert figures["exported"] == {"average": best["average"], "update": int(best["step"])}
    assert figures["validation"]["raw_fm"] == float(best["raw_fm"])
    assert same(weights(tmp_path), load_file(tmp_path / "model" / "best" / "raw_loss.safetensors"))
    assert max(float(row["loss"]) for row in rows(tmp_path / "model" / "metrics.csv")) < 2.01


FAULTY = (
    {"variant": "meanflow", "prediction": "u", "jvp": "finite_difference", "norm_p": 1.0, "times": {"r_equals_t": 0.0}},
    {"schedule": "constant"},
)
SANE = ({"prediction": "x", "jvp": "exact", "norm_p": 0.5}, {"schedule": "cosine"})


def first_full_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, flow: dict[str, Any], schedule: dict[str, Any]
) -> dict[str, Any]:
    """The first full run of the method at small scale: a latent that is all there is to learn, at a rate of 0.02.

    The time embedding turns eight times, towards that run's: with the one turn that ours has, only some seeds diverge.
    """
    monkeypatch.setattr(network, "HIGHEST_FREQUENCY", 16 * math.pi)
    latents = Latents(8, 7, side=4)
    latents.values[:] = latents.values[:1].clone()
    changes = {"updates": 100, "batch_size": 4, "learning_rate": 0.02, "warmup_updates": 10, "validate_every": 10}
    settings = config(
        preprocess={"conform": {"shape": [16, 16, 16]}},
        network={"channels": [8, 16]},
        flow=flow,
        train=changes | schedule | {"guard": {"window": 10}},
    )
    statistics = {"mean": [0.0] * 4, "std": [1.0] * 4}
    return train(folder, settings, train=latents, val=latents, statistics=statistics)


def test_the_hidden_divergence_of_the_first_full_run_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = first_full_run(tmp_path, monkeypatch, *FAULTY)
    metrics = [{key: float(row[key]) for key in ("loss", "raw_mf")} for row in rows(tmp_path / "model" / "metrics.csv")]
    assert max(row["loss"] for row in metrics) < 2, "what is minimised shows nothing"
    raw_mf = [row["raw_mf"] for row in metrics]
    assert max(raw_mf[5:]) > 10 * min(raw_mf), "while the raw loss leaps"
    assert figures["updates"] < 100 and figures["stopped"].startswith("divergence: raw_mf")
    about = json.loads((tmp_path / "model" / "model.json").read_text(encoding="utf-8"))
    assert about["training"]["stopped"] == figures["stopped"]
    assert figures["exported"]["update"] == figures["best"]["raw_loss"]["update"] <= figures["updates"]
    assert same(weights(tmp_path), load_file(tmp_path / "model" / "best" / "raw_loss.safetensors"))


def test_sane_settings_do_not_diverge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same network, latent and rate."""
    figures = first_full_run(tmp_path, monkeypatch, *SANE)
    raw_mf = [float(row["raw_mf"]) for row in rows(tmp_path / "model" / "metrics.csv")]
    assert figures["updates"] == 100 and figures["stopped"] is None
    assert max(raw_mf[-5:]) < 0.1 * raw_mf[0]


def test_pictures_of_one_step_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the chosen average, in the codec's scale; those beyond the checkpoint are drawn again."""
    drawn: list[torch.Tensor] = []

    def picture(latents: torch.Tensor) -> bytes:
        drawn.append(latents)
        return b"picture"

    settings, folder = config(train={"samples_every": 4}), tmp_path / "model" / "progress"
    with monkeypatch.context() as context:
        stop_after(context, 5)
        with pytest.raises(Stop):
            train(tmp_path, settings, picture=picture)
    assert [path.name for path in folder.iterdir()] == ["update-000004.png"]
    assert train(tmp_path, settings, picture=picture)["updates"] == 8
    assert sorted(path.name for path in folder.iterdir()) == ["update-000004.png", "update-000008.png"]
    assert len(drawn) == 3 and torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[1], drawn[2])
    model = load_model(tmp_path / "model")
    noise = torch.randn(4, 4, 8, 8, 8, generator=generator_for(torch.device("cpu"), 0, "samples"))
    expected = model.denormalise(noise - model.velocity(noise, torch.zeros(4), torch.ones(4)))
    assert torch.allclose(drawn[2], expected, atol=1e-4)


def test_pictures_never_end_a_training(tmp_path: Path) -> None:
    def picture(latents: torch.Tensor) -> bytes:
        raise torch.OutOfMemoryError("none left")

    assert train(tmp_path, config(train={"samples_every": 4}), picture=picture)["updates"] == 8


def test_patience_stops_early(tmp_path: Path) -> None:
    changes = {"updates": 40, "learning_rate": 1e-12, "validate_every": 1, "patience": 3, "log_every": 1}
    figures = train(tmp_path, config(train=changes))
    assert figures["updates"] < 40 and "last 3 validations" in figures["stopped"]
    assert figures["exported"]["update"] == figures["updates"] - 3


@pytest.mark.parametrize("criterion", ["raw_loss", "sample_distance"])
def test_a_run_that_overfits_is_exported_at_its_best(tmp_path: Path, criterion: str) -> None:
    """One training latent, learnt by heart: the loss of other latents soon rises. The last validation was exported."""
    changes = {
        "updates": 60,
        "learning_rate": 1e-2,
        "validate_every": 3,
        "schedule": "constant",
        "checkpoint_every": 60,
    }
    figures = train(tmp_path, config(train=SETTINGS["train"] | changes | {"export": criterion}), train=Latents(1, 0))
    table = rows(tmp_path / "model" / "val.csv")
    assert figures["updates"] == 60 and figures["stopped"] is None
    value = {row["step"]: float(row["raw_fm"]) + float(row["raw_mf"]) for row in table if row["average"] == "0.05"}
    assert value["60"] > 1.05 * min(value.values()), "it does overfit"
    best = figures["best"][criterion]
    assert figures["exported"] == {"average": best["average"], "update": best["update"]}
    assert best["update"] < 60 and same(
        weights(tmp_path), load_file(tmp_path / "model" / "best" / f"{criterion}.safetensors")
    )


def test_epochs_are_passes_over_the_train_split(tmp_path: Path) -> None:
    """Five latents, two an update: four epochs are ten updates, and each two of them a validation and a checkpoint."""
    epochs = {"unit": "epochs", "updates": 4, "warmup_updates": 1, "validate_every": 2, "checkpoint_every": 2}
    settings = config(train=SETTINGS["train"] | epochs | {"keep_checkpoints": 5, "samples_every": None})
    assert train(tmp_path, settings)["updates"] == 10
    assert sorted({row["step"] for row in rows(tmp_path / "model" / "val.csv")}) == ["10", "5"]
    assert [p.stem for p in sorted((tmp_path / "checkpoints").glob("update-*"))] == [
        "update-00000005",
        "update-00000010",
    ]


def test_a_balanced_weight_is_logged_and_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BALANCED_EVERY", 2)
    settings = config(flow={"mf_schedule": "balanced"})
    undisturbed, interrupted = undisturbed_and_interrupted(tmp_path, monkeypatch, settings)
    assert same(weights(undisturbed), weights(interrupted))
    logged = [float(row["mf_weight"]) for row in rows(undisturbed / "model" / "metrics.csv")]
    assert len(set(logged)) == 4 and all(0.01 < weight < 100 for weight in logged)


def test_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    train(tmp_path, config(train={"checkpoint_every": 2, "keep_checkpoints": 3}))
    assert sorted(p.name[7:15] for p in (tmp_path / "checkpoints").glob("update-*")) == [
        "00000004",
        "00000006",
        "00000008",
    ]


def test_a_checkpoint_with_a_flipped_bit_is_left_out(undisturbed: Path, tmp_path: Path) -> None:
    train(tmp_path, config(train={"checkpoint_every": 3, "keep_checkpoints": 2}))
    for path in (tmp_path / "checkpoints").glob("update-*"):
        content = bytearray(path.read_bytes())
        content[-5] ^= 1
        path.write_bytes(content)
    train(tmp_path)
    assert same(weights(undisturbed), weights(tmp_path))


def test_a_release_without_validation_scans_trains(tmp_path: Path) -> None:
    figures = train(tmp_path, config(train={"updates": 1}), val=Latents(0, 0))
    assert figures["validation"] == figures["best"] == {} and rows(tmp_path / "model" / "val.csv") == []


def test_unusable_latents_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="train split is empty"):
        train(tmp_path, train=Latents(0, 0))
    with pytest.raises(ValueError, match=r"latents have shape \(4, 4, 4, 4\)"):
        train(tmp_path, train=Latents(3, 0, side=4))


def test_the_model_is_the_moving_average(tmp_path: Path) -> None:
    """After one update from θ0 to θ1 with decay min(d, 2/11) the average is d θ0 + (1 − d) θ1."""
    settings = config(train={"updates": 1, "ema_half_lives": [1.0]})
    train(tmp_path, settings)
    progress = load_file(next((tmp_path / "checkpoints").glob("update-*")))
    start = weights_at_start(settings)
    for name, average in weights(tmp_path).items():
        expected = start[name] * 2 / 11 + progress[f"network.{name}"] * 9 / 11
        assert torch.allclose(average, expected, atol=1e-6), name


def test_noise_is_a_share_of_the_spread_that_a_warm_start_leaves(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Normalised with the warm start's numbers, latents four times as wide have σ_c = 4 and get four times the noise."""
    seen: list[Any] = []
    monkeypatch.setattr(module, "augment", lambda z0, settings, seed, std: seen.append(std) or z0)
    changes = {"warm_start": str(undisturbed / "model"), "normalise": "warm_start", "updates": 1}
    wider = {"mean": STATISTICS["mean"], "std": [4 * sigma for sigma in STATISTICS["std"]]}
    train(tmp_path / "theirs", config(train=SETTINGS["train"] | changes), statistics=wider)
    train(tmp_path / "own", config(train=SETTINGS["train"] | changes | {"normalise": "channel"}), statistics=wider)
    assert seen == [pytest.approx([4.0] * 4), None]


def weights_at_start(settings: Config) -> dict[str, torch.Tensor]:
    return FlowModule(settings, seed=0).network.state_dict()


def test_model_json_is_plain(undisturbed: Path) -> None:
    about = json.loads((undisturbed / "model" / "model.json").read_text(encoding="utf-8"))
    assert {"config", "statistics", "codec", "release", "code_version", "training"} <= set(about)
    assert about["statistics"] == STATISTICS


@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU here")
@pytest.mark.parametrize("train_settings", [{}, {"precision": "bf16"}, {"checkpointing": True}, {"compile": True}])
def test_a_run_on_a_gpu_goes_on_where_it_broke_off_and_samples_like_a_cpu(
    tmp_path: Path, train_settings: dict[str, Any]
) -> None:
    gpu, settings = torch.device("cuda"), config(train=train_settings)
    train(tmp_path / "whole", settings, device=gpu)
    with pytest.MonkeyPatch.context() as context:
        stop_after(context, 5)
        with pytest.raises(Stop):
            train(tmp_path / "broken", settings, device=gpu)
    figures = train(tmp_path / "broken", settings, device=gpu)
    assert figures["updates"] == 8 and figures["device"] == "cuda" and figures["skipped"] == 0
    whole, broken = (weights(tmp_path / name) for name in ("whole", "broken"))
    for name, weight in whole.items():  # a GPU's sums have no fixed order, so not to the bit
        torch.testing.assert_close(broken[name], weight, rtol=0.02, atol=0.02 * float(weight.abs().max()), msg=name)
    on_gpu, on_cpu = (
        sample_latents(load_model(tmp_path / "whole" / "model", device), range(3), seed=0).latents
        for device in (gpu, torch.device("cpu"))
    )
    assert float((on_gpu - on_cpu).norm() / on_cpu.norm()) < 0.01
