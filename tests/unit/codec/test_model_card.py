"""The model card says what the files say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from neuromf.codec.model_card import write_model_card
from neuromf.codec.weights import DEMO_FOLDER

PROSE = {"purpose": "For tests.", "data": "None.", "limits": "All."}


def validation(tmp_path: Path, sha256: str) -> Path:
    means = {"vae": {"psnr": 24.5, "ssim": 0.95, "mae": 0.06}, "linear": {"psnr": 20.5, "ssim": 0.85, "mae": 0.09}}
    difference = {metric: means["vae"][metric] - means["linear"][metric] for metric in means["vae"]}
    content = {"sha256": sha256, "region": "in the box", "n_test": 3, "mean": means, "difference": difference}
    path = tmp_path / "validation.json"
    path.write_text(json.dumps(content))
    return path


def test_the_card_of_the_shipped_codec(tmp_path: Path) -> None:
    about = (DEMO_FOLDER / "codec.json").read_text()
    (tmp_path / "codec.json").write_text(about)
    sha256 = json.loads(about)["sha256"]
    write_model_card(tmp_path, {"held out": validation(tmp_path, sha256)}, **PROSE)
    card = (tmp_path / "MODEL_CARD.md").read_text()
    for text in (
        sha256,
        "| held out | 3 | vae | 24.50 | 0.950 | 0.0600 |",
        "difference | +4.00 | +0.100",
        "learning_rate",
    ):
        assert text in card


def test_figures_of_other_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "codec.json").write_text((DEMO_FOLDER / "codec.json").read_text())
    with pytest.raises(ValueError, match="is of weights 0000"):
        write_model_card(tmp_path, {"x": validation(tmp_path, "0" * 64)}, **PROSE)
