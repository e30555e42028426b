"""The training objective: improved MeanFlow, original MeanFlow and rectified flow in one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

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
    fm_rows: Tensor  # (B, C), mean |e_c|^p_c of ṽ − v_c in each row, without λ_c; NaN in rows that have no such term
    mf_rows: Tensor  # (B, C), likewise of V − v_c


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
        fm_rows: rows of the flow-matching term in variant ``imf``: ``all``, or ``r_equals_t`` only, whose ṽ costs nothing
            beside the MeanFlow term (the other rows' ṽ is then computed without a graph, for the tangent).

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
    fm_rows: Literal["all", "r_equals_t"] = "all"

    def __post_init__(self) -> None:
        known = {
            "tangent": ("model", "conditional"),
            "jvp": ("exact", "finite_difference"),
            "variant": ("imf", "meanflow", "rectified_flow"),
            "fm_rows": ("all", "r_equals_t"),
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
        mask = None if mask is None else mask.to(v_c).expand_as(v_c)
        if self.variant == "rectified_flow":
            fm = self._compare(u(z_t, t, t), v_c, mask)
            nan = fm.lp.new_full((), torch.nan)
            raw, none = fm.lp.detach().mean(), torch.full_like(fm.channels, torch.nan)
            return ObjectiveOutput(
                self._weigh(fm.lp).mean(), raw, nan, fm.channels.mean(0), nan, fm.cosine.mean(), fm.channels, none
            )

        if bool((r > t).any()):
            raise ValueError("r > t in some row; the flow runs from noise (t = 1) to data, so r <= t is needed")
        imf = self.variant == "imf"
        mf_share = (self.mf_weight if imf else 1.0) / len(t)  # of one row
        rows = torch.arange(len(t), device=t.device)
        equal, apart = rows[r == t], rows[r < t]
        first = rows if imf and self.fm_rows == "all" else equal
        is_equal = (r == t)[first]

        # First pass: ṽ, of all rows or of those with r = t alone. Where r = t it is V too, and both terms are one number.
        v = u(z_t[first], t[first], t[first]) if len(first) else z_t[first]  # (7)
        fm = self._compare(v, v_c[first], _select(mask, first))
        fm_share = 1 / len(first) if imf and len(first) else 0.0
        loss = ((fm_share + mf_share * is_equal.to(fm.lp)) * self._weigh(fm.lp)).sum()  # (12)
        mf, jvp_norm = fm.where(is_equal), loss.new_full((), torch.nan)

        # Second pass: u of the rows with r < t, and du/dt beside it.
        if len(apart):
            loss = settled(loss, network)
            z_t, r, t, v_c = z_t[apart], r[apart], t[apart], v_c[apart]
            if imf and self.tangent == "model":
                tangent = v.detach()[apart] if first is rows else _without_graph(u, z_t, t)
            else:
                tangent = v_c
            u_t, du_dt = self._with_derivative(u, z_t, r, t, tangent)  # (8)
            V = u_t + expand(t - r, z_t) * du_dt  # (9)
            apart_mf = self._compare(V, v_c, _select(mask, apart))
            loss = loss + mf_share * self._weigh(apart_mf.lp).sum()  # (12)
            mf, jvp_norm = mf.and_(apart_mf), du_dt.square().mean().sqrt()
        nothing = v_c.new_full((len(rows), z0.shape[1]), torch.nan)
        return ObjectiveOutput(
            loss,
            fm.lp.detach().mean(),
            mf.lp.detach().mean(),
            mf.channels.mean(0),
            jvp_norm,
            mf.cosine.mean(),
            nothing.index_copy(0, first, fm.channels),
            nothing.index_copy(0, torch.cat([first[is_equal], apart]), mf.channels),
        )

    def _with_derivative(
        self, u: AverageVelocity, z: Tensor, r: Tensor, t: Tensor, dz: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return u with its graph, and du/dt = ∂u/∂z·dz + ∂u/∂t without one, in full precision; equation (8)."""
        if self.jvp == "exact":
            return u.with_derivative(z, r, t, dz)
        with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
            step = torch.finfo(z.dtype).eps ** (1 / 3)  # balances truncation and rounding
            ahead = u(z + step * dz, r, t + step)
            behind = u(z - step * dz, r, t - step)
        return u(z, r, t), (ahead - behind) / (2 * step)

    def _compare(self, prediction: Tensor, target: Tensor, mask: Tensor | None) -> _Rows:
        lp, channels = self._lp(prediction - target, mask)
        cosine = torch.cosine_similarity(prediction.detach().flatten(1), target.flatten(1))
        return _Rows(lp, channels, cosine)

    def _lp(self, error: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return L_p = Σ_c λ_c · mean_space |e_c|^p_c of each sample, (B,), (10), and without λ_c per channel, (B, C)."""
        powers = error.abs().pow(self._per_channel(self.p, error))
        space = tuple(range(2, error.ndim))
        if mask is not None:
            total = mask.sum(space) if space else mask
            powers, shares = powers * mask, total.clamp(min=torch.finfo(error.dtype).tiny)
            means = (powers.sum(space) if space else powers) / shares
        else:
            means = powers.mean(space) if space else powers
        weights = 1.0 if self.channel_weights is None else self._per_channel(self.channel_weights, means)
        return (weights * means).sum(1), means.detach()

    @staticmethod
    def _per_channel(values: float | tuple[float, ...], like: Tensor) -> float | Tensor:
        if isinstance(values, (int, float)):
            return float(values)
        if len(values) != like.shape[1]:
            raise ValueError(f"{values}: {len(values)} values for {like.shape[1]} channels; give one per channel")
        return torch.tensor(values, dtype=like.dtype, device=like.device).reshape(-1, *[1] * (like.ndim - 2))

    def _weigh(self, lp: Tensor) -> Tensor:
        """Return w · L_p of each sample with w = 1 / (sg L_p + c)^q; equation (11)."""
        return lp / (lp.detach() + self.norm_eps) ** self.norm_p if self.adaptive else lp


class _Rows(NamedTuple):
    """Figures of some rows of a batch."""

    lp: Tensor  # (n,), with its graph
    channels: Tensor  # (n, C), mean |e_c|^p_c
    cosine: Tensor  # (n,)

    def where(self, rows: Tensor) -> _Rows:
        return _Rows(*(values[rows] for values in self))

    def and_(self, other: _Rows) -> _Rows:
        return _Rows(*(torch.cat(pair) for pair in zip(self, other, strict=True)))


def _select(mask: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if mask is None else mask[rows]


def _without_graph(u: AverageVelocity, z: Tensor, t: Tensor) -> Tensor:
    with torch.no_grad():
        v = u(z, t, t)
    torch.clear_autocast_cache()  # weights cast without a graph would have no gradient in the next pass
    return v


class _Settled(torch.autograd.Function):
    """A loss whose gradient is there already."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: tuple[Tensor | None, ...], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return None, None, *(None if gradient is None else scale * gradient for gradient in ctx.gradients)


def settled(loss: Tensor, network: Field) -> Tensor:
    """Return ``loss`` with its gradient by the network's parameters computed at once, which frees its activations.

    So the two passes of the objective never hold their activations together. The loss of a callable that is no
    ``nn.Module`` is returned as it is.
    """
    parameters = [p for p in network.parameters() if p.requires_grad] if isinstance(network, nn.Module) else []
    if not (parameters and loss.requires_grad):
        return loss
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return _Settled.apply(loss.detach(), gradients, *parameters)  # type: ignore[no-any-return]
