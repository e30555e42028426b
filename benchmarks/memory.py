"""What a training takes in memory, expected and measured: the estimate of `neuromf doctor` against resident memory.

    python benchmarks/memory.py --json memory.json

Each case runs in a process of its own: network, averages and optimiser are made and three updates done as a training does
them (`FlowModule`). Taken is the peak of the resident memory beyond that of a process which has done an update of the
smallest network (Linux). Freed memory is given back at once (MALLOC_MMAP_THRESHOLD_), as a GPU's allocator counts it; the
last column is with glibc's own habits, which keep some of what was freed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from neuromf.config import Config, validate
from neuromf.tables import write_json
from neuromf.training.averages import WeightAverages
from neuromf.training.memory import training_memory
from neuromf.training.module import FlowModule

SMOKE = {
    "channels": [8, 16],
    "attention": [False, False],
    "head_channels": [0, 0],
    "residual_blocks": 1,
    "norm_groups": 4,
}
SMALL = {
    "channels": [16, 32, 64],
    "attention": [False, False, True],
    "head_channels": [0, 0, 16],
    "residual_blocks": 1,
    "norm_groups": 8,
}
MEDIUM = {"channels": [32, 64, 128, 256]}
CASES: dict[str, dict[str, Any]] = {  # what of the configuration differs from the defaults
    "2M, 4×16³, 8 rows": {"network": SMALL, "side": 16, "train": {"batch_size": 8}},
    "2M, 4×16³, 8 rows, bf16": {"network": SMALL, "side": 16, "train": {"batch_size": 8, "precision": "bf16"}},
    "2M, 4×16³, 8 rows, checkpointing": {
        "network": SMALL,
        "side": 16,
        "train": {"batch_size": 8, "checkpointing": True},
    },
    "2M, 4×16³, 8 rows, rectified flow": {
        "network": SMALL,
        "side": 16,
        "train": {"batch_size": 8},
        "flow": {"variant": "rectified_flow"},
    },
    "2M, 4×32³, 4 rows": {"network": SMALL, "side": 32, "train": {"batch_size": 4}},
    "45M, 4×16³, 4 rows": {"network": MEDIUM, "side": 16, "train": {"batch_size": 4}},
    "45M, 4×32³, 2 rows": {"network": MEDIUM, "side": 32, "train": {"batch_size": 2}},
    "45M, 4×32³, 2 rows, bf16": {"network": MEDIUM, "side": 32, "train": {"batch_size": 2, "precision": "bf16"}},
}


def configuration(
    network: dict[str, Any], side: int, train: dict[str, Any], flow: dict[str, Any] | None = None
) -> Config:
    shape = [4 * side] * 3
    settings = {"network": network, "train": train, "flow": flow or {}, "preprocess": {"conform": {"shape": shape}}}
    return validate(settings)


def updates(config: Config, count: int) -> None:
    """Do some updates on random latents, as a training does them."""
    module = FlowModule(config, seed=0)
    averages = WeightAverages({str(share): 100.0 * share for share in config.train.ema_half_lives})
    averages.on_train_start(None, module)  # type: ignore[arg-type]
    optimiser = module.configure_optimizers()
    latent = (config.codec.latent_channels, *(side // 4 for side in config.preprocess.conform.shape))
    for _ in range(count):
        with torch.autocast("cpu", torch.bfloat16, enabled=config.train.precision == "bf16"):
            loss = module.training_step(torch.randn(config.train.batch_size, *latent), 0)
        loss.backward()
        module.configure_gradient_clipping(optimiser)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        averages.on_train_batch_end(None, module)  # type: ignore[arg-type]


def measured(config: Config) -> float:
    """Return the growth of this process's peak resident memory by a training, in bytes."""
    updates(configuration(SMOKE, 8, {"batch_size": 2, "precision": config.train.precision}), 1)  # loads libraries
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here (Linux)
    before = resident("VmRSS")
    updates(config, 3)
    return resident("VmHWM") - before


def measured_alone(name: str, environment: dict[str, str]) -> float:
    """Return `measured` of a case in a process of its own."""
    command = [sys.executable, __file__, "--case", name]
    env = {**os.environ, **environment}
    return float(subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout.split()[-1])


def resident(field: str) -> float:
    """Return a figure of /proc/self/status in bytes."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return float(line.split()[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(measured(configuration(**CASES[arguments.case])))
        return
    rows = []
    print("training\texpected, MiB\tmeasured, MiB\texpected / measured\twith glibc's habits, MiB")
    for name, settings in CASES.items():
        expected = training_memory(configuration(**settings)).bytes
        found, kept = measured_alone(name, {"MALLOC_MMAP_THRESHOLD_": "65536"}), measured_alone(name, {})
        rows.append({"training": name, "expected": expected, "measured": found, "measured with glibc's habits": kept})
        shares = (expected / 2**20, found / 2**20, kept / 2**20)
        print("{}\t{:.0f}\t{:.0f}\t{:.2f}\t{:.0f}".format(name, *shares[:2], expected / found, shares[2]), flush=True)
    if arguments.json:
        write_json(arguments.json, {"torch": torch.__version__, "rows": rows})


if __name__ == "__main__":
    main()
