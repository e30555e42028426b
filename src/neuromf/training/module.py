"""The flow as a Lightning module: one update of the network, everything random in it a function of (seed, update)."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.utils.data import Sampler

from neuromf.config import Config, Flow, Times
from neuromf.flow import MeanFlowObjective, MeanFlowUNet, ObjectiveOutput, TimeSampler
from neuromf.flow.compiled import whole_graph
from neuromf.training.augment import augment
from neuromf.training.ranks import joint, mean_of_ranks, place, shared
from neuromf.training.spatial_mask import draw_mask

BETAS = (0.9, 0.95)  # of AdamW, Geng et al. 2025
BALANCED_EVERY = 50  # updates between measurements of the terms' gradients, which cost two passes each
BALANCE_MEMORY = 0.5  # share of the running value that a measurement leaves, in logarithms
BALANCE_BOUNDS = (0.01, 100.0)  # of a measured ratio: beyond, one term is all there is


def build_objective(flow: Flow) -> MeanFlowObjective:
    """Return the objective that the settings describe."""
    settings = flow.model_dump(exclude={"times", "mf_ramp", "mf_schedule"})
    return MeanFlowObjective(t_min=flow.times.t_min, **settings)


def mf_weight(flow: Flow, share: float) -> float:
    """Return λ_MF after a share of the run: 0, then a linear rise, then ``flow.mf_weight``; equation (29)."""
    begin, end = flow.mf_ramp
    if share >= end:
        return flow.mf_weight
    return flow.mf_weight * (share - begin) / (end - begin) if share > begin else 0.0


def balanced(before: float, objective: MeanFlowObjective, network: MeanFlowUNet, *batch: Tensor | None) -> float:
    """Return the running λ at which both terms' gradients on this batch have the same norm; equation (32).

    Args:
        before: the running value.
        batch: z0, noise, r, t and mask of this rank's rows.
    """
    parameters = list(network.parameters())

    def gradient(weight: float) -> list[Tensor]:
        loss = replace(objective, mf_weight=weight)(network, *batch).loss  # type: ignore[arg-type]
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]

    fm, both = gradient(0.0), gradient(1.0)
    norms = [torch.stack(torch._foreach_norm(one)).norm() for one in (fm, torch._foreach_sub(both, fm))]
    fm_norm, mf_norm = mean_of_ranks(torch.stack(norms)).tolist()
    if not (math.isfinite(fm_norm) and math.isfinite(mf_norm) and min(fm_norm, mf_norm) > 0):
        return before  # the update itself is skipped, and counted
    low, high = BALANCE_BOUNDS
    return before**BALANCE_MEMORY * min(max(fm_norm / mf_norm, low), high) ** (1 - BALANCE_MEMORY)


def build_time_sampler(times: Times) -> TimeSampler:
    """Return the sampler of (r, t) that the settings describe."""
    return TimeSampler(**times.model_dump())


def seed_for(*what: object) -> int:
    """Return a seed of 63 bits that depends on ``what`` only, e.g. (seed, "augment", update)."""
    digest = hashlib.sha256(repr(what).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator_for(device: torch.device, *what: object) -> torch.Generator:
    """Return a generator whose seed depends on ``what`` only, e.g. (seed, "train", update)."""
    return torch.Generator(device).manual_seed(seed_for(*what))


class FlowModule(lightning.LightningModule):
    """Network, objective and optimiser of one run.

    Args:
        config: the run's configuration.
        seed: of weights, noise, times, augmentation, loss mask and data order.
        std: σ_c of the train split's normalised latents; None: 1.

    Attributes:
        update: updates done.
        output: what the objective gave for the last batch, all ranks' rows of it.
        drawn: its times (r, t), (B,) each.
        gradient_norm: before clipping, of the last batch.
        updates_in: precision → updates done in it; a training that goes on elsewhere may change it.
        skipped: updates without effect since loss or gradient was not finite.
        mf_weight: λ_MF of the last batch.
        balance: what ``flow.mf_schedule: balanced`` multiplies it with; 1 before it is measured.
    """

    def __init__(self, config: Config, seed: int, std: Sequence[float] | None = None) -> None:
        super().__init__()
        self.config, self.seed, self.std = config, seed, std
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = MeanFlowUNet(config.network, config.codec.latent_channels, v_head=config.flow.two_heads)
        if config.train.checkpointing:
            self.network.recompute_activations()
        self.objective = build_objective(config.flow)
        if config.train.compile:
            self.network.compile_passes(whole_graph)
            self.objective = replace(self.objective, wrap=cache(whole_graph))
        self.times = build_time_sampler(config.flow.times)
        self.update = 0
        self.updates_in: Counter[str] = Counter()
        self.output: ObjectiveOutput | None = None
        self.drawn: tuple[Tensor, Tensor] | None = None
        self.gradient_norm = torch.tensor(torch.nan)
        self.skipped = 0
        self.mf_weight, self.balance = math.nan, 1.0

    def training_step(self, z0: Tensor, batch_index: int) -> Tensor:
        """Return the loss of normalised latents (B, C, D, H, W), or of this rank's rows of rank 0's latents."""
        z0 = shared(z0)
        z0 = augment(z0, self.config.train.augmentation, seed_for(self.seed, "augment", self.update), self.std)
        random = generator_for(self.device, self.seed, "train", self.update)
        noise = torch.randn(z0.shape, generator=random, device=self.device)
        begin = generator_for(torch.device("cpu"), self.seed, "times")
        r, t = self.drawn = self.times.spread(len(z0), self.update, begin, self.device)
        random = generator_for(self.device, self.seed, "loss mask", self.update)
        mask = draw_mask(self.config.train.loss_mask, len(z0), z0.shape[2:], random)
        rank, world = place()
        rows = slice(rank, None, world)
        batch = (z0[rows], noise[rows], r[rows], t[rows], None if mask is None else mask[rows])
        if self.config.flow.mf_schedule == "balanced" and self.update % BALANCED_EVERY == 0:
            self.balance = balanced(self.balance, self.objective, self.network, *batch)
        self.mf_weight = self.balance * mf_weight(self.config.flow, self.update / self.config.train.updates)
        output = replace(self.objective, mf_weight=self.mf_weight)(self.network, *batch)
        self.output = joint(output)
        return output.loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        decayed = [p for p in self.network.parameters() if p.ndim > 1]
        others = [p for p in self.network.parameters() if p.ndim <= 1]  # norms and biases
        groups: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
        train = self.config.train
        return torch.optim.AdamW(
            groups, lr=train.learning_rate, betas=BETAS, weight_decay=train.weight_decay, fused=True
        )

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *_: Any, **__: Any) -> None:
        self.gradient_norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.config.train.gradient_clip)
        assert self.output is not None
        # both are the whole batch's, so all ranks skip together
        finite = torch.isfinite(self.gradient_norm) & torch.isfinite(self.output.loss.detach())
        if not bool(finite):
            self.skipped += 1
            for parameter in self.network.parameters():
                parameter.grad = None  # so AdamW leaves weights and moments as they are

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate()

    def optimizer_step(self, *arguments: Any, **named: Any) -> None:
        super().optimizer_step(*arguments, **named)
        self.update += 1
        self.updates_in[self.config.train.precision] += 1

    def learning_rate(self) -> float:
        """Return the learning rate of the coming update: linear warm-up, then cosine to zero or constant."""
        train = self.config.train
        warmup = min(train.warmup_updates, train.updates - 1)
        if self.update < warmup:
            return train.learning_rate * (self.update + 1) / warmup
        if train.schedule == "constant":
            return train.learning_rate
        done = (self.update - warmup) / (train.updates - warmup)
        return train.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


class BatchStream(Sampler[list[int]]):
    """Indices of the batches of updates ``first`` to ``last`` − 1: shuffled passes over the data, one after another.

    Batch n takes entries nB to nB + B − 1 of the endless sequence of permutations, so it depends on (seed, n) only.
    """

    def __init__(self, size: int, batch_size: int, seed: int, first: int, last: int) -> None:
        if size < 1:
            raise ValueError("no latents to train on; the release's train split is empty")
        self.size, self.batch_size, self.seed, self.first, self.last = size, batch_size, seed, first, last

    def __len__(self) -> int:
        return self.last - self.first

    def __iter__(self) -> Iterator[list[int]]:
        passes: dict[int, list[int]] = {}
        for update in range(self.first, self.last):
            places = range(update * self.batch_size, (update + 1) * self.batch_size)
            needed = {place // self.size for place in places}
            passes = {n: passes.get(n) or self._permutation(n) for n in needed}
            yield [passes[place // self.size][place % self.size] for place in places]

    def _permutation(self, number: int) -> list[int]:
        random = generator_for(torch.device("cpu"), self.seed, "order", number)
        return torch.randperm(self.size, generator=random).tolist()
