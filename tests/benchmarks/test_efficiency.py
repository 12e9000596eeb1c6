"""The report of the efficiency benchmark: its formulas against planted tables whose signal and noise are known."""

import importlib.util
import itertools
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from spectrobook import DATA

from spectrolib.estimator import CovarianceSums, standardise
from spectrolib.model.shapes import Shape
from spectrolib.run.store import ComponentRecord, RunFolder

FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "efficiency.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("efficiency", FILE)
    module = importlib.util.module_from_spec(spec)
    __import__("sys").modules["efficiency"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


SIGNAL = np.array([[2.0, 0.9, 0.4], [0.9, 1.0, -0.2], [0.4, -0.2, 0.5]])
NOISE = np.array([[3.0, -0.8, 0.1], [-0.8, 2.0, 0.3], [0.1, 0.3, 4.0]])


def planted(replicates: int, tokens: int, seed: int = 0, signal=None) -> np.ndarray:
    """Tables (replicates, tokens, 3): a common signal and independent noise, with these covariances."""
    rng = np.random.default_rng(seed)
    draw = lambda covariance, *shape: rng.normal(size=(*shape, 3)) @ np.linalg.cholesky(covariance).T  # noqa: E731
    signal = draw(SIGNAL, tokens) if signal is None else signal
    return signal + draw(NOISE, replicates, tokens) + rng.normal(size=(replicates, 1, 3))  # means do not count


def test_signal_and_noise_are_found(bench):
    parts = bench.split(planted(6, 40_000))
    np.testing.assert_allclose(parts.signal, SIGNAL, atol=0.06)
    np.testing.assert_allclose(parts.noise, NOISE, atol=0.06)


def test_the_split_is_unbiased_for_few_tokens(bench):
    rng = np.random.default_rng(1)
    signal = rng.normal(size=(30, 3)) @ np.linalg.cholesky(SIGNAL).T
    found = np.mean([bench.split(planted(3, 30, seed, signal)).signal for seed in range(2000)], axis=0)
    np.testing.assert_allclose(found, np.cov(signal.T, bias=True), atol=0.08)


@pytest.mark.parametrize("m", [1, 5])
def test_reliabilities_are_what_two_measurements_show(bench, m):
    first, second = (planted(m, 60_000, seed, planted_signal()).mean(axis=0) for seed in (2, 3))
    parts = bench.Split(SIGNAL, NOISE)
    seen = [np.corrcoef(first[:, c], second[:, c])[0, 1] for c in range(3)]
    np.testing.assert_allclose(bench.column_reliability(parts, m), seen, atol=0.02)
    a, b = standardise(first), standardise(second)
    seen = (a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum())
    assert bench.row_reliability(parts, m) == pytest.approx(seen, abs=0.02)


def planted_signal() -> np.ndarray:
    return np.random.default_rng(9).normal(size=(60_000, 3)) @ np.linalg.cholesky(SIGNAL).T


def test_how_many_replicates_a_reliability_takes(bench):
    parts = bench.Split(SIGNAL, NOISE)
    for target in (0.3, 0.8):  # Spearman and Brown: m = r / (1 - r) · noise / signal
        found = bench.replicates_for(lambda m: bench.column_reliability(parts, m)[2], target)
        assert found == pytest.approx(target / (1 - target) * NOISE[2, 2] / SIGNAL[2, 2], rel=1e-6)
    found = bench.replicates_for(lambda m: bench.row_reliability(parts, m), 0.8)
    assert bench.row_reliability(parts, found) == pytest.approx(0.8)
    nothing = bench.Split(0 * SIGNAL, NOISE)
    assert np.isnan(bench.replicates_for(lambda m: bench.column_reliability(nothing, m)[0], 0.5))


def test_jackknife_of_a_mean_is_its_standard_error(bench):
    x = np.random.default_rng(4).normal(size=9)
    left_out = np.array([np.delete(x, i).mean() for i in range(9)])
    assert bench.jackknife(left_out) == pytest.approx(x.std(ddof=1) / 3)
    low, high = bench.interval(1.0, 2.0, 9)
    assert (low + high) / 2 == pytest.approx(1) and (high - low) / 4 == pytest.approx(1.8595, rel=1e-4)  # t, 8 degrees


def test_crossed_leaves_out_equal_numbers(bench):
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=(4, 20)), rng.normal(size=(3, 20))
    pairs = [np.cov(a[r], b[s], bias=True)[0, 1] for r, s in itertools.product(range(4), range(3)) if r != s]
    assert bench.crossed(a, b) == pytest.approx(np.mean(pairs))


def test_likeness_sees_through_noise_even_if_it_is_shared(bench):
    rng = np.random.default_rng(6)
    column, other, noise = rng.normal(size=4000), rng.normal(size=4000), 2 * rng.normal(size=(8, 4000))
    same = bench.likeness(column + noise, 3 * column + noise)  # r of one shares its noise with r of the other
    apart = bench.likeness(column + noise, other + noise)
    assert same["value"] == pytest.approx(1, abs=0.05) and apart["value"] == pytest.approx(0, abs=0.08)
    assert same["low"] < 1 <= same["high"] and apart["low"] < 0 < apart["high"]
    assert bench.along(column + noise, 5 * column + 1)["value"] == pytest.approx(1, abs=0.05)


def test_response_and_sample_covariance(bench):
    rng = np.random.default_rng(7)
    slope, common = rng.normal(size=6), rng.normal(size=(5, 1, 6))
    tilts = np.array([10.0, -10.0, 10.0, -10.0])
    excess = common + tilts[:, None] * slope + np.array([1, 1, -1, -1])[:, None] * rng.normal(size=(5, 1, 6))
    np.testing.assert_allclose(bench.response(excess, 10.0), slope)  # common noise cancels exactly
    rise = rng.normal(size=(5, 4))
    expected = [np.cov(rise.ravel(), excess[..., i].ravel())[0, 1] for i in range(6)]
    np.testing.assert_allclose(bench.sample_covariance(rise, excess), expected)


def test_reliability_of_two_chain_rows_where_the_mean_rise_wavers(bench):
    """Foretold from replicates, against what two planted measurements of four replicates show."""
    rng, tokens, names = np.random.default_rng(3), 3000, 8
    common, own = rng.standard_t(5, tokens), 0.1 * rng.normal(size=(tokens, names))
    rise = rng.uniform(0.01, 0.5, names)

    def replicates(count):
        """Mean rise, shift of the components and of the whole model."""
        wavering = rise * np.exp(0.1 * rng.normal(size=(count, names)))
        shift = own + 0.1 * rng.normal(size=(count, tokens, names))
        return wavering, shift, common[:, None] + 0.2 * rng.normal(size=(count, tokens, 1))

    def agreement():
        means = [[part.mean(axis=0) for part in replicates(4)] for _ in range(2)]
        a, b = (standardise(-g * (shift - full)) for g, shift, full in means)
        return (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())

    g, shift, full = replicates(8)
    per_rise = np.stack([bench.per_rise(0.0, g.mean(axis=0), *parts) for parts in zip(shift, full, strict=True)])
    shown = np.mean([agreement() for _ in range(4)])
    assert bench.row_reliability(bench.split(per_rise), 4) == pytest.approx(shown, abs=0.02)
    with_rise = -g[:, None] * (shift - full)
    assert bench.row_reliability(bench.split(with_rise), 4) < shown - 0.1  # the noise of ḡ is not that of a row


def test_two_chain_values_are_per_rise(bench):
    rng = np.random.default_rng(3)
    arrays, full = ({"excess": rng.normal(size=(2, 5, 6, 40)), "rise": rng.uniform(0.1, 0.2, (2, 5, 6))} for _ in "ab")
    mine = slice(0, 4)
    for r, found in enumerate(bench.estimates(arrays, full, 10.0)["two_chain_quads"]):
        excess = arrays["excess"][r][:, mine]
        moment, whole = (x["excess"][r][:, mine].mean(axis=(0, 1)) for x in (arrays, full))
        expected = bench.response(excess, 10.0) - (g := arrays["rise"][:, :, mine].mean()) * (moment - whole)
        np.testing.assert_allclose(g * found, expected, rtol=1e-9)


def test_prices(bench):
    cell = bench.Cell("l3h1", 10.0, 300.0, "six", 6, 6)
    cost = {"gradient_seconds": 2.0, "update_seconds": 0.5, "evaluation_seconds": 0.01}
    cost |= {"gradient_operations": 7.0, "evaluation_operations": 3.0}
    # of two chains at nβ ± 10 one stands at 0 and needs no gradient; burn-in 8, six steps to a draw
    pair = bench.prices(cell, cost, bench.CHAINS["pairs"], 100)
    assert pair["seconds"].start == pytest.approx(8 * (2.0 + 2 * 0.5))
    assert pair["seconds"].draw == pytest.approx(6 * (2.0 + 2 * 0.5) + 2 * 100 * 0.01)
    assert pair["operations"].of(10) == pytest.approx(8 * 7 + 10 * (6 * 7 + 2 * 100 * 3))
    assert pair["seconds"].of(0.1) == pair["seconds"].of(1)
    quad = bench.prices(replace(cell, nbeta=30.0), cost, bench.CHAINS["quads"], 100)  # all four driven
    assert quad["seconds"].draw == pytest.approx(6 * 4 * 2.5 + 4 * 100 * 0.01)


def test_cells_have_names_of_their_own(bench):
    names = [cell.name for cell in bench.cells()]
    assert len(set(names)) == len(names)
    members = [member.nbeta for member in bench.Cell("full", 10.0, 300.0, "six", 1, 1).members]
    assert members == [20, 0, 20, 0, 10, 10]


def planted_cell(cell, seed: int, tokens: int = 400) -> dict[str, np.ndarray]:
    """Chains whose response is a known column of unit size under noise of size one in a replicate's mean."""
    rng = np.random.default_rng(seed)
    column = np.random.default_rng(100 + seed).normal(size=tokens)
    chains = len(cell.members)
    tilts = np.array([member.tilt for member in cell.members])
    pair = np.repeat(rng.normal(size=(cell.replicates, cell.draws, chains // 2, tokens)), 2, axis=2)
    error = rng.normal(size=(cell.replicates, 1, 1, tokens))
    rise = 0.1 + 0.01 * rng.normal(size=(cell.replicates, cell.draws, chains))
    one = np.ones(cell.replicates)
    return {
        "excess": (pair + tilts[:, None] * (column + error)).astype(np.float32),
        "rise": rise,
        "width": 0.06 * one,
        "own_width": 0.2 * one,
        "gradient_seconds": 0.03 * one,
        "update_seconds": 1e-4 * one,
        "evaluation_seconds": 3e-5 * one,
    }


def test_the_report_of_planted_cells(bench, tmp_path):
    wanted = [cell for cell in bench.cells() if cell.team == "six" and cell.component in ("l3h1", "l1h0", "full")]
    wanted += [cell for cell in bench.cells() if cell.team == "pair" and cell.gamma == 300.0 and cell.nbeta <= 10.0]
    for i, cell in enumerate(wanted):
        np.savez(tmp_path / f"{cell.name}.npz", **planted_cell(cell, i))
    for i, name in enumerate(bench.COMPONENTS):
        rng = np.random.default_rng(50 + i)
        np.save(tmp_path / f"own_{name.replace(' ', '-')}.npy", rng.normal(size=400) + rng.normal(size=(6, 400)))
    for cell in wanted:
        np.save(tmp_path / f"slope_{cell.component.replace(' ', '-')}.npy", np.random.default_rng(8).normal(size=400))
    shape = Shape.from_config(
        dict(hidden_size=8, num_hidden_layers=6, num_attention_heads=4, intermediate_size=16, vocab_size=32)
        | dict(model_type="gpt_neox")
    )
    ids = np.zeros((4, 101), dtype=int)
    work = bench.Work(SimpleNamespace(shape=shape), ids, ids, ids)
    found = bench.plain_numbers(bench.report(tmp_path, work))
    json.dumps(found, allow_nan=False)
    quads = {row["component"]: row for row in found["columns"] if row["estimator"] == "covariance_quads"}
    for row in quads.values():  # signal and noise of size one; six draws to a replicate, four times the odds at 0.8
        assert row["reliability"] == pytest.approx(0.5, abs=0.06)
        assert row["draws_for"]["0.8"] == pytest.approx(24, rel=0.25)
    (gain,) = [row for row in found["gains"] if row["estimator"] == "covariance_quads"]
    assert gain["seconds_low"] < gain["seconds"] < gain["seconds_high"]
    zeros = [row for row in found["grid"] if row.get("zero")]
    assert zeros and all(row["zero"]["value"] < 0.3 for row in zeros)  # other columns at every setting here


def test_a_run_of_teams_is_read_back(bench, tmp_path):
    rng, tokens = np.random.default_rng(11), 3000
    column = {name: rng.normal(size=tokens) for name in ("a", "b", "full")}
    run = RunFolder(tmp_path / "run", {"components": ["a", "b"], "settings": {"chains": 4, "draws": 2}})
    for k in range(4):
        records = {}
        for name in column:
            sums = CovarianceSums()
            for _ in range(2):
                response = column[name] + rng.normal(size=tokens)
                sums.update(0.2, response).update(0.2, -response).respond(response, -response, 1.0)
            records[name] = ComponentRecord((sums,), np.zeros(2), np.zeros(2))
        run.save_task(f"layer0.chain{k}", records)
    found = bench.run_rows(tmp_path / "run")
    # noise of half the signal's variance in a team, an eighth in all four
    np.testing.assert_allclose(found["covariance_quads"]["columns"], 1 / (1 + 1 / 8), atol=0.02)
    assert found["covariance_quads"]["draws_for"]["0.8"] == pytest.approx(
        4, rel=0.15
    )  # odds of 4, a draw's noise is its signal


def test_the_readme_says_what_the_shipped_report_found():
    gains = {row["estimator"]: row for row in json.loads((DATA / "efficiency.json").read_text())["gains"]}
    readme = " ".join((FILE.parents[1] / "README.md").read_text().split())
    for phrase, gain in (
        ("the covariance takes {} times fewer CPU seconds", gains["covariance_quads"]),
        ("the two-chain value {} times", gains["two_chain_quads"]),
    ):
        values = (gain[key] for key in ("seconds", "seconds_low", "seconds_high"))
        number, low, high = (f"{value:.3g}" if value > 100 else f"{value:.2g}" for value in values)
        assert phrase.format(f"{number} ({low}-{high})") in readme
