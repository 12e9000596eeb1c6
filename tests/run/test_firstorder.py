"""Measuring to first order: the right numbers, the same bits however it is run, on where it stopped."""

import json
from dataclasses import replace

import measuring
import numpy as np
import pytest
import torch
from conftest import random_gpt_neox
from measuring import Inline

from spectrolib.model.gradients import TokenGradients, mean_gradient
from spectrolib.model.loading import engine_of
from spectrolib.run.firstorder import DIRECTION
from spectrolib.run.measure import measure
from spectrolib.run.plan import GRADIENT_WINDOWS
from spectrolib.run.store import open_result


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    random_gpt_neox(vocab_size=measuring.VOCABULARY).save_pretrained(path)
    return path


def first_order(folder, **changes):
    """19 probe windows: three tasks."""
    some = {"components": ("l0h1", "l1 mlp", "embed"), "channels": 12, "first_order": True}
    return measuring.plan(folder, probe=measuring.windows(5, 19), **some | changes)


@pytest.fixture(scope="module")
def done(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("first") / "run"
    plan = first_order(folder)
    return plan, out, measure(plan, out, executor=Inline(), progress=False)


def test_a_result_holds_what_gradients_say(done):
    plan, _, result = done
    engine = engine_of(plan.model)
    mean = mean_gradient(engine, plan.sampling)
    found = list(TokenGradients(engine, plan.components, width=4, seed=plan.settings.seed, mean=mean)(plan.probe))
    rows = torch.cat([own.rows for own in found], dim=1).numpy()
    slopes = torch.cat([own.slopes for own in found]).numpy()
    np.testing.assert_allclose(result["loss"], torch.cat([own.losses for own in found]), rtol=1e-6)
    length = np.sqrt((rows.astype(float) ** 2).sum(axis=3).mean(axis=1))
    np.testing.assert_allclose(result["resolved_scale"], length, rtol=1e-5)
    for i, name in enumerate(plan.components):
        own = result["resolved"].values[:, :, result["channel_component"].values == name].astype(float)
        np.testing.assert_allclose(own, rows[:, :, i] / length[:, i, None, None], rtol=2e-3, atol=2e-3)
    driven = slopes - slopes.mean(axis=0)  # |∇L|² is the same for all tokens
    chi = result["susceptibility"].values
    np.testing.assert_allclose(chi - chi.mean(axis=0), -driven / plan.settings.gamma, rtol=1e-4, atol=1e-9)
    assert json.loads(result.attrs["manifest"])["first_order"] is True


def test_the_susceptibility_of_the_driving_text_has_mean_zero(folder, tmp_path):
    """E_q χ_xy = 0, since Σ_xy q (∇l - ∇L) = 0: probe and driving text are the same here."""
    windows = measuring.windows(4, 9)
    plan = measuring.plan(folder, probe=windows, sampling=windows, components=("l0h0", "unembed"), first_order=True)
    chi = measure(plan, tmp_path / "run", executor=Inline(), progress=False)["susceptibility"]
    assert float(np.abs(chi.mean("token") / chi.std("token")).max()) < 1e-4


@pytest.mark.parametrize("workers", [1, 2])
def test_processes_give_the_same_bits(done, tmp_path, workers):
    plan, _, result = done
    again = measure(plan, tmp_path / "run", workers=workers, progress=False)
    for name in result.data_vars:
        np.testing.assert_array_equal(again[name].values, result[name].values)


def test_tasks_are_small_and_a_stopped_run_goes_on(done, folder, tmp_path):
    plan, _, result = done
    assert [task.windows for task in plan.tasks] == [(0, 8), (8, 16), (16, 19)] and GRADIENT_WINDOWS == 8
    assert [plan.amount(task) for task in plan.tasks] == [64, 64, 24]
    run = tmp_path / "run"
    measure(plan, run, executor=Inline(), progress=False)
    files = sorted((run / "tasks").iterdir())
    files[1].unlink()
    kept = {file: file.stat().st_mtime_ns for file in (files[0], files[2], run / DIRECTION)}
    (run / "result.zarr" / "zarr.json").unlink()
    again = measure(plan, run, executor=Inline(), progress=False)
    assert kept == {file: file.stat().st_mtime_ns for file in kept}
    np.testing.assert_array_equal(again["resolved"].values, result["resolved"].values)


def test_a_damaged_task_says_what_to_do(done, tmp_path):
    plan, _, _ = done
    measure(plan, tmp_path / "run", executor=Inline(), progress=False)
    file = tmp_path / "run" / "tasks" / "gradients.windows8-16.npz"
    file.write_bytes(file.read_bytes()[:200])
    import shutil

    shutil.rmtree(tmp_path / "run" / "result.zarr")
    with pytest.raises(ValueError, match=r"windows8-16\.npz is damaged .*delete it"):
        measure(plan, tmp_path / "run", executor=Inline(), progress=False)


def test_what_makes_no_sense_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="keeps channels"):
        first_order(folder, channels=0)
    with pytest.raises(ValueError, match="no draws that a bank could keep"):
        measure(first_order(folder), tmp_path / "run", bank=tmp_path / "bank", executor=Inline(), progress=False)


def test_seeds_give_other_sketches_of_the_same(done, folder, tmp_path):
    plan, _, result = done
    other = replace(plan, settings=replace(plan.settings, seed=plan.settings.seed + 1))
    found = measure(other, tmp_path / "run", executor=Inline(), progress=False)
    assert not np.array_equal(found["resolved"].values, result["resolved"].values)
    np.testing.assert_array_equal(found["susceptibility"].values, result["susceptibility"].values)
    assert open_result(tmp_path / "run").sizes["half"] == 2
