import numpy as np
import pytest

from neuromf.paper.mosaics import Row, common_box, mosaic, three_planes


def test_planes_are_upright_with_left_on_the_left():
    volume = np.zeros((32, 32, 32), np.float32)
    volume[4, 16, 16] = 1.0  # left
    volume[16, 28, 16] = 2.0  # anterior
    volume[16, 16, 28] = 3.0  # superior
    volume[14, 28, 16] = 4.0  # anterior in the sagittal slice, an eighth of half the width beside the middle
    axial, coronal, sagittal = three_planes(volume, (slice(0, 32),) * 3)
    assert np.argwhere(axial == 1).tolist() == [[15, 4]] and np.argwhere(axial == 2).tolist() == [[3, 16]]
    assert np.argwhere(coronal == 1).tolist() == [[15, 4]] and np.argwhere(coronal == 3).tolist() == [[3, 16]]
    assert np.argwhere(sagittal == 4).tolist() == [[15, 28]]


def test_the_box_holds_the_brains_with_a_margin(brain):
    box = common_box([brain(0), brain(1)])
    inside = np.argwhere(brain(0) > 0.1)
    assert [s.start for s in box] == (inside.min(axis=0) - 2).tolist()
    assert common_box([np.zeros((8, 8, 8))]) == (slice(0, 8),) * 3


def test_rows_of_different_lengths_make_one_picture(brain):
    figure = mosaic([Row("real", [brain(0), brain(1)]), Row("generated", [brain(2)])])
    assert len(figure.axes) == 2
    assert [text.get_text() for text in figure.texts] == ["real", "generated"]
    width, height = figure.get_size_inches()
    assert width > height > 1


def test_a_row_without_volumes_is_refused(brain):
    with pytest.raises(ValueError, match="generated"):
        mosaic([Row("real", [brain(0)]), Row("generated", [])])
