from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from neuromf.codec.maisi import FrozenCodec, build, load_codec
from neuromf.config import Config, validate
from neuromf.flow import MeanFlowUNet
from neuromf.generation import energy
from neuromf.generation.generate import (
    GenerationError,
    SampledLatents,
    centred_affine,
    decode_latents,
    generate,
    nearest_training_scans,
    noise,
    read_latents,
    sample_id,
    sample_latents,
    write_latents,
)
from neuromf.tables import file_sha256, read_tsv
from neuromf.training.checkpoint import CheckpointError, TrainedModel, export_model, load_model

STATISTICS = {"mean": [1.0, 0.0, -1.0, 2.0], "std": [2.0, 1.0, 0.5, 3.0]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and a codec with random weights, as training leaves them."""
    path = tmp_path_factory.mktemp("trained")
    torch.manual_seed(0)
    settings = config(path)
    network = MeanFlowUNet(settings.network)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    save_file(build(settings.codec).state_dict(), path / "codec.safetensors")
    about = {
        "config": settings.model_dump(mode="json"),
        "statistics": STATISTICS,
        "codec": {"name": "tiny", "sha256": file_sha256(path / "codec.safetensors")},
        "release": {"name": "r", "sha256": "2"},
    }
    export_model(path / "model", network.state_dict(), about)
    return path


def config(path: Path) -> Config:
    return validate(
        {
            "preprocess": {"conform": {"shape": [32, 32, 16], "spacing_mm": 6.0}},
            "codec": {
                "name": "tiny",
                "weights": str(path / "codec.safetensors"),
                "channels": [8, 8, 8],
                "residual_blocks": [1, 1, 1],
                "norm_groups": 4,
            },
            "network": {
                "channels": [4, 8],
                "attention": [False, False],
                "head_channels": [0, 8],
                "residual_blocks": 1,
                "norm_groups": 4,
            },
        }
    )


def of_modality(folder: Path, modality: object, out: Path) -> Path:
    """The same model as of a release of another modality."""
    shutil.copytree(folder / "model", out)
    about = json.loads((out / "model.json").read_text(encoding="utf-8"))
    about["release"]["modality"] = modality
    (out / "model.json").write_text(json.dumps(about), encoding="utf-8")
    return out


@pytest.fixture(scope="module")
def model(folder: Path) -> TrainedModel:
    return load_model(folder / "model")


@pytest.fixture(scope="module")
def codec(model: TrainedModel) -> FrozenCodec:
    return load_codec(model.config.codec)


def test_noise_depends_on_seed_and_index() -> None:
    shape = (4, 8, 8, 4)
    assert torch.equal(noise(3, 7, shape), noise(3, 7, shape))
    draws = torch.stack([noise(seed, index, shape).flatten() for seed in range(3) for index in range(3)])
    assert abs(float(draws.mean())) < 0.02 and abs(float(draws.std()) - 1) < 0.02
    correlations = torch.corrcoef(draws) - torch.eye(9)
    assert correlations.abs().max() < 0.15


@pytest.mark.parametrize("nfe", [1, 3])
def test_a_sample_does_not_depend_on_the_batch(model: TrainedModel, nfe: int) -> None:
    whole = sample_latents(model, range(5), seed=2, nfe=nfe, batch_size=5)
    pairs = sample_latents(model, range(5), seed=2, nfe=nfe, batch_size=2)
    alone = sample_latents(model, [3], seed=2, nfe=nfe)
    assert torch.equal(whole.latents, pairs.latents)
    assert torch.equal(whole.latents[3], alone.latents[0]) and alone.ids == ["sub-synth00200003"]


def test_one_step_is_the_formula_in_the_codecs_scale(model: TrainedModel) -> None:
    sampled = sample_latents(model, [4], seed=1)
    epsilon = noise(1, 4, (4, 8, 8, 4))[None]
    expected = epsilon - model.velocity(epsilon, torch.zeros(1), torch.ones(1))
    mean, std = (torch.tensor(STATISTICS[key]).reshape(4, 1, 1, 1) for key in ("mean", "std"))
    assert torch.allclose(sampled.latents, expected * std + mean, atol=1e-5)


def test_latents_come_back_from_their_file(model: TrainedModel, tmp_path: Path) -> None:
    sampled = sample_latents(model, [0, 5, 2], seed=9, nfe=2)
    write_latents(tmp_path / "latents.safetensors", sampled)
    again = read_latents(tmp_path / "latents.safetensors")
    assert torch.equal(again.latents, sampled.latents)
    assert (again.indices, dict(again.about), again.costs) == (sampled.indices, dict(sampled.about), sampled.costs)
    assert again.hardware == sampled.hardware and again.hardware["threads"] == torch.get_num_threads()
    damaged = bytearray((tmp_path / "latents.safetensors").read_bytes())
    damaged[-1] ^= 1
    (tmp_path / "damaged.safetensors").write_bytes(damaged)
    with pytest.raises(GenerationError, match="is not what was written.*remove it and sample again"):
        read_latents(tmp_path / "damaged.safetensors")
    with pytest.raises(GenerationError, match="no generated latents"):
        read_latents(tmp_path / "nothing.safetensors")


class Training:
    """Raw latents of two training scans."""

    def __init__(self, values: Sequence[torch.Tensor]) -> None:
        self.values, self.scan_ids = values, [f"sub-{n}_T1w" for n in range(len(values))]

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.values[index]


def test_decoding_writes_volumes_sidecars_and_timing(model: TrainedModel, codec: FrozenCodec, tmp_path: Path) -> None:
    sampled = sample_latents(model, range(2), seed=0)
    (tmp_path / "sub-synth00000009_T1w.nii.gz").write_bytes(b"of an earlier, larger call")
    (tmp_path / "latents.safetensors").write_bytes(b"kept")
    training = Training([sampled.latents[1] + 0.1, sampled.latents[0] + 0.1])
    decode_latents(codec, sampled, tmp_path, training)
    expected = {f"{sample_id(0, index)}_T1w.{end}" for index in range(2) for end in ("nii.gz", "json")}
    expected |= {"participants.tsv", "sample_timing.json", "latents.safetensors"}
    assert {path.name for path in tmp_path.iterdir()} == expected

    image = nib.load(tmp_path / "sub-synth00000001_T1w.nii.gz")
    assert image.shape == (32, 32, 16) and nib.aff2axcodes(image.affine) == ("R", "A", "S")
    assert np.allclose(image.header.get_zooms(), 6.0) and image.get_data_dtype() == np.float32
    middle = image.affine @ [15.5, 15.5, 7.5, 1]
    assert np.allclose(middle[:3], 0)
    volume = codec.decode(sampled.latents[1:])[0, 0].clamp(0, 1).numpy()
    assert np.array_equal(np.asarray(image.dataobj), volume)

    sidecar = json.loads((tmp_path / "sub-synth00000001_T1w.json").read_text(encoding="utf-8"))
    assert sidecar["model_sha256"] == model.sha256 and sidecar["codec_sha256"] == codec.sha256
    assert (sidecar["seed"], sidecar["index"], sidecar["nfe"]) == (0, 1, 1)
    assert sidecar["nearest_training_scan"] == "sub-0_T1w"
    timing = json.loads((tmp_path / "sample_timing.json").read_text(encoding="utf-8"))
    assert all(len(timing[stage]) == 2 and min(timing[stage]) > 0 for stage in ("network", "decode", "total"))
    assert set(timing["joules"]) == {"network", "decode", "total"}
    for stage in ("network", "decode"):
        about = timing["hardware"][stage]
        assert (about["device"], about["threads"], bool(about["name"])) == ("cpu", torch.get_num_threads(), True)
    rows = read_tsv(tmp_path / "participants.tsv", ["participant_id"])
    assert [row["participant_id"] for row in rows] == ["sub-synth00000000", "sub-synth00000001"]


def test_costs_are_warm_and_joules_of_both_stages_are_added(
    model: TrainedModel, codec: FrozenCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    class Counter:
        """Two joules at each reading."""

        source, used = "fake", 0.0

        def joules(self) -> float:
            calls.append("reading")
            self.used += 2
            return self.used

    def watched(name: str, work: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def call(*args: Any) -> torch.Tensor:
            calls.append(name)
            return work(*args)

        return call

    monkeypatch.setattr(energy, "energy_counter", lambda device: Counter())
    sampler = TrainedModel(**(model.__dict__ | {"velocity": watched("network", model.velocity)}))
    sampled = sample_latents(sampler, range(2), seed=0, nfe=2)
    assert calls == ["reading", "network", *["reading", "network", "network", "reading"] * 2]
    calls.clear()
    decoder = FrozenCodec(codec.network, codec.settings, codec.sha256, codec.device)
    object.__setattr__(decoder, "decode", watched("decode", codec.decode))
    decode_latents(decoder, sampled, tmp_path)
    assert calls == ["reading", "decode", *["reading", "decode", "reading"] * 2]
    timing = json.loads((tmp_path / "sample_timing.json").read_text(encoding="utf-8"))
    assert timing["joules"] == {"network": [2, 2], "decode": [2, 2], "total": [4, 4]}
    assert timing["hardware"]["decode"]["joules"] == "fake"


def test_another_codec_is_refused(model: TrainedModel, codec: FrozenCodec, tmp_path: Path) -> None:
    other = FrozenCodec(codec.network, codec.settings, "0" * 64, codec.device)
    with pytest.raises(GenerationError, match="was trained on latents of tiny"):
        decode_latents(other, sample_latents(model, [0], seed=0), tmp_path)


def test_nearest_training_scan() -> None:
    latents = torch.tensor([0.0, 1.0, 2.0]).reshape(3, 1, 1, 1, 1)
    training = Training([torch.full((1, 1, 1, 1), value) for value in (1.9, 0.2)])
    assert nearest_training_scans(latents, training) == ["sub-1_T1w", "sub-1_T1w", "sub-0_T1w"]


def test_generate_from_a_folder(folder: Path, tmp_path: Path) -> None:
    first = generate(folder / "model", n=2, seed=4, out=tmp_path / "a", nfe=2)
    again = generate(folder / "model", n=3, seed=4, out=tmp_path / "b", nfe=2, batch_size=1)
    assert [path.name for path in first] == ["sub-synth00400000_T1w.nii.gz", "sub-synth00400001_T1w.nii.gz"]
    assert all(one.read_bytes() == other.read_bytes() for one, other in zip(first, again, strict=False))
    sidecar = json.loads((tmp_path / "a" / "sub-synth00400000_T1w.json").read_text(encoding="utf-8"))
    assert sidecar["nearest_training_scan"] is None
    generate(folder / "model", n=2, seed=4, out=tmp_path / "a", nfe=2)
    with pytest.raises(GenerationError, match="holds other samples"):
        generate(folder / "model", n=1, seed=5, out=tmp_path / "a")


def test_samples_carry_the_modality_of_the_models_release(folder: Path, codec: FrozenCodec, tmp_path: Path) -> None:
    flair = of_modality(folder, "FLAIR", tmp_path / "flair")
    out = tmp_path / "samples"
    files = generate(flair, n=2, seed=4, out=out)
    assert [path.name for path in files] == ["sub-synth00400000_FLAIR.nii.gz", "sub-synth00400001_FLAIR.nii.gz"]
    assert all(path.is_file() for path in files) and not list(out.glob("*T1w*"))
    sidecar = json.loads((out / "sub-synth00400000_FLAIR.json").read_text(encoding="utf-8"))
    assert sidecar["modality"] == "FLAIR"
    assert {row["modality"] for row in read_tsv(out / "participants.tsv", ["modality"])} == {"FLAIR"}
    with pytest.raises(GenerationError, match="holds other samples .sub-synth00400000_FLAIR"):
        generate(folder / "model", n=2, seed=4, out=out)  # T1w beside FLAIR of the same noise

    sampled = sample_latents(load_model(flair), range(1), seed=4)
    write_latents(tmp_path / "latents.safetensors", sampled)
    (tmp_path / "rule").mkdir()
    (tmp_path / "rule" / "sub-synth00400000_T1w.nii.gz").write_bytes(b"of a NeuroMF that knew one modality")
    decode_latents(codec, read_latents(tmp_path / "latents.safetensors"), tmp_path / "rule")
    assert [path.name for path in (tmp_path / "rule").glob("*.nii.gz")] == ["sub-synth00400000_FLAIR.nii.gz"]


def test_latents_of_an_older_neuromf_are_t1w(model: TrainedModel) -> None:
    sampled = sample_latents(model, [0], seed=0)
    about = {key: value for key, value in sampled.about.items() if key != "modality"}
    assert model.modality == SampledLatents(sampled.latents, (0,), about, ()).modality == "T1w"


@pytest.mark.parametrize("modality", ["../../T1w", "T1 w", "", 3, None])
def test_a_modality_that_names_no_file_is_refused(folder: Path, tmp_path: Path, modality: object) -> None:
    with pytest.raises(CheckpointError, match=r"model\.json: release\.modality is .*letters and digits"):
        load_model(of_modality(folder, modality, tmp_path / "model"))


def test_no_samples_and_broken_models_are_refused(model: TrainedModel) -> None:
    with pytest.raises(GenerationError, match="no sample"):
        sample_latents(model, [], seed=0)
    broken = TrainedModel(**(model.__dict__ | {"velocity": lambda z, r, t: z * torch.nan}))
    with pytest.raises(GenerationError, match="not finite"):
        sample_latents(broken, [0], seed=0)


def test_affine_puts_the_middle_at_the_origin() -> None:
    affine = centred_affine((4, 6, 9), 2.0)
    assert np.allclose(affine @ [1.5, 2.5, 4.0, 1.0], [0, 0, 0, 1]) and np.allclose(np.diag(affine), [2, 2, 2, 1])
