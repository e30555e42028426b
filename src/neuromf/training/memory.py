"""How much memory a training takes, found before it starts by running its passes on tensors without data."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from neuromf.config import Config, equal_rows
from neuromf.flow import MeanFlowUNet
from neuromf.flow.objective import settled

MOMENTS = 2  # of AdamW, per parameter
WORKSPACE_BYTES = 32 * 2**20  # of oneDNN and the like: 6 to 200 MiB were measured (benchmarks/memory.py)


@dataclass(frozen=True)
class TrainingMemory:
    """What one process of a training holds at its peak, the libraries' code aside.

    Attributes:
        parameters: of the network.
        states: bytes of the weights, the optimiser's moments and the weights' averages.
        working: bytes beyond these at the peak of an update: gradients, activations, and what the passes compute with.
    """

    parameters: int
    states: int
    working: int

    @property
    def bytes(self) -> int:
        return self.states + self.working + WORKSPACE_BYTES


def training_memory(config: Config) -> TrainingMemory:
    """Return what a run's training takes on each device.

    The passes of one update and their backward passes are run on tensors that have shapes and no data (`FakeTensorMode`),
    and the bytes of all that live at once are counted: nothing is allocated. What libraries take for themselves is in it as
    an allowance for their workspaces; CUDA's context and the gaps that an allocator leaves are not.

    Args:
        config: the run's own (`Config.for_run`), with ``train.precision`` resolved; ``auto`` counts as float32.
    """
    with FakeTensorMode(), Peak() as peak:
        network = MeanFlowUNet(config.network, config.codec.latent_channels, v_head=config.flow.two_heads)
        if config.train.checkpointing:
            network.recompute_activations()
        parameters = sum(parameter.numel() for parameter in network.parameters())
        weights = sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())
        before = peak.highest = peak.now
        _update(network, config)
    copies = 1 + MOMENTS + len(config.train.ema_half_lives)
    return TrainingMemory(parameters, copies * weights, peak.highest - before)


def _update(network: MeanFlowUNet, config: Config) -> None:
    """Do the passes with a gradient of one update, as `MeanFlowObjective` does them, on one device's rows."""
    batch, flow = config.train.batch_size, config.flow
    bf16 = config.train.precision == "bf16"
    if flow.variant == "rectified_flow":
        _loss(network, config, batch, bf16=bf16).backward()
        return
    apart = batch - equal_rows(batch, flow.times.r_equals_t)
    if flow.variant == "imf" and flow.fm_rows == "all" and not flow.two_heads:
        losses = [settled(_loss(network, config, batch, bf16=bf16), network)]
        losses += [_loss(network, config, apart, bf16=bf16, apart=apart)] if apart else []
    else:
        losses = [_loss(network, config, batch, bf16=bf16, apart=apart)]
    torch.stack(losses).sum().backward()


def _loss(network: MeanFlowUNet, config: Config, rows: int, *, bf16: bool, apart: int = 0) -> Tensor:
    """Return a loss of one pass over so many of the batch's rows, with du/dt of its first ``apart`` rows."""
    rows, apart = rows // config.train.devices, apart // config.train.devices
    latent = (config.codec.latent_channels, *(side // 4 for side in config.preprocess.conform.shape))
    z, t = torch.randn(rows, *latent), torch.rand(rows)
    exact = config.flow.jvp == "exact"
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        if apart and exact:
            rate = torch.ones(apart)
            value, _ = network.with_tangent(z, t, t, torch.randn_like(z[:apart]), 0 * rate, rate)
        else:
            value = network(z, t, t)
    if apart and not exact:
        with torch.no_grad():
            network(z[:apart], t[:apart], t[:apart])  # of the finite difference, in float32
    return value.float().square().mean()


class Peak(TorchDispatchMode):
    """Counts, as a context, the bytes of all tensors that operations made and that still live.

    Attributes:
        now: these bytes.
        highest: the most they have been.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.highest = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._known:
            self._known.add(key)
            self.now += storage.nbytes()
            self.highest = max(self.highest, self.now)
            weakref.finalize(storage, self._forget, key, storage.nbytes())

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size
