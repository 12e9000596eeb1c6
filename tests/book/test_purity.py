"""Purity and its controls: against brute force, and on fluctuations whose answer is known."""

import json
from dataclasses import replace

import numpy as np
import pytest

from spectrobook import language as planted
from spectrobook import purity
from spectrobook.purity import Fluctuations
from spectrolib.estimator import CovarianceSums, standardise, susceptibility
from spectrolib.model.loading import LanguageModel, load_model
from spectrolib.run.plan import Plan
from spectrolib.run.tasks import Job, run_task


def random_fluctuations(rng, components=3, chains=2, draws=7, tokens=11) -> Fluctuations:
    shape = (components, chains, draws)
    return Fluctuations(
        tuple(f"c{i}" for i in range(components)),
        rng.gamma(2.0, size=shape),
        rng.normal(size=(*shape, tokens)).astype(np.float32),
        rng.normal(size=(chains, draws, tokens)).astype(np.float32),
    )


# Rows


def sums(rises, excesses) -> CovarianceSums:
    made = CovarianceSums()
    for g, d in zip(rises, excesses, strict=True):
        made.update(g, d)
    return made


@pytest.mark.parametrize("rows", ["one_chain", "two_chain"])
def test_rows_are_those_of_the_estimator(rows):
    found = random_fluctuations(np.random.default_rng(0))
    full = [sums(np.zeros(7), chain) for chain in found.full]
    wanted = np.stack(
        [
            susceptibility(rows, [sums(g, d) for g, d in zip(found.rise[i], found.excess[i], strict=True)], full)
            for i in range(3)
        ],
        axis=1,
    )
    np.testing.assert_allclose(purity.susceptibilities(found, rows), wanted, atol=1e-6)
    part = found.take(chains=slice(1, 2), draws=slice(4))
    wanted = susceptibility(
        rows, [sums(found.rise[2, 1, :4], found.excess[2, 1, :4])], [sums([0] * 4, found.full[1, :4])]
    )
    np.testing.assert_allclose(purity.susceptibilities(part, rows)[:, 2], wanted, atol=1e-6)


def test_moment_rows_and_refusals():
    found = random_fluctuations(np.random.default_rng(1))
    np.testing.assert_allclose(purity.susceptibilities(found, "moment"), found.excess.mean(axis=(1, 2)).T, atol=1e-6)
    with pytest.raises(ValueError, match="rows must be one of"):
        purity.susceptibilities(found, "three_chain")
    with pytest.raises(ValueError, match="kind must be one of"):
        purity.allowed("near", np.arange(3), np.arange(3))


def test_permuting_changes_the_covariance_and_no_moment():
    """The two-chain row is moments plus a covariance: permuting g touches the covariance alone."""
    found = random_fluctuations(np.random.default_rng(2), draws=50)
    one, two = (purity.susceptibilities(found, rows) for rows in ("one_chain", "two_chain"))
    shuffled = [purity.susceptibilities(found, rows, np.random.default_rng(5)) for rows in ("one_chain", "two_chain")]
    assert np.abs(one - shuffled[0]).max() > 0.1
    np.testing.assert_allclose(two - one, shuffled[1] - shuffled[0], atol=1e-6)


def test_chains_are_those_of_the_main_job(tiny_gpt_neox, tiny_windows):
    """The same draws as `measure` makes, and the same g and d where the loss windows are the probe."""
    model = LanguageModel(tiny_gpt_neox)
    settings = purity.sampler(5.0, 300.0, chains=2, draws=3, seed=4)
    windows = planted.Windows(tiny_windows, ["t"] * 7, list("abcdefg"))
    names = ("l0h1", "l1 mlp", "unembed")
    found = purity.fluctuations(model, windows, windows, settings, names)
    plan = Plan(model, windows, windows, windows, settings, names)
    job = Job("", "cpu", tiny_windows, tiny_windows, tiny_windows, settings, blocks=1)
    engine = purity.engine_of(model)
    for task in plan.tasks:
        for name, record in run_task(engine, job, task).items():
            ours = found.full[task.chain] if name == "full" else found.excess[names.index(name), task.chain]
            np.testing.assert_allclose(ours.mean(axis=0), record.sums[0].mean_losses, atol=2e-6)
            if name != "full":
                np.testing.assert_allclose(found.rise[names.index(name), task.chain], record.rise, atol=1e-9)


@pytest.mark.parametrize("coupled", [{"tilt": 2.0}, {"antithetic": True}])
def test_coupled_chains_are_refused(tiny_gpt_neox, tiny_windows, coupled):
    settings = replace(purity.sampler(5.0, 300.0, chains=2, draws=3), **coupled)
    with pytest.raises(ValueError, match=r"coupled ones .*: take settings.plain\(\)"):
        purity.fluctuations(LanguageModel(tiny_gpt_neox), tiny_windows, tiny_windows, settings, ["embed"])


def test_influence_rows_have_the_distances_of_the_kernel():
    found = random_fluctuations(np.random.default_rng(3), components=2, draws=40)
    rows = purity.influence(found)
    kernel = 0
    for excess in found.excess.reshape(2, -1, 11).astype(float):
        centred = excess - excess.mean(axis=0)
        kernel = kernel + centred.T @ centred / (centred**2).mean(axis=(0, 1))
    np.testing.assert_allclose(rows @ rows.T, kernel, rtol=2e-4, atol=0.05)


# Neighbours and purity


def test_neighbours_purity_and_chance_against_loops():
    rng = np.random.default_rng(0)
    n, k = 60, 3
    vectors, reasons = rng.normal(size=(n, 4)), rng.integers(0, 3, n)
    token, previous = rng.integers(0, 6, n), rng.integers(0, 4, n)
    for kind in purity.KINDS:
        may = purity.allowed(kind, token, previous)
        pure = purity.purity(purity.neighbours(vectors, k, may), reasons)
        chance = purity.chance(reasons, may, k)
        for i in range(n):
            who = [
                j
                for j in range(n)
                if i != j
                and {
                    "all": True,
                    "other": token[i] != token[j] and previous[i] != previous[j],
                    "same": token[i] == token[j] and previous[i] != previous[j],
                }[kind]
            ]
            if len(who) < 2 * k:
                assert np.isnan(pure[i]) and np.isnan(chance[i])
                continue
            near = sorted(who, key=lambda j: ((vectors[i] - vectors[j]) ** 2).sum())[:k]
            assert pure[i] == pytest.approx(np.mean([reasons[j] == reasons[i] for j in near]))
            assert chance[i] == pytest.approx(np.mean([reasons[j] == reasons[i] for j in who]))


def test_interval_covers_and_respects_windows():
    rng = np.random.default_rng(1)
    windows = np.repeat(np.arange(40), 10)
    inside = 0
    for trial in range(60):
        values = rng.normal(size=40)[windows] + 0.1 * rng.normal(size=400)
        values[rng.random(400) < 0.1] = np.nan
        mean, low, high = purity.interval(values, windows, seed=trial)
        assert low < mean < high and mean == pytest.approx(np.nanmean(values))
        inside += low < 0 < high
    assert 50 <= inside <= 60
    one_each = purity.interval(values, np.arange(400))
    assert one_each[2] - one_each[1] < 0.5 * (high - low)


# The study finds an effect of the observable where there is one, and none where there is none


def tokens_with_reasons(rng, tokens=240) -> purity.Probe:
    reason = rng.integers(0, 4, tokens)
    blank = planted.Windows(np.zeros((1, 2), int), ["t"], ["t"])
    return purity.Probe(
        blank,
        np.arange(tokens),
        rng.integers(0, 10, tokens),
        rng.integers(0, 10, tokens),
        reason,
        np.arange(tokens) // 12,
    )


def made(rng, probe: purity.Probe, *, response: float, together: float) -> Fluctuations:
    """Losses that follow g by reason (``response``), and share other fluctuations by reason (``together``)."""
    components, chains, draws, tokens = 8, 2, 200, len(probe.reason)
    g = rng.normal(size=(components, chains, draws))
    d = rng.normal(size=(components, chains, draws, tokens))
    d += response * g[..., None] * rng.normal(size=(components, 1, 1, 4))[..., probe.reason]
    d += together * rng.normal(size=(components, chains, draws, 4))[..., probe.reason]
    full = rng.normal(size=(chains, draws, tokens))
    return Fluctuations(tuple(map(str, range(components))), g, d.astype(np.float32), full.astype(np.float32))


def test_study_tells_a_role_of_the_observable_from_none():
    rng = np.random.default_rng(0)
    probe = tokens_with_reasons(rng)
    at = {name: i for i, name in enumerate(purity.VARIANTS)}
    mean = lambda found: np.nanmean(purity.study(found, probe, permutations=3)["purity"], axis=2)[:, 0]  # noqa: E731
    by_chance = float(
        np.mean(purity.chance(probe.reason, purity.allowed("all", probe.token, probe.previous), purity.K))
    )

    empty = mean(made(rng, probe, response=0, together=0))
    assert np.abs(empty - by_chance).max() < 0.06

    driven = mean(made(rng, probe, response=0.5, together=0))
    assert driven[at["one_chain"]] > 0.95
    assert driven[at["one_chain permuted"]] < 0.5, "what is left: losses of one reason that move together, through g"

    kernel = mean(made(rng, probe, response=0, together=1.0))
    assert kernel[at["influence"]] > 0.95
    assert kernel[at["one_chain permuted"]] > by_chance + 0.3
    assert abs(kernel[at["one_chain"]] - kernel[at["one_chain permuted"]]) < 0.1


def test_study_halves_and_shapes():
    rng = np.random.default_rng(0)
    probe = tokens_with_reasons(rng)
    found = made(rng, probe, response=0.5, together=0)
    studied = purity.study(found, probe, permutations=4)
    assert studied["purity"].shape == (len(purity.VARIANTS), len(purity.KINDS), 240)
    assert studied["permuted"].shape == (2, len(purity.KINDS), 4)
    assert studied["reliability"][0] > 0.8 > abs(studied["reliability"][2])
    assert studied["shared"][0] > studied["shared"][3]
    rows = standardise(purity.susceptibilities(found, "one_chain"))
    assert purity.overlap(rows, rows) == 1
    alone = purity.study(found.take(chains=slice(1)), probe, permutations=1)
    assert np.isnan(alone["shared"]).all() and np.isfinite(alone["purity"][:, 0]).all()


# What ships


def test_a_probe_keeps_clear_tokens_of_the_six_reasons():
    language = planted.Language()
    asked = purity.probe(language, 12, seed=1)
    text, labels = planted.draw(language, 12, planted.LENGTH, seed=1)
    assert asked.windows.hash == text.hash
    sure = planted.responsibility(language, text).reshape(labels.size, -1)
    assert (asked.reason == labels.ravel()[asked.kept]).all()
    assert asked.reason.max() < planted.START
    assert sure[asked.kept, asked.reason].min() >= purity.CLEAR
    left = np.setdiff1d(np.flatnonzero(labels.ravel() < planted.START), asked.kept)
    assert sure[left, labels.ravel()[left]].max() < purity.CLEAR
    assert (text.ids[asked.window, 1 + asked.kept % 32] == asked.token).all()
    assert (text.ids[asked.window, asked.kept % 32] == asked.previous).all()


def test_the_shipped_study_belongs_to_the_shipped_model():
    manifest, arrays = purity.shipped()
    sampling, asked = purity.shipped_probe()
    model = load_model(planted.FOLDER, device="cpu")
    assert manifest["model"] == model.hash
    assert (manifest["probe"], manifest["sampling"]) == (asked.windows.hash, sampling.hash)
    tokens = len(asked.kept)
    posteriors = (len(purity.POSTERIORS), len(purity.DRAWS))
    assert arrays["purity"].shape == (*posteriors, len(purity.VARIANTS), len(purity.KINDS), tokens)
    settings = [(p["nbeta"], p["gamma"], p["draws"], p["seed"]) for p in manifest["posteriors"]]
    assert settings == list(purity.POSTERIORS)
    may = purity.allowed("all", asked.token, asked.previous)
    for i, rows in enumerate(purity.ROWS):  # the rows that ship give the purities that ship
        again = purity.purity(purity.neighbours(arrays["rows"][i], purity.K, may), asked.reason)
        stored = arrays["purity"][0, -1, purity.VARIANTS.index(rows), 0]
        assert np.nanmean(np.abs(again - stored)) < 0.01
    assert json.dumps(manifest)
    assert purity.SHIPPED.stat().st_size < 2e6


def test_the_shipped_files_can_be_made_again(tmp_path, monkeypatch):
    """The whole of ``python -m spectrobook planted`` in small: train, export, measure, study, write."""
    recipe, sampler = planted.recipe(planted.Language(), steps=2), purity.sampler
    monkeypatch.setattr(planted, "recipe", lambda language, seed: replace(recipe, seed=seed))
    monkeypatch.setattr(planted, "CHUNK", 2)
    quick = {"chains": 2, "burn_in": 0, "steps_between_draws": 1}
    monkeypatch.setattr(
        purity, "sampler", lambda b, g, draws, seed: replace(sampler(b, g, draws=draws, seed=seed), **quick)
    )
    monkeypatch.setattr(purity, "POSTERIORS", ((5.0, 300.0, 4, 0), (0.0, 300.0, 2, 1)))
    monkeypatch.setattr(purity, "DRAWS", (2, 4))
    monkeypatch.setattr(
        purity, "shipped_probe", lambda seed: (planted.draw(planted.Language(), 8, 9, seed)[0], tokens_of(6, seed))
    )
    folder = purity.remake(tmp_path / "made", seed=3)
    monkeypatch.setattr(purity, "SHIPPED", folder / "purity.npz")
    manifest, arrays = purity.shipped()
    assert manifest["model"] == load_model(folder, device="cpu").hash
    assert [p["seed"] for p in manifest["posteriors"]] == [3, 4]
    assert np.isfinite(arrays["purity"][0, :, :, 0]).all()
    assert np.isnan(arrays["purity"][1, 1]).all() and np.isnan(arrays["rise"][1, :, :, 2:]).all()
    assert json.loads((folder / "planted.json").read_text())["settings"]["seed"] == 3
    monkeypatch.setattr(planted, "train", None)  # the model stays
    (folder / "purity.npz").unlink()
    purity.remake(folder, seed=3)
    assert purity.shipped()[0]["model"] == manifest["model"]


def tokens_of(windows: int, seed: int) -> purity.Probe:
    return purity.probe(planted.Language(), windows, seed)
