"""The fast path against the plain model: every loss and every gradient, for each component and for all weights.

The reference is transformers' GPT-NeoX in float64 with autograd over every parameter. The engine runs in float32, so
errors are compared with those that transformers itself makes in float32.
"""

import numpy as np
import pytest
import torch
from conftest import random_gpt_neox
from families import random_model
from reference import Reference, put

from spectrolib.model import engine as fast
from spectrolib.model.components import components, gather
from spectrolib.model.engine import groups
from spectrolib.model.loading import engine_of
from spectrolib.posterior import Settings, minibatches


def moved(flat, seed, by=0.1):
    return flat + by * torch.randn(flat.shape, generator=torch.Generator().manual_seed(seed))


def assert_close(got, expected, what):
    """Within 1e-5 of the size of the whole (float32 keeps 1e-7)."""
    error = (got.double() - expected).norm() / expected.norm()
    assert error < 1e-5, f"{what}: relative error {error:.2g}"


@pytest.fixture(scope="module")
def reference(tiny_gpt_neox):
    return Reference(tiny_gpt_neox)


ALL_GROUPS = [
    ("l0h0", "l0h1", "l0h2", "l0 mlp"),
    ("l1 mlp", "l1h2", "l1h0"),
    ("l0h1",),
    ("l1 mlp",),
    ("embed",),
    ("unembed",),
    ("full",),
]


IDS = ["+".join(group) for group in ALL_GROUPS]


def test_losses_at_the_trained_weights(tiny_gpt_neox, tiny_windows, reference):
    expected = reference.losses(reference.weights, tiny_windows)
    assert 3 < expected.mean() < 30  # random, but not flat
    for tokens_per_pass in (1, 25, None):
        engine = engine_of(tiny_gpt_neox)
        engine.tokens_per_pass = tokens_per_pass or engine.tokens_per_pass
        got = engine.losses(tiny_windows)
        assert got.shape == (7, 11)
        assert_close(got, expected, "losses")


@pytest.mark.parametrize("names", ALL_GROUPS, ids=IDS)
@pytest.mark.parametrize("tokens_per_pass", [1, 40, 70, 2048])
@pytest.mark.parametrize("cache", [0, 2**29], ids=["recomputed", "cached"])
def test_losses_with_components_moved(
    monkeypatch, tiny_gpt_neox, tiny_windows, reference, names, tokens_per_pass, cache
):
    """All components of a group at once, each elsewhere, in passes that split windows and members unevenly."""
    monkeypatch.setattr(fast, "CACHE_BYTES", cache)
    engine = engine_of(tiny_gpt_neox)
    engine.tokens_per_pass = tokens_per_pass
    group = engine.group(names)
    positions = [moved(flat, i) for i, flat in enumerate(group.start)]
    cached = group.cache(tiny_windows)
    assert (cached.residual is not None) == (cache > 0 and names[0] not in ("embed", "full"))
    got = group.losses(positions, cached)
    assert got.shape == (len(names), 7, 11)
    at_rest = reference.losses(reference.weights, tiny_windows)
    for i, name in enumerate(names):
        expected = reference.at(group.blocks[name], positions[i], tiny_windows)
        assert (expected - at_rest).norm() > 1e-3 * at_rest.norm()  # the component matters here
        assert_close(got[i], expected, name)


@pytest.mark.parametrize("names", ALL_GROUPS, ids=IDS)
@pytest.mark.parametrize("tokens_per_pass", [15, 2048])
def test_gradients_with_components_moved(tiny_gpt_neox, tiny_windows, reference, names, tokens_per_pass):
    """Gradients of a minibatch that names a window twice, at moved weights."""
    engine = engine_of(tiny_gpt_neox)
    engine.tokens_per_pass = tokens_per_pass
    group = engine.group(names)
    rows = np.array([4, 0, 4, 6, 1])
    positions = [moved(flat, 10 + i) for i, flat in enumerate(group.start)]
    losses, slopes = group.gradients(positions, group.cache(tiny_windows), rows)
    for i, name in enumerate(names):
        loss, gradient = reference.gradient(group.blocks[name], positions[i], tiny_windows[rows])
        assert losses[i] == pytest.approx(loss, rel=1e-6), name
        assert slopes[i].shape == positions[i].shape
        assert_close(slopes[i], gradient, name)
        assert not slopes[i].requires_grad and not positions[i].requires_grad


def test_gradients_of_every_component_at_the_trained_weights(tiny_gpt_neox, tiny_windows, reference):
    engine = engine_of(tiny_gpt_neox)
    for names in groups([*components(engine.shape), "full"]):
        group = engine.group(names)
        losses, slopes = group.gradients(group.start, group.cache(tiny_windows), np.arange(7))
        for name, loss, slope, start in zip(names, losses, slopes, group.start, strict=True):
            expected_loss, gradient = reference.gradient(group.blocks[name], start, tiny_windows)
            assert loss == pytest.approx(expected_loss, rel=1e-6)
            assert_close(slope, gradient, name)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 1, "num_attention_heads": 1, "hidden_size": 10, "intermediate_size": 3},
        {"num_attention_heads": 5, "hidden_size": 40, "rotary_pct": 0.5},
        {"hidden_size": 36, "rotary_pct": 1.0, "rotary_emb_base": 500},
        {"hidden_act": "gelu_new", "layer_norm_eps": 1e-2},
        {"vocab_size": 1100, "num_hidden_layers": 3},
        {"hidden_act": "relu"},
        {"hidden_act": "silu"},
    ],
    ids=["smallest", "half rotary", "full rotary", "tanh gelu", "large vocabulary", "relu", "silu"],
)
def test_other_shapes(changes):
    if rope := {key: changes.pop(key) for key in ("rotary_pct", "rotary_emb_base") if key in changes}:
        changes["rope_parameters"] = {
            "rope_type": "default",
            "rope_theta": rope.get("rotary_emb_base", 10_000),
            "partial_rotary_factor": rope["rotary_pct"],
        }
    model = random_gpt_neox(seed=1, **changes)
    reference, engine = Reference(model), engine_of(model)
    windows = np.random.default_rng(1).integers(0, engine.shape.vocabulary, size=(3, 17))
    for names in groups([*components(engine.shape), "full"]):
        group = engine.group(names)
        positions = [moved(flat, i) for i, flat in enumerate(group.start)]
        losses, slopes = group.gradients(positions, group.cache(windows), np.arange(3))
        for name, loss, slope, position in zip(names, losses, slopes, positions, strict=True):
            expected_loss, gradient = reference.gradient(group.blocks[name], position, windows)
            assert loss == pytest.approx(expected_loss, rel=1e-6), name
            assert_close(slope, gradient, name)


@pytest.mark.parametrize("names", [("l0h0", "l0h1", "l0 mlp"), ("embed",), ("unembed",), ("full",)])
def test_float32_errors_are_those_of_transformers(tiny_gpt_neox, tiny_windows, reference, names):
    """Folding the norms and subtracting a component from the residual cost no accuracy to speak of."""
    theirs = Reference(tiny_gpt_neox, torch.float32)
    group = engine_of(tiny_gpt_neox).group(names)
    positions = [moved(flat, i) for i, flat in enumerate(group.start)]
    cached = group.cache(tiny_windows)
    losses = group.losses(positions, cached)
    _, slopes = group.gradients(positions, cached, np.arange(7))
    for i, name in enumerate(names):
        exact = reference.at(group.blocks[name], positions[i], tiny_windows)
        error = (theirs.at(group.blocks[name], positions[i], tiny_windows) - exact).norm()
        assert (losses[i] - exact).norm() < 5 * error, name
        _, gradient = reference.gradient(group.blocks[name], positions[i], tiny_windows)
        _, other = theirs.gradient(group.blocks[name], positions[i], tiny_windows)
        assert (slopes[i] - gradient).norm() < 5 * (other - gradient).norm(), name


def test_moving_a_component_is_a_directional_derivative(tiny_gpt_neox, tiny_windows):
    """The engine's losses and gradients agree with each other: L(w + hv) - L(w - hv) = 2h v·∇L."""
    group = engine_of(tiny_gpt_neox).group(("l0h2",))
    cached, h = group.cache(tiny_windows), 1e-2
    (start,) = group.start
    direction = torch.randn(start.shape, generator=torch.Generator().manual_seed(5))
    ahead, behind = (group.losses([start + sign * h * direction], cached).double().mean() for sign in (1, -1))
    _, (slope,) = group.gradients([start], cached, np.arange(7))
    assert ((ahead - behind) / (2 * h)).item() == pytest.approx((slope @ direction).item(), rel=5e-3)


def test_a_minibatch_is_the_windows_that_posterior_says(tiny_gpt_neox, tiny_windows, reference):
    s = Settings(batch_size=3, seed=4, share_batches=False)
    group = engine_of(tiny_gpt_neox).group(("l1h1",))
    gradients = group.minibatch_gradients(tiny_windows, s, chain=2)
    batches = minibatches(7, s, chain=2)
    for _ in range(4):
        losses, (slope,) = gradients(group.start)
        loss, gradient = reference.gradient(group.blocks["l1h1"], group.start[0], tiny_windows[next(batches)])
        assert losses[0] == pytest.approx(loss, rel=1e-6)
        assert_close(slope, gradient, "l1h1")


def test_the_engine_changes_nothing_that_it_is_given(tiny_gpt_neox, tiny_windows):
    before = {name: p.detach().clone() for name, p in tiny_gpt_neox.named_parameters()}
    windows = tiny_windows.copy()
    engine = engine_of(tiny_gpt_neox)
    for names in groups([*components(engine.shape), "full"]):
        group = engine.group(names)
        positions = [moved(flat, 0) for flat in group.start]
        kept = [position.clone() for position in positions]
        cached = group.cache(windows)
        group.losses(positions, cached)
        group.gradients(positions, cached, np.arange(7))
        assert all(torch.equal(a, b) for a, b in zip(kept, positions, strict=True))
    assert all(torch.equal(p, before[name]) for name, p in tiny_gpt_neox.named_parameters())
    assert np.array_equal(windows, tiny_windows)


def test_two_runs_give_the_same_bits(tiny_gpt_neox, tiny_windows):
    def once():
        group = engine_of(tiny_gpt_neox).group(("l0h0", "l0h2", "l0 mlp"))
        cached = group.cache(tiny_windows)
        return [group.losses(group.start, cached), *group.gradients(group.start, cached, np.arange(5))[1]]

    assert all(torch.equal(a, b) for a, b in zip(once(), once(), strict=True))


def test_groups_share_a_prefix():
    names = ["l0h0", "l0h1", "l1h0", "l0 mlp", "l1 mlp", "embed", "unembed", "full"]
    expected = [("l0h0", "l0h1", "l0 mlp"), ("l1h0", "l1 mlp"), ("embed",), ("unembed",), ("full",)]
    assert groups(names) == expected


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64])
def test_token_ids_of_any_integer_type(tiny_gpt_neox, tiny_windows, dtype):
    engine = engine_of(tiny_gpt_neox)
    assert torch.equal(engine.losses(tiny_windows.astype(dtype)), engine.losses(tiny_windows))


@pytest.mark.parametrize(
    "windows, message",
    [
        (np.zeros((0, 5), dtype=int), r"non-empty \(windows, length\) array, got shape \(0, 5\)"),
        (np.zeros(5, dtype=int), r"non-empty \(windows, length\) array, got shape \(5,\)"),
        (np.zeros((2, 1), dtype=int), "at least 2 tokens .*, got 1"),
        (np.full((2, 4), 53), "token ids must lie in 0 to 52, got 53 to 53"),
        (np.full((2, 4), -1), "token ids must lie in 0 to 52, got -1 to -1"),
    ],
)
def test_windows_that_cannot_be_run_are_refused(tiny_gpt_neox, windows, message):
    engine = engine_of(tiny_gpt_neox)
    with pytest.raises(ValueError, match=message):
        engine.losses(windows)
    with pytest.raises(ValueError, match=message):
        engine.group(["l0h0"]).cache(windows)


def test_groups_that_cannot_be_run_are_refused(tiny_gpt_neox):
    engine = engine_of(tiny_gpt_neox)
    with pytest.raises(ValueError, match="do not share a prefix"):
        engine.group(["l0h0", "l1h0"])
    with pytest.raises(ValueError, match="unknown component 'l7h0'"):
        engine.group(["l7h0"])


@pytest.mark.parametrize("kind", ["gpt_neox", "gpt2", "llama grouped, tied"])
def test_gradients_of_weighted_tokens(kind, tiny_gpt_neox, tiny_windows):
    """Σ weights · losses in place of the mean, for every kind of component, in passes that split the windows."""
    model = tiny_gpt_neox if kind == "gpt_neox" else random_model(kind)
    engine, reference = engine_of(model), Reference(model)
    engine.tokens_per_pass = 25
    weights = torch.rand(tiny_windows[:, 1:].shape, generator=torch.Generator().manual_seed(0))
    for together in groups([*components(engine.shape), "full"]):
        group = engine.group(together)
        positions = [w + 0.1 for w in group.start]
        rows = np.arange(len(tiny_windows))
        totals, slopes = group.gradients(positions, group.cache(tiny_windows), rows, weights)
        for i, name in enumerate(together):
            moved = put(reference.weights, group.blocks[name], positions[i].double())
            moved = {parameter: w.clone().requires_grad_() for parameter, w in moved.items()}
            total = (reference.losses(moved, tiny_windows) * weights).sum()
            total.backward()
            expected = gather({parameter: w.grad for parameter, w in moved.items()}, group.blocks[name])
            assert totals[i] == pytest.approx(float(total.detach()), rel=1e-5), name
            assert (slopes[i].double() - expected).norm() < 1e-5 * expected.norm(), name
