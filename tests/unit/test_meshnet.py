"""MeshNet: built as published, weights checked, geometry of the conformed volume."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.processing import resample_from_to
from safetensors.torch import save_file
from torch.nn import functional

from neuromf import meshnet
from neuromf.meshnet import PUBLISHED, MeshNet, WeightsError, conform_256, find_weights, load_meshnet, segment

SHARED = Path(os.environ.get("NEUROMF_SHARED", Path(__file__).parents[2] / "../shared"))
needs_weights = pytest.mark.skipif(
    not (SHARED / "weights").is_dir(), reason=f"needs the published weights in {SHARED}/weights (set NEUROMF_SHARED)"
)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("mindgrab", 15 * 27 + 24 * 15 * 15 * 27 + 15 * 2),
        ("subcortical", 30 * 28 + 8 * 30 * (30 * 27 + 1) + 31 * 18),
        ("aparc50", 30 * 28 + 8 * 30 * (30 * 27 + 1) + 31 * 50),
    ],
)
def test_networks_are_built_as_published(name: str, parameters: int) -> None:
    network = MeshNet(PUBLISHED[name])
    assert sum(p.numel() for p in network.parameters()) == parameters
    with torch.no_grad():
        assert network(torch.rand(1, 1, 20, 18, 16)).shape == (1, PUBLISHED[name].classes, 20, 18, 16)


@needs_weights
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_weights_fit(name: str) -> None:
    network = load_meshnet(name, SHARED / "weights")
    with torch.no_grad():
        scores = network(torch.rand(1, 1, 16, 16, 16))
    assert torch.isfinite(scores).all() and scores.std() > 0


@needs_weights
def test_mindgrab_computes_the_published_formula() -> None:
    network = load_meshnet("mindgrab", SHARED / "weights")
    volume = x = torch.rand(1, 1, 16, 12, 10)
    weights = network.state_dict()
    for layer, dilation in enumerate([16, 8, 4, 2, 1] * 5):
        x = functional.conv3d(x, weights[f"model.{3 * layer}.weight"], padding=dilation, dilation=dilation)
        mean, variance = x.mean((2, 3, 4), keepdim=True), x.var((2, 3, 4), keepdim=True, unbiased=False)
        x = functional.gelu((x - mean) / (variance + 1e-5).sqrt())
    expected = functional.conv3d(x, weights["model.75.weight"])
    with torch.no_grad():
        assert torch.allclose(network(volume), expected, atol=1e-4)


def test_missing_or_altered_weights_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NEUROMF_WEIGHTS", raising=False)
    with pytest.raises(WeightsError, match=r"no folder of weights is given: fetch net_mindgrab\.safetensors \(587188"):
        find_weights("mindgrab")
    with pytest.raises(WeightsError, match=r"is missing: fetch .*brainchop"):
        find_weights("mindgrab", tmp_path)
    save_file(MeshNet(PUBLISHED["mindgrab"]).state_dict(), tmp_path / "net_mindgrab.safetensors")
    monkeypatch.setenv("NEUROMF_WEIGHTS", str(tmp_path))
    with pytest.raises(WeightsError, match="is not the published file"):
        find_weights("mindgrab")


@pytest.mark.parametrize("axes", ["RAS", "LAS", "PIR"])
def test_conformed_volume(axes: str) -> None:
    affine = np.array([[1.2, 0.1, 0, -40], [-0.1, 1.0, 0, -60], [0, 0, 1.5, -30], [0, 0, 0, 1]])
    data = np.zeros((70, 90, 50), np.float32)
    data[20:40, 30:70, 10:30] = np.linspace(1, 2, 20)[:, None, None]
    image = nib.Nifti1Image(data, affine)
    now = nib.orientations.io_orientation(affine)
    image = image.as_reoriented(nib.orientations.ornt_transform(now, nib.orientations.axcodes2ornt(axes)))
    conformed = conform_256(image)
    assert conformed.shape == (256, 256, 256)
    assert nib.aff2axcodes(conformed.affine) == ("L", "I", "A")
    assert np.allclose(nib.affines.voxel_sizes(conformed.affine), 1)
    centre = nib.affines.apply_affine(image.affine, np.array(image.shape) / 2)
    assert np.allclose(nib.affines.apply_affine(conformed.affine, [128] * 3), centre)
    back = resample_from_to(conformed, image, order=1).get_fdata()
    assert np.corrcoef(back.ravel(), image.get_fdata().ravel())[0, 1] > 0.98


def test_segment_labels_each_voxel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meshnet, "SIDE", 32)
    published = meshnet.Published("", 0, "", (1,), 2, 2, normalised=False, scaling="range")
    network = MeshNet(published)
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    network.model[0].weight.data[0, 0, 1, 1, 1] = 1  # passes the scaled intensity on
    network.model[2].weight.data[1, 0] = 1
    network.model[2].bias.data[1] = -0.5  # class 1 above half of the range
    data = np.zeros((30, 30, 30), np.float32)
    data[5:20, 5:20, 5:20], data[8:12, 8:12, 8:12] = 100, 900
    labels = segment(network, nib.Nifti1Image(data, np.eye(4)))
    assert labels.get_data_dtype() == np.uint8
    assert np.asarray(labels.dataobj).sum() == 4**3


def test_head_box_changes_no_label_near_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meshnet, "SIDE", 48)
    torch.manual_seed(0)
    network = MeshNet(meshnet.Published("", 0, "", (1, 2, 1), 6, 4, normalised=False, scaling="range"))
    data = np.zeros((48, 48, 48), np.float32)
    data[14:36, 10:30, 20:40] = np.random.default_rng(0).random((22, 20, 20)) + 0.5
    cropped = np.asarray(segment(network, nib.Nifti1Image(data, np.eye(4))).dataobj)
    monkeypatch.setattr(meshnet, "_head_box", lambda volume: (slice(None),) * 3)
    whole = np.asarray(segment(network, nib.Nifti1Image(data, np.eye(4))).dataobj)
    head = np.asarray(conform_256(nib.Nifti1Image(data, np.eye(4))).dataobj) > 0.2
    assert len(np.unique(whole)) > 1 and np.array_equal(cropped[head], whole[head])


def test_head_box_has_a_margin_and_an_empty_volume_is_looked_at_whole() -> None:
    volume = np.zeros((40, 40, 40), np.float32)
    assert meshnet._head_box(volume) == (slice(0, 48),) * 3
    volume[3, 20:25, 39] = 1
    assert meshnet._head_box(volume) == (slice(0, 12), slice(12, 33), slice(31, 48))
