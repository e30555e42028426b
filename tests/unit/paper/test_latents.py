"""The picture of the latents' distribution."""

import json

import pytest

from neuromf.paper import style
from neuromf.paper.latents import draw_latents, figure_text, latent_table, latents


@pytest.mark.parametrize("channels", [1, 4, 6, 20])
def test_each_channel_has_a_histogram_up_to_eight(channels, latent_content):
    figure = latents(latent_content(channels))
    drawn = [axis for axis in figure.axes if axis.get_title().startswith("channel ")]
    assert len(drawn) == min(channels, 8)
    assert style.as_svg(figure).startswith(b"<?xml")


def test_figures_are_written_with_their_intervals(latent_content):
    assert figure_text(latent_content(2), "effective_dimension_channels", None, 1) == "2.5 [0.1, 0.3]"
    assert figure_text(latent_content(2, scans=1), "skewness", 0, 2) == "0.20"
    assert figure_text(latent_content(2, scans=1), "effective_dimension_scans", None, 1) == "–"
    style.as_svg(latents(latent_content(2, scans=1)))
    table = latent_table(latent_content(3))
    assert table["Channel"].tolist() == ["0", "1", "2"] and table["σ"].tolist() == ["0.200 [0.100, 0.300]"] * 3


def test_the_picture_is_a_png(latent_content, tmp_path):
    (tmp_path / "latents.json").write_text(json.dumps(latent_content(4)))
    draw_latents(tmp_path / "latents.json", tmp_path / "latents.png")
    assert (tmp_path / "latents.png").read_bytes().startswith(b"\x89PNG")
