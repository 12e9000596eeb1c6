"""Quadratic potentials, on which the law of an SGLD chain is known: truth to test samplers against.

On L(w) = bᵀδ + ½ δᵀAδ, δ = w - o, a chain is a linear recursion driven by Gaussian noise. Its law is normal after any
number of steps, and known in closed form, discretisation bias included.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from ..posterior import Settings, sample


@dataclass(frozen=True)
class Quadratic:
    """The potential (or observable) f(w) = bᵀδ + ½ δᵀAδ with δ = w - o."""

    curvature: Float[ndarray, "d d"]
    """A, symmetric."""
    origin: Float[ndarray, " d"]
    """o."""
    slope: Float[ndarray, " d"]
    """b."""

    @classmethod
    def bowl(cls, curvature: Float[ndarray, "d d"], minimum: Float[ndarray, " d"] | None = None) -> Quadratic:
        """½ (w - m)ᵀ A (w - m), with m = 0 unless it is given."""
        zero = np.zeros(len(curvature))
        return cls(curvature, zero if minimum is None else minimum, zero)

    def __call__(self, w: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        """f at each row of ``w``."""
        curvature, origin, slope = (
            torch.as_tensor(x, dtype=w.dtype, device=w.device) for x in (self.curvature, self.origin, self.slope)
        )
        delta = w - origin
        return delta @ slope + 0.5 * (delta @ curvature * delta).sum(-1)

    def slope_at(self, w: Float[ndarray, " d"]) -> Float[ndarray, " d"]:
        """∇f(w) = b + A (w - o)."""
        return self.slope + self.curvature @ (w - self.origin)


class Normal(NamedTuple):
    """A normal law N(μ, Σ), and the moments of quadratic observables under it."""

    mean: Float[ndarray, " d"]
    covariance: Float[ndarray, "d d"]

    def expectation(self, f: Quadratic) -> float:
        """E f = f(μ) + ½ tr(AΣ): the linear term of the expansion around μ averages out."""
        return float(f(torch.as_tensor(self.mean))) + 0.5 * float(np.trace(f.curvature @ self.covariance))

    def covariance_of(self, f: Quadratic, g: Quadratic) -> float:
        """Cov(f, g) = ∇f(μ)ᵀ Σ ∇g(μ) + ½ tr(A_f Σ A_g Σ).

        Expand both around μ. Odd moments of a centred normal vanish, so linear and quadratic parts do not mix, and
        Isserlis' theorem gives Cov(½ δᵀAδ, ½ δᵀBδ) = ½ tr(AΣBΣ).
        """
        linear = f.slope_at(self.mean) @ self.covariance @ g.slope_at(self.mean)
        return float(linear + 0.5 * np.trace(f.curvature @ self.covariance @ g.curvature @ self.covariance))


def precision(potential: Quadratic, settings: Settings) -> Float[ndarray, "d d"]:
    """H = nβA + γI, the Hessian of the exponent of the localised posterior."""
    return settings.nbeta * potential.curvature + settings.gamma * np.eye(len(potential.curvature))


def gibbs(potential: Quadratic, centre: Float[ndarray, " d"], settings: Settings) -> Normal:
    """The localised Gibbs posterior ∝ exp{ -nβ L(w) - (γ/2) |w - w*|² } around w* = ``centre``: N(μ, H⁻¹).

    At its mean the exponent is flat: nβ ∇L(μ) + γ (μ - w*) = 0, so μ = w* - H⁻¹ nβ ∇L(w*).
    """
    inverse = np.linalg.inv(precision(potential, settings))
    return Normal(centre - settings.nbeta * inverse @ potential.slope_at(centre), inverse)


def sgld_variance(eigenvalue, step_size):
    """Stationary variance (1/λ) / (1 - ελ/4) of SGLD along an eigenvector of H with eigenvalue λ.

    The step is the AR(1) recursion δ ← (1 - ελ/2) δ + √ε ξ, so V = (1 - ελ/2)² V + ε. As ε → 0 this is the posterior's
    1/λ; at ε = 4/λ it diverges. For nβ = 0 every λ is γ.
    """
    return 1 / (eigenvalue * (1 - step_size * eigenvalue / 4))


def largest_step(potential: Quadratic, settings: Settings) -> float:
    """4/λ_max: with this step size or a larger one SGLD diverges, for then |1 - ελ/2| >= 1 in some direction."""
    return 4 / float(np.linalg.eigvalsh(precision(potential, settings))[-1])


def sgld_law(
    potential: Quadratic,
    centre: Float[ndarray, " d"],
    settings: Settings,
    *,
    steps: int | None = None,
    gradient_noise: Float[ndarray, "d d"] | None = None,
    scale: Float[ndarray, " d"] | None = None,
) -> Normal:
    """Law of an SGLD chain that starts at w* = ``centre``, after ``steps`` steps, or its stationary law.

    With δ = w - μ, gradient noise s ~ N(0, S) and a constant diagonal G, a step is
    δ ← (I - ½εGH) δ - ½εnβ G s + √(εG) ξ. In the coordinates G^(-½) δ along the eigenvectors of G^½ H G^½ the recursion
    is diagonal with factors r_i = 1 - ½ελ_i; there the noise of one step has covariance
    Q = εI + ¼ε²(nβ)² G^½ S G^½, and summing the noise of t steps gives

        Σ_ij = Q_ij (1 - (r_i r_j)^t) / (1 - r_i r_j).

    Args:
        steps: None for the stationary law, t = ∞.
        gradient_noise: S, the covariance of the noise in the minibatch gradient of the mean loss.
        scale: the diagonal of G, where a preconditioner has settled (`settings.preconditioner` is not looked at).

    Raises:
        ValueError: if there is no stationary law because the step size is too large.
    """
    mean = gibbs(potential, centre, settings).mean
    epsilon, d = settings.step_size, len(mean)
    root = np.sqrt(np.ones(d) if scale is None else scale)
    eigenvalues, axes = np.linalg.eigh(root[:, None] * precision(potential, settings) * root)
    factors = 1 - epsilon * eigenvalues / 2
    if steps is None and (np.abs(factors) >= 1).any():
        limit = 4 / eigenvalues[-1]
        raise ValueError(f"no stationary law: step_size must be below 4/λ_max = {limit:g}, got {epsilon:g}")
    kick = np.zeros((d, d)) if gradient_noise is None else root[:, None] * gradient_noise * root
    noise = epsilon * np.eye(d) + (epsilon * settings.nbeta) ** 2 / 4 * axes.T @ kick @ axes
    products = np.outer(factors, factors)
    covariance = noise * (1 - (0 if steps is None else products**steps)) / (1 - products)
    back = root[:, None] * axes  # from the diagonal coordinates to δ
    memory = np.zeros(d) if steps is None else factors**steps * (axes.T @ ((centre - mean) / root))
    return Normal(mean + back @ memory, back @ covariance @ back.T)


def autocorrelation(eigenvalue, step_size, lag):
    """(1 - ελ/2)^k: correlation of a stationary SGLD coordinate with itself k steps later (AR(1))."""
    return (1 - step_size * eigenvalue / 2) ** lag


def ar1_effective_draws(draws, correlation):
    """n (1 - ρ) / (1 + ρ): independent draws that would give the mean of n AR(1) draws with correlation ρ its variance.

    For second moments of a normal chain the correlation between draws is ρ², so call it with that.
    """
    return draws * (1 - correlation) / (1 + correlation)


def memoryless_rmsprop_variance(curvature: float, settings: Settings) -> float:
    """Variance of RMSProp-preconditioned SGLD on ½cw², w* = 0, when v has no memory (a → 0) and ε → 0.

    It is not the posterior's. The diffusion dw = -½ G U' dt + √G dB (Itô, no divergence term Γ) has stationary density
    ∝ e^{-U} / G: its flux -½ G U' p - ½ (G p)' vanishes there. Without memory 1/G = |g| + e = c|w| + e. With
    σ² = 1/(nβc + γ), E|w| = σ√(2/π) and E|w|³ = 2σ³√(2/π), the variance is
    σ² (e + 2cσ√(2/π)) / (e + cσ√(2/π)): between one and two times the posterior's.
    """
    variance = 1 / (settings.nbeta * curvature + settings.gamma)
    slope = curvature * math.sqrt(variance * 2 / math.pi)
    return variance * (settings.rms_epsilon + 2 * slope) / (settings.rms_epsilon + slope)


Potential = Callable[[Tensor], Tensor]


def replicated(potential: Potential, copies: int) -> Potential:
    """Many independent chains as one: the sum of ``potential`` over ``copies`` of the weights in one flat tensor.

    The gradient for one copy does not depend on the others, and SGLD's noise and preconditioner act element by element.
    """
    return lambda w: potential(w.view(copies, -1)).sum()


def walk(
    potential: Potential, settings: Settings, centre: Float[ndarray, " d"], copies: int, *, name: str = "full"
) -> Float[ndarray, "draws copies d"]:
    """Every draw of many independent chains, all started at w* = ``centre``; another ``name`` brings other noise.

    The sampler sees the sum of the copies' losses, which may rise far, so ``max_rise`` is not applied.
    """
    run = sample(
        replicated(potential, copies),
        replace(settings, max_rise=math.inf),
        start=torch.as_tensor(np.tile(centre, copies)),
        component=name,
    )
    return np.stack([draw.position.view(copies, -1).numpy().copy() for draw in run])


def noisy(potential: Potential, covariance: Float[ndarray, "d d"], seed: int = 0) -> Potential:
    """``potential`` with gradient noise, as minibatches give it: each call adds sᵀw, s ~ N(0, S) fresh per row of w."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.as_tensor(np.linalg.cholesky(covariance))

    def with_noise(w: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        kick = torch.randn(w.shape, generator=generator, dtype=root.dtype) @ root.T
        return potential(w) + (kick.to(w) * w).sum(-1)

    return with_noise
