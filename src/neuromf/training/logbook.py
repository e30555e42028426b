"""What a training writes down as it goes: metrics.csv, TensorBoard and the progress bar."""

from __future__ import annotations

import csv
import math
import re
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from neuromf.config import Config
from neuromf.tables import write_text, writing
from neuromf.training.augment import distinct_versions, effective_factor
from neuromf.training.averages import WeightAverages

FIGURES = ("loss", "raw_fm", "raw_mf", "jvp_norm", "cosine")  # of ObjectiveOutput
TIME_BINS = 4  # equal parts of [0, 1]


def metrics_columns(config: Config) -> tuple[str, ...]:
    """Return the columns of metrics.csv; docs/file_formats.md says what each one is."""
    parts = [f"c{channel}" for channel in range(config.codec.latent_channels)] + [
        f"t{part}" for part in range(TIME_BINS)
    ]
    return (
        "step",
        *FIGURES,
        *(f"raw_{term}_{part}" for term in ("fm", "mf") for part in parts),
        "r_equals_t",
        "grad_norm",
        "clipped_share",
        "update_norm",
        *(f"ema_distance_{share:g}" for share in config.train.ema_half_lives),
        "lr",
        "samples_per_second",
        "peak_memory_mb",
        "effective_samples",
        "distinct_samples",
        "mf_weight",
        "skipped",
    )


class Table:
    """A CSV file that grows row by row and, when a run is resumed, loses what came after its checkpoint."""

    def __init__(self, path: Path, columns: tuple[str, ...], resumed_at: int) -> None:
        self.path, self.columns = path, columns
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        lines = text.splitlines(keepends=True)[1:]
        whole = [
            one
            for one in lines
            if re.match(r"\d{1,18},", one) and one.endswith("\n") and one.count(",") == len(columns) - 1
        ]
        kept = [line for line in whole if int(line.split(",", 1)[0]) <= resumed_at]
        write_text(path, ",".join(columns) + "\n" + "".join(kept))

    def append(self, row: Mapping[str, float | str]) -> None:
        """Add one row; NaN becomes an empty cell."""
        with writing(self.path), self.path.open("a", newline="", encoding="utf-8") as stream:
            values = [row[column] for column in self.columns]
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(
                value if isinstance(value, str) else "" if math.isnan(value) else f"{value:.6g}" for value in values
            )


class Seen(NamedTuple):
    """What is kept of n updates with B rows each until the next row of the log; left on the device, so nothing waits."""

    figures: Tensor  # (n, 6): FIGURES and the gradient's norm
    times: Tensor  # (2, nB): r and t
    fm_rows: Tensor  # (nB, C)
    mf_rows: Tensor  # (nB, C)


class Logbook(Callback):
    """Writes metrics.csv and TensorBoard and shows the progress bar.

    A row is of the updates since the row before it: means over those that were not skipped. The norm of the update and the
    averages' distances are of the row's own update, since they cost a pass over the weights.

    Args:
        table: metrics.csv.
        board: TensorBoard's writer.
        averages: whose distance from the weights is logged.
        latents: of the train split, how many.
        resumed_at: updates already done.
    """

    def __init__(
        self, table: Table, board: SummaryWriter, averages: WeightAverages, latents: int, resumed_at: int
    ) -> None:
        self.table, self.board, self.averages = table, board, averages
        self.latents, self.resumed_at = latents, resumed_at
        self.seen: list[Seen] = []
        self.before: list[Tensor] = []  # the weights before an update that is logged

    def state_dict(self) -> dict[str, Tensor]:
        """Return what has been seen since the last row."""
        return _joined(self.seen)._asdict() if self.seen else {}

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Set what `state_dict` returned."""
        self.seen = [Seen(**state_dict)] if state_dict else []

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        train = pl_module.config.train
        self.samples = {
            "effective_samples": self.latents * effective_factor(train.augmentation),
            "distinct_samples": self.latents * distinct_versions(train.augmentation),
        }
        self.seen = [Seen(*(values.to(pl_module.device) for values in seen)) for seen in self.seen]
        self.bar = tqdm(
            total=train.updates, initial=self.resumed_at, unit="update", desc="train", dynamic_ncols=True, mininterval=1
        )
        self.since, self.logged_at = time.perf_counter(), self.resumed_at

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, *_: Any) -> None:
        if self._is_logged(pl_module, pl_module.update + 1):
            self.before = [weight.detach().clone() for weight in pl_module.network.parameters()]

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *_: Any) -> None:
        output = pl_module.output
        figures = torch.stack([*(getattr(output, name).detach() for name in FIGURES), pl_module.gradient_norm])
        self.seen.append(Seen(figures[None], torch.stack(pl_module.drawn), output.fm_rows, output.mf_rows))
        self.bar.update()
        if not self._is_logged(pl_module, pl_module.update):
            return
        row = self._row(trainer, pl_module)
        self.table.append(row)
        for name in self.table.columns[1:]:
            if not math.isnan(row[name]):
                self.board.add_scalar(f"train/{name}", row[name], pl_module.update)
        losses = {term: row[f"raw_{term}"] for term in ("fm", "mf")}
        self.bar.set_postfix({term: f"{loss:.3g}" for term, loss in losses.items() if not math.isnan(loss)})
        self.seen, self.before = [], []
        self.since, self.logged_at = time.perf_counter(), pl_module.update

    @staticmethod
    def _is_logged(module: Any, update: int) -> bool:
        train = module.config.train
        return update % train.log_every == 0 or update == train.updates

    def _row(self, trainer: lightning.Trainer, module: Any) -> dict[str, float]:
        train, flow = module.config.train, module.config.flow
        seen = Seen(*(values.float().cpu() for values in _joined(self.seen)))
        norms = seen.figures[:, -1]
        weights = list(module.network.parameters())
        samples = (module.update - self.logged_at) * train.batch_size
        row = dict(zip((*FIGURES, "grad_norm"), finite_mean(seen.figures).tolist(), strict=True))
        for term, rows in (("fm", seen.fm_rows), ("mf", seen.mf_rows)):
            row |= by_channel_and_time(f"raw_{term}", rows, seen.times[1], flow.channel_weights)
        row |= {
            "step": module.update,
            "r_equals_t": (seen.times[0] == seen.times[1]).float().mean().item(),
            "clipped_share": (norms[norms.isfinite()] > train.gradient_clip).float().mean().item(),
            "update_norm": relative_distance(weights, self.before),
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "samples_per_second": samples / (time.perf_counter() - self.since),
            "peak_memory_mb": peak_memory_mb(module.device),
            **self.samples,
            "mf_weight": module.mf_weight,
            "skipped": module.skipped,
        }
        now = module.network.state_dict()
        for name, average in self.averages.weights.items():
            row[f"ema_distance_{name}"] = relative_distance(list(average.values()), [now[key] for key in average])
        return row

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self.bar.close()

    def on_exception(self, trainer: lightning.Trainer, pl_module: Any, exception: BaseException) -> None:
        self.bar.close()


def _joined(seen: Sequence[Seen]) -> Seen:
    figures, times, fm_rows, mf_rows = zip(*seen, strict=True)
    return Seen(torch.cat(figures), torch.cat(times, dim=1), torch.cat(fm_rows), torch.cat(mf_rows))


def finite_mean(values: Tensor) -> Tensor:
    """Return the mean over the first axis of what is finite; NaN where nothing is."""
    return values.where(values.isfinite(), torch.nan).nanmean(0)


def by_channel_and_time(
    name: str, rows: Tensor, t: Tensor, channel_weights: Sequence[float] | None
) -> dict[str, float]:
    """Return means of a raw loss per channel (without λ_c) and, over all channels (with λ_c), per part of the times.

    Args:
        name: of the loss; the figures are called <name>_c0 … and <name>_t0 ….
        rows: mean |e_c|^p_c of each row, (n, C); NaN where a row has no such term.
        t: (n,).
        channel_weights: λ_c; None: all one.
    """
    weights = torch.ones(rows.shape[1]) if channel_weights is None else torch.tensor(channel_weights)
    parts, lp = (t * TIME_BINS).long().clamp(max=TIME_BINS - 1), rows @ weights
    figures = {f"{name}_c{channel}": value for channel, value in enumerate(finite_mean(rows).tolist())}
    return figures | {f"{name}_t{part}": finite_mean(lp[parts == part]).item() for part in range(TIME_BINS)}


@torch.no_grad()
def relative_distance(weights: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """Return ‖θ − θ'‖ / ‖θ'‖ over all tensors; θ' is the reference."""
    apart = torch.stack(torch._foreach_norm(torch._foreach_sub(list(weights), list(reference)))).norm()
    return float(apart / torch.stack(torch._foreach_norm(list(reference))).norm())


def peak_memory_mb(device: torch.device) -> float:
    """Return the most memory used so far, in MiB: allocated on the GPU, or resident of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 2**10  # bytes of ru_maxrss
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
