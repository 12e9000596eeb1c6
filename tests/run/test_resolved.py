"""Resolved rows of a measurement: the kernel of its draws, whatever the shards; how rows are taken from a result."""

from dataclasses import replace

import measuring
import numpy as np
import pytest
from conftest import random_gpt_neox
from measuring import SETTINGS, Inline

from spectrolib.model.loading import engine_of
from spectrolib.run.measure import measure
from spectrolib.run.readings import readings
from spectrolib.run.resolved import labelled, rows_of

NAMES = ("l0h1", "l0 mlp", "unembed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    random_gpt_neox(vocab_size=measuring.VOCABULARY).save_pretrained(path)
    return path


def plan(folder, **changes):
    return measuring.plan(folder, **{"components": NAMES, "channels": 3 * 64} | changes)


@pytest.mark.parametrize("team", [{}, {"antithetic": True, "tilt": 1.0, "draws": 3}])
def test_rows_have_the_kernel_of_the_draws(folder, tmp_path, team):
    """Inner products are the covariances of the losses themselves over the draws of a half's chains."""
    job = plan(folder, settings=replace(SETTINGS, **team))
    result = measure(job, tmp_path / "run", executor=Inline(), progress=False)
    engine, pairs = engine_of(job.model), 2 if team else 1
    for i, name in enumerate(NAMES):
        for half in range(2):
            draws = []
            for chain in range(half, job.settings.chains, 2):
                texts = {"sampling": job.sampling.ids, "probe": job.probe.ids, "loss": job.loss.ids}
                for reading in readings(engine, [name], chain, job.settings, **texts):
                    change = reading.change.cpu().numpy()
                    draws += list((change[::2] + change[1::2]) / 2 if pairs == 2 else change)
            truth = np.cov(np.array(draws).T, ddof=0)
            own = result["resolved"].values[half][:, result["channel_component"].values == name].astype(float)
            own = own * float(result["resolved_scale"][half, i])
            assert own.shape[1] == len(draws)
            np.testing.assert_allclose(own @ own.T, truth, rtol=0.01, atol=3e-3 * np.diag(truth).max())


def test_any_number_of_shards_gives_the_same_bits(folder, tmp_path):
    whole = measure(plan(folder), tmp_path / "whole", executor=Inline(), progress=False)
    cut = measure(plan(folder, shards=3), tmp_path / "cut", executor=Inline(), progress=False)
    np.testing.assert_array_equal(whole["resolved"].values, cut["resolved"].values)


def test_channels_change_no_other_number(folder, tmp_path):
    some = measure(plan(folder), tmp_path / "some", executor=Inline(), progress=False)
    none = measure(plan(folder, channels=0), tmp_path / "none", executor=Inline(), progress=False)
    assert "resolved" not in none and "channels" not in none.attrs["manifest"]
    for name in none.data_vars:
        np.testing.assert_array_equal(none[name].values, some[name].values)
    with pytest.raises(ValueError, match="no resolved rows: measure with --channels 512"):
        rows_of(none)


def test_rows_of_some_components_and_halves():
    import xarray as xr

    rng = np.random.default_rng(0)
    halves = [[rng.normal(size=(5, 3)), rng.normal(size=(5, 2))] for _ in range(2)]
    held = labelled(["a", "b"], halves)
    channels = held.pop("channel_component")
    result = xr.Dataset(held, coords={"channel_component": channels})
    assert rows_of(result).shape == (5, 10)
    for half in range(2):
        own = halves[half][1] / np.sqrt((halves[half][1] ** 2).sum(axis=1).mean())
        np.testing.assert_allclose(rows_of(result, ["b"], [half]), own, atol=2e-3)
    np.testing.assert_allclose(rows_of(result, centre=True).mean(axis=0), 0, atol=1e-6)
    both = rows_of(result) @ rows_of(result).T
    apart = sum(rows_of(result, halves=[half]) @ rows_of(result, halves=[half]).T for half in range(2)) / 2
    np.testing.assert_allclose(both, apart, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"2 halves .* not \[2\]"):
        rows_of(result, halves=[2])
    with pytest.raises(ValueError, match="no channels of c: it has a, b"):
        rows_of(result, ["c"])


def test_a_component_that_moves_no_loss_keeps_rows_of_zeros():
    held = labelled(["a", "b"], [[np.zeros((4, 2)), np.ones((4, 3))]])
    rows, scale = held["resolved"][1], held["resolved_scale"][1]
    assert scale[0, 0] == 0 and not rows[0, :, :2].any() and np.isfinite(rows).all()
