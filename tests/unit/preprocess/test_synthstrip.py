"""SynthStrip: the published checkpoint's layout, the published view of the head and FreeSurfer's command."""

from __future__ import annotations

import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from nipreps.synthstrip.model import StripModel

from neuromf.meshnet import WeightsError
from neuromf.preprocess import synthstrip
from neuromf.preprocess.synthstrip import find_synthstrip, synthstrip_mask
from neuromf.volume import VolumeError

CPU = torch.device("cpu")


def head() -> nib.Nifti1Image:
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in (40, 44, 36)], indexing="ij")
    data = np.where(x**2 + y**2 + z**2 < 0.6, 500, 20).astype(np.float32)
    return nib.Nifti1Image(data, np.array([[-2.0, 0, 0, 40], [0, 2, 0, -44], [0, 0, 2, -36], [0, 0, 0, 1]]))


def published_layout(folder: Path) -> Path:
    """Random weights as in synthstrip.1.pt, whose answer is a signed distance that falls with the intensity."""
    torch.manual_seed(0)
    network = StripModel()
    last = network.remaining[-1].conv
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)
    torch.save({"model_state_dict": network.state_dict(), "epoch": 1}, folder / synthstrip.WEIGHTS)
    return folder / synthstrip.WEIGHTS


def test_published_layout_gives_a_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthstrip, "_grid", lambda image: ((64, 64, 64), np.diag([-2.0, 2, 2, 1]) + shift()))
    found = find_synthstrip(published_layout(tmp_path).parent)
    mask = synthstrip_mask(head(), found, CPU)  # a distance of 0 mm is inside the border of 1 mm
    assert mask.shape == (40, 44, 36) and mask[20, 22, 18]


def shift() -> np.ndarray:
    offset = np.zeros((4, 4))
    offset[:3, 3] = [64, -64, -64]
    return offset


def test_wrong_weights_are_explained(tmp_path: Path) -> None:
    path = tmp_path / synthstrip.WEIGHTS
    torch.save({"other": torch.zeros(3)}, path)
    with pytest.raises(WeightsError, match=r"synthstrip\.1\.pt is not SynthStrip's weights file"):
        synthstrip_mask(head(), path, CPU)
    path.write_bytes(b"no checkpoint")
    with pytest.raises(WeightsError, match="is not SynthStrip's weights file"):
        synthstrip_mask(head(), path, CPU)


def test_the_view_is_the_published_one() -> None:
    for shape, size, expected in [((160, 256, 256), 1.0, (192, 256, 256)), ((96, 128, 128), 2.5, (256, 320, 320))]:
        image = nib.Nifti1Image(np.zeros(shape, np.float32), np.diag([size, size, size, 1]))
        view, affine = synthstrip._grid(image)
        assert view == expected
        assert nib.aff2axcodes(affine) == ("L", "I", "A")
        centre = nib.affines.apply_affine(image.affine, (np.array(shape) - 1) / 2)
        assert np.allclose(nib.affines.apply_affine(affine, (np.array(view) - 1) / 2), centre)


def fake_command(folder: Path, body: str) -> Path:
    path = folder / synthstrip.COMMAND
    path.write_text(f"#!{sys.executable}\nimport sys\na = dict(zip(sys.argv[1::2], sys.argv[2::2]))\n{body}\n")
    path.chmod(0o755)
    return path


def test_freesurfers_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NEUROMF_WEIGHTS", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(WeightsError, match=r"needs synthstrip\.1\.pt in the folder of weights \(none is given\) or"):
        find_synthstrip()
    fake_command(
        tmp_path,
        "import nibabel as nib, numpy as np\nscan = nib.load(a['-i'])\n"
        "nib.save(nib.Nifti1Image((scan.get_fdata() > 100).astype(np.uint8), scan.affine), a['-m'])",
    )
    image = head()
    assert np.array_equal(synthstrip_mask(image, find_synthstrip(), CPU), image.get_fdata() > 100)
    fake_command(tmp_path, "sys.exit('cannot read the model file')")
    with pytest.raises(VolumeError, match="exit code 1: cannot read the model file"):
        synthstrip_mask(image, find_synthstrip(), CPU)
