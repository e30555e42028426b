"""Every registered extractor, on files of the published layout; with the published weights where they are."""

from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
import torch_fidelity
from monai.networks.nets.resnet import resnet50
from torch.nn import functional
from torch.utils.data import Dataset
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

from neuromf import meshnet
from neuromf.evaluation.coverage import coverage_bootstraps
from neuromf.evaluation.extractors import slices
from neuromf.evaluation.extractors.published import WEIGHTS, ExtractorError, require_weights
from neuromf.evaluation.extractors.radimagenet import RadImageNet
from neuromf.evaluation.extractors.registry import CARDS, CODEC, VOLUME, available, load_extractor
from neuromf.evaluation.extractors.slices import brain_extent, resized
from neuromf.evaluation.extractors.subcortical import MARGIN, SPACING_MM, brain_box
from neuromf.evaluation.features import one_row_each
from neuromf.evaluation.kernel import kernel_distance

VOXEL_MM = 1.7  # of the volume: a small brain, so that the networks are quick


@pytest.fixture(autouse=True)
def two_slices_a_plane(monkeypatch):
    monkeypatch.setattr(slices, "SLICES", 2)


def put_weights(monkeypatch, folder, name, state):
    """Write a file of an extractor's layout and let the registry take it for the published one."""
    torch.save(state, folder / WEIGHTS[name].file)
    monkeypatch.setitem(WEIGHTS, name, replace(WEIGHTS[name], bytes=0, sha256=""))
    return folder


def checked(extractor, volume):
    """Return an extractor's features after checking their shapes against its card, and that they repeat."""
    card = CARDS[extractor.name]
    with torch.no_grad():
        features, again = extractor.compute(volume, VOXEL_MM), extractor.compute(volume, VOXEL_MM)
    rows = 1 if card.regions == (VOLUME,) else slices.SLICES
    assert {region: tuple(f.shape) for region, f in features.items()} == dict.fromkeys(
        card.regions, (rows, card.features)
    )
    assert all(torch.isfinite(f).all() and (f == again[region]).all() for region, f in features.items())
    return features


@pytest.fixture(scope="module")
def inception_state(tmp_path_factory):
    """The state dict of torch-fidelity's network with random weights; nothing is downloaded."""
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        patch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", lambda *a, **k: {})
        return FeatureExtractorInceptionV3("x", ["2048"]).state_dict()


@pytest.mark.parametrize("name", ["squeezenet", "subcortical"])
def test_published_weights(name, weights_dir, volume):
    extractor = load_extractor(name, weights_dir=weights_dir(name))
    features = checked(extractor, volume)
    with torch.no_grad():
        other = extractor.compute(volume * 0.5, VOXEL_MM)
    assert all(not torch.allclose(features[region], other[region], atol=1e-3) for region in features)
    assert load_extractor(name, weights_dir=weights_dir(name)).key == extractor.key


def test_squeezenet_computes_what_the_keras_file_says(weights_dir, volume):
    """The published graph written out, on the file's own arrays."""
    file = h5py.File(weights_dir("squeezenet") / WEIGHTS["squeezenet"].file)
    arrays = {}
    file.visititems(lambda key, value: arrays.update({key: np.asarray(value)}) if hasattr(value, "shape") else None)

    def convolve(x, layer, **kwargs):
        kernel, bias = (next(a for k, a in arrays.items() if k.startswith(f"{layer}/") and part in k)
                        for part in ("kernel", "bias"))  # fmt: skip
        return functional.conv2d(x, torch.tensor(kernel).permute(3, 2, 0, 1), torch.tensor(bias), **kwargs).relu()

    rgb = resized(slices.slices_of(volume)["axial"], 224) * 255
    x = convolve(rgb.flip(1) - torch.tensor([103.939, 116.779, 123.68]).view(1, 3, 1, 1), "conv1", stride=2)
    for number in range(2, 10):
        if number in (2, 4, 6):
            x = functional.max_pool2d(x, 3, 2)
        x = convolve(x, f"fire{number}/squeeze1x1")
        x = torch.cat(
            [convolve(x, f"fire{number}/expand1x1"), convolve(x, f"fire{number}/expand3x3", padding=1)], dim=1
        )
    extractor = load_extractor("squeezenet", weights_dir=weights_dir("squeezenet"))
    assert torch.allclose(extractor.compute(volume, 4.0)["axial"], x.mean((2, 3)), atol=1e-4)


def test_inception_gives_what_torch_fidelity_gives(monkeypatch, tmp_path, inception_state, volume):
    folder = put_weights(monkeypatch, tmp_path, "inception", inception_state)
    features = checked(load_extractor("inception", weights_dir=folder), volume)
    direct = FeatureExtractorInceptionV3("x", ["2048"], str(folder / WEIGHTS["inception"].file))
    images = slices.slice_bytes(slices.slices_of(volume)["coronal"])
    assert torch.allclose(features["coronal"], direct(images)[0], atol=1e-5)


class Images(Dataset):
    """RGB images as torch-fidelity takes them."""

    def __init__(self, images):
        self.images = list(images)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]


def test_kid_and_precision_equal_torch_fidelitys_on_the_same_slices(
    monkeypatch, tmp_path, inception_state, volume, settings
):
    """From slices to figures: torch-fidelity's own calculation, given the images."""
    monkeypatch.setattr(slices, "SLICES", 5)
    folder = put_weights(monkeypatch, tmp_path, "inception", inception_state)
    sets = [volume, (volume**1.5).roll(2, 0)]
    images = [Images(slices.slice_bytes(slices.slices_of(v)["axial"])) for v in sets]
    expected = torch_fidelity.calculate_metrics(
        input1=images[0], input2=images[1], kid=True, prc=True, kid_subsets=1, kid_subset_size=5, cuda=False,
        feature_extractor="inception-v3-compat", feature_layer_prc="2048", save_cpu_ram=True,
        feature_extractor_weights_path=str(folder / WEIGHTS["inception"].file), cache=False, verbose=False, batch_size=5,
    )  # fmt: skip
    monkeypatch.setattr(slices, "slices_of", lambda v, of=slices.slices_of: {"axial": of(v)["axial"]})
    extractor = load_extractor("inception", weights_dir=folder)
    x, y = (one_row_each(extractor.compute(v, 4.0)["axial"].numpy()) for v in sets)
    kid = kernel_distance(x.values, y.values)
    assert kid == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-4, abs=1e-9)
    found = coverage_bootstraps(x, y, settings)
    assert found["precision"].value == pytest.approx(expected["precision"])
    assert found["recall"].value == pytest.approx(expected["recall"])


def test_medicalnet_and_radimagenet_take_the_published_layouts(monkeypatch, tmp_path, volume):
    network = resnet50(n_input_channels=1, conv1_t_stride=2, bias_downsample=False, feed_forward=False)
    state = {f"module.{key}": value for key, value in network.state_dict().items()}
    put_weights(monkeypatch, tmp_path, "medicalnet_resnet50", {"state_dict": state})
    extractor = load_extractor("medicalnet_resnet50", weights_dir=tmp_path)
    features = checked(extractor, volume)
    with torch.no_grad():
        brighter = extractor.compute(torch.where(volume > 0, 0.5 * volume + 0.2, 0.0), VOXEL_MM)
    assert torch.allclose(features[VOLUME], brighter[VOLUME], rtol=1e-3, atol=1e-3)  # standardised in the brain

    state = RadImageNet().state_dict()
    assert {"backbone.0.weight", "backbone.4.0.downsample.1.running_var", "backbone.7.2.bn3.bias"} <= set(state)
    put_weights(monkeypatch, tmp_path, "radimagenet_resnet50", state)
    checked(load_extractor("radimagenet_resnet50", weights_dir=tmp_path), volume)


def test_a_file_of_another_network_is_refused(monkeypatch, tmp_path):
    put_weights(monkeypatch, tmp_path, "medicalnet_resnet50", {"state_dict": {"module.conv1.weight": torch.zeros(3)}})
    with pytest.raises(ExtractorError, match=r"resnet_50_23dataset\.pth is no file of this network: .* missing"):
        load_extractor("medicalnet_resnet50", weights_dir=tmp_path)
    put_weights(monkeypatch, tmp_path, "inception", {"fc.weight": torch.zeros(3)})
    with pytest.raises(ExtractorError, match="is no file of Inception"):
        load_extractor("inception", weights_dir=tmp_path)


def test_missing_and_altered_weights_are_told_with_the_remedy(monkeypatch, tmp_path):
    monkeypatch.delenv("NEUROMF_WEIGHTS", raising=False)
    assert all("fetch " in text for text in available().values())
    found = available(tmp_path)
    assert set(found) == set(CARDS)
    for name, text in found.items():
        assert WEIGHTS[name].file in text and WEIGHTS[name].address in text
    (tmp_path / WEIGHTS["squeezenet"].file).write_bytes(b"x")
    with pytest.raises(ExtractorError, match="is not the published file: fetch"):
        load_extractor("squeezenet", weights_dir=tmp_path)
    with pytest.raises(ExtractorError, match="no extractor 'vgg'"):
        load_extractor("vgg")
    with pytest.raises(ExtractorError, match="needs a codec"):
        load_extractor("codec")


def test_the_workflow_asks_for_missing_weights_at_its_start(monkeypatch, tmp_path):
    monkeypatch.delenv("NEUROMF_WEIGHTS", raising=False)
    require_weights(["codec", "inception"])
    with pytest.raises(ExtractorError, match=r"radimagenet_resnet50 needs its published weights: fetch ResNet50\.pt"):
        require_weights(["codec", "radimagenet_resnet50"])
    (tmp_path / "ResNet50.pt").touch()
    require_weights(["codec", "radimagenet_resnet50"], tmp_path)


def test_what_is_said_of_published_files_is_what_their_readers_say():
    network, weights = meshnet.PUBLISHED["subcortical"], WEIGHTS["subcortical"]
    assert (network.file, network.bytes, network.sha256) == (weights.file, weights.bytes, weights.sha256)
    assert WEIGHTS["inception"].address == URL_INCEPTION_V3


def test_inception_may_fetch_its_weights_and_says_when_it_cannot(monkeypatch, tmp_path, inception_state, volume):
    asked = []

    def download(url, progress):
        asked.append(url)
        if len(asked) > 1:
            raise OSError("no network")
        return inception_state

    monkeypatch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", download)
    extractor = load_extractor("inception", weights_dir=tmp_path)
    assert asked == [WEIGHTS["inception"].address] and extractor.name == "inception"
    with pytest.raises(ExtractorError, match=r"could not be downloaded \(no network\); fetch weights-inception"):
        load_extractor("inception", weights_dir=tmp_path)


def test_keys_tell_weights_and_extractors_apart(monkeypatch, tmp_path, codec):
    state = RadImageNet().state_dict()
    put_weights(monkeypatch, tmp_path, "radimagenet_resnet50", state)
    first = load_extractor("radimagenet_resnet50", weights_dir=tmp_path)
    state["backbone.1.bias"] += 1
    put_weights(monkeypatch, tmp_path, "radimagenet_resnet50", state)
    second = load_extractor("radimagenet_resnet50", weights_dir=tmp_path)
    assert first.key != second.key and load_extractor("codec", codec=codec).key not in (first.key, second.key)
    assert CODEC not in CARDS and set(WEIGHTS) == set(CARDS)


def test_the_brains_box_is_what_the_subcortical_network_sees(volume):
    box = brain_box(volume, 4.0)
    extents = [brain_extent(volume, axis) for axis in (0, 2, 1)]  # LIA
    expected = [4.0 * (last - first + 1) for first, last in extents]
    assert [(side - 2 * MARGIN) * SPACING_MM for side in box.shape] == pytest.approx(expected, abs=SPACING_MM)
    marked = volume.clone()
    marked[10:14, 34:38, 20:24] = 5.0  # left, anterior, above the middle
    left, inferior, anterior = np.unravel_index(int(brain_box(marked, 4.0).argmax()), box.shape)
    assert left > box.shape[0] / 2 and inferior < box.shape[1] / 2 and anterior > box.shape[2] / 2
    assert brain_box(torch.ones(90, 90, 90), 4.0).shape == (168, 168, 168)  # a volume of noise is no larger
