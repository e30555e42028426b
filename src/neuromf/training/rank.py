"""One of the ranks 1 … of a data-parallel training: ``python -m neuromf.training.rank``, its job on standard input."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from neuromf.config import validate
from neuromf.training.checkpoint import load_progress
from neuromf.training.interruption import watching
from neuromf.training.module import FlowModule
from neuromf.training.ranks import Place, Together, build_trainer, end_with_parent
from neuromf.training.resumption import Resumption


class Placeholders(IterableDataset[Tensor]):
    """``count`` batches for rank 0's to be written into."""

    def __init__(self, count: int, shape: tuple[int, ...]) -> None:
        self.count, self.shape = count, shape

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Tensor]:
        return (torch.empty(self.shape) for _ in range(self.count))


def follow(job: dict[str, Any]) -> None:
    """Make the updates of a training together with rank 0.

    Args:
        job: ``config``, ``seed``, ``device``, ``update`` done, ``checkpoints`` and ``key`` (what `load_progress` takes),
            ``rank``, ``port`` and ``std`` (of the normalised latents).
    """
    config = validate(job["config"])
    module, train = FlowModule(config, job["seed"], job["std"]), config.train
    resumption = Resumption(load_progress(Path(job["checkpoints"]), job["key"]) if job["update"] else None)
    resumption.restore(module)
    left = train.updates - job["update"]
    shape = (train.batch_size, config.codec.latent_channels, *(side // 4 for side in config.preprocess.conform.shape))
    with watching(None) as watch, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(does not have many workers|isinstance.treespec).*")
        place = Place(job["rank"], job["port"])
        callbacks = [resumption, Together(watch)]
        trainer = build_trainer(train, torch.device(job["device"]), left, callbacks, place)
        trainer.fit(module, DataLoader(Placeholders(left, shape), batch_size=None))


if __name__ == "__main__":
    end_with_parent(os.getppid())
    follow(json.load(sys.stdin))
