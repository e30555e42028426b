"""Data-parallel training: ``train.devices`` processes share each batch and make the same updates (DDP).

Rank 0 is the training itself: it alone reads latents, validates, logs and saves. The other ranks are `neuromf.training.rank`
in processes of their own, which get each batch from rank 0. Every rank draws the whole batch's augmentation, noise, times
and mask, from the same seeds, and takes the rows rank, rank + devices, …: the rows with r < t stay first, and there are as
many of them on every rank, so the mean of the ranks' gradients is that of the whole batch.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, distributed

from neuromf.config import Train
from neuromf.flow import ObjectiveOutput
from neuromf.training.interruption import Watch

PATIENCE = timedelta(hours=2)  # ranks wait for rank 0, which validates and saves meanwhile
GRACE = 30.0  # seconds that rank 0 has to notice by itself that another rank is gone
log = logging.getLogger(__name__)


class RankError(RuntimeError):
    """Another rank ended before the training did."""


# --- what ranks share -----------------------------------------------------------------------------------------------


def place() -> tuple[int, int]:
    """Return this process's rank and how many there are; (0, 1) for a training of one process."""
    return (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)


def shared(batch: Tensor) -> Tensor:
    """Return rank 0's batch on every rank; the others give a tensor of its shape."""
    if place()[1] > 1:
        distributed.broadcast(batch, src=0)
    return batch


def mean_of_ranks(values: Tensor) -> Tensor:
    """Return the mean over all ranks of a tensor that each has."""
    if (world := place()[1]) > 1:
        distributed.all_reduce(values)
        values = values / world
    return values


def joint(output: ObjectiveOutput) -> ObjectiveOutput:
    """Return the figures of the whole batch, detached and equal on all ranks, of each rank's share of it."""
    world = place()[1]
    if world == 1:
        return output
    own = torch.cat([value.detach().float().flatten() for value in output])
    gathered = [torch.empty_like(own) for _ in range(world)]
    distributed.all_gather(gathered, own)
    parts = torch.stack(gathered).split([value.numel() for value in output], dim=1)
    each = ObjectiveOutput(*(part.reshape(world, *value.shape) for part, value in zip(parts, output, strict=True)))
    figures = {name: values.mean(0) for name, values in each._asdict().items()}
    figures["jvp_norm"] = each.jvp_norm.square().mean().sqrt()
    for name in ("fm_rows", "mf_rows"):  # row i of rank k is row i · world + k of the batch
        figures[name] = getattr(each, name).transpose(0, 1).flatten(0, 1)
    return ObjectiveOutput(**figures)


class Together(Callback):
    """Ends the training of all ranks at the same update, whichever of them was told to.

    It also hears the signals: Lightning's own handler would end the training without a checkpoint.
    """

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self.watch.listen()

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.world_size == 1:
            return
        told = torch.tensor([trainer.should_stop, self.watch.reason is not None], dtype=torch.int32)
        told = told.to(pl_module.device)
        distributed.all_reduce(told, distributed.ReduceOp.MAX)
        stop, interrupted = told.tolist()
        if interrupted and self.watch.reason is None:
            self.watch.received = "received by another rank"
        trainer.should_stop = bool(stop or (interrupted and trainer.global_rank > 0))  # rank 0 saves first


# --- processes ------------------------------------------------------------------------------------------------------


class Place(LightningEnvironment):
    """Tells Lightning which rank this process is; the processes are started here and not by Lightning.

    Args:
        rank: of this process.
        port: on this machine, where the ranks meet.
    """

    creates_processes_externally = True
    main_address = "127.0.0.1"

    def __init__(self, rank: int, port: int) -> None:
        super().__init__()
        self.rank, self._main_port = rank, port

    def local_rank(self) -> int:
        return self.rank


def build_trainer(
    train: Train, device: torch.device, updates: int, callbacks: list[Callback], place: Place | None
) -> lightning.Trainer:
    """Return Lightning's trainer of one rank, or of a training of one process (``place`` is None)."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # no advertisements beside the progress bar
    gpu = device.type == "cuda"
    devices: Any = list(range(train.devices)) if place else [device.index or 0]
    strategy = DDPStrategy(process_group_backend="nccl" if gpu else "gloo", timeout=PATIENCE) if place else "auto"
    return lightning.Trainer(
        max_steps=updates,
        accelerator="gpu" if gpu else "cpu",
        devices=devices if gpu else train.devices,
        strategy=strategy,
        precision="bf16-mixed" if train.precision == "bf16" else "32-true",
        callbacks=callbacks,
        plugins=[place or LightningEnvironment()],  # no processes of Lightning's own, also inside a Slurm job
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def other_ranks(follow: Callable[[dict[str, Any]], None], devices: int, job: Mapping[str, Any]) -> Any:
    """Return a block within which ranks 1 to ``devices`` − 1 do a ``job``; it gives rank 0's place, or None for one device.

    Args:
        follow: does the job; its module, run as a program, calls it with the job that standard input brings.
        devices: how many ranks there are.
        job: all that a rank has to know but its number and the port.

    Raises (at the block's end):
        RankError: another rank ended early; all of them are ended then.
    """
    return _other_ranks(follow.__module__, devices, job) if devices > 1 else nullcontext()


@contextmanager
def _other_ranks(program: str, devices: int, job: Mapping[str, Any]) -> Iterator[Place]:
    place = Place(0, LightningEnvironment().main_port)
    jobs = [{**job, "rank": rank, "port": place.main_port} for rank in range(1, devices)]
    processes = [_start(program, one, devices) for one in jobs]
    ended = threading.Event()
    threading.Thread(target=_end_without, args=(processes, ended), daemon=True).start()
    try:
        yield place
        ended.set()
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
    except Exception as error:
        if rank := next((n for n, p in enumerate(processes, start=1) if p.poll()), None):
            raise RankError(f"rank {rank} of the training ended with exit code {processes[rank - 1].poll()}") from error
        raise
    finally:
        ended.set()
        for process in processes:
            process.kill()
            process.wait()
        if distributed.is_initialized():
            distributed.destroy_process_group()


def _start(program: str, job: dict[str, Any], devices: int) -> subprocess.Popen[str]:
    """Start one rank; its job goes through a pipe."""
    package = str(Path(__file__).parents[2])
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")])),
        "OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // devices)),
    }
    command = [sys.executable, "-m", program]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment, text=True)
    assert process.stdin is not None
    with process.stdin as pipe:
        pipe.write(json.dumps(job))
    return process


def _end_without(processes: list[subprocess.Popen[str]], ended: threading.Event) -> None:
    """End this process when another rank failed and this one, which may wait for it on a GPU for ever, does not notice."""
    while not ended.wait(0.5):
        if any(process.poll() for process in processes):
            log.error("a rank of the training ended early; the others are ended too")
            if not ended.wait(GRACE):
                for process in processes:
                    process.kill()
                os._exit(1)
            return


def end_with_parent(parent: int) -> None:
    """End this process soon after its parent was killed; without rank 0 it would wait for ever."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
