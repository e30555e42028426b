"""Tensors on disk with their hashes: what a run keeps for itself and must not go on with once a bit of it has flipped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from neuromf.tables import atomic_path, content_hash

_HASHES = "sha256"  # entry of a file's header: hash of each tensor, and under "" of the other entries


class TensorError(ValueError):
    """A file of tensors that is missing, damaged or not written by `save_tensors`; the message names it."""


def save_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str] = MappingProxyType({})) -> None:
    """Write tensors and texts ``about`` them as safetensors, atomically, with the hash of each in the header.

    Raises:
        StorageError: the disk is full or cannot be written; ``path`` is as it was.
    """
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    hashes = {name: tensors_sha256({name: value}) for name, value in plain.items()} | {"": content_hash(dict(about))}
    with atomic_path(path) as temporary:
        save_file(plain, temporary, {**about, _HASHES: json.dumps(hashes)})


def load_tensors(path: Path, names: Iterable[str] | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return what `save_tensors` wrote, tensors and texts, after comparing the hashes of what is read.

    Args:
        names: of the tensors wanted; None: all.

    Raises:
        TensorError: a missing file, a flipped bit, a tensor that is not in it.
    """
    if not path.is_file():
        raise TensorError(f"{path} does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            about = dict(file.metadata() or {})
            hashes = json.loads(about.pop(_HASHES))
            if hashes.pop("") != content_hash(about) or set(hashes) != set(file.keys()):
                raise ValueError("its header is not what was written")
            tensors = {name: file.get_tensor(name) for name in (hashes if names is None else names)}
        if altered := [name for name, value in tensors.items() if tensors_sha256({name: value}) != hashes[name]]:
            raise ValueError(f"{altered[0]} is not what was written")
    except (SafetensorError, OSError, KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise TensorError(f"{path} is damaged or not written by NeuroMF ({error})") from None
    return tensors, about


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors: names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if tensor.numel():  # an empty one may have a stride of 0, which no other type can be seen through
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
