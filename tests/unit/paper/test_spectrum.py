"""The picture of the power spectra."""

import numpy as np
import pytest

from neuromf.paper import style
from neuromf.paper.spectrum import draw_spectra, spectra


def labels(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_references_and_each_run_at_its_fewest_and_most_evaluations(spectra_table):
    figure = spectra(spectra_table, k0=0.25)
    assert labels(figure) == [
        "real scans (n = 16)", "codec reconstruction (n = 16)", "meanflow, 1 NFE (n = 16)", "meanflow, 2 NFE (n = 16)",
        "rectified flow, 1 NFE (n = 16)", "rectified flow, 2 NFE (n = 16)",
    ]  # fmt: skip
    assert [len(axis.lines) for axis in figure.axes] == [6 + 1, 5 + 2, 4 + 2]
    cut = figure.axes[0].lines[-1].get_xdata()[0]
    assert cut == pytest.approx(0.25 * 0.5 / 6), "k0 is a share of Nyquist"


def test_one_number_of_evaluations_is_drawn_once_and_missing_intervals_are_left_out(spectra_table):
    few = spectra_table[spectra_table["nfe"].isna() | (spectra_table["nfe"] == 1)].assign(ci_low=np.nan, ci_high=np.nan)
    figure = spectra(few, k0=0.5)
    assert len(labels(figure)) == 4 and not figure.axes[0].collections
    style.as_svg(figure)


def test_the_picture_is_a_png(spectra_table, tmp_path):
    spectra_table.to_parquet(tmp_path / "spectra.parquet")
    draw_spectra(tmp_path / "spectra.parquet", tmp_path / "spectrum.png", k0=0.25)
    assert (tmp_path / "spectrum.png").read_bytes().startswith(b"\x89PNG")
