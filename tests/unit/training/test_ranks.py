"""Two processes that train together over gloo on the CPU, against one."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_moments import at_update

from neuromf.config import Config, ConfigError, validate
from neuromf.flow import ObjectiveOutput
from neuromf.training import ranks, validation
from neuromf.training.interruption import Interrupted
from neuromf.training.ranks import RankError
from neuromf.training.run import train_run

NETWORK = {
    "channels": [4, 8],
    "attention": [False, True],
    "head_channels": [0, 8],
    "residual_blocks": 1,
    "norm_groups": 4,
}
# So small a learning rate that what rounding does to AdamW's first updates (their size is the same however small a gradient
# is) stays far below what the updates do: at 1e-2 it grows to some percent, more or less on each kind of processor.
TRAIN = {"updates": 6, "batch_size": 4, "learning_rate": 1e-3, "warmup_updates": 2, "gradient_clip": 1e9}
EVERY = {"log_every": 2, "checkpoint_every": 1, "keep_checkpoints": 9, "validate_every": 3, "guard": {"window": 2}}
STATISTICS = {"mean": [1.0, 0.0, -1.0, 2.0], "std": [2.0, 1.0, 0.5, 3.0]}
CHANGED = {"flip_left_right": 0.5, "mixup": 0.5, "noise": 0.5}
validation.VALIDATION_ROWS = 2  # enough for these tests


def config(devices: int, fm_rows: str = "all", **train: Any) -> Config:
    settings = TRAIN | EVERY | {"devices": devices, "augmentation": CHANGED, "loss_mask": {"kind": "voxel"}} | train
    shape = {"conform": {"shape": [32, 32, 32]}}
    return validate({"preprocess": shape, "network": NETWORK, "flow": {"fm_rows": fm_rows}, "train": settings})


def train(folder: Path, settings: Config, nan: bool = False) -> dict[str, Any]:
    latents = torch.randn(6, 4, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    if nan:
        latents[5] = torch.nan
    return train_run(
        settings,
        latents,  # type: ignore[arg-type]
        torch.randn(2, 4, 8, 8, 8, generator=torch.Generator().manual_seed(1)),  # type: ignore[arg-type]
        STATISTICS,
        folder / "model",
        seed=0,
        release={"name": "r", "sha256": "1"},
        codec={"name": "c", "sha256": "2"},
        device=torch.device("cpu"),
        checkpoint_folder=folder / "checkpoints",
    )


def checkpoint(folder: Path, update: int) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / f"update-{update:08d}.safetensors")


def apart(one: Path, two: Path) -> float:
    """Distance of two runs' weights and averages at the end, as a share of the way they went.

    Not of each weight: AdamW's first steps are of one size however small a gradient is, so rounding shows there.
    """
    starts, ends = checkpoint(one, 1), (checkpoint(one, 6), checkpoint(two, 6))
    names = [name for name in starts if name.startswith(("network.", "average."))]
    start, end, other = (torch.cat([part[name].flatten() for name in names]) for part in (starts, *ends))
    return float((other - end).norm() / (end - start).norm())


def metrics(folder: Path) -> list[list[str]]:
    """All that is logged but learning rate, speed and memory."""
    machine = ("lr", "samples_per_second", "peak_memory_mb")
    with (folder / "model" / "metrics.csv").open(encoding="utf-8") as file:
        return [[value for name, value in row.items() if name not in machine] for row in csv.DictReader(file)]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The number of threads changes how sums are rounded, which AdamW amplifies: both sides are to have the same."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[str]]:
    """The other ranks' processes."""
    processes: list[subprocess.Popen[str]] = []
    start = ranks._start

    def spy(*arguments: Any) -> subprocess.Popen[str]:
        processes.append(start(*arguments))
        return processes[-1]

    monkeypatch.setattr(ranks, "_start", spy)
    return processes


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of two ranks."""
    folder = tmp_path_factory.mktemp("two")
    assert train(folder, config(2))["updates"] == 6
    return folder


def compare(one: Path, two: Path) -> None:
    """The first moments after one update are a tenth of its gradient; the figures are of all updates, so of weights too."""
    gradients, others = (
        {name: value * 10 for name, value in checkpoint(folder, 1).items() if name.endswith("exp_avg")}
        for folder in (one, two)
    )
    assert gradients and max(float(gradient.abs().max()) for gradient in gradients.values()) > 0.01
    for name, gradient in gradients.items():
        assert torch.allclose(others[name], gradient, rtol=0, atol=1e-6), name
    assert apart(one, two) < 0.05
    for row, other in zip(metrics(one), metrics(two), strict=True):
        assert [float(v) for v in other if v] == pytest.approx([float(v) for v in row if v], rel=1e-3, abs=1e-5)


def test_two_ranks_equal_one_process_with_the_joint_batch(two: Path, tmp_path: Path) -> None:
    train(tmp_path, config(1))
    compare(tmp_path, two)


def test_they_skip_together_what_is_not_finite_on_one_of_them(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    figures = [train(folder, config(n, "r_equals_t"), nan=True) for n, folder in enumerate(folders, start=1)]
    assert figures[0]["skipped"] == figures[1]["skipped"] > 0
    compare(*folders)


def test_a_signal_to_any_rank_saves_and_ends_all_and_the_run_goes_on(
    two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: list[subprocess.Popen[str]]
) -> None:
    with monkeypatch.context() as context:
        at_update(context, 2, lambda: started[0].send_signal(signal.SIGUSR1))
        with pytest.raises(Interrupted) as ended:
            train(tmp_path, config(2))
    assert ended.value.code == 75 and started[0].poll() is not None
    saved = max((tmp_path / "checkpoints").glob("update-*"))
    assert int(saved.stem.removeprefix("update-")) < 6
    assert train(tmp_path, config(2))["updates"] == 6
    expected, found = checkpoint(two, 6), checkpoint(tmp_path, 6)
    assert expected.keys() == found.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_rank_that_is_killed_ends_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: list[subprocess.Popen[str]]
) -> None:
    """Soon: ranks wait two hours for one another, which is more than the limit of a test."""
    at_update(monkeypatch, 2, lambda: os.kill(started[0].pid, signal.SIGKILL))
    with pytest.raises(RankError, match="rank 1 of the training ended with exit code -9"):
        train(tmp_path, config(2))
    assert not torch.distributed.is_initialized()


def test_batches_that_cannot_be_dealt_evenly_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"train.devices = 2: a batch has 3 rows with r < t and 3 rows with r = t"):
        config(2, batch_size=6)
    with pytest.raises(ConfigError, match="5 latents"):
        config(2, batch_size=5)


def test_joint_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows come back in the batch's order."""

    def output(rank: int) -> ObjectiveOutput:
        rows = torch.tensor([[float(rank)], [rank + 2.0]])
        scalars = [torch.tensor(float(n + rank)) for n in range(3)]
        return ObjectiveOutput(
            *scalars, torch.ones(1), torch.tensor(3.0 + 4 * rank), torch.tensor(0.5), rows, rows + 10
        )

    def all_gather(gathered: list[torch.Tensor], own: torch.Tensor) -> None:
        for rank, values in enumerate(gathered):
            values.copy_(torch.cat([value.flatten() for value in output(rank)]))

    monkeypatch.setattr(ranks, "place", lambda: (0, 2))
    monkeypatch.setattr(ranks.distributed, "all_gather", all_gather)
    whole = ranks.joint(output(0))
    assert whole.fm_rows[:, 0].tolist() == [0, 1, 2, 3] and whole.mf_rows[:, 0].tolist() == [10, 11, 12, 13]
    assert whole.loss == 0.5 and whole.jvp_norm == pytest.approx(((9 + 49) / 2) ** 0.5) and whole.cosine == 0.5
