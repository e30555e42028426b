"""A linear start is the linear codec: same latents, and a reconstruction about as good."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from neuromf.codec import linear
from neuromf.codec.maisi import build
from neuromf.codec.start import check_linear_start, start_decoder, start_encoder
from neuromf.config import Codec

CODEC = Codec(channels=(8, 12, 16), residual_blocks=(1, 1, 2), norm_groups=2, latent_channels=2)


def smooth_crops(count: int) -> torch.Tensor:
    noise = torch.rand(count, 1, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    smooth = F.avg_pool3d(F.pad(noise, (3,) * 6, mode="replicate"), 5, stride=1, padding=0)
    return (smooth[..., 1:-1, 1:-1, 1:-1] - 0.35) / 0.3


def test_linear_start() -> None:
    torch.manual_seed(0)
    crops = smooth_crops(24)
    network = build(CODEC)
    check_linear_start(CODEC)
    start_encoder(network, crops)
    with torch.no_grad():
        means = torch.cat([network.encode(one)[0] for one in crops.split(1)])
        start_decoder(network, crops, means)
        y = torch.cat([network.decode(one) for one in means.split(1)])
    baseline = linear.fit(crops.unbind(0), 2)
    coefficients = torch.stack([baseline.encode(one) for one in crops])
    for channel in range(2):
        pair = torch.stack([means[:, channel].flatten(), coefficients[:, channel].flatten()])
        assert torch.corrcoef(pair)[0, 1] > 0.999
        assert means[:, channel].std() == pytest.approx(1, abs=0.05)
    block_error = sum((baseline.reconstruct(one) - one).pow(2).mean() for one in crops) / len(crops)
    assert (y - crops).pow(2).mean() < 1.2 * block_error
    assert block_error < 0.5 * crops.var()  # the crops are smooth enough for this to mean anything


def test_every_parameter_that_is_not_behind_a_silent_branch_gets_a_gradient() -> None:
    torch.manual_seed(0)
    crops = smooth_crops(6)
    network = build(CODEC)
    start_encoder(network, crops)
    with torch.no_grad():
        means = network.encode(crops)[0]
        start_decoder(network, crops, means)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-2)
    for _ in range(2):  # the first update wakes the branches
        optimizer.zero_grad()
        (network.reconstruct(crops) - crops).abs().mean().backward()
        optimizer.step()
    silent = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert all(name.startswith("quant_conv_log_sigma") for name in silent)


@pytest.mark.parametrize(
    "change",
    [{"channels": (16, 16, 64)}, {"channels": (4, 8, 16)}, {"norm_groups": 8}, {"latent_channels": 13}],
)
def test_an_architecture_that_cannot_be_linear_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="start: random"):
        check_linear_start(Codec.model_validate(CODEC.model_dump() | change))
