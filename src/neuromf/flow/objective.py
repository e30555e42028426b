"""The training objective: improved MeanFlow, original MeanFlow and rectified flow in one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from neuromf.flow.path import expand, interpolate
from neuromf.flow.velocity import AverageVelocity, Field


class ObjectiveOutput(NamedTuple):
    """What one batch gives; all but ``loss`` are detached, and NaN where the batch or variant has no such rows."""

    loss: Tensor  # (), to be differentiated
    raw_fm: Tensor  # (), mean of L_p(ṽ − v_c) without adaptive weights
    raw_mf: Tensor  # (), mean of L_p(V − v_c) without adaptive weights
    per_channel: Tensor  # (C,), mean |e_c|^p_c of V − v_c (rectified flow: of ṽ − v_c), without λ_c
    jvp_norm: Tensor  # (), root mean square of du/dt over the rows with r < t
    cosine: Tensor  # (), mean cosine between V (rectified flow: ṽ) and v_c


@dataclass(frozen=True)
class MeanFlowObjective:
    """The loss of a network on a batch; equations (7) to (12) of docs/methods.md.

    Args:
        prediction: what the network outputs, ``x`` or ``u``.
        t_min: floor of the x-prediction's divisor.
        p: exponent of the L_p loss, one or one per channel, at least 1.
        channel_weights: λ_c, one per channel; None: all one.
        norm_p: q of the adaptive weight.
        norm_eps: c of the adaptive weight.
        adaptive: weight each sample by 1 / (sg L_p + c)^q.
        mf_weight: λ_MF, weight of the MeanFlow term beside the flow-matching term (variant ``imf``).
        tangent: of the JVP in variant ``imf``: the network's own velocity ṽ, or v_c.
        jvp: ``exact`` forward-mode derivative, or ``finite_difference`` (central, for networks without one).
        variant: ``imf``: both terms; ``meanflow``: the MeanFlow term alone with tangent v_c, as first published;
            ``rectified_flow``: the flow-matching term alone (r is not read).

    Example:
        >>> objective = MeanFlowObjective(prediction="u")
        >>> z0, noise, t = torch.randn(3, 4), torch.randn(3, 4), torch.tensor([0.3, 0.6, 0.9])
        >>> objective(lambda z, r, t: 0 * z, z0, noise, t / 2, t).loss.shape
        torch.Size([])
    """

    prediction: Literal["x", "u"] = "x"
    t_min: float = 0.05
    p: float | tuple[float, ...] = 2.0
    channel_weights: tuple[float, ...] | None = None
    norm_p: float = 1.0
    norm_eps: float = 0.01
    adaptive: bool = True
    mf_weight: float = 1.0
    tangent: Literal["model", "conditional"] = "model"
    jvp: Literal["exact", "finite_difference"] = "exact"
    variant: Literal["imf", "meanflow", "rectified_flow"] = "imf"

    def __post_init__(self) -> None:
        known = {
            "tangent": ("model", "conditional"),
            "jvp": ("exact", "finite_difference"),
            "variant": ("imf", "meanflow", "rectified_flow"),
        }
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} is {getattr(self, name)!r}; use one of {', '.join(values)}")
        if min(torch.as_tensor(self.p).reshape(-1).tolist()) < 1:
            raise ValueError(f"p is {self.p}; below 1 the gradient is infinite at zero error")

    def __call__(
        self, network: Field, z0: Tensor, noise: Tensor, r: Tensor, t: Tensor, mask: Tensor | None = None
    ) -> ObjectiveOutput:
        """Return the loss and its figures.

        Args:
            network: callable (z, r, t) -> output of the shape of z.
            z0: data, (B, C, …); (B, C) vectors too.
            noise: ε, the shape of ``z0``.
            r: (B,), r ≤ t.
            t: (B,).
            mask: weights of the spatial mean, broadcastable to ``z0``; a row whose mask is empty counts as zero error.

        Raises:
            ValueError: a row with r > t, or p or channel_weights of another length than C.
        """
        u = AverageVelocity(network, self.prediction, self.t_min)
        z_t = interpolate(z0, noise, t)  # (1)
        v_c = noise - z0  # (2)
        if self.variant == "rectified_flow":
            v = u(z_t, t, t)
            fm, fm_channels = self._lp(v - v_c, mask)
            nan = fm.new_full((), torch.nan)
            return ObjectiveOutput(self._weigh(fm), fm.detach().mean(), nan, fm_channels, nan, _cosine(v, v_c))

        if bool((r > t).any()):
            raise ValueError("r > t in some row; the flow runs from noise (t = 1) to data, so r <= t is needed")
        apart = torch.nonzero(r < t).squeeze(1)  # rows with h > 0: where r = t, u is ṽ and V is u
        if self.variant == "imf":
            v, u_t = self._evaluate(u, z_t, r, t, apart)
            fm, _ = self._lp(v - v_c, mask)
            tangent = v_c if self.tangent == "conditional" else v.detach()
        else:
            u_t = u(z_t, r, t)
            fm = self._lp(u_t - v_c, mask)[0][r == t]
            tangent = v_c
        du_dt = self._total_derivative(u, z_t[apart], r[apart], t[apart], tangent[apart])  # (8)
        V = u_t.index_add(0, apart, expand(t - r, z_t)[apart] * du_dt)  # (9)
        mf, mf_channels = self._lp(V - v_c, mask)
        loss = self._weigh(mf) if self.variant == "meanflow" else self._weigh(fm) + self.mf_weight * self._weigh(mf)
        return ObjectiveOutput(
            loss, fm.detach().mean(), mf.detach().mean(), mf_channels, du_dt.square().mean().sqrt(), _cosine(V, v_c)
        )

    @staticmethod
    def _evaluate(u: AverageVelocity, z_t: Tensor, r: Tensor, t: Tensor, apart: Tensor) -> tuple[Tensor, Tensor]:
        """Return ṽ = u(z, t, t), equation (7), and u(z, r, t) of all rows from one forward pass."""
        stacked = u(torch.cat([z_t, z_t[apart]]), torch.cat([t, r[apart]]), torch.cat([t, t[apart]]))
        v = stacked[: len(t)]
        return v, v.index_copy(0, apart, stacked[len(t) :])

    def _total_derivative(self, u: AverageVelocity, z: Tensor, r: Tensor, t: Tensor, tangent: Tensor) -> Tensor:
        """Return du/dt = ∂u/∂z·tangent + ∂u/∂t without a graph, in full precision; equation (8)."""
        if len(t) == 0:
            return torch.zeros_like(z)
        with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
            if self.jvp == "exact":
                tangents = (tangent, torch.zeros_like(r), torch.ones_like(t))
                return torch.func.jvp(u, (z, r, t), tangents)[1]
            step = torch.finfo(z.dtype).eps ** (1 / 3)  # balances truncation and rounding
            ahead = u(z + step * tangent, r, t + step)
            behind = u(z - step * tangent, r, t - step)
            return (ahead - behind) / (2 * step)

    def _lp(self, error: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return L_p = Σ_c λ_c · mean_space |e_c|^p_c of each sample, (B,), (10), and each channel's mean, (C,)."""
        powers = error.abs().pow(self._per_channel(self.p, error))
        space = tuple(range(2, error.ndim))
        if mask is not None:
            mask = mask.to(error).expand_as(error)
            total = mask.sum(space) if space else mask
            powers, shares = powers * mask, total.clamp(min=torch.finfo(error.dtype).tiny)
            means = (powers.sum(space) if space else powers) / shares
        else:
            means = powers.mean(space) if space else powers
        weights = 1.0 if self.channel_weights is None else self._per_channel(self.channel_weights, means)
        return (weights * means).sum(1), means.detach().mean(0)

    @staticmethod
    def _per_channel(values: float | tuple[float, ...], like: Tensor) -> float | Tensor:
        if isinstance(values, (int, float)):
            return float(values)
        if len(values) != like.shape[1]:
            raise ValueError(f"{values}: {len(values)} values for {like.shape[1]} channels; give one per channel")
        return torch.tensor(values, dtype=like.dtype, device=like.device).reshape(-1, *[1] * (like.ndim - 2))

    def _weigh(self, lp: Tensor) -> Tensor:
        """Return mean_batch[w · L_p] with w = 1 / (sg L_p + c)^q; equations (11) and (12)."""
        if not self.adaptive:
            return lp.mean()
        return (lp / (lp.detach() + self.norm_eps) ** self.norm_p).mean()


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return torch.cosine_similarity(a.detach().flatten(1), b.flatten(1)).mean()
