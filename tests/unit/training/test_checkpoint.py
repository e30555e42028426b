from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from neuromf.config import Config, validate
from neuromf.flow import MeanFlowUNet
from neuromf.training.checkpoint import (
    CheckpointError,
    Progress,
    export_model,
    load_model,
    load_progress,
    model_folder,
    save_progress,
)

NETWORK = {
    "channels": [4, 8],
    "attention": [False, False],
    "head_channels": [0, 8],
    "residual_blocks": 1,
    "norm_groups": 4,
}


def config(variant: str = "imf") -> Config:
    return validate(
        {"network": NETWORK, "flow": {"variant": variant}, "preprocess": {"conform": {"shape": [32, 32, 32]}}}
    )


def export(folder: Path, variant: str = "imf", **changes: Any) -> MeanFlowUNet:
    torch.manual_seed(0)
    network = MeanFlowUNet(config().network)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    about = {
        "config": config(variant).model_dump(mode="json"),
        "statistics": {"mean": [1.0, 2.0, 3.0, 4.0], "std": [0.5, 1.0, 2.0, 4.0]},
        "codec": {"name": "c", "sha256": "1"},
        "release": {"name": "r", "sha256": "2"},
    }
    export_model(folder, network.state_dict(), about | changes)
    return network


def test_a_model_comes_back(tmp_path: Path) -> None:
    network = export(tmp_path)
    model = load_model(tmp_path)
    z, r, t = torch.randn(2, 4, 8, 8, 8), torch.zeros(2), torch.ones(2)
    assert torch.allclose(model.velocity(z, r, t), z - network(z, r, t), atol=1e-5)
    assert not model.network.training and len(model.sha256) == 64 and model.device == torch.device("cpu")


def test_rectified_flow_is_sampled_with_its_instantaneous_velocity(tmp_path: Path) -> None:
    export(tmp_path, "rectified_flow")
    model = load_model(tmp_path)
    z, r, t = torch.randn(2, 4, 8, 8, 8), torch.zeros(2), torch.tensor([0.5, 1.0])
    assert torch.equal(model.velocity(z, r, t), model.velocity(z, t, t))


def test_normalisation_and_its_inverse(tmp_path: Path) -> None:
    export(tmp_path)
    model = load_model(tmp_path)
    z = torch.randn(2, 4, 8, 8, 8)
    assert torch.allclose(model.denormalise(torch.zeros_like(z))[0, :, 0, 0, 0], torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert torch.allclose(model.normalise(model.denormalise(z)), z, atol=1e-5)


def test_demo_means_the_shipped_model_of_the_variant() -> None:
    assert model_folder("demo", "rectified_flow").name == "rectified_flow"
    assert model_folder("demo", "meanflow") == model_folder("demo", "imf") == model_folder("demo")
    assert model_folder("demo").parent.name == "demo" and model_folder("demo/") == model_folder("demo")
    online = "rectified_flow/averages/online.safetensors"
    assert model_folder(f"demo/{online}") == model_folder("demo").parent / online
    assert model_folder("./demo") == Path("./demo") and model_folder("demonstration") == Path("demonstration")


def test_unusable_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.safetensors does not exist"):
        load_model(tmp_path)
    export(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="damaged"):
        load_model(tmp_path)
    export(tmp_path)
    (tmp_path / "model.json").write_text(json.dumps({"config": {}}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="no statistics, codec, release, files"):
        load_model(tmp_path)
    export(tmp_path, config=validate({"network": NETWORK | {"channels": [8, 8]}}).model_dump(mode="json"))
    with pytest.raises(CheckpointError, match="fits another network"):
        load_model(tmp_path)


def test_altered_or_exchanged_weights_are_refused(tmp_path: Path) -> None:
    export(tmp_path / "a")
    path = tmp_path / "a" / "model.safetensors"
    whole = path.read_bytes()
    content = bytearray(whole)
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        CheckpointError, match=r"a/model\.safetensors has sha256 .*damaged, altered or is of another model"
    ):
        load_model(tmp_path / "a")
    path.write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match="has sha256"):
        load_model(tmp_path / "a")
    path.write_bytes(whole)
    load_model(tmp_path / "a")
    about = json.loads((tmp_path / "a" / "model.json").read_text())
    about["statistics"]["std"] = [1.0, 0.0, 1.0, 1.0]
    (tmp_path / "a" / "model.json").write_text(json.dumps(about))
    with pytest.raises(CheckpointError, match=r"statistics\.std is .*not a number for each of 4 channels"):
        load_model(tmp_path / "a")


def test_the_shipped_models_are_the_files_that_their_model_json_names() -> None:
    for name in ("demo", "demo/rectified_flow", "demo/rectified_flow/averages/online.safetensors"):
        load_model(name)


def test_progress_keeps_the_newest_checkpoints_only(tmp_path: Path) -> None:
    for update in (5, 8, 10):
        tensors = {"network.a": torch.full((2,), float(update))}
        save_progress(tmp_path, "key", Progress(update, 1.5 * update, tensors, {"skipped": 3}), keep=2)
    assert len(list(tmp_path.iterdir())) == 2
    progress = load_progress(tmp_path, "key")
    assert progress is not None and (progress.update, progress.seconds) == (10, 15.0)
    assert torch.equal(progress.part("network.")["a"], torch.full((2,), 10.0)) and progress.notes == {"skipped": 3}
    assert load_progress(tmp_path, "other key") is None
    assert load_progress(tmp_path / "nowhere", "key") is None
