"""Validation: raw losses and one-step samples on fixed draws, and which weights are the best by either."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import Dataset
from torch.utils.tensorboard import SummaryWriter

from neuromf.flow import sample
from neuromf.training.averages import ONLINE, WeightAverages
from neuromf.training.checkpoint import velocity_of
from neuromf.training.logbook import FIGURES, Table
from neuromf.training.module import FlowModule, generator_for

MEASURED = (*FIGURES, "sample_distance")
VALIDATION = ("step", "average", *MEASURED)  # columns of val.csv
VALIDATION_ROWS = 32  # at least this many draws of (z, ε, r, t), and this many samples
COMPARED = 128  # at most this many validation latents are compared with the samples
CRITERIA = ("raw_loss", "sample_distance")  # what weights are the best by
log = logging.getLogger(__name__)


class Best(NamedTuple):
    """The best validation of a training by one criterion."""

    value: float
    average: str
    update: int
    terms: int = 1  # of the raw loss; one with more terms is another loss, and not comparable


class Validation(Callback):
    """Validates every average and the weights themselves.

    Raw losses are on fixed draws of (z, ε, r, t) from the validation split; the sample distance is the energy distance
    between one-step samples of fixed noise and validation latents.

    Args:
        latents: normalised latents of the validation split.
        averages: the averaged weights.
        table: val.csv.
        board: TensorBoard's writer.
        keep: called with a criterion and the weights whenever an average is the best so far by it.

    Attributes:
        best: criterion → smallest value so far, of which average and update; empty before the first validation.
        stopped: why ``train.patience`` stopped the training; None while it did not.
    """

    def __init__(
        self,
        latents: Dataset[Tensor],
        averages: WeightAverages,
        table: Table,
        board: SummaryWriter,
        keep: Callable[[str, Mapping[str, Tensor]], None],
    ) -> None:
        self.latents, self.averages, self.table, self.board = latents, averages, table, board
        self.keep = keep
        self.best: dict[str, Best] = {}
        self.stopped: str | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return all that decides what is exported and when the training stops, as JSON takes it."""
        best = {criterion: best._asdict() for criterion, best in self.best.items()}
        return {"best": best, "stopped": self.stopped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Set what `state_dict` returned."""
        self.stopped = state_dict["stopped"]
        self.best = {criterion: Best(**best) for criterion, best in state_dict["best"].items()}

    def chosen(self, criterion: str) -> str:
        """Return the average that has been the best by a criterion; the first before any validation."""
        best = self.best.get(criterion)
        return best.average if best else next(iter(self.averages.decays))

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *_: Any) -> None:
        train = pl_module.config.train
        if len(self.latents) == 0 or (pl_module.update % train.validate_every and pl_module.update != train.updates):  # type: ignore[arg-type]
            return
        measured = {name: self._measure(pl_module, name) for name in (*self.averages.decays, ONLINE)}
        for name in self.averages.decays:
            terms, loss = raw_loss(measured[name])
            self._compare("raw_loss", Best(loss, name, pl_module.update, terms))
            self._compare("sample_distance", Best(measured[name]["sample_distance"], name, pl_module.update))
        best = self.best.get(train.export)
        if train.patience and best and pl_module.update - best.update >= train.patience * train.validate_every:
            self.stopped = (
                f"no smaller {train.export} than {best.value:.4g} of update {best.update} in the last"
                f" {train.patience} validations"
            )
            log.warning("training stopped at update %d: %s", pl_module.update, self.stopped)
            trainer.should_stop = True

    def _compare(self, criterion: str, new: Best) -> None:
        if not math.isfinite(new.value):  # of weights that diverged
            return
        old = self.best.get(criterion)
        if old is None or new.terms > old.terms or (new.terms == old.terms and new.value < old.value):
            self.best[criterion] = new
            self.keep(criterion, self.averages.weights[new.average])

    def _measure(self, module: FlowModule, average: str) -> dict[str, float]:
        with self.averages.swapped_in(module, average), torch.no_grad():
            figures = self._losses(module)
            latents = torch.stack([self.latents[i] for i in range(min(COMPARED, len(self.latents)))])  # type: ignore[arg-type]
            samples = one_step_samples(module, VALIDATION_ROWS)
            figures["sample_distance"] = energy_distance(samples, latents.to(module.device))
        self.table.append({"step": module.update, "average": average, **figures})
        for figure, value in figures.items():
            self.board.add_scalar(f"val/{figure}/{average}", value, module.update)
        return figures

    def _losses(self, module: FlowModule) -> dict[str, float]:
        size, batch = len(self.latents), module.config.train.batch_size  # type: ignore[arg-type]
        rows = max(VALIDATION_ROWS, size)
        random = generator_for(module.device, module.seed, "validation")
        sums = dict.fromkeys(FIGURES, 0.0)
        begin = generator_for(torch.device("cpu"), module.seed, "validation times")
        r, t = module.times.spread(rows, 0, begin, module.device)
        first = 0
        for places in dealt(r, t, math.ceil(rows / batch)):
            z0 = torch.stack([self.latents[(first + i) % size] for i in range(len(places))]).to(module.device)
            noise = torch.randn(z0.shape, generator=random, device=module.device)
            first += len(places)
            output = module.objective(module.network, z0, noise, r[places], t[places])
            for name in FIGURES:
                sums[name] += getattr(output, name).item() * len(z0) / rows
        return sums


def dealt(r: Tensor, t: Tensor, batches: int) -> Iterator[Tensor]:
    """Yield the places of each batch's rows, first those with r < t; of either kind as many as in others or one more."""
    apart, equal = (torch.nonzero(kind)[:, 0] for kind in (r < t, r == t))
    for k in range(batches):
        first, last = (-(-part * len(apart) // batches) for part in (k, k + 1))
        begin, end = (part * len(equal) // batches for part in (k, k + 1))
        if (places := torch.cat([apart[first:last], equal[begin:end]])).numel():
            yield places


def raw_loss(figures: Mapping[str, float]) -> tuple[int, float]:
    """Return how many terms the raw loss has that models are chosen on, and their sum.

    There are both terms, or the one that the variant has; infinity where there is none, so that it is never the smallest.
    """
    terms = [value for name in ("raw_fm", "raw_mf") if not math.isnan(value := figures[name])]
    return len(terms), sum(terms) if terms else math.inf


@torch.no_grad()
def one_step_samples(module: FlowModule, count: int) -> Tensor:
    """Return normalised latents (count, C, D, H, W) that the network's present weights make of fixed noise in one step."""
    config = module.config
    shape = (config.codec.latent_channels, *(side // 4 for side in config.preprocess.conform.shape))
    random = generator_for(module.device, module.seed, "samples")
    noise = torch.randn((count, *shape), generator=random, device=module.device)
    velocity = velocity_of(module.network, config.flow)
    return torch.cat([sample(velocity, part) for part in noise.split(config.train.batch_size)])


def energy_distance(x: Tensor, y: Tensor) -> float:
    """Return 2 E‖x − y‖ − E‖x − x'‖ − E‖y − y'‖ of two sets of latents (n, …) and (m, …); Székely & Rizzo 2013.

    For sets of one distribution its expectation is zero whatever n and m, so chance may make it slightly negative. Norms
    are root mean squares over elements, so it means the same at every resolution. Of a single latent the last term is
    not known and left out, which changes the distance by a constant.
    """
    x, y = (z.flatten(1) / math.sqrt(z[0].numel()) for z in (x, y))
    within = (_distances(z, z).sum() / max(1, len(z) * (len(z) - 1)) for z in (x, y))
    return float(2 * _distances(x, y).mean() - sum(within))


def _distances(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")  # the faster way loses a latent's own zero
