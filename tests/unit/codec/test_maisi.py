"""The MAISI autoencoder: published size and layouts, what is refused, encoding and decoding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi
from monai.data.meta_tensor import MetaTensor
from safetensors.torch import save_file

from neuromf.codec import maisi
from neuromf.codec.maisi import CodecError, build, load_codec, read_state
from neuromf.config import Codec
from neuromf.tables import file_sha256

TINY = Codec(name="tiny", channels=(4, 8, 8), residual_blocks=(1, 1, 1), norm_groups=2, latent_channels=3, weights="x")


@pytest.fixture(scope="module")
def published() -> AutoencoderKlMaisi:
    torch.manual_seed(0)
    return build(Codec())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("tiny") / "codec.safetensors"
    save_file(build(TINY).state_dict(), path)
    return path


def with_weights(path: Path, **changes: Any) -> Codec:
    return Codec.model_validate(TINY.model_dump() | {"weights": str(path)} | changes)


def test_published_architecture_has_the_published_size(published: AutoencoderKlMaisi) -> None:
    state = published.state_dict()
    assert len(state) == maisi.PUBLISHED_TENSORS == 130
    assert sum(value.numel() for value in state.values()) == maisi.PUBLISHED_PARAMETERS == 20_944_897


@pytest.mark.parametrize("layout", ["bare", "wrapped", "parallel"])
def test_published_layouts_load(published: AutoencoderKlMaisi, layout: str, tmp_path: Path) -> None:
    state = published.state_dict()
    content: Any = dict(state)
    if layout == "wrapped":
        scale = MetaTensor(torch.tensor(1.0055984258651733))
        content = {
            "epoch": 273,
            "loss": 0.1,
            "num_train_timesteps": 1000,
            "scale_factor": scale,
            "unet_state_dict": state,
        }
    if layout == "parallel":
        content = {"state_dict": {f"module.{key}": value for key, value in state.items()}}
    path = tmp_path / "autoencoder_v2.pt"
    torch.save(content, path)
    codec = load_codec(Codec(weights="autoencoder_v2.pt", sha256=file_sha256(path)), weights_dir=tmp_path)
    loaded = codec.network.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())
    assert not any(p.requires_grad for p in codec.network.parameters())
    assert codec.sha256 == file_sha256(path)


def test_fused_group_norms_are_maisis(tiny: Path) -> None:
    """Same weights in MONAI's unmodified class give the same reconstruction."""
    reference = AutoencoderKlMaisi(
        spatial_dims=3, in_channels=1, out_channels=1, num_res_blocks=(1, 1, 1), num_channels=(4, 8, 8),
        attention_levels=(False,) * 3, latent_channels=3, norm_num_groups=2, num_splits=1, dim_split=1,
        norm_float16=False, save_mem=False,
    )  # fmt: skip
    codec = load_codec(with_weights(tiny))
    reference.load_state_dict(codec.network.state_dict())
    x = torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(codec.network.reconstruct(x), reference.reconstruct(x), atol=1e-5, rtol=1e-4)


def test_shapes_mean_and_independence_of_the_batch(tiny: Path) -> None:
    codec = load_codec(with_weights(tiny))
    x = torch.rand(2, 1, 16, 20, 24)
    z = codec.encode(x)
    assert z.shape == (2, 3, 4, 5, 6)
    assert torch.equal(z, codec.encode(x))  # the mean, not a draw
    assert torch.equal(z[1:2], codec.encode(x[1:2]))
    y = codec.decode(z)
    assert y.shape == x.shape
    assert torch.equal(y[1:2], codec.decode(z[1:2]))


def test_long_volumes_are_decoded_by_a_window(tiny: Path) -> None:
    whole = load_codec(with_weights(tiny, window_voxels=64))
    sliding = load_codec(with_weights(tiny, window_voxels=32))
    torch.manual_seed(1)
    z = torch.randn(1, 3, 10, 4, 4)
    y = sliding.decode(z)
    assert y.shape == (1, 1, 40, 16, 16)
    assert not torch.equal(y, whole.decode(z))
    short = torch.randn(1, 3, 8, 4, 4)
    assert torch.equal(sliding.decode(short), whole.decode(short))


def test_a_window_blends_into_the_whole_where_norms_do_not_matter(tiny: Path) -> None:
    """Without group norms a decoder is local: what only the first window covers, far from its edge, is the whole's."""
    codec = load_codec(with_weights(tiny, window_voxels=32))
    for module in list(codec.network.decoder.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, torch.nn.GroupNorm):
                setattr(module, name, torch.nn.Identity())
    z = torch.randn(1, 3, 8, 8, 14)
    y, whole = codec.decode(z), codec.network.decode(z).detach()
    torch.testing.assert_close(y[..., :8], whole[..., :8], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("shape", [(1, 1, 16, 16, 18), (1, 2, 16, 16, 16), (16, 16, 16)])
def test_volumes_of_another_shape_are_refused(tiny: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="multiples of 4"):
        load_codec(with_weights(tiny)).encode(torch.zeros(shape))


def test_latents_of_another_shape_are_refused(tiny: Path) -> None:
    with pytest.raises(ValueError, match=r"expected \(B, 3, D, H, W\)"):
        load_codec(with_weights(tiny)).decode(torch.zeros(1, 4, 4, 4, 4))


# --- what is refused ------------------------------------------------------------------------------------------------


def test_no_weights_says_what_to_fetch() -> None:
    with pytest.raises(CodecError, match=r"autoencoder_v2\.pt.*weights_dir.*codec\.weights: demo"):
        load_codec(Codec())


def test_a_missing_file_says_where_it_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEUROMF_WEIGHTS", str(tmp_path))
    with pytest.raises(CodecError, match=f"looked at nowhere.pt and {tmp_path}/nowhere.pt"):
        load_codec(Codec(weights="nowhere.pt"))


def test_trained_needs_a_folder(tiny: Path) -> None:
    with pytest.raises(CodecError, match="train_codec"):
        load_codec(with_weights(tiny, weights="trained"))
    assert load_codec(with_weights(tiny, weights="trained"), trained=tiny.parent).sha256 == file_sha256(tiny)


def test_another_hash_is_refused(tiny: Path) -> None:
    with pytest.raises(CodecError, match=r"codec\.sha256 asks for 0000"):
        load_codec(with_weights(tiny, sha256="0" * 64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"drop": "encoder.blocks.0.conv.conv.bias"}, r"1 missing, e\.g\. encoder\.blocks\.0\.conv\.conv\.bias"),
        ({"add": "extra.weight"}, r"1 unexpected, e\.g\. extra\.weight"),
        (
            {"reshape": "quant_conv_mu.conv.bias"},
            r"of another shape, e\.g\. quant_conv_mu\.conv\.bias \(5,\) instead of \(3,\)",
        ),
        ({"spoil": "quant_conv_mu.conv.bias"}, "NaN or infinite"),
    ],
)
def test_a_state_that_does_not_fit_names_the_keys(
    tiny: Path, tmp_path: Path, change: dict[str, str], message: str
) -> None:
    state = read_state(tiny)
    for what, key in change.items():
        if what == "drop":
            del state[key]
        else:
            state[key] = {"add": torch.zeros(1), "reshape": torch.zeros(5), "spoil": torch.full((3,), torch.nan)}[what]
    path = tmp_path / "other.safetensors"
    save_file(state, path)
    with pytest.raises(CodecError, match=message):
        load_codec(with_weights(path))


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("run by the pickle",))


def test_pickles_with_other_classes_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "evil.pt"
    torch.save({"unet_state_dict": {"a": torch.zeros(1)}, "epoch": Evil()}, path)
    with pytest.raises(CodecError, match="cannot be read as weights"):
        read_state(path)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_text_and_truncated_files_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    for content in ("<html>Not found</html>", ""):
        path.write_text(content)
        with pytest.raises(CodecError, match="cannot be read as weights"):
            read_state(path)


def test_a_file_without_a_state_dict_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "odd.pt"
    torch.save({"epoch": 3, "optimizer": {"lr": 1.0}}, path)
    with pytest.raises(CodecError, match="top-level keys: epoch, optimizer"):
        read_state(path)


# --- codec.json -----------------------------------------------------------------------------------------------------


def describe(tiny: Path, folder: Path, sha256: str | None = None) -> Path:
    weights = folder / "codec.safetensors"
    weights.write_bytes(tiny.read_bytes())
    content = {"architecture": maisi.architecture(TINY), "sha256": sha256 or file_sha256(weights)}
    (folder / "codec.json").write_text(json.dumps(content))
    return folder


def test_the_architecture_of_codec_json_wins_over_defaults(tiny: Path, tmp_path: Path) -> None:
    codec = load_codec(Codec(name="mine", weights=str(describe(tiny, tmp_path))))
    assert codec.settings.channels == (4, 8, 8)
    assert codec.settings.name == "mine"
    assert codec.encode(torch.rand(1, 1, 16, 16, 16)).shape == (1, 3, 4, 4, 4)


def test_an_architecture_that_contradicts_codec_json_is_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(CodecError, match=r"codec\.channels is \[8, 8, 8\]"):
        load_codec(with_weights(describe(tiny, tmp_path), channels=(8, 8, 8)))


def test_codec_json_of_other_weights_is_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(CodecError, match="describes weights with sha256 1111"):
        load_codec(with_weights(describe(tiny, tmp_path, "1" * 64)))
