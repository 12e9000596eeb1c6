"""Modes: bases, identities to rounding, what relabelling leaves alone, what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from spectrolib import modes
from spectrolib.estimator import CovarianceSums, one_chain, two_chain
from spectrolib.exact import enumerable, quadratic
from spectrolib.posterior import Settings

EXACT = dict(rtol=0, atol=1e-10)
SHAPES = st.tuples(st.integers(1, 7), st.integers(1, 7))
PRODUCTS = st.sampled_from(modes.TOKEN_PRODUCTS)


@st.composite
def tables(draw):
    """Joint tables: dense, of low rank, with degenerate singular values, with impossible pairs."""
    (contexts, tokens), kind = draw(SHAPES), draw(st.sampled_from(["dense", "low rank", "equal", "holes"]))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    if kind == "equal":  # identity blocks repeated: singular values come in groups
        table = np.eye(max(contexts, tokens))[:contexts, :tokens] + 0.25
    elif kind == "low rank":
        table = rng.random((contexts, 2)) @ rng.random((2, tokens)) + 0.1
    else:
        table = rng.random((contexts, tokens)) + 0.05
    if kind == "holes":  # every row and column keeps some mass
        table *= rng.random(table.shape) < 0.5
        table[np.arange(contexts), np.arange(contexts) % tokens] += 0.3
        table[np.arange(tokens) % contexts, np.arange(tokens)] += 0.3
    return table / table.sum()


def random_table(seed: int, contexts: int = 6, tokens: int = 5) -> np.ndarray:
    table = np.random.default_rng(seed).random((contexts, tokens)) + 0.05
    return table / table.sum()


def random_chi(q: np.ndarray, seed: int, components: int = 3) -> np.ndarray:
    """Any function of (x, y) with mean zero under q, for each component."""
    raw = np.random.default_rng(seed).normal(size=(*q.shape, components))
    return raw - np.einsum("xy,xyc->c", q, raw)


# Bases


@given(tables(), PRODUCTS, st.booleans())
def test_bases_are_orthonormal_in_both_inner_products(q, product, completion):
    m = modes.decompose(q, completion, product)
    np.testing.assert_allclose(m.v.T @ (m.context_probability[:, None] * m.v), np.eye(m.v.shape[1]), **EXACT)
    np.testing.assert_allclose(m.u.T @ (m.token_weight[:, None] * m.u), np.eye(m.u.shape[1]), **EXACT)
    assert m.complete if completion else m.v.shape[1] == m.u.shape[1] == m.rank == len(m.s)
    np.testing.assert_array_equal(m.token_weight, 1 if product == "plain" else q.sum(0))


@given(tables(), PRODUCTS, st.booleans())
def test_modes_give_the_table_back(q, product, completion):
    m = modes.decompose(q, completion, product)
    np.testing.assert_allclose(m.conditional(), q / q.sum(1, keepdims=True), **EXACT)
    assert (np.diff(m.s) <= modes.EQUAL).all()
    assert m.rank == np.linalg.matrix_rank(q, tol=1e-10)
    if product == "weighted":  # the trivial mode: constants on both sides
        assert m.s[0] == pytest.approx(1)
        assert m.s.max() <= 1 + 1e-12


def test_plain_singular_values_are_those_of_the_definition():
    """K* K on token functions has the matrix Σ_x q(x) q(y|x) q(y'|x); its eigenvalues are s²."""
    q = random_table(0)
    given_x = q / q.sum(1, keepdims=True)
    eigenvalues = np.linalg.eigvalsh((given_x * q.sum(1)[:, None]).T @ given_x)[::-1]
    np.testing.assert_allclose(modes.decompose(q).s ** 2, eigenvalues, **EXACT)


def test_weighted_singular_values_give_the_mean_square_contingency():
    """Σ_{a>0} s_a² = Σ q² / (q_x q_y) - 1, Pearson's φ² of the table."""
    q = random_table(1)
    phi = (q**2 / np.outer(q.sum(1), q.sum(0))).sum() - 1
    assert (modes.decompose(q, tokens="weighted").s[1:] ** 2).sum() == pytest.approx(phi, rel=1e-12)


# The proposition


@given(tables(), PRODUCTS, st.integers(0, 10**6))
def test_reconstruction_is_exact(q, product, seed):
    m, chi = modes.decompose(q, tokens=product), random_chi(q, seed)
    pair = modes.pair_susceptibilities(chi, m)
    scale = 1 + np.abs(chi).max()
    np.testing.assert_allclose(modes.reconstruct(pair, m), chi, rtol=0, atol=1e-10 * scale)
    k = len(m.s)
    np.testing.assert_allclose(m.s @ np.diagonal(pair[:k, :k], axis1=0, axis2=1).T, 0, **EXACT)  # E_q χ = 0


@given(tables(), PRODUCTS, st.integers(0, 10**6))
def test_uncentred_covariances_reconstruct_the_same_susceptibilities(q, product, seed):
    """From -Cov(φ, l_xy), with any mean under q: the term s_a δ_ab subtracts it, so E_q χ = 0 comes out."""
    m = modes.decompose(q, tokens=product)
    raw = np.random.default_rng(seed).normal(size=q.shape)
    chi = modes.reconstruct(modes.pair_susceptibilities(raw, m), m)
    np.testing.assert_allclose(chi, raw - (q * raw).sum(), **EXACT)
    np.testing.assert_allclose((q * chi).sum(), 0, **EXACT)


@pytest.mark.parametrize("product", modes.TOKEN_PRODUCTS)
def test_agreement_with_brute_force_sums(product):
    q = random_table(2, contexts=4, tokens=3)
    m, chi = modes.decompose(q, tokens=product), random_chi(q, 3)
    weight = np.ones(3) if product == "plain" else q.sum(0)
    pair = np.zeros((4, 3, 3))
    back = np.zeros((4, 3, 3))
    c = modes.coefficients(m)
    for a in range(4):
        for b in range(3):
            for x in range(4):
                for y in range(3):
                    pair[a, b] += q[x].sum() * weight[y] * m.v[x, a] * m.u[y, b] * chi[x, y]
    for x in range(4):
        for y in range(3):
            for a in range(4):
                for b in range(3):
                    assert c[x, y, a, b] == pytest.approx(m.v[x, a] * m.u[y, b], abs=1e-15)
                    back[x, y] += (c[x, y, a, b] - (m.s[a] if a == b else 0)) * pair[a, b]
    np.testing.assert_allclose(modes.pair_susceptibilities(chi, m), pair, **EXACT)
    np.testing.assert_allclose(modes.reconstruct(pair, m), back, **EXACT)


@given(tables(), PRODUCTS, st.integers(0, 10**6))
def test_mean_loss_is_the_trace_against_the_singular_values(q, product, seed):
    """L = Σ_a s_a l_aa, for every draw; and losses come back from their mode pairs."""
    m = modes.decompose(q, tokens=product)
    losses = np.random.default_rng(seed).random((4, *q.shape))
    pair = modes.pair_losses(losses, m)
    k = len(m.s)
    np.testing.assert_allclose(np.einsum("a,naa->n", m.s, pair[:, :k, :k]), (losses * q).sum((1, 2)), **EXACT)
    np.testing.assert_allclose(np.einsum("xyab,nab->nxy", modes.coefficients(m), pair), losses, **EXACT)


@pytest.mark.parametrize("product", modes.TOKEN_PRODUCTS)
@pytest.mark.parametrize("draws", [2, 7])
def test_the_proposition_holds_for_finite_draws_of_the_estimator(product, draws):
    """Both estimators, from a few draws of real chains: χ̂ of l_ab reconstructs χ̂ of l_xy - L."""
    toy = enumerable.Toy.random(seed=1, contexts=5, tokens=4)
    settings = Settings(nbeta=30.0, gamma=4.0, step_size=0.04, preconditioner="none", draws=draws, burn_in=20)
    m = modes.decompose(toy.joint, tokens=product)
    tokenwise, pairwise = {}, {}
    for block in ("out", "full"):
        walk = quadratic.walk(toy.potential(block), settings, np.zeros(len(toy.BLOCKS[block])), 1, name=block)[:, 0]
        losses = toy.losses(toy.place(block, torch.as_tensor(walk))).numpy()
        rise, excess = enumerable.rise_and_excess(toy, losses)
        tokenwise[block], pairwise[block] = CovarianceSums(), CovarianceSums()
        for g, d, l in zip(rise, excess, modes.pair_losses(losses, m), strict=True):
            tokenwise[block].update(g, d.ravel())
            pairwise[block].update(g, l.ravel())
    for estimate in (lambda sums: one_chain(sums["out"]), lambda sums: two_chain(sums["out"], sums["full"])):
        chi = estimate(tokenwise).reshape(toy.joint.shape)
        pair = estimate(pairwise).reshape(m.v.shape[1], m.u.shape[1])
        assert np.abs(chi).max() > 1e-6
        np.testing.assert_allclose(modes.reconstruct(pair, m), chi, **EXACT)


# Relabelling, and what is not identified


@pytest.mark.parametrize("product", modes.TOKEN_PRODUCTS)
@given(st.integers(0, 10**6), st.permutations(range(6)), st.permutations(range(5)))
def test_relabelling_contexts_and_tokens_relabels_the_modes(product, seed, contexts, tokens):
    q = random_table(seed)
    m = modes.decompose(q, tokens=product)
    other = modes.decompose(q[contexts][:, tokens], tokens=product)
    np.testing.assert_allclose(other.s, m.s, **EXACT)
    chi = random_chi(q, seed)
    pair = modes.pair_susceptibilities(chi, m)
    relabelled = modes.pair_susceptibilities(chi[contexts][:, tokens], other)
    if np.diff(m.s, append=0).max() < -1e-4:  # vectors of nearly equal values turn with rounding
        np.testing.assert_allclose(other.v[:, :5], m.v[contexts][:, :5], rtol=0, atol=1e-9)
        np.testing.assert_allclose(other.u, m.u[tokens], rtol=0, atol=1e-9)
        for leading in (1, 3, 5):
            assert modes.energy(relabelled, leading).block == pytest.approx(modes.energy(pair, leading).block)


@given(st.integers(0, 10**6), PRODUCTS)
def test_the_basis_of_a_group_depends_on_the_table_alone(seed, product):
    """Turning the vectors of a degenerate group, as another SVD routine might, changes nothing in the result."""
    rng = np.random.default_rng(seed)
    space = np.linalg.qr(rng.normal(size=(6, 3)))[0]
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    first = space @ modes._canonical(space)
    second = space @ turn @ modes._canonical(space @ turn)
    np.testing.assert_allclose(first, second, rtol=0, atol=1e-8)
    np.testing.assert_allclose(first.T @ first, np.eye(3), **EXACT)


def test_degenerate_groups_are_reported():
    q = np.eye(4) / 4
    m = modes.decompose(q)
    assert m.groups == [range(0, 4)]
    np.testing.assert_allclose(m.v / 2, np.eye(4), **EXACT)  # the coordinate axes, each with the sign plus
    np.testing.assert_allclose(m.u, np.eye(4), **EXACT)
    two = np.kron(np.diag([0.3, 0.2]), np.eye(2))
    assert modes.decompose(two / two.sum(), tokens="weighted").groups == [range(0, 4)]
    assert modes.decompose(random_table(5)).groups == [range(i, i + 1) for i in range(5)]
    flat = np.full((3, 4), 1 / 12)
    assert modes.decompose(flat).rank == 1
    assert modes.decompose(flat).groups == [range(0, 1), range(1, 3)]


def test_sign_makes_the_largest_token_entry_positive():
    m = modes.decompose(random_table(6))
    assert (m.u[np.abs(m.u).argmax(0), np.arange(5)] > 0).all()


# Energy, map, bound


@given(tables(), PRODUCTS, st.integers(0, 10**6))
def test_energy_is_parsevals_sum(q, product, seed):
    m, chi = modes.decompose(q, tokens=product), random_chi(q, seed)
    if not chi.any():  # a table of one pair
        return
    pair = modes.pair_susceptibilities(chi, m)
    largest = max(pair.shape[:2])
    parts = modes.energy(pair, largest)
    weight = np.outer(m.context_probability, m.token_weight)
    assert parts.total == pytest.approx((weight[:, :, None] * chi**2).sum(), rel=1e-9, abs=1e-20)
    assert parts.block == pytest.approx(1)
    assert parts.diagonal == parts.leading_diagonal
    blocks = [modes.energy(pair, k).block for k in range(1, largest + 1)]
    assert (np.diff(blocks) >= -1e-12).all()


def test_energy_of_a_known_matrix():
    pair = np.array([[2.0, 1.0], [0.0, 3.0], [1.0, 1.0]])
    assert modes.energy(pair, 1) == pytest.approx((16.0, 4 / 16, 13 / 16, 4 / 16))
    assert modes.energy(pair, 2).block == pytest.approx(14 / 16)


@given(tables(), PRODUCTS, st.integers(0, 10**6), st.sampled_from([None, "center"]))
def test_vectors_are_a_linear_image_of_coefficients_and_obey_the_bound(q, product, seed, rows):
    m, chi = modes.decompose(q, tokens=product), random_chi(q, seed)
    scale = np.array([0.5, 2.0, 3.0])
    eta = chi / scale - 7.0
    eta = eta - eta.mean(-1, keepdims=True) if rows == "center" else eta
    response = modes.response_map(modes.pair_susceptibilities(chi, m), scale, rows)
    c, flat = modes.coefficients(m), modes.coefficients(m).reshape(*q.shape, -1)
    for x, y in np.ndindex(q.shape):
        step, image = flat[x, y] - flat[0, 0], eta[x, y] - eta[0, 0]
        np.testing.assert_allclose(response @ step, image, rtol=0, atol=1e-9)
        assert step @ response.T @ response @ step == pytest.approx(image @ image, rel=1e-8, abs=1e-8)
    far = modes.bound(response, c, c[0, 0])
    assert (np.linalg.norm(eta - eta[0, 0], axis=-1) <= far * (1 + 1e-9) + 1e-9).all()


def test_the_bound_is_attained():
    response = np.array([[3.0, 0.0], [0.0, 1.0]])
    assert modes.bound(response, np.array([[2.0, 0.0]]), np.zeros((1, 2))) == pytest.approx(6.0)


def test_complete_coefficients_of_different_tokens_are_orthogonal():
    """So their distance knows nothing of reasons, as `bound` says."""
    q = random_table(8)
    for product in modes.TOKEN_PRODUCTS:
        m = modes.decompose(q, tokens=product)
        flat = modes.coefficients(m).reshape(q.size, -1)
        length = 1 / np.outer(m.context_probability, m.token_weight).ravel()
        np.testing.assert_allclose(flat @ flat.T, np.diag(length), rtol=1e-9, atol=1e-9)


def test_chosen_pairs_and_leading_blocks_are_parts_of_all_coefficients():
    m = modes.decompose(random_table(9))
    c = modes.coefficients(m)
    np.testing.assert_array_equal(modes.coefficients(m, leading=2), c[:, :, :2, :2])
    np.testing.assert_array_equal(modes.pair_coefficients(m, [3, 0], [1, 1], leading=3), c[[3, 0], [1, 1], :3, :3])


# A corpus


def sequences(seed: int, windows: int = 60, length: int = 40, vocabulary: int = 9) -> np.ndarray:
    """A Markov chain, so that tables of suffixes have structure."""
    rng = np.random.default_rng(seed)
    step = rng.dirichlet(np.full(vocabulary, 0.3), size=vocabulary)
    ids = rng.integers(vocabulary, size=(windows, length))
    for t in range(1, length):
        ids[:, t] = [rng.choice(vocabulary, p=step[i]) for i in ids[:, t - 1]]
    return ids


def test_suffix_counts_are_counts():
    ids = np.array([[5, 7, 5, 7, 9], [7, 9, 9, 5, 7]])
    counts, contexts, tokens = modes.suffix_counts(ids, 2)
    expected = {}
    for row in ids:
        for t in range(3):
            key = (*row[t : t + 2], row[t + 2])
            expected[key] = expected.get(key, 0) + 1
    found = {(*contexts[i], tokens[j]): n for i, j, n in zip(*sparse.find(counts), strict=True)}
    assert found == expected
    assert counts.sum() == 6


@pytest.mark.parametrize("product", modes.TOKEN_PRODUCTS)
def test_corpus_modes_are_the_leading_modes_of_the_dense_table(product):
    ids = sequences(0)
    found = modes.corpus_modes(ids, modes=5, tokens=product)
    counts, contexts, tokens = modes.suffix_counts(ids)
    dense = counts.toarray()
    m = modes.decompose(dense / dense.sum(), tokens=product)
    np.testing.assert_allclose(found.modes.s, m.s[:5], **EXACT)
    np.testing.assert_allclose(found.modes.v, m.v[:, :5], rtol=0, atol=1e-8)
    np.testing.assert_allclose(found.modes.u, m.u[:, :5], rtol=0, atol=1e-8)
    np.testing.assert_array_equal(found.contexts, contexts)
    np.testing.assert_array_equal(found.tokens, tokens)
    assert found.kept == 1
    again = modes.corpus_modes(counts, modes=5, tokens=product)  # from counts, and bit for bit
    np.testing.assert_array_equal(again.modes.v, found.modes.v)


def test_rare_contexts_and_tokens_can_be_left_out():
    ids = sequences(1)
    ids[0, :4] = [20, 21, 20, 21]  # two tokens seen three times at most
    found = modes.corpus_modes(ids, modes=3, min_count=4)
    assert not {20, 21} & {*found.tokens, *found.contexts.ravel()}
    assert 0.99 < found.kept < 1
    small = modes.corpus_modes(ids, modes=3, max_contexts=5, max_tokens=4)
    assert small.modes.v.shape == (5, 3)
    assert small.modes.u.shape == (4, 3)
    frequency = np.bincount(ids[:, :-1].ravel())
    assert {*small.contexts.ravel()} == {*np.argsort(-frequency, kind="stable")[:5]}
    np.testing.assert_allclose(small.modes.context_probability.sum(), 1, **EXACT)


def test_what_is_seen_as_often_as_asked_for_is_kept():
    counts = sparse.csr_array([[4.0, 2.0, 0.0, 0.0], [1.0, 0.0, 3.0, 0.0], [0.0, 1.0, 2.0, 0.0], [0.0, 0.0, 0.0, 2.0]])
    found = modes.corpus_modes(counts, modes=2, min_count=3)  # contexts 6, 4, 3, 2 times; tokens 5, 3, 5, 2 times
    assert found.contexts.ravel().tolist() == found.tokens.tolist() == [0, 1, 2]
    assert found.kept == pytest.approx(13 / 15)


# Refusals


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (np.full(4, 0.25), r"shape \(contexts, tokens\), got \(4,\)"),
        (np.zeros((0, 3)), r"shape \(contexts, tokens\)"),
        (np.array([[0.6, 0.5], [0.1, -0.2]]), "none negative"),
        (np.array([[np.nan, 0.5], [0.25, 0.25]]), "finite numbers"),
        (np.array([[3.0, 1.0], [2.0, 2.0]]), "sums to one, this one to 8: divide counts"),
        (np.array([[0.5, 0.5], [0.0, 0.0]]), r"contexts \[1\] have probability zero"),
    ],
)
def test_tables_that_are_no_distributions_are_refused(table, message):
    with pytest.raises(ValueError, match=message):
        modes.decompose(table)


def test_a_token_of_probability_zero_has_modes_only_where_it_has_a_weight():
    q = np.array([[0.5, 0.0, 0.2], [0.1, 0.0, 0.2]])
    m = modes.decompose(q)
    np.testing.assert_allclose(m.conditional(), q / q.sum(1, keepdims=True), **EXACT)
    with pytest.raises(ValueError, match=r"tokens \[1\] have probability zero.*plain"):
        modes.decompose(q, tokens="weighted")


def test_what_does_not_fit_is_refused():
    m = modes.decompose(random_table(10))
    with pytest.raises(ValueError, match="'plain' or 'weighted', got 'log'"):
        modes.decompose(random_table(10), tokens="log")
    with pytest.raises(ValueError, match=r"\(6, 5\) of the modes, got \(5, 6\)"):
        modes.pair_susceptibilities(np.zeros((5, 6)), m)
    with pytest.raises(ValueError, match="must be finite"):
        modes.pair_susceptibilities(np.full((6, 5), np.inf), m)
    with pytest.raises(ValueError, match=r"\(6, 5\) of the modes, got \(6, 6\)"):
        modes.pair_losses(np.zeros((2, 6, 6)), m)
    with pytest.raises(ValueError, match=r"\(6, 5\) of the modes, got \(5, 5\)"):
        modes.reconstruct(np.zeros((5, 5)), m)
    with pytest.raises(ValueError, match="between 1 and 6, got 0"):
        modes.energy(np.ones((6, 5)), 0)
    with pytest.raises(ValueError, match="no energy to divide"):
        modes.energy(np.zeros((6, 5)), 1)
    with pytest.raises(ValueError, match=r"do not fit a map of 4 pairs"):
        modes.bound(np.ones((2, 4)), np.ones((3, 3)), np.ones((3, 3)))
    with pytest.raises(ValueError, match="three axes"):
        modes.response_map(np.ones((6, 5)))
    wide = replace(m, v=np.ones((4000, 200)), u=np.ones((2000, 100)))
    with pytest.raises(ValueError, match="give leading="):
        modes.coefficients(wide)


def test_corpora_that_do_not_fit_are_refused():
    ids = sequences(2)
    with pytest.raises(ValueError, match="must be integers"):
        modes.corpus_modes(ids.astype(float))
    with pytest.raises(ValueError, match="suffix must lie between 1 and 39"):
        modes.corpus_modes(ids, suffix=40)
    with pytest.raises(ValueError, match=r"gives 1 to 8 modes this way, not 9"):
        modes.corpus_modes(ids, modes=9)
    with pytest.raises(ValueError, match="no context and token are left"):
        modes.corpus_modes(ids, min_count=10**6)
    with pytest.raises(ValueError, match="none negative"):
        modes.corpus_modes(sparse.csr_array([[1.0, -1.0], [2.0, 1.0]]), modes=1)
    with pytest.raises(ValueError, match="'plain' or 'weighted'"):
        modes.corpus_modes(ids, tokens="both")
