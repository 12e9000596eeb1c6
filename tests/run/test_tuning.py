"""Settings chosen by short trials: what is tried, what is said of it, what is chosen."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import xarray as xr
from measuring import SETTINGS, plan, windows

from spectrolib.model.shapes import KNOWN
from spectrolib.posterior import Settings
from spectrolib.run import tuning
from spectrolib.run.cost import of
from spectrolib.run.tuning import (
    HEALTHY,
    Trial,
    best,
    few_components,
    grid,
    read_settings,
    tune,
    verdict,
    write_settings,
)


@pytest.mark.parametrize("preconditioner", ["none", "rmsprop"])
def test_every_point_of_the_grid_follows_the_rule(preconditioner):
    base = replace(SETTINGS, preconditioner=preconditioner, tilt=5.0, antithetic=True)
    tried = grid(base)
    assert len({repr(settings) for settings in tried}) == 12
    assert {s.gamma for s in tried} == {100.0, 1000.0, 10000.0} and {s.nbeta for s in tried} == {10.0, 30.0}
    for s in tried:
        fraction = s.relaxed_fraction(1 if preconditioner == "none" else 1 / s.rms_epsilon)
        assert 0.09 < fraction < 0.21 and 2.3 < fraction * s.steps_between_draws < 2.6
        assert s.tilt == s.nbeta / 2 and s.draws >= 12 and s.chains % 2 == 0


def test_few_components_are_of_either_kind_and_of_two_depths():
    assert few_components(KNOWN["pythia-14m"]) == ("l0 mlp", "l3h0")
    assert few_components(KNOWN["smollm2-135m"]) == ("l0 mlp", "l15g0")


def test_a_first_look_is_at_short_windows_spread_over_the_text(folder):
    long = plan(folder, sampling=windows(0, 20, 50), loss=windows(1, 4, 50), probe=windows(2, 40, 50))
    look = tuning.first_look(long)
    assert {w.length for w in (look.sampling, look.loss, look.probe)} == {33}
    assert (len(look.sampling), len(look.loss), len(look.probe)) == (20, 4, 8)
    assert np.array_equal(look.probe.ids, long.probe.ids[::5, :33])
    assert of(look).operations < of(long).operations / 3
    same = tuning.first_look(plan(folder))
    assert same.probe.hash == plan(folder).probe.hash and same.loss.length == 9


def test_the_first_trials_of_a_grid_are_the_short_ones_and_have_no_twins():
    base = replace(SETTINGS, tilt=5.0, antithetic=True)
    tried = grid(base)
    assert [s.steps_between_draws for s in tried[:6]] == [12] * 3 + [24] * 3
    assert {s.gamma for s in tried[:3]} == {100.0, 1000.0, 10000.0}
    assert {len(s.members) for s in tried} == {2}  # nβ + η and nβ - η
    assert {s.chains for chains in (1, 2, 3, 4) for s in grid(replace(base, chains=chains))} == {2, 4}


def result_of(trace: np.ndarray, level: float = 0.1) -> xr.Dataset:
    """What a verdict looks at, with one trace for a component and a quiet one for the whole."""
    calm = 0.2 + 0.02 * np.random.default_rng(9).normal(size=trace.shape)
    settings = asdict(replace(SETTINGS, gamma=100.0, step_size=4e-3, steps_between_draws=12))
    traces = np.stack([level + trace, calm])
    return xr.Dataset(
        {"loss_rise": (("sampled", "chain", "draw"), traces), "rise": ("sampled", traces.mean(axis=(1, 2)))},
        coords={"sampled": np.array(["l0h0", "full"], dtype=object)},
        attrs={"manifest": json.dumps({"settings": settings})},
    )


def test_verdicts_on_planted_traces():
    noise = 0.01 * np.random.default_rng(0).normal(size=(4, 16))
    assert verdict(result_of(noise))[0] == HEALTHY
    assert verdict(result_of(noise, level=-0.1))[0] == "loss fell"
    spiky = noise.copy()
    spiky[1, 10] = 3.0
    word, why = verdict(result_of(spiky))
    assert word == "spiky" and "l0h0" in why
    apart = noise + np.array([0, 0.2, 0.4, 0.6])[:, None]
    assert verdict(result_of(apart))[0] == "chains disagree"
    drifting = noise + np.linspace(0, 0.3, 16)
    assert verdict(result_of(drifting))[0] in ("not settled", "chains disagree")
    assert verdict(result_of(noise, level=2.0))[0] == "too much noise"


def trial(verdict: str = HEALTHY, reliability: float = 0.5, seconds: float = 1.0) -> Trial:
    return Trial(SETTINGS, verdict, "", seconds, reliability=reliability)


def test_the_best_is_healthy_and_tells_the_most_in_a_second():
    slow, fast, noisy = trial(reliability=0.8, seconds=10), trial(reliability=0.5), trial("spiky", 0.9)
    assert slow.worth == pytest.approx(0.4) and fast.worth == pytest.approx(1.0) and noisy.worth == 0
    assert best([slow, fast, noisy]) is fast
    assert best([noisy, trial(reliability=-0.2), trial(reliability=float("nan"))]) is None


def test_trials_are_kept_and_a_repeated_call_goes_on(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(
        tuning, "grid", lambda base: [replace(base, gamma=g, draws=16, chains=4) for g in (0.001, 100.0, 200.0)]
    )
    job, seen = plan(folder, replace(SETTINGS, tilt=10.0, antithetic=True), components=("l0h0",), channels=0), []
    first = tune(job, tmp_path, seconds=0.0, workers=1, report=seen.append)
    assert [one.verdict for one in first] == ["not local"] and "too loose" in first[0].why and seen == first
    both = tune(job, tmp_path, workers=1, report=seen.append)
    assert len(both) == 3 and both[0].why == first[0].why and len(seen) == 3
    assert np.isfinite([[one.rise, one.r_hat, one.effective, one.reliability] for one in both[1:]]).all()
    assert all(np.shape(one.traces["full"]) == (4, 16) for one in both[1:])
    assert tune(job, tmp_path, workers=1, report=seen.append)[1:] == both[1:] and len(seen) == 3
    assert sorted(file.name for file in tmp_path.iterdir()) == ["tuning.json"]
    with pytest.raises(ValueError, match="of another model or text"):
        tune(replace(job, probe=job.sampling), tmp_path)


def test_settings_are_read_from_files_and_runs(tmp_path):
    write_settings(trial(), tmp_path / "settings.json")
    assert Settings(**read_settings(tmp_path / "settings.json")) == SETTINGS
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "manifest.json").write_text(json.dumps({"settings": asdict(SETTINGS), "format": 2}))
    assert Settings(**read_settings(tmp_path / "run")) == SETTINGS
    for content, why in (("[]", "must hold a JSON object"), ("{}", "lacks 'settings'"), ("no", "not valid JSON")):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(ValueError, match=rf"bad\.json {why}|bad\.json is {why}"):
            read_settings(tmp_path / "bad.json")
    (tmp_path / "bad.json").write_text('{"settings": {"gamma": 3, "temperature": 1}}')
    with pytest.raises(ValueError, match="not known: temperature"):
        read_settings(tmp_path / "bad.json")
