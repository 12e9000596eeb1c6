"""Enumerable models with known parts: their formulas, their posteriors two ways, their planted structure."""

import math

import numpy as np
import pytest
import torch

from spectrolib import modes
from spectrolib.exact import enumerable, toys
from spectrolib.posterior import Settings

SETTINGS = Settings(nbeta=30.0, gamma=30.0, step_size=0.01, preconditioner="none")
TABLE = toys.planted_reasons(contexts=4)
BILINEAR = toys.Bilinear.of(TABLE)
HEAD = toys.CopyingHead.random(seed=1)
each_model = pytest.mark.parametrize("model", [BILINEAR, HEAD], ids=["bilinear", "attention"])


# Planted tables


def test_a_table_without_jitter_has_the_rank_of_its_reasons():
    for number in (1, 3, 5):
        table = toys.planted_reasons(contexts=3, reasons=number, jitter=0.0)
        assert modes.decompose(table.joint).rank == number
        assert len(table.names) == number == len(set(table.reason))
    assert modes.decompose(TABLE.joint).rank == 16


def test_contexts_show_the_tokens_of_their_reason():
    conditional = TABLE.joint / TABLE.joint.sum(1, keepdims=True)
    assert TABLE.joint.sum() == pytest.approx(1)
    for reason, words in enumerate(toys.REASONS.values()):
        own = [TABLE.tokens.index(token) for token in words]
        assert (conditional[TABLE.reason == reason][:, own].sum(1) > 0.95).all()
    shared = [token for token in TABLE.tokens if sum(token in words for words in toys.REASONS.values()) > 1]
    assert shared == [",", "."]
    assert TABLE.labels[:5] == ["brackets 1", "brackets 2", "brackets 3", "brackets 4", "digits 1"]


@pytest.mark.parametrize("options", [{"contexts": 0}, {"jitter": -1}, {"noise": 0.0}, {"noise": 1.0}])
def test_tables_that_cannot_be_planted_are_refused(options):
    with pytest.raises(ValueError, match="need contexts >= 1"):
        toys.planted_reasons(**options)


def test_there_are_only_five_reasons():
    with pytest.raises(ValueError, match="5 reasons to choose from, got reasons=6"):
        toys.planted_reasons(reasons=6)


# The models


def test_bilinear_losses_are_their_formula():
    w = np.random.default_rng(0).normal(size=16)
    f, df = BILINEAR.context_codes.transpose(1, 0, 2)
    g, dg = BILINEAR.token_codes.transpose(1, 0, 2)
    logits = np.log(TABLE.joint / TABLE.joint.sum(1, keepdims=True))
    for c in range(8):
        moved = np.outer(f[c] + w[2 * c] * df[c], g[c] + w[2 * c + 1] * dg[c])
        logits = logits + moved - np.outer(f[c], g[c])
    expected = np.log(np.exp(logits).sum(1, keepdims=True)) - logits
    np.testing.assert_allclose(BILINEAR.losses(torch.as_tensor(w)).numpy(), expected, rtol=1e-10)
    np.testing.assert_allclose(BILINEAR.joint, TABLE.joint, rtol=1e-12)
    assert BILINEAR.components == (*toys.REASONS, "common", "mixed 1", "mixed 2")


def test_attention_losses_are_their_formula():
    w, word = np.array([0.5, -0.3, 0.2]), [2, 0, 1, 2]  # the last letter occurred first; a 0 followed it
    index = HEAD.words.tolist().index(word)
    score = (HEAD.strength + w[0]) * np.array([1, 0, 0])  # whether position j - 1 holds the last letter
    pattern = np.exp(score) / np.exp(score).sum()
    logits = (1 + w[2]) * HEAD.bigrams[2]
    for weight, letter in zip(pattern, word[1:], strict=True):
        logits[letter] += (HEAD.copying + w[1]) * weight
    expected = math.log(np.exp(logits).sum()) - logits
    np.testing.assert_allclose(HEAD.losses(torch.as_tensor(w)).numpy()[index], expected, rtol=1e-12)
    assert len(HEAD.words) == 81


def test_the_head_copies():
    conditional = HEAD.joint / HEAD.frequencies[:, None]
    follows = [i for i, word in enumerate(HEAD.words) if (word[:-2] == word[-1]).sum() == 1]
    copied = np.array([HEAD.words[i][1 + np.flatnonzero(HEAD.words[i][:-2] == HEAD.words[i][-1])[0]] for i in follows])
    assert conditional[follows, copied].mean() > 0.6


@each_model
def test_the_planted_weights_minimise_the_loss(model):
    best = model.best.requires_grad_()
    model.potential()(best).backward()
    np.testing.assert_allclose(best.grad, 0, atol=1e-12)
    assert np.linalg.eigvalsh(model.curvature())[0] > 0


def test_a_blocks_curvature_is_its_part_of_the_whole():
    whole, part = BILINEAR.curvature(), BILINEAR.curvature("digits")
    np.testing.assert_allclose(part, whole[2:4, 2:4], rtol=1e-10)


# Their posteriors


def test_grid_and_importance_agree():
    """Two unlike ways to the same integrals. Over seeds the second spreads as it says."""
    for model, block in ((BILINEAR, "digits"), (HEAD, "full")):
        grid = enumerable.integrate(model, block, SETTINGS, side=25)
        parts = [enumerable.importance(model, block, SETTINGS, draws=2**12, seed=seed) for seed in range(4)]
        means = np.array([part.mean(part.losses) for part in parts])
        error = means.std(0, ddof=1) / 2
        moved = np.abs(grid.mean(grid.losses) - model.losses(model.best).numpy()).max()
        assert np.abs(means.mean(0) - grid.mean(grid.losses)).max() < 5 * error.max() < 0.02 * moved
        assert np.mean([part.normaliser for part in parts]) == pytest.approx(grid.normaliser, rel=5e-3)


@pytest.mark.parametrize("nbeta", [0.0, 1e3, 1e5])
def test_the_box_follows_the_posterior(nbeta):
    """Whatever its width, the grid is converged: to normal moments where the posterior is all but normal."""
    settings = Settings(nbeta=nbeta, gamma=4.0, step_size=1e-6, preconditioner="none")
    coarse, fine = (enumerable.integrate(BILINEAR, "digits", settings, side=side) for side in (41, 57))
    assert coarse.normaliser == pytest.approx(fine.normaliser, rel=1e-7)
    np.testing.assert_allclose(coarse.mean(coarse.losses), fine.mean(fine.losses), rtol=1e-6)
    if nbeta in (0.0, 1e5):
        covariance = np.linalg.inv(nbeta * BILINEAR.curvature("digits") + 4 * np.eye(2))
        second = np.einsum("n,ni,nj->ij", fine.weights, fine.points, fine.points)
        np.testing.assert_allclose(second, covariance, rtol=0.01, atol=1e-12)


def test_posterior_picks_the_method_by_size():
    assert len(enumerable.posterior(BILINEAR, "lines", SETTINGS).weights) == 49**2
    assert len(enumerable.posterior(BILINEAR, "full", SETTINGS).weights) == 2**13
    with pytest.raises(ValueError, match=r"grid over the 16 weights of 'full' is too large: use importance"):
        enumerable.integrate(BILINEAR, "full", SETTINGS)


def test_importance_says_when_the_posterior_is_too_far_from_normal():
    loose = Settings(nbeta=3.0, gamma=1e-3, step_size=1e-6, preconditioner="none")
    with pytest.raises(ValueError, match="is far from normal"):
        enumerable.importance(BILINEAR, "full", loose, draws=2**9)


@each_model
def test_the_susceptibility_is_the_response_to_a_tilt(model):
    block = "articles" if model is BILINEAR else "ov"
    values = enumerable.susceptibilities(
        model, block, SETTINGS, full=enumerable.importance(model, "full", SETTINGS, draws=2**6)
    )
    scale = np.abs(values.one_chain).max()
    for context, token in [(0, 0), (7, 2)]:
        response = enumerable.tilted_response(model, block, SETTINGS, context, token, delta=False)
        assert response == pytest.approx(values.one_chain[context, token], abs=1e-6 * scale)
    np.testing.assert_allclose((model.joint * values.one_chain).sum(), 0, atol=1e-12 * scale)
    np.testing.assert_allclose(
        values.two_chain, values.one_chain - values.rise * (values.restricted - values.full), rtol=0, atol=1e-12 * scale
    )


def test_named_components_move_their_own_contexts():
    """The energy of a component's susceptibility lies in the contexts of its reason."""
    full = enumerable.importance(BILINEAR, "full", SETTINGS, draws=2**6)
    for i, name in enumerate(TABLE.names):
        chi = enumerable.susceptibilities(BILINEAR, name, SETTINGS, full=full).one_chain
        energy = (TABLE.joint.sum(1)[:, None] * chi**2).sum(1)
        assert energy[TABLE.reason == i].sum() > 0.6 * energy.sum()
