"""What a training of the flow computes in, as ``train.precision`` and the device have it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch

from neuromf.config import Config
from neuromf.precision import Precision, cost_of_bf16, resolve


def training_precision(config: Config, device: torch.device) -> Precision:
    """Return what a run's training computes in on a device.

    ``auto`` is never what the device computes wrongly: with torch 2.12.1 oneDNN's bf16 weight gradients of 3³ convolutions
    over two layers read memory that nobody wrote, so they are wrong without a sign of it.

    Raises:
        ValueError: bf16 is asked for by name where it is wrong.
    """
    asked = config.train.precision
    depth, levels = config.preprocess.conform.shape[0] // 4, len(config.network.channels)
    wrong = device.type == "cpu" and 2 in [depth // 2**level for level in range(levels)]
    if wrong and asked == "bf16":
        raise ValueError(
            f"train.precision: bf16 gives wrong gradients on a CPU where a level of the network is two voxels deep (a latent"
            f" of {depth}, {levels} levels); set train.precision: 32 or auto, or give network.channels one level less"
        )
    return "32" if wrong else resolve(asked, device)


def resumed_precision(config: Config, device: torch.device, done: Mapping[str, int]) -> tuple[Precision, str]:
    """Return what a training goes on in and, where that needs saying, a warning.

    With ``auto`` one that was begun in float32 stays in it on every device. One that was begun in bf16 goes on in float32 on
    a device that does not gain by bf16: the weights are float32 in both, and an update may take 30 times as long in bf16.

    Args:
        config: the run's own.
        device: where it goes on.
        done: precision → updates done in it; empty for a training that begins.
    """
    precision = training_precision(config, device)
    if config.train.precision != "auto":
        cost = cost_of_bf16(device) if precision == "bf16" else ""
        return precision, cost and f"train.precision: bf16, but {cost}; train.precision: auto trains in float32 here"
    if "32" in done:
        return "32", ""
    if "bf16" in done and precision == "32":
        why = cost_of_bf16(device) or "bf16 is computed wrongly here"
        return "32", f"begun in bf16 ({done['bf16']} updates), going on in float32: {why}"
    return precision, ""


def costly_settings(
    config: Config, runs: Iterable[str], device: torch.device, *, codec: bool
) -> Iterator[tuple[str, str]]:
    """Yield the settings that ask by name for bf16 on a device that does not gain by it, and what each one costs.

    Args:
        config: the whole configuration.
        runs: whose trainings are looked at.
        device: where they would run.
        codec: whether the codec's training is looked at too.
    """
    if not (cost := cost_of_bf16(device)):
        return
    if codec and config.codec_training.precision == "bf16":
        yield "codec_training.precision: bf16", cost
    for run in runs:
        if config.for_run(run).train.precision == "bf16":
            yield f"train.precision: bf16 (run {run})", cost


def with_precision(config: Config, precision: Precision) -> Config:
    """Return the configuration with ``train.precision`` resolved."""
    return config.model_copy(update={"train": config.train.model_copy(update={"precision": precision})})
