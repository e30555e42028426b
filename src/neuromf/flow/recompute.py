"""Blocks that keep no activations: the backward pass runs each again (activation checkpointing).

Where a tangent is carried beside the value (`neuromf.flow.tangent`), the first run computes both and the second the value
alone: tangents have no graph, so nothing of them is wanted backwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Recomputed:
    """The forward pass of a block, tensors → one tensor, that leaves nothing but its inputs for the backward pass."""

    def __init__(self, forward: Callable[..., Tensor]) -> None:
        self.forward = forward

    def __call__(self, *inputs: Tensor) -> Tensor:
        return _checkpoint(self.forward, *inputs)  # type: ignore[no-any-return]

    def with_tangent(
        self, rule: Callable[..., tuple[Tensor, Tensor]], values: Sequence[Tensor], tangents: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return ``rule(values, tangents)``: the block's value and tangent.

        The rule applies to the values what the block does, in the same order: the second run is the block's own.
        """
        if torch.compiler.is_compiling():  # the compiler finds by itself that nothing of the tangents is wanted
            n = len(values)
            return _checkpoint(lambda *both: rule(both[:n], both[n:]), *values, *tangents)  # type: ignore[no-any-return]
        unused = list(tangents)

        def first_both_then_the_value(*values: Tensor) -> Tensor | tuple[Tensor, Tensor]:
            if not unused:
                return self.forward(*values)
            tangents = tuple(unused)
            unused.clear()  # else they would stay in memory until the backward pass
            return rule(values, tangents)

        return _checkpoint(first_both_then_the_value, *values)  # type: ignore[no-any-return]


def recompute(block: nn.Module) -> None:
    """Make a block's forward pass a `Recomputed` one; its parameters keep their names."""
    block.forward = Recomputed(block.forward)


def _checkpoint(function: Callable[..., Any], *inputs: Tensor) -> Any:
    if not torch.is_grad_enabled():
        return function(*inputs)
    # nothing in the network is random
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
