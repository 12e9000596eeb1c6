r"""Tilt the data, sample again, and see whether the posterior moves as the susceptibility said it would.

A susceptibility is a derivative. With the data tilted towards a set S of tokens, q_h = q + h (q_S - q), the mean loss
becomes L_h = (1 - h) L + h L_S, and by its definition

    <φ_C>_h - <φ_C>_{-h} = 2 h nβ χ_S + O(h³),        χ_S = the mean of χ_xy over S.

So χ_S < 0 (expression) says that the component's mean loss rise *falls* where S becomes more frequent: the posterior
moves to where S is served better. Here the two tilted posteriors are sampled, chains at h and at -h with the same noise
and the same minibatches, so that the difference has little noise (`tilted_draws`). One chain gives the change of
<g>_C. For the delta-function observable, <φ_C> = (Z_C / Z) <g>_C, the ratio changes too,

    ∂ log (Z_C / Z) / ∂h = -nβ ( <d_S>_C - <d_S>_F ),        d_S = L_S - L less its value at w*,

which takes the unrestricted chain, and is summed over h by the trapezoid rule (`two_chain_response`).

The covariance that is shipped as χ comes from other draws, by another way: it is the response of the tokens' losses to
nβ. Here the tokens push, and the mean loss answers.

Read backwards, the table of susceptibilities says which tilts give a wanted change of the observables (`wanted_tilts`;
the authors' patterning paper has dh = χ⁺ dμ [S]).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from ..model.engine import Engine
from ..posterior import Chain, Draw, Gradients, Member, Settings, lockstep


@dataclass(frozen=True)
class TiltedMeans:
    """Means at each draw, over the chains that share noise, with the data tilted by h and by -h."""

    h: float
    nbeta: float
    rise: Float[ndarray, "draws 2"]
    """g = L(w) - L(w*), nats."""
    moment: Float[ndarray, "draws 2"]
    """d_S, nats."""

    def one_chain(self) -> float:
        """( <g>_h - <g>_{-h} ) / 2 h nβ: to compare with the one-chain susceptibility."""
        above, below = self.rise.mean(axis=0)
        return float(above - below) / (2 * self.h * self.nbeta)


def two_chain_response(restricted: TiltedMeans, full: TiltedMeans) -> float:
    """The same of (Z_C / Z) <g>_C, in units of Z_C / Z at h = 0: to compare with the two-chain susceptibility."""
    apart = restricted.moment.mean(axis=0) - full.moment.mean(axis=0)
    half = -restricted.nbeta * restricted.h * float(apart.mean())  # of the change of log (Z_C / Z) from -h to h
    above, below = restricted.rise.mean(axis=0)
    return float(above * math.exp(half) - below * math.exp(-half)) / (2 * restricted.h * restricted.nbeta)


def tilted_draws(
    start: Float[Tensor, " parameters"],
    text: Gradients,
    chosen: Gradients,
    settings: Settings,
    h: float,
    *,
    name: str = "full",
    chain: int = 0,
) -> Iterator[Draw]:
    """Draws of chains at h and at -h with common noise, and of their mirrored twins where the settings are antithetic.

    Args:
        start: w* restricted to the component, flat.
        text: gradients of L.
        chosen: gradients of L_S.
        settings: the posterior and its sampler; their ``tilt``, which is of nβ, is left out.
        h: the tilt of the data.

    Raises:
        ValueError: at nβ = 0, where data have no say; or for a tilt that is not positive.
    """
    if not settings.nbeta > 0:
        raise ValueError("a tilt of the data moves nothing at nbeta = 0: give settings with a positive nbeta")
    if not h > 0:
        raise ValueError(f"h must be positive (the chains run at h and at -h), got {h}")
    settings = replace(settings, tilt=0.0)
    members = [member for member in settings.members for _ in (h, -h)]
    leans = [h, -h] * len(settings.members)
    chains = [Chain(start, settings, name=name, chain=chain, member=Member(*member)) for member in members]

    def gradients(positions):
        (mean, slopes), (own, towards) = text(positions), chosen(positions)
        mixed = [(1 - lean) * a + lean * b for lean, a, b in zip(leans, slopes, towards, strict=True)]
        return [(1 - lean) * a + lean * b for lean, a, b in zip(leans, mean, own, strict=True)], mixed

    yield from lockstep(chains, gradients, settings)


def component_response(
    engine: Engine,
    component: str,
    settings: Settings,
    h: float,
    *,
    sampling,
    read,
    windows,
    weights: Float[ndarray, "windows time"],
    chain: int = 0,
) -> TiltedMeans:
    """The response of one component of a language model to more of a set of tokens in the data.

    Args:
        settings, h, chain: as for `tilted_draws`.
        sampling: windows that minibatches are drawn from: L.
        read: windows on which the mean loss rise is read.
        windows: those that hold the set.
        weights: of each of their tokens but the first: what the set's mean loss L_S is made of; they sum to 1.

    Raises:
        ValueError: as `tilted_draws`, for an unknown component, or weights that do not sum to 1.
        ChainError: if a loss is not finite, or a chain is no longer local.
    """
    weights = torch.as_tensor(np.asarray(weights), dtype=engine.unembedding.dtype, device=engine.device)
    if abs(float(weights.sum()) - 1) > 1e-4:
        raise ValueError(f"the weights of a set's tokens must sum to 1, got {float(weights.sum()):.4g}")
    group = engine.group([component] * (2 * len(replace(settings, tilt=0.0).members)))
    held, text, rows = group.cache(windows), group.cache(read), np.arange(len(windows))
    at_rest = float(engine.losses(read).double().mean())
    own_at_rest = float((engine.losses(windows) * weights).sum())

    def chosen(positions):
        return group.gradients(positions, held, rows, weights)

    found = []
    moving = group.minibatch_gradients(sampling, settings, chain)
    draws = tilted_draws(group.start[0], moving, chosen, settings, h, name=component, chain=chain)
    for draw in draws:
        rise = group.losses(draw.positions, text).double().mean(dim=(1, 2)) - at_rest
        own = (group.losses(draw.positions, held) * weights).double().sum(dim=(1, 2)) - own_at_rest
        both = torch.stack([rise, own - rise]).view(2, -1, 2).mean(dim=1)  # over mirrored twins
        found.append(both.cpu().numpy())
    rises, moments = np.stack(found, axis=1)
    return TiltedMeans(h, settings.nbeta, rises, moments)


# The inverse problem -------------------------------------------------------------------------------------------------


def wanted_tilts(
    chi: Float[ndarray, "observables tokens"],
    wanted: Float[ndarray, " observables"],
    frequencies: Float[ndarray, " tokens"],
    nbeta: float,
) -> Float[ndarray, " tokens"]:
    r"""Tilts h of the data, q_h = q + Σ h_xy (δ_xy - q), that change the observables' means as wanted, to first order.

    Means change by nβ χ h. Of all h that do it this is the least by Σ h² / q, how far the data move in units of what
    they are: with D = diag(q),

        h = √D (χ √D)⁺ dμ / nβ.

    Where the observables can't all have what is wanted, it is the nearest that they can. The plain h = χ⁺ dμ / nβ of
    the patterning paper [S] weighs all tokens alike; rare ones then soon have a negative probability. The weights are
    ours. h sums to zero, since Σ q χ = 0 for each observable.

    Args:
        chi: susceptibilities of every token in its context.
        wanted: dμ of each observable, in its own units.
        frequencies: q of each token in its context, all positive; they sum to 1.

    Raises:
        ValueError: for arrays of different sizes, frequencies that are no probabilities, or nβ that is not positive.
    """
    if chi.shape != (len(wanted), len(frequencies)):
        raise ValueError(
            f"chi must be of {len(wanted)} observables and {len(frequencies)} tokens, as wanted and frequencies are; "
            f"got shape {chi.shape}"
        )
    if not (frequencies > 0).all() or abs(frequencies.sum() - 1) > 1e-6:
        raise ValueError(f"frequencies must be positive and sum to 1, got a sum of {frequencies.sum():.6g}")
    if not nbeta > 0:
        raise ValueError(f"a tilt of the data moves nothing at nbeta = {nbeta:g}: it must be positive")
    root = np.sqrt(frequencies)
    return root * (np.linalg.pinv(chi * root) @ wanted) / nbeta


def retilted(frequencies: Float[ndarray, " tokens"], tilts: Float[ndarray, " tokens"]) -> Float[ndarray, " tokens"]:
    """q + Σ h_xy (δ_xy - q): the data after all tilts at once.

    Raises:
        ValueError: if a frequency would be negative.
    """
    tilted = (1 - tilts.sum()) * frequencies + tilts
    if (tilted < 0).any():
        reach = np.min(frequencies[tilted < 0] / (frequencies - tilted)[tilted < 0])
        raise ValueError(f"these tilts make a frequency negative: take {reach:.3g} times as much, or less")
    return tilted
