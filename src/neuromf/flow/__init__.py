"""Flow matching and MeanFlow: path, times, velocity, network, objective, sampler, and the closed form that proves them.

Data at t = 0, noise at t = 1, 0 ≤ r ≤ t ≤ 1 (docs/design.md §4; equations in docs/methods.md).
"""

from neuromf.flow.network import MeanFlowUNet
from neuromf.flow.objective import MeanFlowObjective, ObjectiveOutput
from neuromf.flow.oracle import FlatTorus, GaussianOracle
from neuromf.flow.path import interpolate
from neuromf.flow.sampler import sample
from neuromf.flow.time import TimeSampler
from neuromf.flow.velocity import AverageVelocity

__all__ = [
    "AverageVelocity",
    "FlatTorus",
    "GaussianOracle",
    "MeanFlowObjective",
    "MeanFlowUNet",
    "ObjectiveOutput",
    "TimeSampler",
    "interpolate",
    "sample",
]
