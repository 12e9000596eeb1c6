"""What is near one token, and how much of that is noise.

Distances are those that `spectro cluster` cuts: 1 - cosine between resolved rows, or Euclidean between the paper's
standardised rows. The same question is then asked of either half of a result alone. The halves share no chain, or, to
first order, no random direction: a neighbour that is one in both is no accident of the noise. To first order the halves
are sketches of the same gradients, so they show the noise of the sketch, the only one there is.

The whole holds both halves. Therefore its nearest tokens are near in either half a little more often than they should
be; `NearTokens.shared` compares the halves with each other alone.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from ..estimator import standardise
from ..run.resolved import rows_of
from ..text.runningtext import RunningText

Rows = Literal["resolved", "paper"]

# Finding a token -----------------------------------------------------------------------------------------------------

_SIGNS = str.maketrans({"↵": "\n", "→": "\t"})
"""What `marks.visible` shows, read back."""


def find_tokens(text: RunningText, context: str) -> Int[ndarray, " places"]:
    """The rows of the tokens that a context ends in, wherever it stands, in the order of the text.

    Places where it ends together with a token come alone; only if there are none, those where it ends inside of one.
    Line ends and tabs may be written by the signs that pages show for them, ↵ and →.

    Raises:
        ValueError: if it stands nowhere: the message says which end of it does.
    """
    if not context:
        raise ValueError("the context is empty: give some of the text, its last token is meant")
    for written in (context, context.translate(_SIGNS)):
        if len(found := text.ends_of(written)):
            return found
    stands = lambda start: len(text.ends_of(context[start:].translate(_SIGNS))) > 0  # noqa: E731
    known = context[bisect_left(range(len(context)), True, key=stands) :]
    rather = f"its end {known!r} does" if known else f"nor does its last character, {context[-1]!r}"
    raise ValueError(
        f"the context {context!r} stands nowhere in the {len(text.passages)} windows; {rather}. Give text as a card or "
        f"the map shows it (no window's first token is part of it), or the number of a token, 0 to {len(text) - 1}"
    )


# What is near it -----------------------------------------------------------------------------------------------------


class Neighbour(NamedTuple):
    """A token near another one."""

    row: int
    distance: float
    """By all that was measured: 1 - cosine, or Euclidean."""
    halves: tuple[float, ...]
    """The distance by either half alone; empty for a result without halves."""
    ranks: tuple[int, ...]
    """The place among all tokens by either half alone, 1 the nearest."""


@dataclass(frozen=True)
class NearTokens:
    """The nearest tokens of one token."""

    row: int
    rows: Rows
    neighbours: tuple[Neighbour, ...]
    """The nearest first, ties by row."""
    typical: float
    """Median distance to all other tokens."""
    length: float
    """Of the token's own row, in units of the root mean square over tokens: noise rules a short one."""
    shared: float
    """The part of the nearest of one half that are among as many nearest of the other; NaN without halves."""
    chance: float
    """What ``shared`` would be on average if the halves had nothing in common."""


def near_tokens(
    result, row: int, *, count: int = 10, rows: Rows | None = None, standardisation: dict | None = None
) -> NearTokens:
    """The nearest tokens of one token, with their distances by either half of the result.

    Halves are the chains of even and of odd number, or independent sketches to first order.

    Args:
        result: of `measure`.
        row: the token's number: its place along ``token``.
        count: neighbours to return, and to compare between the halves.
        rows: "resolved" or "paper"; by default resolved where the result has channels.
        standardisation: of the paper's rows: arguments of `spectrolib.standardise`.

    Raises:
        ValueError: for a row or a count that there is not, unknown or missing rows, or a token without a direction.
    """
    n = result.sizes["token"]
    rows = rows or ("resolved" if "resolved" in result else "paper")
    if rows not in get_args(Rows):
        raise ValueError(f"unknown rows {rows!r}: they must be resolved or paper")
    if not 0 <= row < n:
        raise ValueError(f"there is no token {row}: the result has {n}, numbered 0 to {n - 1}")
    if not 1 <= count < n:
        raise ValueError(f"{count} neighbours were asked for: give 1 to {n - 1}, fewer than the {n} tokens")
    of = _resolved if rows == "resolved" else _paper
    whole, halves, length = of(result, row, standardisation or {})
    order = [_nearest_first(own, row) for own in (whole, *halves)]
    place = np.empty((len(halves), n), dtype=np.int64)
    for ranks, own in zip(place, order[1:], strict=True):
        ranks[own] = np.arange(1, n)
    found = [
        Neighbour(int(i), float(whole[i]), tuple(float(own[i]) for own in halves), tuple(place[:, i].tolist()))
        for i in order[0][:count]
    ]
    both = [set(own[:count].tolist()) for own in order[1:]]
    return NearTokens(
        row=row,
        rows=rows,
        neighbours=tuple(found),
        typical=float(np.median(np.delete(whole, row))),
        length=length,
        shared=len(both[0] & both[1]) / count if both else float("nan"),
        chance=count / (n - 1),
    )


Distances = tuple[Float[ndarray, " n"], list[Float[ndarray, " n"]], float]
"""From one token to all by everything, and by either half; the length of its row."""


def _resolved(result, row: int, _) -> Distances:
    """1 - cosine. One half of the channels is read at a time: inner products of the whole are the mean of the halves'.

    A row of zeros is orthogonal to all others.
    """
    products, squares = [], []
    for half in range(result.sizes.get("half", 1)):
        own = rows_of(result, halves=[half])
        products.append(own @ own[row])
        squares.append(np.einsum("ij,ij->i", own, own))
    square = np.mean(squares, axis=0, dtype=np.float64)
    if not square[row]:
        raise ValueError(f"nothing that was measured moves the loss of token {row}: its row has no direction")
    whole, *halves = (
        1 - _over(product.astype(np.float64), np.sqrt(own * own[row]))
        for product, own in ((np.mean(products, axis=0), square), *zip(products, squares, strict=True))
    )
    return whole, halves if len(halves) == 2 else [], float(np.sqrt(square[row] / square.mean()))


def _over(product: ndarray, length: ndarray) -> ndarray:
    return np.divide(product, length, out=np.zeros_like(product), where=length > 0)


def _paper(result, row: int, standardisation: dict) -> Distances:
    """Euclidean, between the susceptibilities of all chains and of either half of them, each standardised by itself."""
    vectors = standardise(result["susceptibility"].values, **standardisation)
    halves = []
    if "half_susceptibility" in result:
        of_halves = result["half_susceptibility"].sel(estimator=result.attrs["estimator"]).isel(block=-1)
        halves = [standardise(of_halves.isel(half=h).values, **standardisation) for h in (0, 1)]
    square = (vectors**2).sum(axis=1)
    whole, *parts = (np.linalg.norm(own - own[row], axis=1) for own in (vectors, *halves))
    return whole, parts, float(np.sqrt(square[row] / square.mean()))


def _nearest_first(distances: Float[ndarray, " n"], row: int) -> Int[ndarray, " others"]:
    order = np.argsort(distances, kind="stable")
    return order[order != row]
