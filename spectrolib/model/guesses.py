"""A model's likeliest next token at each place of a text, and the rank of the token that does follow."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from numpy import ndarray

from .engine import Engine
from .loading import engine_of
from .loss import TOKEN_BLOCK


class Guesses(NamedTuple):
    """One entry for every token but the first of each window, or for every token of a result."""

    token: Int[ndarray, ...]
    """The token that the model finds likeliest there."""
    probability: Float[ndarray, ...]
    """The probability that the model gives to that likeliest token."""
    rank: Int[ndarray, ...]
    """Rank of the actual token among all tokens by probability, 1 for the likeliest."""

    def take(self, rows: Int[ndarray, " tokens"]) -> Guesses:
        """The entries at some places, which are numbered through all windows."""
        return Guesses(*(values.ravel()[rows] for values in self))


@torch.no_grad()
def guesses(model, windows) -> Guesses:
    """A model's predictions at every place of every window but the first.

    Args:
        model: a `LanguageModel`, or its `Engine`.
        windows: `Windows`, or token ids (windows, length).

    Returns:
        Three arrays (windows, length - 1).

    Raises:
        ValueError: for windows that the model cannot read.
    """
    engine = engine_of(model)
    ids = engine.ids(windows)
    chunks = ids.split(max(1, engine.tokens_per_pass // (ids.shape[1] - 1)))
    found = zip(*(part for chunk in chunks for part in _of_chunk(engine, chunk)), strict=True)
    shape = len(ids), ids.shape[1] - 1
    return Guesses(*(torch.cat(parts).view(shape).cpu().numpy() for parts in found))


def _of_chunk(engine: Engine, ids: Int[torch.Tensor, "windows length"]):
    """Token, probability and rank of some windows, a block of tokens after another."""
    hidden = engine.hidden(engine.residual(ids[:, :-1], engine.shape.layers))
    unembedding = engine.weights[engine.shape.unembed]
    blocks = zip(hidden.split(TOKEN_BLOCK), ids[:, 1:].flatten().split(TOKEN_BLOCK), strict=True)
    for states, targets in blocks:
        logits = states @ unembedding.T
        best, token = logits.max(dim=1)
        own = logits.gather(1, targets.long()[:, None])
        yield token, (best - logits.logsumexp(dim=1)).exp(), (logits > own).sum(dim=1) + 1
