"""SGLD chains: update against naive references, law against closed forms, noise, batches, refusals."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference import put
from scipy import stats

from spectrolib.estimator import CovarianceSums, merge_all, one_chain, standard_error, two_chain
from spectrolib.exact import enumerable, quadratic
from spectrolib.model.components import blocks, components, gather
from spectrolib.model.loading import engine_of
from spectrolib.posterior import Chain, ChainError, Settings, lockstep, minibatches, sample, stable_seed

PLAIN = Settings(nbeta=2.0, gamma=1.0, step_size=0.1, preconditioner="none", max_rise=math.inf, seed=5)


def plain(**changes) -> Settings:
    return dataclasses.replace(PLAIN, **changes)


# The law of plain SGLD, against the closed form

BOWL = quadratic.Quadratic.bowl(np.diag([0.5, 2.0, 7.5]))  # λ = 2, 5, 16: ελ/4 = 0.05, 0.125, 0.4 at ε = 0.1


@pytest.fixture(scope="module")
def stationary_draws():
    """40 000 independent chains after 70 steps: the slowest direction's variance lacks 0.9^140 = 4e-7 of its limit."""
    return quadratic.walk(BOWL, plain(draws=1, steps_between_draws=70), np.zeros(3), 40_000)[0]


@pytest.mark.parametrize("direction", range(3))
def test_marginals_are_the_exact_normal_with_its_bias(stationary_draws, direction):
    deviation = math.sqrt(quadratic.sgld_law(BOWL, np.zeros(3), PLAIN).covariance[direction, direction])
    assert stats.kstest(stationary_draws[:, direction], "norm", args=(0, deviation)).pvalue > 1e-3


@pytest.mark.parametrize("direction", [1, 2])
def test_marginals_are_not_the_posterior_at_a_large_step(stationary_draws, direction):
    """The same test rejects the law without the bias, so it is sharp enough to see what it is about."""
    deviation = math.sqrt(quadratic.gibbs(BOWL, np.zeros(3), PLAIN).covariance[direction, direction])
    assert stats.kstest(stationary_draws[:, direction], "norm", args=(0, deviation)).pvalue < 1e-6


def covariance_z_scores(draws, law):
    """Entries of the sample covariance of independent draws, in standard deviations from the law's."""
    s = law.covariance
    deviation = np.sqrt((np.outer(np.diag(s), np.diag(s)) + s**2) / len(draws))
    return (np.cov(draws.T) - s) / deviation


def test_stationary_covariance_of_a_tilted_potential_with_gradient_noise():
    """A rotated bowl off centre, with minibatch noise of known covariance: mean and covariance of the chains."""
    rng = np.random.default_rng(0)
    root, noise_root = rng.normal(size=(2, 3, 3))
    f = quadratic.Quadratic(root @ root.T, np.array([0.5, -1.0, 0.2]), np.array([1.0, 0.0, -0.5]))
    noise = noise_root @ noise_root.T + 0.1 * np.eye(3)
    settings = plain(step_size=0.15, draws=1, steps_between_draws=100)
    draws = quadratic.walk(quadratic.noisy(f, noise), settings, np.ones(3), 20_000)[0]
    law = quadratic.sgld_law(f, np.ones(3), settings, gradient_noise=noise)
    assert np.abs(covariance_z_scores(draws, law)).max() < 5
    mean_z = (draws.mean(0) - law.mean) / np.sqrt(np.diag(law.covariance) / len(draws))
    assert np.abs(mean_z).max() < 5
    quiet = quadratic.sgld_law(f, np.ones(3), settings)  # without the noise term the agreement is gone
    assert np.abs(covariance_z_scores(draws, quiet)).max() > 20


def test_transient_law_on_the_way_from_the_centre():
    """After 3 and 9 steps from w*, off the minimum: mean and covariance of the closed form."""
    f = quadratic.Quadratic.bowl(np.diag([0.5, 3.0]), np.array([2.0, -1.0]))
    settings = plain(draws=3, steps_between_draws=3)
    draws = quadratic.walk(f, settings, np.zeros(2), 20_000)
    for index, steps in [(0, 3), (2, 9)]:
        law = quadratic.sgld_law(f, np.zeros(2), settings, steps=steps)
        assert np.abs(covariance_z_scores(draws[index], law)).max() < 5
        assert (np.abs(draws[index].mean(0) - law.mean) < 5 * np.sqrt(np.diag(law.covariance) / 20_000)).all()


def test_variance_without_the_loss():
    """nβ = 0: the potential is never called, and the variance is (1/γ) / (1 - εγ/4)."""

    def never(w):
        raise AssertionError("the nβ = 0 chain evaluated the loss")

    settings = plain(nbeta=0.0, gamma=50.0, step_size=0.02, draws=1, steps_between_draws=40)
    start = torch.zeros(50_000, dtype=torch.float64)
    (draw,) = sample(never, settings, start=start)
    variance = quadratic.sgld_variance(50.0, 0.02)
    assert abs(float(draw.position.var()) / variance - 1) < 5 * math.sqrt(2 / 50_000)
    assert math.isnan(draw.losses[0])


def test_autocorrelation_and_effective_draws():
    """Correlation (1 - ελ/2)^k between draws, and a variance within the chains' effective sample size."""
    f, settings = quadratic.Quadratic.bowl(np.eye(1)), plain(draws=400, steps_between_draws=2, burn_in=50)
    w = quadratic.walk(f, settings, np.zeros(1), 50)[:, :, 0]
    rho = quadratic.autocorrelation(3.0, 0.1, 2)
    variance = quadratic.sgld_variance(3.0, 0.1)
    effective = quadratic.ar1_effective_draws(w.size, rho**2)
    assert effective < 0.4 * w.size
    assert abs((w**2).mean() / variance - 1) < 4.5 * math.sqrt(2 / effective)
    pairs = np.corrcoef(w[:-1].ravel(), w[1:].ravel())[0, 1]
    assert pairs == pytest.approx(rho, abs=4.5 * math.sqrt((1 - rho**2) / w.size))


def test_midpoints_of_consecutive_positions_have_no_bias():
    """At ελ/4 = 0.4 a position's variance is 1/0.6 of the posterior's; that of the mean of two in a row is right."""
    positions = quadratic.walk(BOWL, plain(draws=2, steps_between_draws=1, burn_in=70), np.zeros(3), 20_000)
    law = quadratic.gibbs(BOWL, np.zeros(3), PLAIN)
    assert np.abs(covariance_z_scores(positions.mean(axis=0), law)).max() < 5
    assert covariance_z_scores(positions[1], law)[2, 2] > 40


@pytest.mark.parametrize("centre", [np.zeros(3), np.array([1.0, -0.5, 0.3])], ids=["at the minimum", "off the minimum"])
def test_covariance_of_quadratic_observables_against_running_sums(centre):
    """Cov(½δᵀAδ, bᵀδ + ½δᵀBδ) = ½ tr(AΣBΣ), plus linear terms off the minimum, from the merged sums of 40"""
    rng = np.random.default_rng(1)
    a, b1, b2 = (root @ root.T for root in rng.normal(size=(3, 3, 3)))
    phi = quadratic.Quadratic.bowl(a)
    losses = [
        quadratic.Quadratic(b1, np.zeros(3), np.zeros(3)),
        quadratic.Quadratic(b2, np.zeros(3), rng.normal(size=3)),
    ]
    settings = plain(draws=120, steps_between_draws=8, burn_in=60)
    law = quadratic.sgld_law(phi, centre, settings)
    draws = torch.as_tensor(quadratic.walk(phi, settings, centre, 400)).flatten(0, 1)
    phis, values = phi(draws).numpy(), torch.stack([f(draws) for f in losses], -1).numpy()
    sums = [CovarianceSums(2) for _ in range(40)]
    for i, (one, several) in enumerate(zip(phis, values, strict=True)):
        sums[i % 40].update(one, several)  # a part holds 10 chains, so the parts are independent
    expected = np.array([law.covariance_of(phi, f) for f in losses])
    estimate, error = merge_all(sums).covariance(), standard_error("one_chain", sums, [])
    assert (error < 0.1 * np.abs(expected)).all()
    assert (np.abs(estimate - expected) < 4.5 * error).all()


# The toy whose posterior is integrated on a grid

TOY = enumerable.Toy.random(seed=0)
TOY_SETTINGS = Settings(
    nbeta=30.0,
    gamma=4.0,
    step_size=0.04,
    preconditioner="none",
    max_rise=math.inf,
    draws=270,
    steps_between_draws=1,
    burn_in=50,
)
EVERY, PARTS = 15, 30


@pytest.fixture(scope="module")
def toy_sums():
    """Sums over 30 groups of 50 chains of 18 draws for each block and the unrestricted chain.

    A draw is the mean of two consecutive positions, whose bias is of second order in ε (exact/test_exact.py).
    """
    sums = {}
    for block, weights in TOY.BLOCKS.items():
        walk = quadratic.walk(TOY.potential(block), TOY_SETTINGS, np.zeros(len(weights)), 50 * PARTS)
        draws = torch.as_tensor((walk[EVERY - 1 :: EVERY] + walk[EVERY - 2 :: EVERY]) / 2).flatten(0, 1)
        rise, excess = enumerable.rise_and_excess(TOY, TOY.losses(TOY.place(block, draws)).numpy())
        sums[block] = [CovarianceSums(excess[0].size) for _ in range(PARTS)]
        for i, (g, d) in enumerate(zip(rise, excess.reshape(len(rise), -1), strict=True)):
            sums[block][i % PARTS].update(g, d)
    return sums


@pytest.mark.parametrize("block", ["in", "out", "full"])
def test_chains_of_the_toy_have_the_moments_of_the_grid(toy_sums, block):
    """Mean rise and mean excess losses. Bias of the step size is allowed 1 %, noise 4.5 standard errors."""
    grid = enumerable.integrate(TOY, block, TOY_SETTINGS)
    rise, excess = enumerable.rise_and_excess(TOY, grid.losses)
    rises = np.array([part.mean_phi for part in toy_sums[block]])
    error = rises.std(ddof=1) / math.sqrt(PARTS)
    assert error < 0.015 * grid.mean(rise)
    assert abs(rises.mean() - grid.mean(rise)) < 4.5 * error + 0.01 * grid.mean(rise)
    means = np.stack([part.mean_losses for part in toy_sums[block]])
    errors = means.std(axis=0, ddof=1) / math.sqrt(PARTS)
    expected = grid.mean(excess).ravel()
    best = TOY.losses(torch.zeros(3, dtype=torch.float64)).numpy()
    moved = np.abs(expected - enumerable.rise_and_excess(TOY, best[None])[1].ravel())
    assert (np.abs(means.mean(0) - expected) < 4.5 * errors + 0.01 * moved).all()


@pytest.mark.parametrize("block", ["in", "out"])
def test_chains_of_the_toy_give_its_exact_susceptibilities(toy_sums, block):
    values = enumerable.susceptibilities(TOY, block, TOY_SETTINGS)
    pooled, full = merge_all(toy_sums[block]), merge_all(toy_sums["full"])
    for name, estimate, truth in [
        ("two_chain", two_chain(pooled, full), values.two_chain.ravel()),
        ("one_chain", one_chain(pooled), values.one_chain.ravel()),
    ]:
        error = standard_error(name, toy_sums[block], toy_sums["full"])
        assert (np.abs(estimate - truth) < 4.5 * error + 0.02 * np.abs(truth)).all(), name
        assert np.linalg.norm(error) < 0.3 * np.linalg.norm(truth), name  # an interval that could be missed


# The update, step by step


def naive_step(w, centre, gradient, noise, v, t, s):
    """The update of the module's docstring, scalar by scalar."""
    new_w, new_v = [], []
    for w_i, c_i, g_i, xi, v_i in zip(w, centre, gradient, noise, v, strict=True):
        v_i = s.rms_decay * v_i + (1 - s.rms_decay) * g_i**2
        shown = v_i / (1 - s.rms_decay**t) if s.preconditioner == "rmsprop_corrected" else v_i
        scale = 1.0 if s.preconditioner == "none" else 1 / (math.sqrt(shown) + s.rms_epsilon)
        drift = s.nbeta * g_i + s.gamma * (w_i - c_i)
        new_w.append(w_i - s.step_size * scale / 2 * drift + math.sqrt(s.step_size * scale) * xi)
        new_v.append(v_i)
    return new_w, new_v


@pytest.mark.parametrize("nbeta", [3.0, 0.0])
@pytest.mark.parametrize("preconditioner", ["none", "rmsprop", "rmsprop_corrected"])
def test_update_follows_its_formula(preconditioner, nbeta):
    settings = plain(preconditioner=preconditioner, nbeta=nbeta, rms_decay=0.9, draws=7, steps_between_draws=1)
    f = quadratic.Quadratic(np.diag([1.0, 2.0, 0.5]), np.array([0.3, -2.0, 1.0]), np.array([0.1, 0.0, -0.4]))
    centre = torch.tensor([0.5, 0.0, -0.5], dtype=torch.float64)
    noise = torch.Generator().manual_seed(stable_seed("noise", settings.seed, "full", 3))
    w, v = centre.tolist(), [1.0 if preconditioner == "rmsprop_corrected" else 0.0] * 3
    for t, draw in enumerate(sample(f, settings, start=centre, chain=3), 1):
        xi = torch.empty(3, dtype=torch.float64).normal_(generator=noise).tolist()
        w, v = naive_step(w, centre.tolist(), f.slope_at(np.array(w)), xi, v, t, settings)
        assert draw.position.tolist() == pytest.approx(w, rel=1e-12)
    assert t == 7


@pytest.mark.parametrize("preconditioner", ["none", "rmsprop"])
def test_update_is_that_of_the_authors_library(preconditioner):
    """Same noise, same gradients: devinterp 2.0.1's optimiser and our chain walk together."""
    optim = pytest.importorskip("devinterp.optim")
    s = Settings(nbeta=10.0, gamma=300.0, step_size=1e-3, preconditioner=preconditioner, draws=40, max_rise=1e9)
    generator = torch.Generator().manual_seed(0)
    design = torch.randn(200, 64, generator=generator)
    potential = lambda w: ((design @ w).tanh() ** 2).mean()  # noqa: E731
    start = torch.randn(64, generator=generator)
    theirs = torch.nn.Parameter(start.clone())
    common = dict(lr=s.step_size, localization=s.gamma, nbeta=s.nbeta)
    if preconditioner == "none":
        optimiser = optim.SGMCMC.sgld([theirs], **common)
    else:
        optimiser = optim.SGMCMC.rmsprop_sgld([theirs], **common, alpha=s.rms_decay, eps=s.rms_epsilon)
    noise = torch.Generator().manual_seed(stable_seed("noise", s.seed, "full", 0))
    for draw in sample(potential, s, start=start):
        for _ in range(s.steps_between_draws):
            optimiser.zero_grad()
            potential(theirs).backward()
            optimiser.step(noise_generator=noise)
        torch.testing.assert_close(draw.position, theirs.detach(), rtol=1e-4, atol=1e-5)
    assert (theirs.detach() - start).norm() > 0.1


def test_rmsprop_with_a_fixed_gradient_is_sgld_with_a_constant_scale():
    """A linear potential: v settles at b², so G = 1/(|b| + e), and the law is the closed form with that scale."""
    b = np.array([0.0, 0.5, -4.0])
    f = quadratic.Quadratic(np.zeros((3, 3)), np.zeros(3), b)
    settings = plain(preconditioner="rmsprop", rms_decay=0.8, gamma=3.0, draws=1, steps_between_draws=250)
    draws = quadratic.walk(f, settings, np.zeros(3), 10_000)[0]
    law = quadratic.sgld_law(f, np.zeros(3), settings, scale=1 / (np.abs(b) + settings.rms_epsilon))
    assert np.abs(covariance_z_scores(draws, law)).max() < 5
    assert (np.abs(draws.mean(0) - law.mean) < 5 * np.sqrt(np.diag(law.covariance) / 10_000)).all()


def test_rmsprop_without_memory_widens_the_law_as_derived():
    """a → 0 makes G follow the position; without the divergence term the law is e^{-U} / G, not e^{-U}."""
    f = quadratic.Quadratic.bowl(np.array([[2.0]]))
    s = plain(preconditioner="rmsprop", rms_decay=1e-9, gamma=1.0, step_size=0.004, draws=1, steps_between_draws=500)
    draws = quadratic.walk(f, s, np.zeros(1), 10_000)[0]
    expected, posterior = quadratic.memoryless_rmsprop_variance(2.0, s), 1 / (s.nbeta * 2.0 + s.gamma)
    assert expected / posterior > 1.5
    assert draws.var() == pytest.approx(expected, rel=0.05)


# Language models: what moves, what does not


def reference_chain(model, component, windows, s, chain):
    """SGLD on a transformers model with autograd over every weight and a mask, as plainly as possible."""
    weights = {name.replace("lm_head", "embed_out"): p.detach().clone() for name, p in model.named_parameters()}
    engine = engine_of(model)
    owned = blocks(component, engine.shape, tuple(engine.weights))
    centre = gather(weights, owned)
    flat, v = centre.clone(), torch.zeros_like(centre)
    noise = torch.Generator().manual_seed(stable_seed("noise", s.seed, component, chain))
    for batch in itertools.islice(minibatches(len(windows), s, chain), s.steps):
        moved = {name: w.clone().requires_grad_() for name, w in put(weights, owned, flat).items()}
        ids = torch.as_tensor(windows[batch])
        named = {name.replace("embed_out", "lm_head"): w for name, w in moved.items()}
        logits = torch.func.functional_call(model, named, (ids[:, :-1],)).logits
        F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
        gradient = gather({name: w.grad for name, w in moved.items()}, owned)
        v = s.rms_decay * v + (1 - s.rms_decay) * gradient**2
        scale = torch.ones_like(v) if s.preconditioner == "none" else 1 / (v.sqrt() + s.rms_epsilon)
        xi = torch.empty_like(flat).normal_(generator=noise)
        drift = s.nbeta * gradient + s.gamma * (flat - centre)
        flat = flat - s.step_size * scale / 2 * drift + (s.step_size * scale).sqrt() * xi
    return flat


@pytest.mark.parametrize("preconditioner", ["none", "rmsprop"])
@pytest.mark.parametrize("component", ["l0h1", "l1 mlp", "embed", "unembed", "full"])
def test_chain_of_a_component_is_masked_sgld_on_the_whole_model(tiny_model, tiny_windows, component, preconditioner):
    """Five steps of a chain, seen from outside: the same minibatches, noise and gradients as the plain model's."""
    s = Settings(
        nbeta=30.0,
        gamma=100.0,
        step_size=1e-3 if preconditioner == "none" else 1e-4,
        preconditioner=preconditioner,
        batch_size=3,
        draws=1,
        steps_between_draws=5,
    )
    before = {name: p.detach().clone() for name, p in tiny_model.model.named_parameters()}
    (draw,) = sample(tiny_model, s, component=component, windows=tiny_windows, chain=1)
    reference = reference_chain(tiny_model.model, component, tiny_windows, s, chain=1)
    torch.testing.assert_close(draw.position, reference, rtol=1e-4, atol=1e-5)
    for name, p in tiny_model.model.named_parameters():  # the model itself is untouched, to the last bit
        assert torch.equal(p, before[name]), name
    assert tiny_model.model.training is False and all(p.grad is None for p in tiny_model.model.parameters())


def test_frozen_weights_stay_bit_identical(tiny_model, tiny_windows):
    engine = engine_of(tiny_model)
    s = Settings(batch_size=2, draws=2, steps_between_draws=2)
    for component in components(engine.shape):
        *_, draw = sample(tiny_model, s, component=component, windows=tiny_windows)
        owned = blocks(component, engine.shape)
        moved = put(engine.weights, owned, draw.position)
        changed = {name: moved[name] != tensor for name, tensor in engine.weights.items()}
        for block in owned:
            assert block.of(changed).float().mean() > 0.99  # the component moved, every weight of it
            block.of(changed).fill_(False)
        assert not any(mask.any() for mask in changed.values()), component


def test_draws_are_where_the_settings_say(tiny_model, tiny_windows):
    s = Settings(batch_size=2, draws=3, steps_between_draws=4, burn_in=5)
    draws = [(d.index, d.step) for d in sample(tiny_model, s, component="l0h0", windows=tiny_windows)]
    assert draws == [(0, 9), (1, 13), (2, 17)]
    assert s.steps == 17


# Noise and minibatches


def noise_path(settings, name, chain, steps=3):
    walker = Chain(torch.zeros(4), settings, name=name, chain=chain)
    for _ in range(steps):
        walker.step(torch.zeros(4))
    return walker.position


def test_noise_depends_on_seed_component_and_chain_alone():
    same = noise_path(PLAIN, "l0h1", 2)
    assert torch.equal(same, noise_path(plain(draws=7, nbeta=5.0, share_batches=False), "l0h1", 2))
    for seed, name, chain in [(6, "l0h1", 2), (5, "l0h2", 2), (5, "l0h1", 1), (5, "l0h12", 2), (5, "l0h1", 12)]:
        assert not torch.equal(same, noise_path(plain(seed=seed), name, chain))


def test_chains_walk_alike_alone_and_in_lockstep():
    f = quadratic.Quadratic.bowl(np.eye(2))
    s = plain(draws=3)
    start = torch.ones(2, dtype=torch.float64)
    alone = [[d.position.clone() for d in sample(f, s, start=start, chain=i)] for i in range(2)]

    def gradients(positions):
        return [float(f(p)) for p in positions], [p.clone() for p in positions]

    together = lockstep([Chain(start, s, name="full", chain=i) for i in range(2)], gradients, s)
    for draw, *expected in zip(together, *alone, strict=True):
        for position, other in zip(draw.positions, expected, strict=True):
            assert torch.equal(position, other)


@pytest.mark.parametrize("windows, batch", [(10, 5), (10, 3), (7, 16), (1, 2)])
def test_each_pass_over_the_windows_is_a_permutation(windows, batch):
    s = plain(batch_size=batch)
    stream = np.concatenate(list(itertools.islice(minibatches(windows, s, 0), 8 * windows)))
    passes = stream[: len(stream) // windows * windows].reshape(-1, windows)
    assert (np.sort(passes, axis=1) == np.arange(windows)).all()
    if windows > 2:
        assert len({tuple(row) for row in passes}) > 1  # a new order at each pass


def test_minibatches_are_shared_or_not():
    def first(chain, **changes):
        return np.concatenate(list(itertools.islice(minibatches(50, plain(**changes), chain), 4))).tolist()

    assert first(0) == first(1) == first(0, share_batches=False)
    assert first(1, share_batches=False) != first(0, share_batches=False)
    assert first(0, seed=6) != first(0)
    with pytest.raises(ValueError, match="no sampling windows"):
        next(minibatches(0, PLAIN, 0))


def test_stable_seed_is_stable():
    """Fixed for good: stored runs are continued with it."""
    assert stable_seed("a", "bc") != stable_seed("ab", "c")
    assert stable_seed("noise", 0, "l0h1", 2) == 5561978995324048838


# Errors


def test_a_loss_that_is_not_finite_stops_the_chain():
    f = lambda w: w.sum() / (w[0] > 0.05)  # noqa: E731  infinite gradients once w[0] moves below
    s = plain(step_size=0.01, draws=50, steps_between_draws=3, burn_in=1)
    with pytest.raises(ChainError) as caught:
        for draw in sample(f, s, start=torch.full((2,), 0.3), component="l3h1", chain=2):
            last = draw.index
    message = str(caught.value)
    assert f"component l3h1, chain 2, draw {last + 1}: the loss is not finite" in message
    for setting in ("step_size (now 0.01)", "gamma (now 1)", "nbeta (now 2)"):
        assert setting in message


def test_a_step_size_that_is_too_large_stops_the_chain():
    f = quadratic.Quadratic.bowl(np.diag([1.0, 50.0]))
    s = plain(step_size=2 * quadratic.largest_step(f, PLAIN), max_rise=10.0, draws=100)
    with pytest.raises(ChainError, match=r"component full, chain 0, draw \d+: the loss rose by .* lower step_size"):
        list(sample(f, s, start=torch.zeros(2, dtype=torch.float64)))


def test_the_rise_is_counted_from_the_first_minibatch_and_may_be_as_large_as_allowed():
    """A slow climb, of 1 nat a step: 2 are allowed, 3 are not."""
    s, drawn = plain(draws=6, steps_between_draws=1, max_rise=2.0), []
    climb = iter([5.0, 6.0, 7.0, 8.0])
    with pytest.raises(ChainError, match="draw 3: the loss rose by 3, more than 2"):
        for draw in lockstep([Chain(torch.zeros(2), s)], lambda _: ([next(climb)], [torch.zeros(2)]), s):
            drawn.append(draw.losses)
    assert drawn == [(5.0,), (6.0,), (7.0,)]


def test_a_language_model_whose_chain_explodes_says_where(tiny_model, tiny_windows):
    s = Settings(step_size=1e4, batch_size=2, draws=20, preconditioner="none")
    with pytest.raises(ChainError, match=r"component l1h0, chain 3, draw 0: .*step_size \(now 10000\)"):
        list(sample(tiny_model, s, component="l1h0", windows=tiny_windows, chain=3))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"nbeta": -1.0}, "nbeta must be zero or positive, got -1.0"),
        ({"nbeta": math.inf}, "nbeta must be zero or positive"),
        ({"nbeta": math.nan}, "nbeta must be zero or positive"),
        ({"gamma": 0.0}, "gamma must be positive and finite, got 0.0"),
        ({"gamma": math.nan}, "gamma must be positive"),
        ({"step_size": -1e-4}, "step_size must be positive and finite, got -0.0001"),
        ({"step_size": math.inf}, "step_size must be positive and finite"),
        ({"rms_epsilon": 0.0}, "rms_epsilon must be positive"),
        ({"max_rise": 0.0}, "max_rise must be positive"),
        ({"max_rise": math.nan}, "max_rise must be positive"),
        ({"rms_decay": 1.0}, "rms_decay must lie between 0 and 1"),
        ({"rms_decay": 0.0}, "rms_decay must lie between 0 and 1"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({"batch_size": 2.0}, "batch_size must be an integer of at least 1, got 2.0"),
        ({"chains": 0}, "chains must be an integer of at least 1"),
        ({"draws": True}, "draws must be an integer of at least 1"),
        ({"steps_between_draws": 0}, "steps_between_draws must be an integer"),
        ({"burn_in": -1}, "burn_in must be an integer of at least 0"),
        ({"seed": -1}, "seed must be an integer of at least 0"),
        ({"preconditioner": "adam"}, r"preconditioner must be one of \('none', 'rmsprop', 'rmsprop_corrected'\)"),
        ({"nbeta": 0.0, "preconditioner": "none", "gamma": 300.0, "step_size": 0.02}, "lower step_size"),
        ({"nbeta": 0.0, "preconditioner": "none", "gamma": 1.0, "step_size": 4.0}, "must be below 2.*: got 2,"),
    ],
)
def test_settings_refuse_what_cannot_be_sampled(changes, message):
    with pytest.raises(ValueError, match=message):
        Settings(**changes)


def test_settings_know_their_own_arithmetic():
    s = Settings(gamma=300.0, step_size=1e-3, draws=10, steps_between_draws=16, burn_in=5, rms_epsilon=0.1)
    assert s.steps == 165
    assert s.relaxed_fraction() == pytest.approx(0.15)
    assert s.relaxed_fraction(1 / s.rms_epsilon) == pytest.approx(1.5)
    assert s.needs_gradient and dataclasses.replace(s, nbeta=0.0).needs_gradient
    assert not Settings(nbeta=0.0, preconditioner="none").needs_gradient


def test_sample_says_what_is_missing(tiny_model, tiny_windows):
    with pytest.raises(ValueError, match="needs start"):
        next(sample(quadratic.Quadratic.bowl(np.eye(2)), PLAIN))
    with pytest.raises(ValueError, match="needs windows"):
        next(sample(tiny_model, PLAIN, component="l0h0"))
    with pytest.raises(ValueError, match="unknown component 'l9h0'"):
        next(sample(tiny_model, PLAIN, component="l9h0", windows=tiny_windows))
