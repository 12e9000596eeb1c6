r"""Enumerable language models with known parts, for `exact.enumerable` to integrate.

*A planted table of reasons* (`planted_reasons`): contexts each follow one reason, and a reason has its own few tokens.
*A bilinear model* of such a table (`Bilinear`) with one named component for each reason and three that serve none.
*An attention head* over a tiny alphabet (`CopyingHead`), which copies what followed the last occurrence of a letter.

All are our own constructions: nothing here is from the paper.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from .enumerable import Enumerable

# Each reason with its tokens and their weights. "," follows every reason; "." two of them.
REASONS: dict[str, dict[str, float]] = {
    "brackets": {")": 5, "]": 3, "}": 2, ",": 2},
    "digits": {"0": 4, "1": 4, "2": 3, ".": 2, ",": 2},
    "lines": {"↵": 5, ";": 3, ".": 3, ",": 1},
    "verbs": {"is": 4, "has": 3, "was": 3, ",": 1},
    "articles": {"the": 5, "a": 3, "my": 2, ",": 1},
}


@dataclass(frozen=True)
class Reasons:
    """A joint table whose contexts each follow one of a few named reasons."""

    joint: Float[ndarray, "contexts tokens"]
    """q(x, y)."""
    reason: Int[ndarray, " contexts"]
    """Which reason each context follows, an index into ``names``."""
    names: tuple[str, ...]
    tokens: tuple[str, ...]

    @property
    def labels(self) -> list[str]:
        """A name for each context: its reason and a running number."""
        seen = [0] * len(self.names)
        labels = []
        for i in self.reason:
            seen[i] += 1
            labels.append(f"{self.names[i]} {seen[i]}")
        return labels


def planted_reasons(
    contexts: int = 8, *, reasons: int = 5, jitter: float = 0.3, noise: float = 0.05, seed: int = 0
) -> Reasons:
    """A table of the first of the five `REASONS`, over their tokens (16 for all five).

    Args:
        contexts: contexts of each reason.
        reasons: how many reasons.
        jitter: each context's own deviation from its reason, the standard deviation of the log-odds inside the reason's
            tokens. With 0 the rank of the table is the number of reasons.
        noise: probability of any token at all, uniformly.

    Raises:
        ValueError: if contexts < 1, there is no such number of reasons, jitter < 0, or noise is not strictly between 0
            and 1 (the model needs every log q).
    """
    if contexts < 1 or jitter < 0 or not 0 < noise < 1:
        raise ValueError(f"need contexts >= 1, jitter >= 0, 0 < noise < 1; got {contexts}, {jitter:g}, {noise:g}")
    if not 1 <= reasons <= len(REASONS):
        raise ValueError(f"there are {len(REASONS)} reasons to choose from, got reasons={reasons}")
    rng = np.random.default_rng(seed)
    chosen = dict(list(REASONS.items())[:reasons])
    tokens = tuple(dict.fromkeys(token for words in chosen.values() for token in words))
    weight = np.array([[words.get(token, 0) for token in tokens] for words in chosen.values()], dtype=float)
    reason = np.repeat(np.arange(reasons), contexts)
    rows = weight[reason] * np.exp(jitter * rng.normal(size=(len(reason), len(tokens))))
    rows = (1 - noise) * rows / rows.sum(1, keepdims=True) + noise / len(tokens)
    share = np.array([0.28, 0.24, 0.2, 0.16, 0.12])[:reasons]  # frequencies of the reasons
    within = np.concatenate([part * rng.dirichlet(np.full(contexts, 10.0)) for part in share / share.sum()])
    return Reasons(within[:, None] * rows, reason, tuple(chosen), tokens)


@dataclass(frozen=True)
class Bilinear(Enumerable):
    """Logits that are a sum of products, one for each component C with its two weights (a_C, b_C):

        logit(x, y) = rest(x, y) + Σ_C (f_C(x) + a_C f'_C(x)) (g_C(y) + b_C g'_C(y)).

    ``rest`` is such that the model at w* = 0 is the planted table itself. The components that bear the name of a reason
    read its contexts and write to its tokens, with a small leak elsewhere; ``common`` acts on all contexts alike,
    ``mixed 1`` and ``mixed 2`` on random ones.
    """

    table: Reasons
    context_codes: Float[ndarray, "components 2 contexts"]
    """f_C and f'_C."""
    token_codes: Float[ndarray, "components 2 tokens"]
    """g_C and g'_C."""

    @property
    def components(self) -> tuple[str, ...]:
        """Names of the components."""
        return (*self.table.names, "common", "mixed 1", "mixed 2")

    @property
    def BLOCKS(self) -> dict[str, tuple[int, ...]]:
        """Two weights for each component."""
        names = self.components
        return {name: (2 * i, 2 * i + 1) for i, name in enumerate(names)} | {"full": tuple(range(2 * len(names)))}

    @classmethod
    def of(cls, table: Reasons, *, leak: float = 0.15, seed: int = 0) -> Bilinear:
        """The model of a planted table, with random codes.

        Args:
            leak: size of a named component's codes outside its own contexts and tokens.
        """
        rng = np.random.default_rng(seed)
        frequency, reason = table.joint.sum(0), table.reason
        rows, columns = [], []
        for i, name in enumerate((*table.names, "common", "mixed 1", "mixed 2")):
            reach_x, reach_y = np.full(len(reason), 0.6), np.full(len(frequency), 0.6)
            if name in table.names:
                f = (reason == i).astype(float)
                usual = table.joint[reason == i].sum(0)
                g = np.log(usual / usual.sum() / frequency)  # what the reason adds to a token's log-odds
                reach_x, reach_y = f + leak, (g > 0) + leak
            elif name == "common":
                f, g = np.ones(len(reason)), np.log(frequency / frequency.mean())
            else:
                f, g = rng.normal(size=len(reason)) / 2, rng.normal(size=len(frequency))
            rows.append([f, reach_x * (1 + rng.normal(size=len(f)) / 2)])
            columns.append([g, reach_y * rng.normal(size=len(g))])
        return cls(table, np.array(rows), np.array(columns))

    @property
    def frequencies(self) -> Float[ndarray, " contexts"]:
        """q(x)."""
        return self.table.joint.sum(1)

    def losses(self, w: Float[Tensor, "*batch weights"]) -> Float[Tensor, "*batch contexts tokens"]:
        """l_xy(w), nats."""
        f, df = torch.as_tensor(self.context_codes).to(w).unbind(1)
        g, dg = torch.as_tensor(self.token_codes).to(w).unbind(1)
        at_best = torch.as_tensor(np.log(self.table.joint / self.table.joint.sum(1, keepdims=True))).to(w)
        rows, columns = f + w[..., 0::2, None] * df, g + w[..., 1::2, None] * dg
        return -torch.log_softmax(at_best - f.T @ g + rows.transpose(-2, -1) @ columns, dim=-1)


@dataclass(frozen=True)
class CopyingHead(Enumerable):
    """One attention head over words of a tiny alphabet, with three weights that move it off its trained values.

    The context is a word t_1 ... t_T. Position j gets the score (strength + a) [t_{j-1} = t_T]: the head looks for
    what followed the last letter when it occurred before. With A_j the softmax of the scores over j = 2 ... T,

        logit(y) = (copying + b) Σ_j A_j [t_j = y] + (1 + c) B(t_T, y).

    Blocks: ``qk`` = (a), where to look; ``ov`` = (b), what to write; ``direct`` = (c), the bigrams B.
    """

    bigrams: Float[ndarray, "letters letters"]
    """B."""
    words: Int[ndarray, "contexts length"]
    """Every word of that length."""
    frequencies: Float[ndarray, " contexts"]
    strength: float = 3.0
    copying: float = 2.5

    BLOCKS = {"qk": (0,), "ov": (1,), "direct": (2,), "full": (0, 1, 2)}  # noqa: RUF012

    @classmethod
    def random(cls, seed: int = 0, letters: int = 3, length: int = 4) -> CopyingHead:
        """A head with random bigrams and word frequencies."""
        rng = np.random.default_rng(seed)
        words = np.array(list(itertools.product(range(letters), repeat=length)))
        return cls(rng.normal(size=(letters, letters)), words, rng.dirichlet(np.full(len(words), 5.0)))

    def losses(self, w: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch contexts tokens"]:
        """l_xy(w), nats."""
        words = torch.as_tensor(self.words)
        before, after, last = words[:, :-1], words[:, 1:], words[:, -1]
        match = (before == last[:, None]).to(w)
        written = torch.nn.functional.one_hot(after, len(self.bigrams)).to(w)
        a, b, c = (w[..., i, None, None] for i in range(3))
        pattern = torch.softmax((self.strength + a) * match, dim=-1)
        copied = (pattern[..., None] * written).sum(-2)
        return -torch.log_softmax((self.copying + b) * copied + (1 + c) * torch.as_tensor(self.bigrams).to(w)[last], -1)
