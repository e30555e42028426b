"""Precision, recall, density and coverage of generated features x among real ones y, by nearest neighbours.

Kynkäänniemi et al. 2019 (precision, recall; k = 3 as torch-fidelity), Naeem et al. 2020 (density, coverage; k = 5).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from neuromf.config import Evaluate
from neuromf.evaluation.features import Rows
from neuromf.evaluation.inference import Bootstrap, resample_counts

Array = NDArray[np.float64]
NEIGHBOURS = {"precision": 3, "recall": 3, "density": 5, "coverage": 5}
_CHUNK_ENTRIES = 4_000_000  # of a matrix of distances that exist at once: bounds the memory


def coverage_bootstraps(x: Rows, y: Rows, settings: Evaluate) -> dict[str, Bootstrap]:
    """Return precision, recall, density and coverage of generated rows x among real rows y and their resamples.

    - precision: share of x inside the ball of a row of y, whose radius is the distance to its third neighbour in y;
    - recall: share of y inside the ball of a row of x;
    - density: how many balls (fifth neighbour) of y hold a row of x, divided by five; about 1 for equal sets;
    - coverage: share of y whose ball (fifth neighbour) holds a row of x.

    Balls stay those of all rows; the scans whose rows are counted are resampled. Too few rows have no value.
    """
    missing = Bootstrap(None, None, len(x))
    values = {}
    for name, neighbours in NEIGHBOURS.items():
        balls, points = (x, y) if name == "recall" else (y, x)
        if len(balls.values) <= neighbours or not len(points):
            values[name] = missing
            continue
        inside, nearest = _inside(points.values, balls.values, radii(balls.values, neighbours), closed=neighbours == 3)
        if name == "coverage":
            values[name] = _mean(nearest, y, settings, len(x), stream=1)
        elif name == "density":
            values[name] = _mean(inside / neighbours, x, settings, len(x), stream=0)
        else:
            values[name] = _mean(inside > 0, points, settings, len(x), stream=int(name == "recall"))
    return values


def radii(rows: NDArray[np.floating], neighbours: int) -> Array:
    """Return each row's distance to its k-th nearest other row, (R,)."""
    found = [distances.kthvalue(neighbours + 1, dim=1).values for distances in _distances(rows, rows)]
    return torch.cat(found).numpy()


def _inside(
    points: NDArray[np.floating], balls: NDArray[np.floating], radius: Array, *, closed: bool
) -> tuple[Array, NDArray[np.bool_]]:
    """Return how many balls hold each point (P,), and which balls hold a point (Q,); ``closed`` counts their surface."""
    limits = torch.from_numpy(radius)
    counts = []
    holds = torch.zeros(len(balls), dtype=torch.bool)
    for distances in _distances(points, balls):
        within = distances <= limits if closed else distances < limits
        counts.append(within.sum(dim=1))
        holds |= within.any(dim=0)
    return torch.cat(counts).double().numpy(), holds.numpy()


def _distances(x: NDArray[np.floating], y: NDArray[np.floating]):
    """Yield the distances of x's rows to all rows of y, some rows at a time, in double precision."""
    left, right = (torch.from_numpy(np.asarray(rows, dtype=np.float64)) for rows in (x, y))
    for part in left.split(max(1, _CHUNK_ENTRIES // len(right))):
        yield torch.cdist(part, right, compute_mode="donot_use_mm_for_euclid_dist")


def _mean(values: NDArray, rows: Rows, settings: Evaluate, n: int, *, stream: int) -> Bootstrap:
    """Return the mean over rows, with scans resampled."""
    sums = np.add.reduceat(values.astype(np.float64), rows.starts)
    value = float(sums.sum() / rows.counts.sum())
    if len(rows) < 2:
        return Bootstrap(value, None, n)
    w = resample_counts(len(rows), settings, stream)
    return Bootstrap(value, (w @ sums) / (w @ rows.counts), n)
