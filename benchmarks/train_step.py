"""One training step, side by side on one network: rectified flow, ours, and the straightforward form.

    python benchmarks/train_step.py --json train_step.json

The straightforward form is what a first implementation does: `torch.func.jvp` that carries the graph on every row, and a
separate forward pass for the velocity. With --compile, --checkpointing or --channels-last rectified flow and ours are
measured a second time with that, in turn with the plain ones. Times are medians of interleaved repetitions. Memory is
what one step takes at its peak beyond weights, optimiser and batch: on a GPU the allocator's, on a CPU the bytes of all
tensors that live at once, counted (not of compiled steps).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuromf.config import Network
from neuromf.device import choose_device
from neuromf.flow import AverageVelocity, MeanFlowObjective, MeanFlowUNet, interpolate
from neuromf.flow.compiled import whole_graph
from neuromf.flow.path import expand
from neuromf.tables import write_json
from neuromf.training.memory import Peak

NETWORKS = {
    "2M": Network(
        channels=(16, 32, 64),
        attention=(False, False, True),
        head_channels=(0, 0, 16),
        residual_blocks=1,
        norm_groups=8,
    ),
    "45M": Network(channels=(32, 64, 128, 256)),
    "180M": Network(),
}
STEPS = {  # name: settings of the objective and share of rows with r = t
    "rectified flow": ({"variant": "rectified_flow"}, 0.5),
    "ours": ({}, 0.5),
    "ours, FM term where r = t": ({"fm_rows": "r_equals_t"}, 0.5),
    "ours, FM term where r = t, quarter r < t": ({"fm_rows": "r_equals_t"}, 0.75),
    "ours, a head for the velocity": ({"v_head": True}, 0.5),
    "straightforward": (None, 0.5),
}
WAYS = ("plain", "compile", "checkpointing", "channels_last")  # of running them; all but the first are asked for
TWICE = ("rectified flow", "ours")  # the steps that are measured in other ways too
Batch = tuple[Tensor, Tensor, Tensor, Tensor]


def make_network(name: str, device: torch.device, way: str = "plain") -> MeanFlowUNet:
    """A UNet without zero weights: MONAI's own start would let whole branches be skipped."""
    torch.manual_seed(0)
    network = MeanFlowUNet(NETWORKS[name], v_head=True)  # steps that do not use the head pay nothing for it
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    network.to(device)
    if way == "channels_last":
        network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    if way == "checkpointing":
        network.recompute_activations()
    if way == "compile":
        network.compile_passes()
    return network


def make_batch(rows: int, side: int, equal: float, device: torch.device) -> Batch:
    random = torch.Generator().manual_seed(1)
    z0, noise = (torch.randn(rows, 4, side, side, side, generator=random) for _ in range(2))
    t = torch.rand(rows, generator=random) * 0.9 + 0.1
    apart = rows - int(rows * equal)
    r = torch.cat([t[:apart] * 0.5, t[apart:]])
    return tuple(value.to(device) for value in (z0, noise, r, t))  # type: ignore[return-value]


def straightforward(network: MeanFlowUNet, z0: Tensor, noise: Tensor, r: Tensor, t: Tensor) -> Tensor:
    """The combined loss with a graph-carrying JVP on every row and a forward pass of its own for the velocity."""
    u, z_t, v_c = AverageVelocity(network), interpolate(z0, noise, t), noise - z0
    v = u(z_t, t, t)
    with torch.autocast(z0.device.type, enabled=False):  # torch.func.jvp fails under it
        u_t, du_dt = torch.func.jvp(u, (z_t, r, t), (v.detach(), torch.zeros_like(r), torch.ones_like(t)))
    errors = (v - v_c, u_t + expand(t - r, z_t) * du_dt.detach() - v_c)
    lp = [e.square().mean((2, 3, 4)).sum(1) for e in errors]
    return sum((x / (x.detach() + 0.01)).mean() for x in lp)  # type: ignore[return-value]


def make_step(
    name: str, network: MeanFlowUNet, rows: int, side: int, precision: str, way: str = "plain"
) -> Callable[[], None]:
    settings, equal = STEPS[name]
    how = {"wrap": cache(whole_graph)} if way == "compile" else {}
    device = next(network.parameters()).device
    batch = make_batch(rows, side, equal, device)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-6, fused=True)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            if settings is None:
                loss = straightforward(network, *batch)
            else:
                loss = MeanFlowObjective(**settings, **how)(network, *batch).loss  # type: ignore[arg-type]
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def seconds(
    steps: dict[str, Callable[[], None]], repeats: int, clock: Callable[[], float]
) -> tuple[dict[str, float], dict[str, float]]:
    """Return each step's median seconds and those of its first call, which warms up or compiles.

    The repetitions take turns, so a slow minute hits all alike.
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats + 1):
        for name, step in steps.items():
            started = clock()
            step()
            times[name].append(clock() - started)
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    return medians, {name: values[0] for name, values in times.items()}


def peak_memory(name: str, way: str, arguments: argparse.Namespace, device: torch.device) -> float | None:
    """Return the bytes that one step takes, of a second one after a warm-up of the optimiser's state."""
    if way == "compile" and device.type == "cpu":
        return None  # compiled code is no sequence of operations that could be counted
    network = make_network(arguments.network, device, way)
    step = make_step(name, network, arguments.rows, arguments.side, arguments.precision, way)
    step()
    if device.type == "cpu":
        with Peak() as peak:
            step()
        return peak.highest
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    return torch.cuda.max_memory_allocated() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="2M", choices=NETWORKS)
    parser.add_argument("--rows", type=int, default=8, help="batch size")
    parser.add_argument("--side", type=int, default=16, help="of the latent")
    parser.add_argument("--precision", default="32", choices=["32", "bf16"], help="of the forward pass")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument(
        "--processor-time", action="store_true", help="count the process's own seconds: for a CPU shared with others"
    )
    for way in WAYS[1:]:
        parser.add_argument(f"--{way.replace('_', '-')}", action="store_true", help="measure this way of running too")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = choose_device(arguments.device)
    ways = ["plain", *(way for way in WAYS[1:] if getattr(arguments, way))]
    networks = {way: make_network(arguments.network, device, way) for way in ways}
    whats = {
        name if way == "plain" else f"{name}, {way}": (name, way)
        for way in ways
        for name in (STEPS if way == "plain" else TWICE)
    }
    given = (arguments.rows, arguments.side, arguments.precision)
    steps = {what: make_step(name, networks[way], *given, way) for what, (name, way) in whats.items()}
    clock = time.process_time if arguments.processor_time else time.perf_counter
    times, firsts = seconds(steps, arguments.repeats, clock)
    memory = {what: peak_memory(name, way, arguments, device) for what, (name, way) in whats.items()}
    base = "rectified flow"
    rows: list[dict[str, Any]] = [
        {
            "step": name,
            "seconds": round(times[name], 4),
            "times rectified flow": round(times[name] / times[base], 2),
            "first call, s": round(firsts[name], 2),
            "MiB": memory[name] and round(memory[name] / 2**20, 1),
            "memory, times rectified flow": memory[name] and round(memory[name] / memory[base], 2),
        }
        for name in steps
    ]
    print("\t".join(rows[0]))
    for row in rows:
        print("\t".join(map(str, row.values())))
    print(f"ours is {times['straightforward'] / times['ours']:.2f} times as fast as the straightforward form")
    if arguments.json:
        about = {"device": str(device), "torch": torch.__version__} | {
            k: v
            for k, v in vars(arguments).items()
            if k in ("network", "rows", "side", "precision", "threads", "repeats", "processor_time")
        }
        write_json(arguments.json, {"about": about, "rows": rows})


if __name__ == "__main__":
    main()
