"""The picture of the codec's worst scans."""

import json

import numpy as np
import pytest

from neuromf.paper import style
from neuromf.paper.codec import DIFFERENCE, WorstScan, boundaries, draw_worst, gate_table, worst_scans
from neuromf.volume import write_volume

AFFINE = np.diag([6.0, 6.0, 6.0, 1.0])


def test_the_borders_are_between_background_grey_and_white(brain):
    volume = np.zeros((16, 16, 16), np.float32)
    volume[2:14, 2:14, 2:14] = 0.2
    volume[3:13, 3:13, 3:13] = 0.5
    volume[5:11, 5:11, 5:11] = 0.9
    edge, cortex = boundaries(volume)
    assert 0 < edge < 0.2 and 0.49 < cortex < 0.9
    assert boundaries(np.zeros((8, 8, 8), np.float32)) == (0.0, 1.0)


def test_each_scan_has_itself_its_reconstruction_and_the_difference(brain):
    x = brain(0)
    figure = worst_scans([WorstScan("a", x, x - 0.1), WorstScan("b", brain(1), brain(1))])
    images = [axis.images[0] for axis in figure.axes if axis.images]
    assert len(images) == 2 * 9 + 1  # and the scale of colours
    shown = images[6].get_array()
    assert shown.max() == pytest.approx(-0.1, abs=1e-6) and images[6].get_clim() == (-DIFFERENCE, DIFFERENCE)
    assert len(figure.axes[6].collections) == 2, "the brain's border and the cortex's"
    assert np.allclose(images[15].get_array(), 0)
    style.as_png(figure)


def test_the_worst_come_first_with_their_figures(brain, tmp_path):
    rows = [{"scan": f"sub-{i}_desc-preproc_T1w", "codec": c, "ssim_brain": 0.8 + 0.01 * i, "psnr_brain": 20.0}
            for i in range(3) for c in ("vae", "linear")]  # fmt: skip
    (tmp_path / "codec.json").write_text(json.dumps({"rows": rows}))
    for rank, row in enumerate(rows[::2]):
        for kind in ("real", "reconstruction"):
            write_volume(tmp_path / "worst" / f"{rank}_{row['scan']}_{kind}.nii.gz", brain(rank), AFFINE, np.float32)
    draw_worst(tmp_path / "codec.json", tmp_path / "worst", tmp_path / "worst.png")
    assert (tmp_path / "worst.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="validate the codec first"):
        draw_worst(tmp_path / "codec.json", tmp_path / "nothing", tmp_path / "worst.png")


def test_the_gates_table_says_what_was_not_measured(gate):
    table = gate_table(gate)
    assert table["Mean over scans"].tolist() == ["0.910 [0.900, 0.920]", "24.500 [24.100, 24.900]", "–"]
    assert table["Inside the brain"].tolist() == ["SSIM", "PSNR (dB)", "LPIPS, axial"]
    assert table["Verdict"].tolist() == ["passed", "failed", "not measured"]
