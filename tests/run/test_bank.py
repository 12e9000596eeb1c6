"""Draws that are kept: the same bits with a bank as without, for any run that needs them; never of other chains."""

import shutil
from dataclasses import replace
from pathlib import Path

import measuring
import numpy as np
import pytest
import torch
from conftest import random_gpt_neox
from measuring import SETTINGS, Inline, files

from spectrolib.model.loading import engine_of
from spectrolib.run import bank as room
from spectrolib.run import cost, readings
from spectrolib.run.bank import Bank, open_bank, steps
from spectrolib.run.measure import measure
from spectrolib.run.plan import Plan

TEAM = replace(SETTINGS, draws=4, steps_between_draws=1, burn_in=2, batch_size=2, antithetic=True, tilt=10.0)
"""Two of its four chains are at nβ = 0, where there is no minibatch loss."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model")
    random_gpt_neox(vocab_size=measuring.VOCABULARY).save_pretrained(path)
    return path


def plan(folder: Path, settings=TEAM, **changes) -> Plan:
    return measuring.plan(folder, settings, **{"components": ("l0h1", "l0 mlp", "unembed")} | changes)


def run(wanted: Plan, out: Path, **options):
    measure(wanted, out, executor=Inline(), progress=False, **options)
    return files(out)


@pytest.fixture(scope="module")
def filled(folder, tmp_path_factory) -> Path:
    """A bank, filled by a run; the run is checked against one without a bank."""
    path = tmp_path_factory.mktemp("filled")
    assert run(plan(folder), path / "with", bank=path / "bank") == run(plan(folder), path / "without")
    return path / "bank"


@pytest.fixture
def nothing_is_sampled(monkeypatch):
    def fail(*_):
        raise AssertionError("a chain was sampled")

    monkeypatch.setattr(readings, "lockstep", fail)


def test_a_bank_holds_each_chain_and_as_much_as_is_said(folder, filled):
    names = [f"{name}.chain{k}" for name in ("l0h1", "l0-mlp", "unembed", "full") for k in (0, 1)]
    assert {file.stem for file in filled.glob("*.npy")} == {file.stem for file in filled.glob("*.npz")} == set(names)
    held = sum(file.stat().st_size for file in filled.glob("*.npy"))
    assert held == pytest.approx(room.bank_bytes(cost.Work.of(plan(folder))), rel=0.01)


def test_the_same_measurement_again_samples_nothing(folder, filled, tmp_path, nothing_is_sampled):
    expected = files(filled.parent / "without")
    assert run(plan(folder), tmp_path / "run", bank=filled) == expected
    cut = run(plan(folder, shards=3), tmp_path / "shards", bank=filled)
    without_tasks = [{name: data for name, data in own.items() if "tasks" not in name} for own in (expected, cut)]
    assert without_tasks[0] == without_tasks[1]


@pytest.mark.parametrize(
    "changes",
    [
        {"draws": 2, "steps_between_draws": 2},
        {"draws": 3},
        {"draws": 2, "burn_in": 4},
        {"chains": 1},
    ],
    ids=["every other draw", "the first three", "after a longer burn-in", "one chain"],
)
def test_fewer_draws_are_those_of_a_run_that_takes_fewer(folder, filled, tmp_path, monkeypatch, changes):
    settings = replace(TEAM, **changes)
    expected = run(plan(folder, settings, blocks=1), tmp_path / "without")
    monkeypatch.setattr(readings, "lockstep", None)
    assert run(plan(folder, settings, blocks=1), tmp_path / "with", bank=filled) == expected


def test_another_text_is_read_on_the_same_draws(folder, filled, tmp_path, monkeypatch):
    other = {"probe": measuring.windows(7, 5, length=12), "loss": measuring.windows(8, 3)}
    expected = run(plan(folder, **other), tmp_path / "without")
    monkeypatch.setattr(readings, "lockstep", None)
    assert run(plan(folder, **other), tmp_path / "with", bank=filled) == expected


def test_what_a_bank_lacks_is_sampled_and_added(folder, filled, tmp_path):
    """It only grows: later draws come beside those that are there, and both serve."""
    copy = tmp_path / "bank"
    shutil.copytree(filled, copy)
    later = replace(TEAM, draws=2, burn_in=6, steps_between_draws=1)
    wanted = plan(folder, later, blocks=1)
    assert run(wanted, tmp_path / "with", bank=copy) == run(wanted, tmp_path / "without")
    assert np.load(copy / "l0h1.chain0.npz")["steps"].tolist() == [*steps(TEAM), 7, 8] == [3, 4, 5, 6, 7, 8]
    assert not list(copy.glob("*.part*"))
    for settings in (TEAM, later, replace(TEAM, draws=3, steps_between_draws=2)):
        names = ("l0h1", "l0 mlp")
        for draw, other in zip(
            Bank(copy).draws(names, 1, settings, "cpu"), sampled(folder, names, settings), strict=True
        ):
            assert (draw.index, draw.step) == (other.index, other.step)
            assert all(torch.equal(a, b) for a, b in zip(draw.positions, other.positions, strict=True))
            np.testing.assert_array_equal(draw.losses, other.losses)


def sampled(folder, names, settings):
    """The draws of chain 1, without a bank."""
    engine = engine_of(measuring.language_model(folder))
    group, chains = readings.teams(engine, names, settings, 1)
    for draw in readings.sampled(group, chains, settings, plan(folder).sampling):
        yield replace(draw, positions=tuple(position.clone() for position in draw.positions))


def test_draws_made_with_other_components_differ_by_rounding_at_most(folder, filled, tmp_path):
    """What passes through a matrix product together decides its last bits."""
    alone = plan(folder, components=("l0h1",))
    kept = measure(alone, tmp_path / "with", executor=Inline(), progress=False, bank=filled)
    anew = measure(alone, tmp_path / "without", executor=Inline(), progress=False)
    for name in ("susceptibility", "covariance", "rise", "loss_rise"):
        scale_of = float(abs(anew[name]).max())
        np.testing.assert_allclose(kept[name], anew[name], atol=1e-3 * scale_of, rtol=0)


def test_worker_processes_share_a_bank(folder, filled, tmp_path):
    measure(plan(folder, shards=2), tmp_path / "run", workers=2, progress=False, bank=tmp_path / "bank")
    for file in filled.glob("*.npy"):
        assert file.read_bytes() == (tmp_path / "bank" / file.name).read_bytes()


def test_a_chain_that_fails_leaves_nothing(folder, tmp_path):
    wild = replace(TEAM, tilt=5.0, max_rise=1e-9)  # no chain at nβ = 0: those are judged before they run
    with pytest.raises(RuntimeError, match="the loss rose by"):
        run(plan(folder, wild), tmp_path / "run", bank=tmp_path / "bank")
    assert [file.name for file in (tmp_path / "bank").iterdir()] == ["manifest.json"]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"nbeta": 11.0}, r"belongs to other chains \(settings.nbeta: there 10.0, here 11.0\)"),
        ({"seed": 1}, r"settings.seed: there 0, here 1"),
        ({"antithetic": False}, r"settings.antithetic: there true, here false"),
    ],
)
def test_other_chains_are_refused(folder, filled, changes, message):
    with pytest.raises(ValueError, match=message):
        open_bank(filled, plan(folder, replace(TEAM, **changes)))


def test_another_sampling_text_or_pass_is_refused(folder, filled):
    with pytest.raises(ValueError, match=r"other chains \(sampling: there"):
        open_bank(filled, plan(folder, sampling=measuring.windows(5, 20)))
    with pytest.raises(ValueError, match=r"machine\.tokens_per_pass: there null, here 50"):
        open_bank(filled, plan(folder, tokens_per_pass=50))


def test_a_folder_of_something_else_is_refused_before_any_work(folder, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"is not a bank of draws and not empty \(it holds notes.txt\)"):
        run(plan(folder), tmp_path / "run", bank=tmp_path)
    assert not (tmp_path / "run").exists()


def test_a_damaged_file_is_named(folder, filled, tmp_path):
    copy = tmp_path / "bank"
    shutil.copytree(filled, copy)
    (copy / "l0h1.chain0.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(ValueError, match=r"l0h1.chain0.npy is damaged .*delete it"):
        Bank(copy).draws(["l0h1"], 0, TEAM, "cpu")
