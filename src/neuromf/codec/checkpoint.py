"""Checkpoints of a codec training: one safetensors file, so that it is whole or not there, whenever it is killed."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from neuromf.codec.maisi import architecture
from neuromf.codec.weights import CodecError
from neuromf.config import Codec, CodecTraining
from neuromf.tables import content_hash
from neuromf.tensors import TensorError, load_tensors, save_tensors

if TYPE_CHECKING:
    from neuromf.codec.crops import Crops
    from neuromf.codec.train import CodecTrainer

log = logging.getLogger(__name__)

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # AdamW's state of one parameter
_FREE = ("validate_every", "checkpoint_every", "log_every")  # settings that change no weight


def key_of(codec: Codec, training: CodecTraining, crops: Crops, code: str) -> str:
    """Return the hash of what decides a training's weights: architecture, recipe, training volumes and code."""
    recipe = {key: value for key, value in training.model_dump(mode="json").items() if key not in _FREE}
    return content_hash([architecture(codec), recipe, crops.sha256(), code])


def save_checkpoint(path: Path, trainer: CodecTrainer, key: str) -> None:
    """Write weights, averages, optimisers, generators (tensors) and progress (JSON in the file's header) atomically."""
    tensors = {"generator": trainer.generator.get_state()}
    for part, network in _networks(trainer).items():
        tensors |= {f"{part}/{name}": value.cpu().contiguous() for name, value in network.state_dict().items()}
    for part, (network, optimizer) in _optimizers(trainer).items():
        for name, parameter in network.named_parameters():
            for moment, value in optimizer.state[parameter].items():
                tensors[f"{part}/{moment}/{name}"] = value.cpu().contiguous()
    state = {
        "key": key,
        "progress": vars(trainer.progress),
        "kl_weight": trainer.controller.weight,
        "kl_moments": trainer.controller.moments,
    }
    save_tensors(path, tensors, {"state": json.dumps(state)})


def load_checkpoint(path: Path, trainer: CodecTrainer, key: str) -> bool:
    """Put the trainer where the checkpoint left it; False (and nothing changed) when there is none of this training.

    Raises:
        CodecError: the file is damaged.
    """
    if not path.is_file():
        return False
    try:
        tensors, about = load_tensors(path)
        state = json.loads(about["state"])
    except (TensorError, KeyError) as error:
        raise CodecError(f"{error}; remove it to start anew") from None
    if state["key"] != key:
        log.warning("%s belongs to other settings, scans or code; training starts anew", path)
        return False
    trainer.generator.set_state(tensors["generator"])
    for part, network in _networks(trainer).items():
        network.load_state_dict({name: tensors[f"{part}/{name}"] for name in network.state_dict()})
    for part, (network, optimizer) in _optimizers(trainer).items():
        for name, parameter in network.named_parameters():
            state_of = {moment: tensors[f"{part}/{moment}/{name}"] for moment in _MOMENTS}
            optimizer.state[parameter] = {
                moment: value.to(parameter.device, memory_format=torch.preserve_format)
                for moment, value in state_of.items()
            }
    trainer.progress.update = state["progress"]["update"]
    trainer.progress.seconds = state["progress"]["seconds"]
    trainer.progress.updates_in = Counter(state["progress"]["updates_in"])
    trainer.controller.weight = state["kl_weight"]
    trainer.controller.moments = state["kl_moments"] and tuple(state["kl_moments"])
    log.info("%s: goes on after update %d", path, trainer.progress.update)
    return True


def _networks(trainer: CodecTrainer) -> dict[str, torch.nn.Module]:
    networks = {"network": trainer.network, "average": trainer.average}
    return networks | ({"adversary": trainer.adversary.network} if trainer.adversary else {})


def _optimizers(trainer: CodecTrainer) -> dict[str, tuple[torch.nn.Module, torch.optim.Optimizer]]:
    optimizers: dict[str, tuple[torch.nn.Module, torch.optim.Optimizer]] = {
        "adam": (trainer.network, trainer.optimizer)
    }
    if trainer.adversary:
        optimizers["adversary_adam"] = (trainer.adversary.network, trainer.adversary.optimizer)
    return optimizers
