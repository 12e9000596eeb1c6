r"""Which differences between tokens rows show: kernels, what rows cannot see, how many channels are enough.

A *channel* is a linear functional of the losses: one draw of a component's chain, or one component's covariance with g.
Rows made of channels see differences between tokens through these functionals alone.

* The exact kernel of a posterior, Cov(l, l'), which the channels of ever more draws approach (`loss_kernel`), and how
  fast they do (`kernel_error`).
* To first order in 1/γ it needs no posterior: ∇l (nβ H + γ)⁻¹ ∇l' (`first_order_kernel`).
* What rows cannot see, however long one samples: the null space of their map (`unseen`).
* How many channels keep nearest neighbours right (`mistakes`): a Chernoff bound for normal channels.

All of it is our derivation, not the paper's.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from numpy import ndarray

from ..posterior import Settings
from .enumerable import Enumerable, Grid

# ---- kernels


def loss_kernel(posterior: Grid) -> Float[ndarray, "pairs pairs"]:
    """Cov(l, l') of the losses of all tokens in context, flattened with the token running fastest, in nats²."""
    losses = posterior.losses.reshape(len(posterior.weights), -1)
    centred = losses - posterior.weights @ losses
    return (centred * posterior.weights[:, None]).T @ centred


def slopes(model: Enumerable, block: str) -> Float[ndarray, "pairs d"]:
    """∇l at w* of every token in context, in the weights of a block; pairs as in `loss_kernel`."""
    zero = torch.zeros(len(model.BLOCKS[block]), dtype=torch.float64)
    found = torch.func.jacfwd(lambda c: model.losses(model.place(block, c)))(zero)
    return found.reshape(-1, len(zero)).numpy()


def first_order_kernel(model: Enumerable, block: str, settings: Settings) -> Float[ndarray, "pairs pairs"]:
    """∇l (nβ H + γ)⁻¹ ∇l', with H the Hessian of the mean loss at w*: the loss kernel up to O(1/γ²).

    At nβ = 0 it is ⟨∇l, ∇l'⟩ / γ. Otherwise directions in which the mean loss is steep count for less.
    """
    gradients = slopes(model, block)
    precision = settings.gamma * np.eye(gradients.shape[1])
    if settings.nbeta:
        precision = precision + settings.nbeta * model.curvature(block)
    return gradients @ np.linalg.solve(precision, gradients.T)


def squared_distances(kernel: Float[ndarray, "tokens tokens"]) -> Float[ndarray, "tokens tokens"]:
    """|r - r'|² of rows with these inner products."""
    length = np.diag(kernel)
    return np.maximum(length[:, None] + length - 2 * kernel, 0)


def effective_dimension(kernel: Float[ndarray, "tokens tokens"]) -> float:
    """(tr K)² / |K|²: the number of equal eigenvalues that would have this trace and this norm."""
    return float(np.trace(kernel) ** 2 / (kernel**2).sum())


def kernel_error(kernel: Float[ndarray, "tokens tokens"], draws: int | Int[ndarray, " n"]) -> float | ndarray:
    """Root mean square of |K̂ - K| / |K|, K̂ the kernel of independent normal draws: √((1 + d) / draws).

    With f normal, Var(f f') = K_ll K_l'l' + K_ll'². Summed over all pairs that is (tr K)² + |K|², so d is the effective
    dimension. A sketch that folds any number of draws into so many channels (`estimator.ResolvedSums`) has the same
    error: what folding adds makes up for what the further draws remove.
    """
    return np.sqrt((1 + effective_dimension(kernel)) / np.asarray(draws))


# ---- what is not seen


def unseen(
    rows: Float[ndarray, "tokens channels"], tolerance: float = 1e-9
) -> tuple[int, Float[ndarray, "mixtures tokens"]]:
    """How many independent differences between tokens the rows show, and those that they do not show.

    A difference is a weighting of the tokens that sums to zero: one mixture of tokens against another. Rows do not show
    it where the weighted sum of rows is zero. As rows are linear in the losses, these differences are the null space of
    a linear map.

    Returns:
        The *resolving power*, at most the number of channels; and an orthonormal basis of the unseen differences.
    """
    tokens = len(rows)
    centred = rows - rows.mean(axis=0)
    left, singular, _ = np.linalg.svd(centred, full_matrices=True)
    power = int((singular > tolerance * singular.max(initial=0)).sum()) if singular.any() else 0
    others = np.column_stack([np.full(tokens, tokens**-0.5), left[:, power:]])  # sums to zero: orthogonal to the first
    basis = np.linalg.qr(others)[0][:, 1 : tokens - power]
    return power, basis.T


# ---- how many channels it takes


def mistakes(
    kernel: Float[ndarray, "tokens tokens"],
    labels: Shaped[ndarray, " tokens"],
    may: Bool[ndarray, "tokens tokens"],
    channels: Int[ndarray, " n"],
) -> Float[ndarray, " n"]:
    r"""A bound on how often a token's nearest neighbour has another label, for rows of normal channels with a kernel.

    Two differences from a token, to one with its label (length a) and to one without (length b, correlation ρ), are
    seen through N independent normal channels. The wrong one looks shorter with a probability of at most

        ( 1 + (b² - a²)² / (4 a² b² (1 - ρ²)) )^(-N/2)                                                     where a < b,

    Chernoff's bound: E exp t(A - B) = (1 + 2t (b² - a²) - 4t² a² b² (1 - ρ²))^(-N/2), at the best t. With ρ = 0 this is
    (2r / (1 + r²))^N, r = a/b. The bound sums over all tokens of other labels, and takes the best token with the same.

    Args:
        may: at [i, j], whether j may be the neighbour of i.
        channels: numbers of channels N.

    Returns:
        The mean over tokens that have a possible neighbour with their label.
    """
    square, found = squared_distances(kernel), []
    for i, own in enumerate(labels):
        alike, others = (np.flatnonzero(may[i] & (labels == own)), np.flatnonzero(may[i] & (labels != own)))
        if not len(alike):
            continue
        a, b = square[i, alike][:, None], square[i, others]
        free = np.maximum(a * b - ((a + b - square[np.ix_(alike, others)]) / 2) ** 2, 1e-12 * a * b)
        rate = np.log1p(np.where(b > a, (b - a) ** 2 / np.maximum(4 * free, 1e-300), 0)) / 2
        bound = np.exp(-rate * np.asarray(channels)[:, None, None]).sum(axis=2).min(axis=1)
        found.append(np.minimum(bound, 1))
    return np.mean(found, axis=0)
