from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

from neuromf.config import ConfigError, LossMask, validate
from neuromf.flow import MeanFlowObjective
from neuromf.training.spatial_mask import draw_mask


def draw(rows: int = 2, space: tuple[int, ...] = (8, 8, 8), seed: int = 0, **settings: Any) -> Tensor:
    mask = draw_mask(LossMask(**settings), rows, space, torch.Generator().manual_seed(seed))
    assert mask is not None
    return mask


def test_no_mask_is_none() -> None:
    assert draw_mask(LossMask(), 2, (8, 8, 8), torch.Generator()) is None


@given(
    kind=st.sampled_from(["block", "voxel"]),
    kept=st.floats(0.25, 1),
    blocks=st.tuples(*[st.integers(2, 4)] * 3),
    side=st.integers(2, 4),
    seed=st.integers(0, 2**63 - 1),
)
@hypothesis_settings(max_examples=40, deadline=None)
def test_every_row_keeps_its_share(
    kind: Literal["block", "voxel"], kept: float, blocks: tuple[int, ...], side: int, seed: int
) -> None:
    space = tuple(n * side for n in blocks)
    mask = draw(3, space, seed, kind=kind, kept=kept, block=side)
    assert mask.shape == (3, 1, *space) and set(mask.unique().tolist()) <= {0.0, 1.0}
    unit = side**3 if kind == "block" else 1
    total = mask[0].numel() // unit
    assert mask.sum((1, 2, 3, 4)).tolist() == [round(kept * total) * unit] * 3
    assert torch.equal(mask, draw(3, space, seed, kind=kind, kept=kept, block=side))


def test_blocks_are_whole() -> None:
    mask = draw(kind="block", block=4, kept=0.5)
    corners = mask[:, :, ::4, ::4, ::4]
    whole = corners.repeat_interleave(4, 2).repeat_interleave(4, 3).repeat_interleave(4, 4)
    assert torch.equal(mask, whole) and corners.sum((1, 2, 3, 4)).tolist() == [4, 4]


def test_blocks_at_the_edge_are_cut() -> None:
    mask = draw(400, (5, 5, 5), kind="block", block=2, kept=0.5)
    assert mask.shape == (400, 1, 5, 5, 5)
    assert float(mask.mean()) == pytest.approx(0.5, abs=0.03)  # 14 of 27 blocks, of 1 to 8 voxels


def test_rows_and_seeds_differ_and_every_voxel_has_its_turn() -> None:
    mask = draw(500, (4, 4, 4), kind="voxel", kept=0.25)
    assert not torch.equal(mask[0], mask[1])
    assert not torch.equal(mask, draw(500, (4, 4, 4), seed=1, kind="voxel", kept=0.25))
    assert float(mask.mean(0).min()) > 0.15 and float(mask.mean(0).max()) < 0.35


@pytest.mark.parametrize("kind", ["block", "voxel"])
@pytest.mark.parametrize("kept", [0.25, 0.5])
def test_the_loss_is_normalised_by_the_share_kept(kind: str, kept: float) -> None:
    """A constant error has the same loss under any mask, and the mean loss over masks of any error is that without."""
    objective = MeanFlowObjective(variant="rectified_flow", prediction="u", adaptive=False)
    noise, t = torch.randn(64, 2, 8, 8, 8), torch.full((64,), 0.5)
    mask = draw(64, kind=kind, kept=kept)
    constant = objective(lambda z, r, t: noise + 3, torch.zeros_like(noise), noise, t, t, mask)  # v_c is the noise
    assert float(constant.loss) == pytest.approx(2 * 9, rel=1e-5)  # two channels
    error = torch.randn(1, 2, 8, 8, 8).expand_as(noise)
    network = lambda z, r, t: noise + error  # noqa: E731
    whole, part = (objective(network, 0 * noise, noise, t, t, m).loss for m in (None, mask))
    assert float(part) == pytest.approx(float(whole), rel=0.05) and float(part) != float(whole)


def test_what_is_masked_has_no_gradient() -> None:
    objective, z0 = MeanFlowObjective(variant="rectified_flow", prediction="u"), torch.randn(2, 2, 8, 8, 8)
    answer, t, mask = torch.zeros_like(z0).requires_grad_(), torch.tensor([0.4, 0.8]), draw(kind="voxel")
    objective(lambda z, r, t: answer, z0, torch.randn_like(z0), t, t, mask).loss.backward()
    assert answer.grad is not None and torch.equal(answer.grad != 0, mask.expand_as(z0) > 0)


def test_a_block_that_leaves_no_choice_is_refused() -> None:
    settings = {"preprocess": {"conform": {"shape": [32, 32, 32]}}}
    assert validate(settings | {"train": {"loss_mask": {"kind": "block", "block": 4}}})
    with pytest.raises(
        ConfigError, match=r"^train\.loss_mask\.block = 5 is too large for latents of \[8, 8, 8\] voxels"
    ):
        validate(settings | {"train": {"loss_mask": {"kind": "block", "block": 5}}})
