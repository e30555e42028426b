"""Pairs of volumes beside their difference."""

import numpy as np
import pytest

from neuromf.paper import style
from neuromf.paper.pairs import DIFFERENCE, FLAGGED, INK, Block, Pair, boundaries, pairs_figure


def test_the_borders_are_between_background_grey_and_white():
    volume = np.zeros((16, 16, 16), np.float32)
    volume[2:14, 2:14, 2:14] = 0.2
    volume[3:13, 3:13, 3:13] = 0.5
    volume[5:11, 5:11, 5:11] = 0.9
    edge, cortex = boundaries(volume)
    assert 0 < edge < 0.2 and 0.49 < cortex < 0.9
    assert boundaries(np.zeros((8, 8, 8), np.float32)) == (0.0, 1.0)


def test_each_pair_has_both_volumes_and_the_difference(brain):
    x = brain(0)
    block = Block(("scan", "reconstruction", "difference"), [Pair("a", x, x - 0.1), Pair("b", brain(1), brain(1))])
    figure = pairs_figure([block])
    images = [axis.images[0] for axis in figure.axes if axis.images]
    assert len(images) == 2 * 9 + 1  # and the scale of colours
    shown = images[6].get_array()
    assert shown.max() == pytest.approx(-0.1, abs=1e-6) and images[6].get_clim() == (-DIFFERENCE, DIFFERENCE)
    assert len(figure.axes[6].collections) == 2, "the brain's border and the cortex's"
    assert np.allclose(images[15].get_array(), 0)
    style.as_png(figure)


def test_blocks_have_their_titles_notes_and_colours(brain):
    blocks = [
        Block(("a", "b", "b − a"), [Pair("one", brain(0), brain(1), FLAGGED)], "first\nof two"),
        Block(("c", "d", "d − c"), [Pair("two", brain(2), brain(3))]),
    ]
    figure = pairs_figure(blocks)
    colours = {text.get_text(): text.get_color() for text in figure.texts}
    assert set(colours) == {"first\nof two", "a", "b", "b − a", "c", "d", "d − c", "one", "two"}
    assert colours["one"] == FLAGGED and colours["two"] == INK
    rows = sorted({round(axis.get_position().y0, 3) for axis in figure.axes[:-1]}, reverse=True)
    places = {text.get_text(): text.get_position()[1] for text in figure.texts}
    assert places["first\nof two"] > places["a"] > places["one"] > rows[0] > places["c"] > places["two"] > rows[1]
