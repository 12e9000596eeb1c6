"""Autoencoders: the formula of encoding, planted features found and matched, health."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from autoencoding import random_autoencoder
from scipy.sparse import csr_array

from spectrolib.dictionaries import autoencoders
from spectrolib.dictionaries.autoencoders import Autoencoder, Recipe, activations, health, match, train
from spectrolib.dictionaries.formats import load
from spectrolib.text.corpus import bundled_windows


@pytest.mark.parametrize("k", [1, 5, 40, None])
def test_encoding_by_the_formula(k, monkeypatch):
    monkeypatch.setattr(autoencoders, "_CHUNK", 400)  # ten tokens at a time
    sae = random_autoencoder(k=k)
    x = np.random.default_rng(0).normal(size=(33, 12)).astype(np.float32)
    wanted = np.zeros((33, 40))
    for row, vector in enumerate(x):
        reached = sae.encoder.numpy() @ (vector - sae.bias.numpy()) + sae.encoder_bias.numpy()
        for feature in np.argsort(-reached)[:k]:
            wanted[row, feature] = max(reached[feature], 0)
    found = sae.encode(x)
    assert isinstance(found, csr_array) and found.has_sorted_indices and (found.data > 0).all()
    np.testing.assert_allclose(found.toarray(), wanted, atol=1e-5)
    np.testing.assert_allclose(sae.reconstruct(x), wanted @ sae.decoder.numpy() + sae.bias.numpy(), atol=1e-4)
    with pytest.raises(ValueError, match=r"shape \(tokens, 12\)"):
        sae.encode(x[:, :5])


def test_sparsest_keeps_the_largest_positive_values():
    x = np.array([[3.0, -1, 2, 1], [-1, -2, -3, -4], [0, 5, 0, 0]])
    np.testing.assert_array_equal(autoencoders.sparsest(x, 2).toarray(), [[3, 0, 2, 0], [0] * 4, [0, 5, 0, 0]])


# Training ------------------------------------------------------------------------------------------------------------


def planted(seed: int = 0, tokens: int = 40_000, width: int = 24, features: int = 40, active: int = 3):
    """Vectors that are sums of a few of known directions, which are more than there are axes."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(features, width))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    chosen = rng.random((tokens, features)).argsort(axis=1)[:, :active]
    magnitudes = np.zeros((tokens, features))
    np.put_along_axis(magnitudes, chosen, rng.uniform(0.5, 2, (tokens, active)), axis=1)
    x = 7 * (magnitudes @ directions) + 3 + 0.02 * rng.normal(size=(tokens, width))
    return x.astype(np.float32), directions, magnitudes


def test_planted_features_are_recovered_and_matched():
    """Superposed features come back; clusters made of some match those, and a made-up cluster matches nothing."""
    x, directions, magnitudes = planted()
    sae = train(x, features=48, k=3, passes=12, batch=512, site="l3 residual")
    cosine = directions @ sae.decoder.numpy().T
    assert np.quantile(cosine.max(axis=1), 0.1) > 0.97
    assert 1 - ((sae.reconstruct(x) - x) ** 2).sum() / ((x - x.mean(axis=0)) ** 2).sum() > 0.9

    rng, some = np.random.default_rng(1), slice(0, 6000)
    labels = np.full(6000, -1)
    for cluster in range(5):  # tokens with a planted feature, four in five of them
        labels[(magnitudes[some, cluster] > 0) & (rng.uniform(size=6000) < 0.8) & (labels < 0)] = cluster
    labels[rng.permutation(np.flatnonzero(labels < 0))[:300]] = 5
    found = match(labels, sae.encode(x[some]), keep=rng.integers(0, 10, 6000), permutations=99)
    assert found.matched(0.5).tolist() == [True] * 5 + [False]
    np.testing.assert_array_equal(found.pairs.feature[found.best[:5]], cosine[:5].argmax(axis=1))


def test_training_follows_the_scale_and_the_place_of_the_vectors():
    """x -> 5x + 2 moves the biases and nothing else."""
    x, _, _ = planted(tokens=4000)
    settings = dict(features=32, k=3, passes=2, batch=256)
    a, b = train(x, **settings), train(5 * x + 2, **settings)
    torch.testing.assert_close(a.decoder, b.decoder, atol=2e-2, rtol=0)
    torch.testing.assert_close(5 * a.encoder_bias, b.encoder_bias, atol=0.3, rtol=0.05)
    torch.testing.assert_close(a.decoder.norm(dim=1), torch.ones(32))
    again = train(x, **settings)
    assert torch.equal(a.encoder, again.encoder) and not torch.equal(a.encoder, train(x, seed=1, **settings).encoder)


def test_recipes_out_of_range():
    x = np.zeros((100, 4), dtype=np.float32)
    with pytest.raises(ValueError, match="k must lie between 1 and the 8 features"):
        Recipe(features=8, k=9)
    with pytest.raises(ValueError, match="at least 1, rate above 0"):
        Recipe(rate=0)
    with pytest.raises(ValueError, match="at least one batch of 512 vectors"):
        train(x, batch=512)
    with pytest.raises(ValueError, match="not finite"):
        train(np.full_like(x, np.nan), batch=10)


# Health --------------------------------------------------------------------------------------------------------------


def lossless(width: int, site: str) -> Autoencoder:
    """Every axis and its opposite: an autoencoder that loses nothing."""
    both = torch.cat([torch.eye(width), -torch.eye(width)])
    return Autoencoder(both, torch.zeros(2 * width), both, torch.zeros(width), None, site)


@pytest.mark.parametrize("site", ["embed", "l0 residual", "l5 residual", "l2 attention", "l4 mlp"])
def test_health_of_what_loses_nothing_and_of_what_loses_all(bundled_engine, site):
    windows = bundled_windows("heldout").take(slice(0, 480, 80)).cut(65)
    whole = lossless(128, site)
    good = health(whole, bundled_engine, windows)
    assert good.loss == pytest.approx(float(bundled_engine.losses(windows).mean()), rel=1e-5)
    assert good.spliced_loss == pytest.approx(good.loss, rel=1e-4)
    assert good.explained_variance == pytest.approx(1) and good.recovered == pytest.approx(1, abs=1e-3)
    assert good.mean_loss > good.loss and good.dead < 0.1
    x = activations(bundled_engine, windows.ids[:, :-1], site).reshape(-1, 128)
    mean = torch.from_numpy(x.mean(axis=0))
    silent = replace(whole, encoder_bias=torch.full((256,), -1e9), bias=mean)
    bad = health(silent, bundled_engine, windows)
    assert bad.explained_variance == pytest.approx(0, abs=1e-5) and bad.recovered == pytest.approx(0, abs=1e-3)
    assert bad.dead == 1 and bad.active == 0
    assert sum(bad.summary()["density_counts"]) == 0 and sum(good.summary()["density_counts"]) == round(
        256 * (1 - good.dead)
    )


def test_a_splice_is_what_a_hook_on_transformers_does(bundled, bundled_engine):
    """Loss with the reconstruction, computed by replacing the layer's output in the reference model."""
    windows = bundled_windows("heldout").take(slice(0, 480, 120)).cut(65)
    sae = load("bundled/l3mlp-512-k16")
    ids = torch.as_tensor(windows.ids.astype(np.int64))

    def put(module, inputs, output):
        return torch.from_numpy(sae.reconstruct(output.flatten(0, 1).numpy())).float().view_as(output)

    hook = bundled.model.gpt_neox.layers[3].mlp.register_forward_hook(put)
    with torch.no_grad():
        logits = bundled.model(ids[:, :-1]).logits
    hook.remove()
    reference = float(F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))
    assert health(sae, bundled_engine, windows).spliced_loss == pytest.approx(reference, rel=1e-4)


def test_neurons_cannot_be_spliced(bundled_engine):
    with pytest.raises(ValueError, match="cannot be spliced"):
        health(lossless(512, "l3 neurons"), bundled_engine, bundled_windows("heldout").take(slice(0, 2)))
