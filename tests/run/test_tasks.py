"""One task: what it samples, what it sums up, when it stops."""

from dataclasses import replace

import numpy as np
import pytest
from measuring import SETTINGS, TEAM, Inline, plan

from spectrolib.estimator import CovarianceSums
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
