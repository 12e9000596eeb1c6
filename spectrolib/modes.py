r"""Modes of a distribution over contexts and tokens, and what susceptibilities look like in them.

A finite joint table q(x, y) is an operator from functions of the context to functions of the token. Its singular value
decomposition

    q(y|x) = m(y) Σ_a s_a v_a(x) u_a(y)

is taken with contexts weighted by q(x) and tokens weighted by m(y): m = 1 (*plain*, Chen and Murfet 2025, so that
q(y|x) = Σ_a s_a v_a(x) u_a(y)) or m = q(y) (*weighted*, correspondence analysis). A *mode* is a triple (s_a, v_a, u_a).

With both sides completed to orthonormal bases, every function of (x, y) has coordinates f_ab = <f, v_a u_b>, and

    l_xy = Σ_ab v_a(x) u_b(y) l_ab,        L = E_q l_xy = Σ_a s_a l_aa,
    χ_xy = Σ_ab [ v_a(x) u_b(y) - s_a δ_ab ] χ_ab,        E_q χ_xy = 0.

The derivation uses only that χ is linear in the loss. So it holds for every component and for both estimators, and it
is exact for finite draws. The derivation is ours; the wording of the paper's own theorem is not known to us.

Some of this the table does *not identify*: the basis inside a group of equal singular values, the completing functions
(where s = 0), and signs. `decompose` fixes them by a rule that depends on the table alone (`_canonical`). Sums over a
whole group do not depend on that rule; single coefficients inside a group do.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray
from scipy import sparse
from scipy.sparse.linalg import svds

TokenProduct = Literal["plain", "weighted"]
TOKEN_PRODUCTS = ("plain", "weighted")
EQUAL = 1e-12  # singular values closer than this, relative to the largest, are one group; below it they are zero
LARGEST = 10**8  # numbers in an array of coefficients


@dataclass(frozen=True)
class Modes:
    """Modes of a table, largest singular value first. Column a of ``v`` and of ``u`` belongs to ``s[a]``.

    If the table is not square, the completed basis of its longer side has more columns than ``s`` has entries; s counts
    as zero for these.
    """

    s: Float[ndarray, " modes"]
    """Singular values; exactly 0 beyond the rank."""
    v: Float[ndarray, "contexts context_modes"]
    """Context functions, Σ_x q(x) v_a(x) v_b(x) = δ_ab."""
    u: Float[ndarray, "tokens token_modes"]
    """Token functions, Σ_y m(y) u_a(y) u_b(y) = δ_ab."""
    context_probability: Float[ndarray, " contexts"]
    """q(x)."""
    token_probability: Float[ndarray, " tokens"]
    """q(y)."""
    tokens: TokenProduct
    """Which inner product tokens have: ``plain`` (m = 1) or ``weighted`` (m = q(y))."""

    @property
    def token_weight(self) -> Float[ndarray, " tokens"]:
        """m(y)."""
        return np.ones_like(self.token_probability) if self.tokens == "plain" else self.token_probability

    @property
    def rank(self) -> int:
        """Modes with s > 0."""
        return int((self.s > 0).sum())

    @property
    def complete(self) -> bool:
        """Whether ``v`` and ``u`` are bases of all functions of the context and of the token."""
        return self.v.shape[0] == self.v.shape[1] and self.u.shape[0] == self.u.shape[1]

    @property
    def groups(self) -> list[range]:
        """Runs of modes with equal singular values. The table identifies the span of a run, not its single modes."""
        cuts = np.flatnonzero(-np.diff(self.s) > EQUAL * self.s[0]) + 1
        return [range(a, b) for a, b in itertools.pairwise([0, *cuts.tolist(), len(self.s)])]

    def conditional(self, leading: int | None = None) -> Float[ndarray, "contexts tokens"]:
        """q(y|x) as m(y) Σ_a s_a v_a(x) u_a(y), over the ``leading`` modes or all of them."""
        k = len(self.s) if leading is None else min(leading, len(self.s))
        return (self.v[:, :k] * self.s[:k]) @ self.u[:, :k].T * self.token_weight


# ---- the decomposition


def decompose(
    joint: Float[ndarray, "contexts tokens"], completion: bool = True, tokens: TokenProduct = "plain"
) -> Modes:
    """Modes of a joint table q(x, y).

    Args:
        joint: probabilities, which sum to 1.
        completion: whether to complete ``v`` and ``u`` to bases of all functions, which the identities of this module
            need. Otherwise only modes with s > 0 are returned.
        tokens: inner product of token functions, ``plain`` or ``weighted`` (module docstring).

    Raises:
        ValueError: a table that is not two-dimensional, holds negative or non-finite numbers, or does not sum to one; a
            context of probability zero, where q(y|x) does not exist; with ``weighted``, a token of probability zero; an
            unknown ``tokens``.
    """
    q = _checked(joint, tokens)
    contexts, words = q.sum(1), q.sum(0)
    root_x, root_m = np.sqrt(contexts), np.sqrt(words) if tokens == "weighted" else np.ones_like(words)
    left, s, right = np.linalg.svd(q / root_x[:, None] / root_m, full_matrices=completion)
    s, v, u = _canonical_pair(s, left, right.T)
    if not completion:
        rank = int((s > 0).sum())
        s, v, u = s[:rank], v[:, :rank], u[:, :rank]
    return Modes(s, v / root_x[:, None], u / root_m[:, None], contexts, words, tokens)


def _checked(joint: ndarray, tokens: TokenProduct) -> Float[ndarray, "contexts tokens"]:
    if tokens not in TOKEN_PRODUCTS:
        raise ValueError(f"tokens must be 'plain' or 'weighted', got {tokens!r}")
    q = np.asarray(joint, dtype=np.float64)
    if q.ndim != 2 or 0 in q.shape:
        raise ValueError(f"a joint table has shape (contexts, tokens), got {q.shape}")
    if not np.isfinite(q).all() or (q < 0).any():
        raise ValueError("a joint table holds probabilities: finite numbers, none negative")
    if abs(q.sum() - 1) > 1e-10:
        raise ValueError(f"a joint table sums to one, this one to {q.sum():.12g}: divide counts by their sum (float64)")
    _require_mass(q.sum(1), q.sum(0), tokens)
    return q


def _require_mass(contexts: ndarray, words: ndarray, tokens: TokenProduct) -> None:
    if (contexts <= 0).any():
        where = np.flatnonzero(contexts <= 0)[:10].tolist()
        raise ValueError(f"contexts {where} have probability zero, and no q(y|x): leave these rows out")
    if tokens == "weighted" and (words <= 0).any():
        where = np.flatnonzero(words <= 0)[:10].tolist()
        raise ValueError(f"tokens {where} have probability zero, and no weight: leave them out, or use tokens='plain'")


def _canonical_pair(s: ndarray, left: ndarray, right: ndarray) -> tuple[ndarray, ndarray, ndarray]:
    """The same decomposition with signs and the bases inside groups fixed by `_canonical`.

    Left and right vectors of a group turn together. Those with s = 0 are not tied to each other, so each side turns by
    itself.
    """
    s = np.where(s > EQUAL * s[0], s, 0.0)
    left, right = left.copy(), right.copy()
    rank = int((s > 0).sum())
    cuts = np.flatnonzero(-np.diff(s[:rank]) > EQUAL * s[0]) + 1
    for group in np.split(np.arange(rank), cuts):
        turn = _canonical(right[:, group])
        left[:, group], right[:, group] = left[:, group] @ turn, right[:, group] @ turn
    for side in (left, right):
        if side.shape[1] > rank:
            side[:, rank:] = side[:, rank:] @ _canonical(side[:, rank:])
    return s, left, right


def _canonical(basis: Float[ndarray, "rows k"]) -> Float[ndarray, "k k"]:
    """The rotation to the basis of the same space whose first vector is nearest to a coordinate axis, and so on.

    Pivoted Gram-Schmidt on the projector B Bᵀ: take the row of largest norm, the first of those that tie; the vector
    along it is positive there; project it out; repeat. For a single column this fixes the sign: the largest entry is
    positive. The result depends on the space alone, not on the basis it came in.
    """
    rows, turn = basis.copy(), []
    for _ in range(basis.shape[1]):
        norms = (rows**2).sum(1)
        pivot = rows[np.argmax(norms >= norms.max() * (1 - 1e-9))]
        turn.append(pivot / np.linalg.norm(pivot))
        rows -= np.outer(rows @ turn[-1], turn[-1])
    turned, upper = np.linalg.qr(np.stack(turn, axis=1))  # removes what rounding has left of non-orthogonality
    return turned * np.sign(np.diag(upper))


# ---- coordinates: functions of (context, token) in the modes


def coefficients(modes: Modes, leading: int | None = None) -> Float[ndarray, "contexts tokens a b"]:
    """c_ab(xy) = v_a(x) u_b(y) of every token in context, for all mode pairs or the ``leading`` x ``leading`` block.

    Raises:
        ValueError: if the array would hold more than 10^8 numbers; use `pair_coefficients`, or fewer modes.
    """
    v, u = modes.v[:, :leading], modes.u[:, :leading]
    if v.size * u.size > LARGEST:
        raise ValueError(
            f"all coefficients would be {v.size * u.size:.2g} numbers: give leading=, or use pair_coefficients"
        )
    return np.einsum("xa,yb->xyab", v, u)


def pair_coefficients(
    modes: Modes, contexts: Int[ndarray, " pairs"], tokens: Int[ndarray, " pairs"], leading: int | None = None
) -> Float[ndarray, "pairs a b"]:
    """c_ab(xy) of chosen pairs: row i is for context ``contexts[i]`` with token ``tokens[i]`` (row and column of q)."""
    return np.einsum("na,nb->nab", modes.v[contexts, :leading], modes.u[tokens, :leading])


def pair_losses(losses: Float[ndarray, "*draws contexts tokens"], modes: Modes) -> Float[ndarray, "*draws a b"]:
    """Mode-pair losses l_ab = Σ_xy q(x) m(y) v_a(x) u_b(y) l_xy, for each draw.

    Raises:
        ValueError: if the last two axes do not fit the modes.
    """
    losses = np.asarray(losses, dtype=np.float64)
    _require_shape("losses", losses.shape[-2:], modes)
    return (modes.v * modes.context_probability[:, None]).T @ losses @ (modes.u * modes.token_weight[:, None])


def pair_susceptibilities(
    chi: Float[ndarray, "contexts tokens *components"], modes: Modes
) -> Float[ndarray, "a b *components"]:
    """Mode-pair susceptibilities χ_ab = Σ_xy q(x) m(y) v_a(x) u_b(y) χ_xy.

    For ``chi`` = -Cov(φ, l_xy) the result is χ_ab = -Cov(φ, l_ab). Susceptibilities are χ_xy = -Cov(φ, l_xy - L), which
    differ from it by the same constant for every pair. Then the result differs by the coordinates of a constant
    function, and satisfies Σ_a s_a χ_aa = E_q χ_xy = 0. `reconstruct` gives χ_xy from either.

    Raises:
        ValueError: if the shape does not fit the modes, or a value is not finite.
    """
    chi = np.asarray(chi, dtype=np.float64)
    _require_shape("susceptibilities", chi.shape[:2], modes)
    if not np.isfinite(chi).all():
        raise ValueError("susceptibilities must be finite")
    v, u = modes.v * modes.context_probability[:, None], modes.u * modes.token_weight[:, None]
    return np.einsum("xa,yb,xy...->ab...", v, u, chi, optimize=True)


def _require_shape(what: str, shape: tuple[int, ...], modes: Modes) -> None:
    wanted = (len(modes.v), len(modes.u))
    if tuple(shape) != wanted:
        raise ValueError(f"{what} need the axes (contexts, tokens) = {wanted} of the modes, got {tuple(shape)}")


def reconstruct(pair: Float[ndarray, "a b *components"], modes: Modes) -> Float[ndarray, "contexts tokens *components"]:
    """χ_xy = Σ_ab [ v_a(x) u_b(y) - s_a δ_ab ] χ_ab.

    Exact for complete modes. With fewer, it is the part of χ that the given mode pairs carry.

    Raises:
        ValueError: if ``pair`` does not have the modes' numbers of context and token functions.
    """
    pair = np.asarray(pair, dtype=np.float64)
    wanted = (modes.v.shape[1], modes.u.shape[1])
    if pair.shape[:2] != wanted:
        raise ValueError(f"mode-pair values need the axes (a, b) = {wanted} of the modes, got {pair.shape[:2]}")
    k = len(modes.s)
    mean = np.einsum("a,aa...->...", modes.s, pair[:k, :k])
    return np.einsum("xa,yb,ab...->xy...", modes.v, modes.u, pair, optimize=True) - mean


class Energy(NamedTuple):
    """How the energy Σ_ab χ_ab² = Σ_xy q(x) m(y) χ_xy², summed over components, is spread over mode pairs.

    The last three fields are fractions of ``total``.
    """

    total: float
    block: float
    """Fraction in the leading block."""
    diagonal: float
    """Fraction on the whole diagonal."""
    leading_diagonal: float
    """Fraction on the diagonal of the leading block."""


def energy(pair: Float[ndarray, "a b *components"], leading: int) -> Energy:
    """Energy of mode-pair susceptibilities, in the ``leading`` x ``leading`` block and on the diagonal.

    Inside a group of equal singular values the energy on the diagonal depends on the basis that `decompose` chose. The
    energy of a block does not, as long as its edge does not fall inside a group.

    Raises:
        ValueError: if ``leading`` is not between 1 and the number of modes, or all values vanish.
    """
    square = np.asarray(pair, dtype=np.float64) ** 2
    square = square.reshape(*square.shape[:2], -1).sum(-1)
    if not 1 <= leading <= max(square.shape):
        raise ValueError(f"leading must lie between 1 and {max(square.shape)}, got {leading}")
    total = square.sum()
    if total == 0:
        raise ValueError("all mode-pair susceptibilities vanish: there is no energy to divide")
    block, diagonal = square[:leading, :leading].sum(), np.diag(square)
    return Energy(float(total), float(block / total), diagonal.sum() / total, diagonal[:leading].sum() / total)


# ---- close coefficients, close vectors


def response_map(
    pair: Float[ndarray, "a b components"],
    scale: Float[ndarray, " components"] | None = None,
    rows: Literal["center"] | None = None,
) -> Float[ndarray, "components pairs"]:
    """The linear map M from mode-pair coefficients to standardised rows: η(xy) - η(x'y') = M (c(xy) - c(x'y')).

    η(xy) is the row of a token over components, c(xy) its coefficients flattened with b running fastest.

    Args:
        pair: mode-pair susceptibilities (`pair_susceptibilities`).
        scale: the standard deviation over tokens by which each column was divided when it was standardised. (The mean
            that the z-score subtracts cancels in differences.)
        rows: ``center`` if rows were centred over components.

    Raises:
        ValueError: if ``pair`` does not have the three axes (a, b, components).
    """
    pair = np.asarray(pair, dtype=np.float64)
    if pair.ndim != 3:
        raise ValueError(f"mode-pair susceptibilities of several components have three axes, got shape {pair.shape}")
    response = pair.reshape(-1, pair.shape[-1]).T
    if scale is not None:
        response = response / np.asarray(scale)[:, None]
    return response - response.mean(axis=0) if rows == "center" else response


def bound(
    response: Float[ndarray, "components pairs"], c: Float[ndarray, "*n a b"], other: Float[ndarray, "*n a b"]
) -> Float[ndarray, "*n"]:
    """An upper bound on the distance |η(xy) - η(x'y')| of two rows: |M| |c - c'|, with |M| the largest singular value.

    With complete bases the bound says little: the coefficients c(xy) of different tokens in context are orthogonal, of
    length √(1/(q(x) m(y))), so all are far apart. It is informative where few mode pairs respond. Then take
    ``response`` and the coefficients over those pairs alone, and add what the other pairs contribute to the distance.

    Args:
        response: M, as from `response_map`.
        c, other: coefficients of the two tokens in context (`pair_coefficients`).

    Raises:
        ValueError: if the coefficients do not fit M.
    """
    difference = np.asarray(c, dtype=np.float64) - np.asarray(other, dtype=np.float64)
    distance = np.sqrt((difference**2).sum(axis=(-2, -1)))
    if math.prod(difference.shape[-2:]) != response.shape[1]:
        raise ValueError(f"coefficients of {difference.shape[-2:]} pairs do not fit a map of {response.shape[1]} pairs")
    return np.linalg.norm(response, 2) * distance


# ---- modes of a corpus


class CorpusModes(NamedTuple):
    """Leading modes of a corpus: a context is its last few tokens, and q(x, y) is a table of counts, normalised."""

    modes: Modes
    contexts: Int[ndarray, "contexts suffix"]
    """Token ids of each context, oldest first. Where a table of counts was given: its row number, as one column."""
    tokens: Int[ndarray, " tokens"]
    """Token id of each column. Where a table of counts was given: its column number."""
    kept: float
    """Fraction of all counts that the table holds once rare contexts and tokens are left out."""


def suffix_counts(
    ids: Int[ndarray, "windows length"], suffix: int = 1
) -> tuple[sparse.csr_array, Int[ndarray, "contexts suffix"], Int[ndarray, " tokens"]]:
    """How often each token follows each context of ``suffix`` tokens.

    Args:
        ids: token windows, as an array or as `text.corpus.Windows`.

    Returns:
        The table of counts, (contexts, tokens); the token ids of each row's context, oldest first; the token id of each
        column. Rows and columns are in ascending order of ids.

    Raises:
        ValueError: if ids are no integers of shape (windows, length), or no window is longer than the suffix.
    """
    ids = np.asarray(getattr(ids, "ids", ids))  # `Windows`, or the array
    if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"ids must be integers of shape (windows, length), got {ids.dtype} {ids.shape}")
    if not 1 <= suffix < ids.shape[1]:
        raise ValueError(f"suffix must lie between 1 and {ids.shape[1] - 1} for windows of {ids.shape[1]} tokens")
    pairs = np.lib.stride_tricks.sliding_window_view(ids, suffix + 1, axis=1).reshape(-1, suffix + 1)
    contexts, row = np.unique(pairs[:, :-1], axis=0, return_inverse=True)
    tokens, column = np.unique(pairs[:, -1], return_inverse=True)
    counts = sparse.coo_array((np.ones(len(pairs)), (row.ravel(), column)), shape=(len(contexts), len(tokens)))
    return counts.tocsr(), contexts, tokens


def corpus_modes(
    source: Int[ndarray, "windows length"] | sparse.sparray | sparse.spmatrix,
    *,
    suffix: int = 1,
    modes: int = 16,
    tokens: TokenProduct = "plain",
    min_count: int = 1,
    max_contexts: int = 100_000,
    max_tokens: int = 10_000,
    seed: int = 0,
) -> CorpusModes:
    """The leading modes of a corpus, by truncated sparse SVD (ARPACK, from a start drawn with ``seed``).

    Args:
        source: windows of token ids; or a scipy sparse table of counts, whose rows are contexts.
        suffix: how many tokens make a context.
        modes: how many modes; fewer than the table has rows and than it has columns.
        tokens: inner product of token functions. ``weighted`` divides by the frequencies of both sides, so its leading
            modes are rare pairs that occur only with each other unless ``min_count`` keeps these out.
        min_count: contexts and tokens seen less often are left out.
        max_contexts, max_tokens: only so many are kept, the most frequent.
        seed: of the vector that ARPACK starts from.

    Counts of the contexts and tokens that are kept are normalised to sum to one; ``kept`` is their fraction of all
    counts. These frequencies stand for probabilities, so modes of rare contexts are mostly noise. If the last mode
    falls inside a group of equal singular values, the modes of that group are not identified, not even their span.

    Raises:
        ValueError: for windows that are no integers (windows, length), counts that are negative or not finite, nothing
            left, as many modes as the table has rows or columns or more, or an unknown ``tokens``.
    """
    if tokens not in TOKEN_PRODUCTS:
        raise ValueError(f"tokens must be 'plain' or 'weighted', got {tokens!r}")
    if isinstance(source, sparse.sparray | sparse.spmatrix):
        counts, contexts, words = source.tocsr(), np.arange(source.shape[0])[:, None], np.arange(source.shape[1])
        if counts.nnz and (not np.isfinite(counts.data).all() or counts.data.min() < 0):
            raise ValueError("counts must be finite, none negative")
    else:
        counts, contexts, words = suffix_counts(source, suffix)
    rows, columns = _frequent(counts, min_count, max_contexts, max_tokens)
    table = counts[rows][:, columns].astype(np.float64)
    if not 1 <= modes < min(table.shape):
        raise ValueError(f"a table of {table.shape} gives 1 to {min(table.shape) - 1} modes this way, not {modes}")
    q = table / table.sum()
    probability, frequency = np.asarray(q.sum(1)).ravel(), np.asarray(q.sum(0)).ravel()
    root_x = np.sqrt(probability)
    root_m = np.sqrt(frequency) if tokens == "weighted" else np.ones_like(frequency)
    operator = sparse.diags_array(1 / root_x) @ q @ sparse.diags_array(1 / root_m)
    start = np.random.default_rng(seed).normal(size=min(operator.shape))
    left, s, right = svds(operator, k=modes, v0=start)
    order = np.argsort(-s)
    s, v, u = _canonical_pair(s[order], left[:, order], right[order].T)
    found = Modes(s, v / root_x[:, None], u / root_m[:, None], probability, frequency, tokens)
    return CorpusModes(found, contexts[rows], words[columns], float(table.sum() / counts.sum()))


def _frequent(
    counts: sparse.csr_array, min_count: int, max_contexts: int, max_tokens: int
) -> tuple[Int[ndarray, " contexts"], Int[ndarray, " tokens"]]:
    """Rows and columns to keep: the most frequent; of these, all that still have enough counts in what is kept."""
    total = (np.asarray(counts.sum(1)).ravel(), np.asarray(counts.sum(0)).ravel())
    rows = np.sort(np.argsort(-total[0], kind="stable")[:max_contexts])
    columns = np.sort(np.argsort(-total[1], kind="stable")[:max_tokens])
    enough = max(min_count, np.finfo(float).tiny)
    while True:
        table = counts[rows][:, columns]
        good_rows = np.asarray(table.sum(1)).ravel() >= enough
        good_columns = np.asarray(table.sum(0)).ravel() >= enough
        if good_rows.all() and good_columns.all():
            return rows, columns
        rows, columns = rows[good_rows], columns[good_columns]
        if 0 in (len(rows), len(columns)):
            raise ValueError(f"no context and token are left with min_count = {min_count}: lower it")
