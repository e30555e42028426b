"""NV-Generate's MR UNet as a warm start: the published layout, exactness of the conversion, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.apps.generation.maisi.networks import diffusion_model_unet_maisi
from monai.data.meta_tensor import MetaTensor
from monai.data.utils import list_data_collate
from monai.networks.schedulers import RFlowScheduler
from torch import Tensor

from neuromf.config import Config, ConfigError, Network, validate
from neuromf.flow import AverageVelocity, MeanFlowUNet
from neuromf.training.checkpoint import CheckpointError, load_model
from neuromf.training.module import FlowModule
from neuromf.training.nv_generate import (
    T1W_SKULL_STRIPPED,
    PublishedUNet,
    convert,
    load_into,
    read_unet,
    source_network,
)
from neuromf.training.run import train_run

SIZES: dict[str, Any] = {
    "channels": [8, 8, 16, 16],
    "attention": [False, False, True, True],
    "head_channels": [0, 0, 8, 8],
    "residual_blocks": 2,
    "norm_groups": 4,
    "time_embedding": "maisi",
}
SMALL = Network(**SIZES)
SCALE = 1.0055984258651733
SPACING_MM = 1.5
PUBLISHED_PARAMETERS, PUBLISHED_TENSORS = 180_500_868, 435  # facts of the published file


@pytest.fixture(scope="module")
def source() -> torch.nn.Module:
    """The published kind of network, small, in float64 and without a single zero weight."""
    random = torch.Generator().manual_seed(0)
    network = source_network(SMALL, 4).double()
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=random, dtype=torch.float64) * 0.2
    # the spacing reaches its layer times 100: keep the sigmoid inside it from saturating
    network.spacing_layer[0].weight.data *= 0.02
    return network.eval().requires_grad_(False)


def content(state: dict[str, Tensor], **changes: Any) -> dict[str, Any]:
    whole = {"epoch": 273, "loss": 0.1, "num_train_timesteps": 1000, "scale_factor": SCALE, "unet_state_dict": state}
    return {key: value for key, value in (whole | changes).items() if value is not None}


def meta_scale() -> Tensor:
    """One over the standard deviation of a batch of loaded images, as NV-Generate's training script has it."""
    random = torch.Generator().manual_seed(2)
    images = [
        MetaTensor(
            torch.randn(4, 8, 8, 8, generator=random),
            torch.eye(4),
            {"filename_or_obj": "a.nii.gz", "pixdim": [1.0] * 8},
        )
        for _ in range(2)
    ]
    scale = 1 / torch.std(list_data_collate([{"image": image} for image in images])["image"])
    assert isinstance(scale, MetaTensor)
    return scale


def save(path: Path, what: Any) -> Path:
    torch.save(what, path)
    return path


def in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """MONAI's time features in double precision: its own are float32 whatever the network is."""

    def embedding(timesteps: Tensor, width: int) -> Tensor:
        frequencies = torch.exp(-torch.log(torch.tensor(10_000.0)) * torch.arange(width // 2) / (width // 2))
        angles = timesteps[:, None] * frequencies.double()
        return torch.cat([angles.cos(), angles.sin()], dim=1)

    monkeypatch.setattr(diffusion_model_unet_maisi, "get_timestep_embedding", embedding)


def source_velocity(source: Any, z: Tensor, t: Tensor, label: int = T1W_SKULL_STRIPPED) -> Tensor:
    spacing = torch.full((len(z), 3), SPACING_MM * 1e2, dtype=z.dtype)
    labels = torch.full((len(z),), label)
    return -source(z, 1000 * t, class_labels=labels, spacing_tensor=spacing)


def converted(source: torch.nn.Module, *, v_head: bool = False) -> MeanFlowUNet:
    network = MeanFlowUNet(SMALL, v_head=v_head).double()
    load_into(network, PublishedUNet(source.state_dict(), SCALE), SPACING_MM)
    return network.requires_grad_(False)


def latents(n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, 4, 8, 8, 8, generator=torch.Generator().manual_seed(1), dtype=dtype)


# --- exactness --------------------------------------------------------------------------------------------------------


def test_the_instantaneous_velocity_is_the_sources(source: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    in_float64(monkeypatch)
    t = torch.tensor([0.0, 1e-3, 0.05, 0.3137, 0.5, 0.8, 0.999, 1.0], dtype=torch.float64)
    z = latents(len(t))
    u = AverageVelocity(converted(source), prediction="u")
    expected = source_velocity(source, z, t)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(u(z, t, t), expected, rtol=0, atol=1e-10)
    for one in AverageVelocity(converted(source, v_head=True), prediction="u").heads(z, t, t):
        torch.testing.assert_close(one, expected, rtol=0, atol=1e-10)
    # what embeds h starts silent: the same velocity at every r
    torch.testing.assert_close(u(z, 0 * t, t), expected, rtol=0, atol=1e-10)


def test_class_spacing_and_time_all_matter_to_the_source(source: torch.nn.Module) -> None:
    """Otherwise the equality above would prove nothing about them."""
    z, t = latents(2), torch.tensor([0.3, 0.7], dtype=torch.float64)
    here = source_velocity(source, z, t)
    assert (source_velocity(source, z, t, label=9) - here).abs().max() > 1e-3
    assert (source_velocity(source, z, t + 0.1) - here).abs().max() > 1e-3
    other = MeanFlowUNet(SMALL).double()
    load_into(other, PublishedUNet(source.state_dict(), SCALE), 2 * SPACING_MM)
    assert (other(z, t, t) - here).abs().max() > 1e-3


def test_without_any_patch_the_two_agree_in_float32(source: torch.nn.Module) -> None:
    network = converted(source).float()
    single = source_network(SMALL, 4)
    single.load_state_dict({name: w.float() for name, w in source.state_dict().items()})
    z, t = latents(3, torch.float32), torch.tensor([0.05, 0.4, 0.95])
    with torch.no_grad():
        torch.testing.assert_close(network(z, t, t), source_velocity(single, z, t), rtol=1e-4, atol=1e-5)


def test_sign_and_time_are_those_of_the_published_scheduler() -> None:
    """Its noising at timestep 1000 t is our path, and a step against −velocity leads from noise to data."""
    scheduler = RFlowScheduler(num_train_timesteps=1000, use_discrete_timesteps=False)
    z0, noise = latents(2, torch.float32), latents(2, torch.float32).flip(0)
    t = torch.tensor([0.2, 0.9])
    z_t = scheduler.add_noise(z0, noise, 1000 * t)
    torch.testing.assert_close(z_t, (1 - t.reshape(-1, 1, 1, 1, 1)) * z0 + t.reshape(-1, 1, 1, 1, 1) * noise)
    scheduler.set_timesteps(10)
    _, arrived = scheduler.step(-(noise - z0), 1000, noise)  # the source's output is minus our velocity
    torch.testing.assert_close(arrived, z0)


def test_every_tensor_of_the_source_counts(source: torch.nn.Module) -> None:
    weights = source.state_dict()
    before = convert(weights, SPACING_MM)
    for name, value in weights.items():
        after = convert(weights | {name: value + 0.1}, SPACING_MM)
        assert any(not torch.equal(before[key], after[key]) for key in before), name


# --- the published size -----------------------------------------------------------------------------------------------


def test_the_published_architecture_is_read_whole() -> None:
    with torch.device("meta"):
        source, network = source_network(Network(), 4), MeanFlowUNet(Network(time_embedding="maisi"))
    weights = source.state_dict()
    assert len(weights) == PUBLISHED_TENSORS
    assert sum(value.numel() for value in weights.values()) == PUBLISHED_PARAMETERS
    ours = {name: value.shape for name, value in network.state_dict().items()}
    made = {name: value.shape for name, value in convert(weights, 1.0).items()}
    new = {name for name in ours if name.startswith("interval_embed.")}
    assert made == {name: shape for name, shape in ours.items() if name not in new} and len(new) == 4
    folded = {"class_embedding.weight", *(f"spacing_layer.{n}.{p}" for n in (0, 2) for p in ("weight", "bias"))}
    assert made.keys() | folded == weights.keys()


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["number", "tensor", "metatensor", "parallel", "metatensors"])
def test_published_layouts_are_read(source: torch.nn.Module, layout: str, tmp_path: Path) -> None:
    state = source.state_dict()
    changes: dict[str, Any] = {
        "tensor": {"scale_factor": torch.tensor(SCALE)},
        "metatensor": {"scale_factor": meta_scale()},
        "parallel": {"unet_state_dict": {f"module.{name}": value for name, value in state.items()}},
        "metatensors": {"unet_state_dict": {name: MetaTensor(value) for name, value in state.items()}},
    }.get(layout, {})
    unet = read_unet(save(tmp_path / "unet.pt", content(state, **changes)), SMALL)
    assert unet.scale_factor == pytest.approx(float(changes.get("scale_factor", SCALE)))
    assert unet.weights.keys() == state.keys()
    assert all(type(w) is Tensor and torch.equal(w, state[name]) for name, w in unet.weights.items())


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("run by the pickle",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale_factor": None}, r"no scale_factor; expected NV-Generate's layout \{epoch, loss"),
        ({"unet_state_dict": None}, "no unet_state_dict"),
        ({"num_train_timesteps": 500}, "num_train_timesteps is 500"),
        ({"scale_factor": torch.ones(2)}, "expected one positive number"),
        ({"scale_factor": -1.0}, "expected one positive number"),
        ({"unet_state_dict": [1, 2]}, "no state dict"),
        ({"loss": Evil()}, "cannot be read as weights"),
    ],
)
def test_other_layouts_are_refused(
    source: torch.nn.Module, changes: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(tmp_path / "unet.pt", content(source.state_dict(), **changes))
    with pytest.raises(CheckpointError, match=message):
        read_unet(path, SMALL)
    assert capsys.readouterr().out == ""


def test_a_bare_state_dict_lacks_the_scale(source: torch.nn.Module, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no num_train_timesteps, scale_factor, unet_state_dict"):
        read_unet(save(tmp_path / "unet.pt", source.state_dict()), SMALL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spacing_layer.0.bias": None}, r"1 missing, e\.g\. spacing_layer\.0\.bias"),
        (
            {"class_embedding.weight": None, "extra": 1},
            r"1 missing, e\.g\. class_embedding.*1 unexpected, e\.g\. extra",
        ),
        ({"out.2.conv.bias": 5}, r"out\.2\.conv\.bias \(5,\) instead of \(4,\)"),
        ({"out.2.conv.bias": torch.full((4,), torch.nan)}, "NaN or infinite"),
    ],
)
def test_keys_and_shapes_are_strict(
    source: torch.nn.Module, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    state = source.state_dict()
    state |= {key: torch.zeros(value) if isinstance(value, int) else value for key, value in change.items()}
    state = {key: value for key, value in state.items() if value is not None}
    with pytest.raises(CheckpointError, match=message):
        read_unet(save(tmp_path / "unet.pt", content(state)), SMALL)


def test_another_architecture_is_refused(source: torch.nn.Module, tmp_path: Path) -> None:
    path = save(tmp_path / "unet.pt", content(source.state_dict()))
    wider = Network(**SIZES | {"channels": [16, 16, 16, 16]})
    with pytest.raises(CheckpointError, match="Correct the `network` and `codec.latent_channels` settings"):
        read_unet(path, wider)
    with pytest.raises(CheckpointError, match=r"conv_in\.conv\.weight \(8, 4, 3, 3, 3\) instead of \(8, 3, 3, 3, 3\)"):
        read_unet(path, SMALL, channels=3)


def test_damaged_and_missing_files_are_refused(source: torch.nn.Module, tmp_path: Path) -> None:
    path = save(tmp_path / "unet.pt", content(source.state_dict()))
    whole = path.read_bytes()
    for damage in (whole[: len(whole) // 2], b"<html>Not found</html>", b""):
        path.write_bytes(damage)
        with pytest.raises(CheckpointError, match="cannot be read as weights"):
            read_unet(path, SMALL)
    with pytest.raises(CheckpointError, match="does not exist"):
        read_unet(tmp_path / "nowhere.pt", SMALL)


# --- a run ------------------------------------------------------------------------------------------------------------


def settings(start: Path, **changes: dict[str, Any]) -> dict[str, Any]:
    base: dict[str, Any] = {
        "preprocess": {"conform": {"shape": [32, 32, 32], "spacing_mm": SPACING_MM}},
        "network": SIZES,
        "flow": {"prediction": "u"},
        "train": {"warm_start": str(start), "normalise": "warm_start", "updates": 1, "batch_size": 2}
        | {"learning_rate": 1e-9, "warmup_updates": 0},
    }
    return base | {part: base[part] | change for part, change in changes.items()}


def train(folder: Path, config: Config) -> dict[str, Any]:
    return train_run(
        config,
        list(latents(3).float()),  # type: ignore[arg-type]
        [],  # type: ignore[arg-type]
        {"mean": [1.0, 0.0, -1.0, 2.0], "std": [2.0, 1.0, 0.5, 3.0]},
        folder,
        seed=0,
        release={"name": "r", "sha256": "1"},
        codec={"name": "c", "sha256": "2"},
        device=torch.device("cpu"),
        checkpoint_folder=folder / "checkpoints",
    )


def test_a_run_starts_from_it_and_its_model_starts_the_next(source: torch.nn.Module, tmp_path: Path) -> None:
    path = save(tmp_path / "unet.pt", content(source.state_dict()))
    figures = train(tmp_path / "first", validate(settings(path)))
    assert figures["warm_start"]["variant"] == "nv_generate" and len(figures["warm_start"]["sha256"]) == 64
    model = load_model(tmp_path / "first")
    assert model.statistics["mean"] == [0.0] * 4 and model.statistics["std"] == pytest.approx([1 / SCALE] * 4)
    z, t = latents(2, torch.float32), torch.tensor([0.3, 0.9])
    torch.testing.assert_close(model.normalise(z), z * SCALE)
    with torch.no_grad():
        expected = converted(source).float()(z, t, t)
    torch.testing.assert_close(model.velocity(z, t, t), expected, atol=1e-3, rtol=1e-3)

    second = settings(tmp_path / "first")
    train(tmp_path / "second", validate(second))
    about = json.loads((tmp_path / "second" / "model.json").read_text(encoding="utf-8"))
    assert about["statistics"]["std"] == pytest.approx([1 / SCALE] * 4)
    second["train"] = second["train"] | {"normalise": "channel"}
    train(tmp_path / "third", validate(second))
    assert load_model(tmp_path / "third").statistics["std"] == [2.0, 1.0, 0.5, 3.0]
    for change in ({"network": {"time_embedding": "neuromf"}}, {"flow": {"prediction": "x"}}):
        with pytest.raises(CheckpointError, match=r"was trained with (network\.time_embedding|flow\.prediction)"):
            train(tmp_path / "other", validate(settings(tmp_path / "first", **change)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flow": {"prediction": "x"}}, r"set flow\.prediction: u, .*\(here x, maisi, warm_start\)"),
        ({"network": {"time_embedding": "neuromf"}}, r"\(here u, neuromf, warm_start\)"),
        ({"train": {"normalise": "channel"}}, r"\(here u, maisi, channel\)"),
        ({"flow": {"jvp": "finite_difference"}}, r"use flow\.jvp: exact"),
        ({"train": {"warm_start": None}}, "normalise: warm_start needs a warm_start"),
    ],
)
def test_settings_that_do_not_go_with_it_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(settings(Path("unet.pt"), **change))
    runs = {"runs": {"nv": settings(Path("unet.pt"), **change)}}
    with pytest.raises(ConfigError, match=r"^runs\.nv\..*" + message):
        validate(runs)


def test_the_first_update_reaches_what_embeds_h(source: torch.nn.Module, tmp_path: Path) -> None:
    """Its last layer starts at zero and still gets a gradient."""
    path = save(tmp_path / "unet.pt", content(source.state_dict()))
    config = validate(settings(path))
    module = FlowModule(config, seed=0)
    load_into(module.network, read_unet(path, config.network), SPACING_MM)
    module.training_step(latents(2).float(), 0).backward()
    gradient = module.network.interval_embed[2].weight.grad
    assert not module.network.interval_embed[2].weight.any() and gradient.any() and torch.isfinite(gradient).all()
