"""The picture of the latents' distribution."""

import json

import numpy as np
import pytest

from neuromf.paper import style
from neuromf.paper.latents import draw_latents, figure_text, latents


def content(channels, scans=20):
    """A description as the evaluation writes it; without intervals and components for fewer than two scans."""
    edges = np.linspace(-6, 6, 241)
    low, high = (0.1, 0.3) if scans > 1 else (None, None)
    rows = [
        {"figure": name, "channel": c, "value": 0.2, "ci_low": low, "ci_high": high, "n": scans}
        for name in ("mean", "std", "skewness", "kurtosis", "kolmogorov_smirnov") for c in range(channels)
    ]  # fmt: skip
    whole = {"channel": None, "ci_low": low, "ci_high": high, "n": scans}
    rows.append({"figure": "effective_dimension_channels", "value": 2.5} | whole)
    rows.append({"figure": "effective_dimension_scans", "value": 9.1 if scans > 1 else None} | whole)
    return {
        "n": scans, "figures": rows, "edges": edges.tolist(), "density": np.full((channels, 240), 1 / 12).tolist(),
        "correlation": np.eye(channels).tolist(), "channel_pca": [1 / channels] * channels,
        "scan_pca": {"scans": scans, "explained": [0.1] * 10 if scans > 1 else []},
    }  # fmt: skip


@pytest.mark.parametrize("channels", [1, 4, 6, 20])
def test_each_channel_has_a_histogram_up_to_eight(channels):
    figure = latents(content(channels))
    drawn = [axis for axis in figure.axes if axis.get_title().startswith("channel ")]
    assert len(drawn) == min(channels, 8)
    assert style.as_svg(figure).startswith(b"<?xml")


def test_figures_are_written_with_their_intervals():
    assert figure_text(content(2), "effective_dimension_channels", None, 1) == "2.5 [0.1, 0.3]"
    assert figure_text(content(2, scans=1), "skewness", 0, 2) == "0.20"
    assert figure_text(content(2, scans=1), "effective_dimension_scans", None, 1) == "–"
    style.as_svg(latents(content(2, scans=1)))


def test_the_picture_is_a_png(tmp_path):
    (tmp_path / "latents.json").write_text(json.dumps(content(4)))
    draw_latents(tmp_path / "latents.json", tmp_path / "latents.png")
    assert (tmp_path / "latents.png").read_bytes().startswith(b"\x89PNG")
