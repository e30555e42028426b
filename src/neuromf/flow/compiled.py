"""Compiled passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

MOST_GRAPHS = 32  # of one function: training and validation, with and without a graph, whole and last batches


def whole_graph(function: Callable[..., Any], backend: str = "inductor") -> Callable[..., Any]:
    """Return the function compiled as one whole graph for every shape and mode it meets, at its first call with them."""
    return torch.compile(  # type: ignore[call-overload, no-any-return]
        function, fullgraph=True, dynamic=False, backend=backend, recompile_limit=MOST_GRAPHS
    )
