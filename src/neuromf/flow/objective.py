"""The training objective: improved MeanFlow, original MeanFlow and rectified flow in one place."""

from __future__ import annotations

from collections.abc import Callable
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
    per_channel: Tensor  # (C,), mean |e_c|^p_c of V − v_c (flow matching alone: of ṽ − v_c), without λ_c
    jvp_norm: Tensor  # (), root mean square of du/dt over the rows with r < t
    cosine: Tensor  # (), mean cosine between V (flow matching alone: ṽ) and v_c
    fm_rows: Tensor  # (B, C), mean |e_c|^p_c of ṽ − v_c in each row, without λ_c; NaN in rows that have no such term
    mf_rows: Tensor  # (B, C), likewise of V − v_c


def _as_it_is(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


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
        mf_weight: λ_MF, weight of the MeanFlow term beside the flow-matching term (variant ``imf``); at 0 the objective
            is that of flow matching.
        tangent: of the JVP in variant ``imf``: the network's own velocity ṽ, or v_c.
        jvp: ``exact`` forward-mode derivative, or ``finite_difference``: central differences in the precision of ``z0`` with
            step ∛eps, for networks without one. In float32 du/dt of a 2M UNet with random weights was off by 0.01 % (u-) and
            0.06 % (x-prediction, root mean square), of the demo's by 0.08 % (`tests/unit/flow/test_network.py` holds 1 %);
            with MAISI's embedding of 1000·t by 113 %, so the configuration refuses the two together.
        variant: ``imf``: both terms; ``meanflow``: the MeanFlow term alone with tangent v_c, as first published;
            ``rectified_flow``: the flow-matching term alone (r is not read).
        fm_rows: rows of the flow-matching term in variant ``imf``: ``all``, or ``r_equals_t`` only, whose ṽ costs nothing
            beside the MeanFlow term (the other rows' ṽ is then computed without a graph, for the tangent).
        v_head: in variant ``imf``, ṽ is an output of the network's own (`AverageVelocity.heads`) instead of u(z, t, t); it
            comes with u, so that the flow-matching term costs no pass of its own.
        wrap: what the passes with a graph, each with its loss and figures, are called through: `whole_graph` compiles them.

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
    norm_p: float = 0.5
    norm_eps: float = 0.01
    adaptive: bool = True
    mf_weight: float = 1.0
    tangent: Literal["model", "conditional"] = "model"
    jvp: Literal["exact", "finite_difference"] = "exact"
    variant: Literal["imf", "meanflow", "rectified_flow"] = "imf"
    fm_rows: Literal["all", "r_equals_t"] = "all"
    v_head: bool = False
    wrap: Callable[[Callable[..., Any]], Callable[..., Any]] = _as_it_is

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
        if min([self.p] if isinstance(self.p, (int, float)) else self.p) < 1:
            raise ValueError(f"p is {self.p}; below 1 the gradient is infinite at zero error")

    @property
    def two_heads(self) -> bool:
        """Whether ṽ is an output of its own."""
        return self.variant == "imf" and self.v_head

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
        batch = _Batch(z_t, v_c, mask, r, t, torch.arange(len(t), device=t.device))
        if self.variant == "rectified_flow" or (self.variant == "imf" and self.mf_weight == 0):
            _, fm = self._velocities(u, batch)
            return _output(len(t), fm.weighted.mean(), fm, fm.where(batch.place[:0]), fm.lp.new_full((), torch.nan))
        equal, apart = _parted(r, t)
        if self.variant == "imf" and self.fm_rows == "all" and not self.two_heads:
            return self._in_two_passes(network, u, batch, equal, apart)
        return self._in_one_pass(u, batch, equal, apart)

    def _in_two_passes(
        self, network: Field, u: AverageVelocity, batch: _Batch, equal: Tensor, apart: Tensor
    ) -> ObjectiveOutput:
        """Return the loss with ṽ of all rows, which where r = t is V too, and then u and du/dt of the others."""
        rows, mf_share = len(batch.t), self.mf_weight / len(batch.t)
        v, fm = self._velocities(u, batch)
        mf = fm.where(equal)
        loss = fm.weighted.mean() + mf_share * mf.weighted.sum()  # (12)
        if not len(apart):
            return _output(rows, loss, fm, mf, loss.new_full((), torch.nan))
        loss, others = settled(loss, network), batch.where(apart)
        tangent = v[apart] if self.tangent == "model" else others.v_c
        _, others_mf, jvp_norm = self._average_velocities(u, others, tangent)
        loss = loss + mf_share * others_mf.weighted.sum()  # (12)
        return _output(rows, loss, fm, mf.and_(others_mf), jvp_norm)

    def _in_one_pass(self, u: AverageVelocity, batch: _Batch, equal: Tensor, apart: Tensor) -> ObjectiveOutput:
        """Return the loss where ṽ costs no pass with a graph: it is V's where r = t, or comes from a head of its own."""
        z, v_c, _, r, t, _ = others = batch.where(apart)
        if not len(apart) or self.variant == "meanflow" or self.tangent == "conditional":
            tangent = v_c
        else:
            tangent = _without_graph(lambda: u.heads(z, r, t)[1] if self.two_heads else u(z, t, t))
        ordered = batch.where(torch.cat([apart, equal]))
        fm, mf, jvp_norm = self._average_velocities(u, ordered, tangent)
        if self.fm_rows == "r_equals_t" or not self.two_heads:
            fm = fm.after(len(others.t))
        mf_weight = self.mf_weight if self.variant == "imf" else 1.0
        loss = mf_weight * mf.weighted.mean()  # (12)
        if self.variant == "imf" and len(fm.place):
            loss = loss + fm.weighted.mean()  # (12)
        return _output(len(batch.t), loss, fm, mf, jvp_norm)

    def _velocities(self, u: AverageVelocity, batch: _Batch) -> tuple[Tensor, _Rows]:
        """Return ṽ without graph, and ṽ beside v_c; equation (7)."""
        return self.wrap(MeanFlowObjective._without_interval)(self, u, batch)  # type: ignore[no-any-return]

    def _average_velocities(self, u: AverageVelocity, batch: _Batch, tangent: Tensor) -> tuple[_Rows, _Rows, Tensor]:
        """Return the second head's ṽ (without one V) and V beside v_c, and the root mean square of du/dt.

        Args:
            u: the velocity.
            batch: first the rows with r < t.
            tangent: of these rows.
        """
        return self.wrap(MeanFlowObjective._with_interval)(self, u, batch, tangent)  # type: ignore[no-any-return]

    def _without_interval(self, u: AverageVelocity, batch: _Batch) -> tuple[Tensor, _Rows]:
        z, t = batch.z, batch.t
        v = u.heads(z, t, t)[1] if self.two_heads else u(z, t, t)  # (7)
        return v.detach(), self._compare(v, batch)

    def _with_interval(self, u: AverageVelocity, batch: _Batch, tangent: Tensor) -> tuple[_Rows, _Rows, Tensor]:
        n = len(tangent)
        u_t, v, du_dt = self._with_derivative(u, batch.z, batch.r, batch.t, tangent)  # (8)
        h = expand((batch.t - batch.r)[:n], du_dt)
        V = torch.cat([u_t[:n] + h * du_dt, u_t[n:]])  # (9)
        mf = self._compare(V, batch)
        return self._compare(v, batch) if self.two_heads else mf, mf, du_dt.square().mean().sqrt()

    def _with_derivative(
        self, u: AverageVelocity, z: Tensor, r: Tensor, t: Tensor, dz: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return u and ṽ with graph, and du/dt = ∂u/∂z·dz + ∂u/∂t of dz's rows without one, in full precision; equation (8).

        Without a head for ṽ the second is u.
        """
        if self.jvp == "exact" and len(dz):
            if self.two_heads:
                return u.heads_with_derivative(z, r, t, dz)
            u_t, du_dt = u.with_derivative(z, r, t, dz)
            return u_t, u_t, du_dt
        u_t, v = u.heads(z, r, t) if self.two_heads else (u(z, r, t),) * 2
        return u_t, v, self._difference(u, z, r, t, dz) if len(dz) else dz

    @staticmethod
    def _difference(u: AverageVelocity, z: Tensor, r: Tensor, t: Tensor, dz: Tensor) -> Tensor:
        z, r, t = (x[: len(dz)] for x in (z, r, t))
        step = torch.finfo(z.dtype).eps ** (1 / 3)  # balances truncation and rounding
        with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
            return (u(z + step * dz, r, t + step) - u(z - step * dz, r, t - step)) / (2 * step)

    def _compare(self, prediction: Tensor, batch: _Batch) -> _Rows:
        """Compare velocities with v_c."""
        lp, channels = self._lp(prediction - batch.v_c, batch.mask)
        cosine = torch.cosine_similarity(prediction.detach().flatten(1), batch.v_c.flatten(1))
        return _Rows(batch.place, lp, self._weigh(lp), channels, cosine)

    def _lp(self, error: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return L_p = Σ_c λ_c · mean_space |e_c|^p_c of each sample, (B,), (10), and without λ_c per channel, (B, C)."""
        powers = error.abs().pow(self._per_channel(self.p, error))
        space = tuple(range(2, error.ndim))
        if mask is not None:
            total = mask.sum(space) if space else mask
            powers, shares = powers * mask, torch.where(total > 0, total, 1)  # no voxel left: 0, and no gradient
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
        column = torch.tensor(values, dtype=like.dtype).reshape(-1, *[1] * (like.ndim - 2))
        return column.to(like.device, non_blocking=True)  # a blocking copy would wait for the whole pass

    def _weigh(self, lp: Tensor) -> Tensor:
        """Return w · L_p of each sample with w = 1 / (sg L_p + c)^q; equation (11)."""
        return lp / (lp.detach() + self.norm_eps) ** self.norm_p if self.adaptive else lp


def _parted(r: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return the places of the rows with r = t and of those with r < t.

    The one thing that the objective reads back from a GPU, before its passes: all else is launched without waiting.

    Raises:
        ValueError: a row with r > t.
    """
    interval = (t - r).cpu()
    if bool((interval < 0).any()):
        raise ValueError("r > t in some row; the flow runs from noise (t = 1) to data, so r <= t is needed")
    equal, apart = ((interval == 0).nonzero()[:, 0], (interval > 0).nonzero()[:, 0])
    return equal.to(t.device, non_blocking=True), apart.to(t.device, non_blocking=True)


class _Batch(NamedTuple):
    """What some rows of a batch are computed from."""

    z: Tensor  # (n, C, …), z_t
    v_c: Tensor  # (n, C, …)
    mask: Tensor | None  # (n, C, …)
    r: Tensor  # (n,)
    t: Tensor  # (n,)
    place: Tensor  # (n,), in the batch

    def where(self, chosen: Tensor) -> _Batch:
        mask = None if self.mask is None else self.mask[chosen]
        return _Batch(self.z[chosen], self.v_c[chosen], mask, self.r[chosen], self.t[chosen], self.place[chosen])


class _Rows(NamedTuple):
    """Figures of some rows of a batch."""

    place: Tensor  # (n,), in the batch
    lp: Tensor  # (n,), with its graph
    weighted: Tensor  # (n,), with its graph, by the adaptive weight
    channels: Tensor  # (n, C), mean |e_c|^p_c
    cosine: Tensor  # (n,)

    def where(self, chosen: Tensor) -> _Rows:
        return _Rows(*(values[chosen] for values in self))

    def after(self, n: int) -> _Rows:
        return _Rows(*(values[n:] for values in self))

    def and_(self, other: _Rows) -> _Rows:
        return _Rows(*(torch.cat(pair) for pair in zip(self, other, strict=True)))

    def scattered(self, rows: int) -> Tensor:
        """Return ``channels`` at their places in the batch, (B, C), NaN elsewhere."""
        nothing = self.channels.new_full((rows, self.channels.shape[1]), torch.nan)
        return nothing.index_copy(0, self.place, self.channels)


def _output(rows: int, loss: Tensor, fm: _Rows, mf: _Rows, jvp_norm: Tensor) -> ObjectiveOutput:
    last = mf if len(mf.place) else fm
    return ObjectiveOutput(
        loss,
        fm.lp.detach().mean(),
        mf.lp.detach().mean(),
        last.channels.mean(0),
        jvp_norm,
        last.cosine.mean(),
        fm.scattered(rows),
        mf.scattered(rows),
    )


def _without_graph(evaluate: Callable[[], Tensor]) -> Tensor:
    with torch.no_grad():
        value = evaluate()
    torch.clear_autocast_cache()  # weights cast without a graph would have no gradient in the next pass
    return value


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
