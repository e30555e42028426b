import torch

from neuromf.evaluation.extractors.slices import (
    CENTRAL,
    PLANES,
    SLICES,
    brain_extent,
    by_slice,
    resized,
    slice_bytes,
    slice_indices,
    slices_of,
)


def test_slices_lie_evenly_in_the_middle_of_the_brain_wherever_it_is(volume):
    first, last = brain_extent(volume, 1)
    indices = slice_indices(volume, 1)
    assert len(indices) == SLICES and indices == sorted(indices)
    margin = (1 - CENTRAL) / 2 * (last - first)
    assert min(indices) >= first + margin - 1 and max(indices) <= last - margin + 1
    moved = torch.roll(volume, 3, dims=1)
    assert slice_indices(moved, 1) == [i + 3 for i in indices]
    for plane, slices in slices_of(moved).items():
        assert (slices > 0).sum() == (slices_of(volume)[plane] > 0).sum()


def test_stray_voxels_do_not_stretch_the_extent_and_a_volume_without_brain_gives_slices(volume):
    stray = volume.clone()
    stray[0, 0, 0] = 1
    assert brain_extent(stray, 0) == brain_extent(volume, 0)
    empty = slices_of(torch.zeros(10, 12, 8))
    assert [tuple(empty[plane].shape) for plane in PLANES] == [(SLICES, 12, 12)] * 3


def test_images_have_anterior_or_superior_up_and_left_to_the_left():
    volume = torch.zeros(32, 32, 32)
    volume[4:28, 4:28, 4:28] = 0.5
    volume[4:28, 20:28, 4:28] = 1.0  # anterior
    axial = slices_of(volume)["axial"][0]
    assert axial[:12].max() == 1.0 and axial[14:].max() == 0.5
    volume[4:10] *= 0.2  # left
    assert slices_of(volume)["axial"][0][20, 5] < slices_of(volume)["axial"][0][20, 20]
    assert slices_of(volume)["coronal"].shape == (SLICES, 32, 32)


def test_no_slice_is_scaled_by_itself(volume):
    assert slice_bytes(torch.tensor([[[0.0, 0.5], [1.0, 1.4]]])).tolist()[0][0] == [[0, 128], [255, 255]]
    dim, bright = (by_slice(lambda s: s.amax((1, 2))[:, None])(volume * scale, 4.0)["axial"] for scale in (0.5, 1.0))
    assert torch.allclose(2 * dim, bright)
    assert resized(torch.full((2, 10, 10), 0.3), 24).shape == (2, 3, 24, 24)
