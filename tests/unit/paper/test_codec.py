"""The picture of the codec's worst scans."""

import json

import numpy as np
import pytest

from neuromf.paper.codec import draw_worst, gate_table
from neuromf.volume import write_volume

AFFINE = np.diag([6.0, 6.0, 6.0, 1.0])


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
