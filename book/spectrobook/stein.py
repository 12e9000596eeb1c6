r"""Stein's identity as a control variate: the linear part of a covariance from averaged gradients.

Write δ = w - w* for a component's weights, f for an observable (here the mean loss on some text), and L for the loss
that drives the chain, so that the posterior is p ∝ e^{-U} with ∇U = nβ ∇L + γδ. Integrating ∇(f p) over all weights
gives zero, so E[f ∇U] = E[∇f], and the same with f = 1; together

    Cov(f, δ) = ( E[∇f] - nβ Cov(f, ∇L) ) / γ.                                                         (Stein)

The left side needs products of two fluctuations; at nβ = 0 the right side is a mean of gradients, whose noise is far
smaller. With one direction of weight space both serve all tokens at once. Let g_xy be the slope of d_xy = l_xy - L
at w*. Then

    Cov(f, d_xy) = g_xy·Cov(f, δ) + Cov(f, d_xy - g_xy·δ),

and with the first term by (Stein) and the second from the draws, as always,

    estimate = Ĉov(f, d_xy) + g_xy·c,      c = (Stein) - Ĉov(f, δ),

that is, the sample covariance and one directional derivative along the gap c between two estimates of the same vector
(`directions.slopes`). Any linear function could stand for g_xy·δ: the estimate tends to Cov(f, d_xy) whatever it is,
and the noise of the linear part goes if it is the slope. The part of d_xy that is even in δ keeps its noise.

What must hold. f and its gradient may be of any text; the ∇L beside f in the last covariance must be an unbiased
gradient of the driving loss whose minibatch is independent of f's, or their common minibatch noise counts as
covariance. A mean gradient over a fixed small text looks quiet from run to run, but only because the text's own noise
is the same in each: take fresh minibatches.

Finite steps. SGLD's law is the posterior's up to a bias of order ε, and (Stein) holds for the posterior. On a quadratic
loss, along an eigenvector of its Hessian with eigenvalue a and λ = nβa + γ, the chain's own covariance is too large by
a factor 1/(1 - ελ/4), about 1 + ελ/4; (Stein) over the same draws comes out smaller by a factor of about
1 - (nβa/γ) ελ/4. At nβ = 0 that is no bias at all. So the gap c, averaged over long chains,
shows the bias of the steps.

Preconditioned SGLD moves by G_t and leaves out the divergence term Γ. Where G varies slowly, as with a long memory of
squared gradients, it is constant for each weight: it changes step sizes, and the law and (Stein) stay. Where it follows
the weights, the stationary density of one weight is ∝ e^{-U}/G (`quadratic.memoryless_rmsprop_variance`), and what
holds is E[G (f ∂U - ∂f)] = 0: the same identity with each draw weighted by G, so that (Stein) without weights is biased
by as much as the law itself is, and in another direction.

Coupled chains need none of this: their response has it inside. Sum the update of plain SGLD over T steps that begin at
w*, for the members at nβ ± η with common noise. The noise cancels in their difference, exactly, at any step size:

    -(δ̄_+ - δ̄_-) / 2η = [ (nβ+η) ḡ_+ - (nβ-η) ḡ_- ] / 2ηγ + (δ_T+ - δ_T-) / (ηγεT)

with bars for means over the steps' starts and ḡ the mean of the minibatch gradients. On the left stands the response of
the weights, Cov(L, δ); on the right, up to a last term that fades as T grows, ( E[∇L] + nβ ∂E[∇L]/∂nβ ) / γ, which is
(Stein) with its covariance as a response too. So averaged gradients are what the response is made of.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from spectrolib.estimator import CovarianceSums
from spectrolib.model.loading import engine_of
from spectrolib.posterior import Settings, minibatches
from spectrolib.run.readings import readings

from .directions import slopes


class SteinSums:
    """Running sums over draws of an observable f and of gradients: Cov(f, δ) as Stein's identity and as draws give it.

    In float64, and O(weights) numbers whatever the number of draws.
    """

    def __init__(self):
        self.count, self.value = 0, 0.0
        self.slope = self.force = self.shift = self.with_force = self.with_shift = 0.0

    def update(
        self,
        value: float,
        slope: Float[Tensor, " parameters"],
        shift: Float[Tensor, " parameters"],
        force: Float[Tensor, " parameters"] | None = None,
    ) -> SteinSums:
        """Take in one draw.

        Args:
            value, slope: f and ∇f there; either may be an unbiased estimate.
            shift: δ, the weights less w*.
            force: ∇L of the driving loss; ``slope`` by default, for f = L. Its minibatch must not be that of ``value``.
        """
        slope, shift = slope.double(), shift.double()
        force = slope if force is None else force.double()
        self.count += 1
        off, part = value - self.value, 1 / self.count
        self.value += off * part
        self.slope = self.slope + (slope - self.slope) * part
        self.force = self.force + (force - self.force) * part
        self.shift = self.shift + (shift - self.shift) * part
        self.with_force = self.with_force + off * (force - self.force)
        self.with_shift = self.with_shift + off * (shift - self.shift)
        return self

    def sampled(self) -> Float[Tensor, " parameters"]:
        """Ĉov(f, δ) over the draws, divided by their number."""
        self._require_draws()
        return self.with_shift / self.count

    def stein(self, nbeta: float, gamma: float) -> Float[Tensor, " parameters"]:
        """Cov(f, δ) by Stein's identity (module docstring)."""
        self._require_draws()
        return (self.slope - nbeta * self.with_force / self.count) / gamma

    def _require_draws(self) -> None:
        if self.count == 0:
            raise ValueError("no draws yet: update with at least one")


class Estimates(NamedTuple):
    """Cov_C(g, d_xy) of every probe token, nats²: three ways over the same draws."""

    sampled: Float[ndarray, " tokens"]
    """The sample covariance."""
    stein: Float[ndarray, " tokens"]
    """The same with its linear part by Stein's identity."""
    linear: Float[ndarray, " tokens"]
    """That linear part alone, g_xy·Cov(L, δ): another number, and the quietest."""


def covariances(
    model, component: str, settings: Settings, *, sampling, loss, probe, chain: int = 0, batch: int | None = None
) -> Estimates:
    """Run one chain of a component, or an antithetic pair, and estimate its covariances with the loss.

    The gradient at a draw is that of a minibatch of its own, so the linear part belongs to the loss of all sampling
    windows, as a response does; the sample covariance belongs to the loss windows. The two agree as the text grows.

    Args:
        model: a `LanguageModel` or a transformers model.
        settings: plain SGLD; preconditioned chains are taken as if their law were the posterior (module docstring).
        sampling, loss, probe: windows, as in `plan.Plan`.
        batch: windows for the gradient at a draw; by default as many as for a step.

    Raises:
        ValueError: for tilted chains, whose response needs no such help; or for an unknown component.
        ChainError: if a loss is not finite, or a chain is no longer local.
    """
    if settings.tilt:
        raise ValueError(f"tilted chains have their response: set tilt = 0 for Stein's identity, got {settings.tilt:g}")
    engine = engine_of(model)
    group = engine.group([component])
    start, driving = group.start[0], group.cache(sampling)
    apart = replace(settings, seed=settings.seed + 1, batch_size=batch or settings.batch_size)
    others = minibatches(len(driving.ids), apart, chain)  # not those of the steps
    sums, stein = CovarianceSums(), SteinSums()
    for reading in readings(engine, [component], chain, settings, sampling=sampling, probe=probe, loss=loss):
        for w, text, tokens in zip(reading.draw.positions, reading.loss, reading.probe, strict=True):
            value = text.double().mean().item()
            stein.update(value, group.gradients([w], driving, next(others))[1][0], w - start)
            sums.update(value, tokens.flatten().double().cpu().numpy() - value)
    linear = stein.stein(settings.nbeta, settings.gamma)
    along = {component: torch.stack([linear, linear - stein.sampled()]).to(start)}
    of_linear, of_gap = (slopes(engine, probe, along) - slopes(engine, loss, along).mean(1, keepdims=True))[..., 0]
    sampled = sums.sample_covariance()
    return Estimates(sampled, sampled + of_gap, of_linear)
