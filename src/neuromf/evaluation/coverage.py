"""Precision, recall, density and coverage of generated features x among real ones y, by nearest neighbours.

Kynkäänniemi et al. 2019 (precision, recall; k = 3 as torch-fidelity), Naeem et al. 2020 (density, coverage; k = 5).
"""

from __future__ import annotations

from dataclasses import dataclass

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

    A resample draws scans of both sets. What the set that is not averaged over adds is linearised: each of its scans shifts
    the figure by what would be lost without it, times how much more often than once it is drawn (the infinitesimal
    jackknife; Efron 1982). Dropping its scans as they are drawn would bias every draw downwards. Radii stay those of all
    rows, but for density: there the other balls' growth without a scan is part of what it adds, or intervals would be a
    quarter too short; the shares' hold without it. Too few rows have no value.
    """
    missing = Bootstrap(None, None, len(x))
    values = {}
    for name, neighbours in NEIGHBOURS.items():
        balls, points = (x, y) if name == "recall" else (y, x)
        if len(balls.values) <= neighbours or not len(points):
            values[name] = missing
            continue
        inside = _inside(points, balls, radii(balls.values, neighbours), closed=neighbours == 3)
        if name == "coverage":
            lost = _lost(inside.only_point, points, len(balls.values))
            values[name] = _mean(inside.points_in_ball > 0, balls, lost, settings, len(x), stream=1)
        elif name == "density":
            lost = _lost_density(points, balls, neighbours)
            values[name] = _mean(inside.balls_of_point / neighbours, points, lost, settings, len(x), stream=0)
        else:
            lost = _lost(inside.only_ball, balls, len(points.values))
            stream = int(name == "recall")
            values[name] = _mean(inside.balls_of_point > 0, points, lost, settings, len(x), stream=stream)
    return values


def radii(rows: NDArray[np.floating], neighbours: int) -> Array:
    """Return each row's distance to its k-th nearest other row, (R,)."""
    found = [distances.kthvalue(neighbours + 1, dim=1).values for distances in _distances(rows, rows)]
    return torch.cat(found).numpy()


@dataclass(frozen=True)
class _Inside:
    """Which of P points lie in which of Q balls: how many balls hold each point (P,), how many points each ball holds (Q,),
    the only scan whose balls hold a point (P,), the only scan whose points a ball holds (Q,); −1 for none or several."""

    balls_of_point: Array
    points_in_ball: Array
    only_ball: NDArray[np.int64]
    only_point: NDArray[np.int64]


def _inside(points: Rows, balls: Rows, radius: Array, *, closed: bool) -> _Inside:
    """Return which points lie in which balls; ``closed`` counts the balls' surface."""
    limits = torch.from_numpy(radius)
    scan_of_point, scan_of_ball = (torch.from_numpy(np.repeat(np.arange(len(r)), r.counts)) for r in (points, balls))
    most = max(len(points), len(balls))
    per_point, per_ball = [], torch.zeros(len(limits), dtype=torch.float64)
    first, last = torch.full((len(limits),), most), torch.full((len(limits),), -1)
    only_ball, start = [], 0
    for distances in _distances(points.values, balls.values):
        within = distances <= limits if closed else distances < limits
        scans = scan_of_point[start : start + len(within), None]
        start += len(within)
        per_point.append(within.sum(dim=1))
        per_ball += within.sum(dim=0)
        first = torch.minimum(first, torch.where(within, scans, most).amin(dim=0))
        last = torch.maximum(last, torch.where(within, scans, -1).amax(dim=0))
        lowest = torch.where(within, scan_of_ball, most).amin(dim=1)
        only_ball.append(torch.where(lowest == torch.where(within, scan_of_ball, -1).amax(dim=1), lowest, -1))
    only_point = torch.where(first == last, first, -1)
    return _Inside(
        torch.cat(per_point).double().numpy(), per_ball.numpy(), torch.cat(only_ball).numpy(), only_point.numpy()
    )


def _lost(only: NDArray[np.int64], rows: Rows, n: int) -> Array:
    """Return the share of ``n`` rows that would be outside without each scan of ``rows``, (scans,)."""
    return np.bincount(only[only >= 0], minlength=len(rows)) / n


def _lost_density(points: Rows, balls: Rows, neighbours: int) -> Array:
    """Return what density loses without each scan of the balls, (scans,): its balls, less what the others' gain in points
    as they grow to the next neighbour."""
    values, others = (torch.from_numpy(np.asarray(rows.values, dtype=np.float64)) for rows in (balls, points))
    scan_of = torch.from_numpy(np.repeat(np.arange(len(balls)), balls.counts))
    lost = torch.zeros(len(balls), dtype=torch.float64)
    reach = min(len(values), neighbours + 1 + int(balls.counts.max()))  # with a scan left out there are still enough
    for part in torch.arange(len(values)).split(max(1, _CHUNK_ENTRIES // max(len(values), len(others)))):
        near = _distance(values[part], values).topk(reach, largest=False)  # the first is the row itself
        scans = scan_of[near.indices]
        held = _distance(values[part], others).sort(dim=1).values
        before = torch.searchsorted(held, near.values[:, neighbours, None].contiguous())[:, 0]
        lost.index_add_(0, scan_of[part], before.double())
        for place in range(neighbours + 1):
            left_out = scans[:, place]
            is_new = (left_out != scan_of[part]) & (scans[:, :place] != left_out[:, None]).all(dim=1)
            rank = (scans != left_out[:, None]).cumsum(dim=1)
            next_place = (rank == neighbours + 1).int().argmax(dim=1).where(rank[:, -1] > neighbours, neighbours)
            grown = torch.searchsorted(held, near.values.gather(1, next_place[:, None]))[:, 0]
            lost.index_add_(0, left_out[is_new], (before - grown)[is_new].double())
    return lost.numpy() / (neighbours * len(others))


def _distances(x: NDArray[np.floating], y: NDArray[np.floating]):
    """Yield the distances of x's rows to all rows of y, some rows at a time, in double precision."""
    left, right = (torch.from_numpy(np.asarray(rows, dtype=np.float64)) for rows in (x, y))
    for part in left.split(max(1, _CHUNK_ENTRIES // len(right))):
        yield _distance(part, right)


def _distance(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _mean(values: NDArray, rows: Rows, lost: Array, settings: Evaluate, n: int, *, stream: int) -> Bootstrap:
    """Return the mean over rows; resampled are their scans (``stream``) and those of the other set, which ``lost`` is of."""
    sums = np.add.reduceat(values.astype(np.float64), rows.starts)
    value = float(sums.sum() / rows.counts.sum())
    if min(len(rows), len(lost)) < 2:
        return Bootstrap(value, None, n)
    w, v = resample_counts(len(rows), settings, stream), resample_counts(len(lost), settings, 1 - stream)
    draws = (w @ sums) / (w @ rows.counts) + (v - 1) @ lost
    if values.dtype != bool:
        return Bootstrap(value, draws.clip(0), n, against=min(len(rows), len(lost)))
    draws = draws.clip(0, 1)
    binomial = (rows.counts == 1).all() or np.ptp(draws) == 0
    return Bootstrap(value, draws, n, share_of=len(rows) if binomial else None, against=min(len(rows), len(lost)))
