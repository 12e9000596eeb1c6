"""One task: what it samples, what it sums up, when it stops."""

from dataclasses import replace

import numpy as np
import pytest
from measuring import SETTINGS, TEAM, Inline, plan

from spectrolib.estimator import CovarianceSums, merge_all
from spectrolib.posterior import ChainError
from spectrolib.run import cost
from spectrolib.run.measure import measure
from spectrolib.run.store import ComponentRecord
from spectrolib.run.tasks import Recorder, _stretches


def test_the_control_at_nbeta_0_needs_no_minibatch(folder, tmp_path):
    job = plan(folder, replace(SETTINGS, nbeta=0.0, draws=2), components=("l1h1",))
    result = measure(job, tmp_path / "run", executor=Inline(), progress=False)
    assert np.isnan(result["batch_loss"]).all()
    assert np.isfinite(result["susceptibility"]).all()
    assert cost.of(job).token_steps == 0


def test_a_chain_that_leaves_stops_the_run_and_keeps_what_is_done(folder, tmp_path, monkeypatch):
    """The whole model rises by far more than any single component."""
    monkeypatch.setattr("spectrolib.run.measure.check_locality", lambda *_: None)  # else it is refused before it runs
    wide = replace(SETTINGS, nbeta=0.0, gamma=10.0, step_size=0.03, max_rise=0.5)
    job = plan(folder, wide, components=("l0h0", "l1h0"))
    with pytest.raises(ChainError, match=r"component full, chain [01], draw 0: the loss rose by .*step_size"):
        measure(job, tmp_path / "run", executor=Inline(), progress=False)
    kept = {file.name for file in (tmp_path / "run" / "tasks").iterdir()}
    assert kept == {f"layer{layer}.chain{chain}.npz" for layer in (0, 1) for chain in (0, 1)}


@pytest.mark.parametrize("settings", [replace(SETTINGS, draws=3), replace(TEAM, draws=3)], ids=["plain", "team"])
def test_chains_of_a_half_go_on_in_one_sketch_and_halves_have_their_own(settings):
    """Draws of chains 0, 2 and 4 have a channel each: inner products are the covariances of the losses themselves."""
    rng, size, folds = np.random.default_rng(0), len(settings.members), []
    for half in (0, 1):
        parts, losses = [], []
        for chain in (half, half + 2, half + 4):
            recorder = Recorder("l0h0", settings, chain, _stretches(5, 5), blocks=1, width=32)
            for index in range(3):
                rise, excess = rng.standard_normal(size), rng.standard_normal((size, 5))
                recorder.take(index, rise, excess, np.zeros(size))
                own = excess + rise[:, None]
                losses += list((own[::2] + own[1::2]) / 2 if settings.tilt else own)
            parts.append(recorder.finish().resolved)
        rows = merge_all(parts).rows().astype(np.float64)
        np.testing.assert_allclose(rows @ rows.T, np.cov(np.array(losses).T, ddof=0), atol=1e-5)
        assert rows.shape[1] == len(losses)
        folds.append(parts[0].seed)
    assert folds[0] != folds[1]


def test_every_block_of_every_chain_has_controls_of_its_own():
    """The same draws in both blocks, and in two chains: other permutations and other noise."""
    draws, settings = np.random.default_rng(0).standard_normal((8, 4)), replace(SETTINGS, draws=16)
    found = []
    for chain in (0, 1):
        recorder = Recorder("l0h0", settings, chain, _stretches(3, 3), blocks=2)
        for index, own in enumerate([*draws, *draws]):
            recorder.take(index, own[:1], own[None, 1:], [0.0])
        found += [sums.controls for sums in recorder.finish().sums]
    assert all(not np.isclose(a, b).any() for i, a in enumerate(found) for b in found[:i])


def test_controls_of_a_stretch_do_not_depend_on_what_lies_beside_it():
    """Their bits would, in one matrix product over all tokens."""
    settings, rng = replace(TEAM, draws=16), np.random.default_rng(0)
    draws = [(rng.standard_normal(4), rng.standard_normal((4, 91))) for _ in range(16)]

    def sums(stretches: list[slice]) -> ComponentRecord:
        recorder = Recorder("l0h0", settings, 0, stretches, blocks=2)
        for index, (rise, excess) in enumerate(draws):
            recorder.take(index, rise, excess[:, stretches[0].start : stretches[-1].stop], np.zeros(4))
        return recorder.finish().sums

    odd_whole, first = sums(_stretches(91, 13)), sums(_stretches(26, 13))
    for own, other in zip(first, odd_whole, strict=True):
        assert own.controlled == 32
        for name in CovarianceSums.VECTORS:
            np.testing.assert_array_equal(getattr(own, name), getattr(other, name)[..., :26])
