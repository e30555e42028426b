"""How likely a network of some size is to learn so few scans by heart, and what the method does about it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from neuromf.config import Config, LossMask
from neuromf.flow import MeanFlowUNet

# Parameters per training scan, from the review of the method's first full run: 180,000 of them (990 scans) memorised
# severely, 35,600 would moderately; 17,800 need regularisation and 3,560 none. Beside each the share of the volume that the
# loss should see then: the method hides 50 to 75 % of it from small cohorts.
LEVELS = ((100_000, "severe", 0.25), (25_000, "moderate", 0.5))


@dataclass(frozen=True)
class Risk:
    """How many parameters a training has per scan; ``level`` is severe, moderate or low; ``advice`` a loss mask or none."""

    ratio: float
    level: str
    advice: LossMask | None


def memorisation_risk(parameters: int, scans: int) -> Risk:
    """Return the risk of a network with so many parameters on so many training scans.

    Example:
        >>> memorisation_risk(178_600_000, 990).level
        'severe'
    """
    ratio = parameters / max(1, scans)
    for least, level, kept in LEVELS:
        if ratio > least:
            return Risk(ratio, level, LossMask(kind="block", kept=kept))
    return Risk(ratio, "low", None)


def parameters_of(config: Config) -> int:
    """Return how many parameters a run's network has; no memory is taken for them."""
    with torch.device("meta"):
        network = MeanFlowUNet(config.network, config.codec.latent_channels, v_head=config.flow.two_heads)
    return sum(parameter.numel() for parameter in network.parameters())
