"""Blocks that keep no activations: the same loss and gradients, less memory, and nothing recomputed without need."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from neuromf.config import Network
from neuromf.flow import MeanFlowObjective, MeanFlowUNet, tangent

SMALL = Network(channels=(8, 8), attention=(False, True), head_channels=(0, 4), residual_blocks=1, norm_groups=4)
VARIANTS: list[dict[str, Any]] = [
    {},
    {"fm_rows": "r_equals_t"},
    {"tangent": "conditional"},
    {"jvp": "finite_difference"},
    {"variant": "meanflow"},
    {"variant": "rectified_flow"},
]


def two_networks(dtype: torch.dtype = torch.float64) -> tuple[MeanFlowUNet, MeanFlowUNet]:
    """The same network twice; the second keeps no activations."""
    torch.manual_seed(0)
    network = MeanFlowUNet(SMALL).to(dtype)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    recomputing = copy.deepcopy(network)
    recomputing.recompute_activations()
    return network, recomputing


def batch(dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    z0, noise = torch.randn(2, 4, 4, 8, 8, 8, dtype=dtype)
    t = 0.2 + 0.8 * torch.rand(4, dtype=dtype)
    return z0, noise, t * torch.tensor([0.3, 0.6, 1, 1], dtype=dtype), t


def loss_and_gradients(network: MeanFlowUNet, inputs: tuple[Tensor, ...], how: dict[str, Any]) -> list[Tensor]:
    loss = MeanFlowObjective(**how)(network, *inputs).loss
    loss.backward()
    return [loss.detach(), *(p.grad for p in network.parameters() if p.grad is not None)]


@pytest.mark.parametrize("how", VARIANTS)
def test_loss_and_gradients_are_those_of_the_plain_network(how: dict[str, Any]) -> None:
    inputs = batch()
    plain, ours = (loss_and_gradients(network, inputs, how) for network in two_networks())
    assert len(plain) == len(ours) > 50
    for one, other in zip(plain, ours, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("bf16", [False, True])
def test_on_a_cpu_they_are_the_same_bits(bf16: bool) -> None:
    inputs = batch(torch.float32)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        plain, ours = (loss_and_gradients(network, inputs, {}) for network in two_networks(torch.float32))
    assert all(torch.equal(one, other) for one, other in zip(plain, ours, strict=True))


def test_parameters_keep_their_names() -> None:
    plain, ours = two_networks()
    assert plain.state_dict().keys() == ours.state_dict().keys()


def test_the_second_run_is_of_values_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    _, network = two_networks()
    convolution, calls = tangent.convolution, []

    def counted(layer: Any, x: Any) -> Any:
        calls.append(layer)
        return convolution(layer, x)

    monkeypatch.setattr(tangent, "convolution", counted)
    z0, noise, r, t = batch()
    value, _ = network.with_tangent(z0, r, t, noise, 0 * r, 0 * t + 1)
    forwards = len(calls)
    value.sum().backward()
    assert len(calls) == forwards > 0


def kept(network: MeanFlowUNet, inputs: tuple[Tensor, ...]) -> int:
    """Bytes that one pass with its tangent keeps for the backward pass, parameters left out."""
    z0, noise, r, t = inputs
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}
    sizes: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        value, _ = network.with_tangent(z0, r, t, noise, 0 * r, 0 * t + 1)
    assert value.requires_grad
    return sum(sizes.values())


def test_less_is_kept() -> None:
    plain, ours = two_networks()
    inputs = batch()
    assert kept(ours, inputs) < 0.5 * kept(plain, inputs)


def test_without_a_gradient_nothing_changes() -> None:
    plain, ours = two_networks()
    z0, noise, r, t = batch()
    with torch.no_grad():
        one, other = (network.with_tangent(z0, r, t, noise, 0 * r, 0 * t + 1) for network in (plain, ours))
    assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
    assert not other[0].requires_grad
