"""Profiles: the constants that the rest of the book relies on."""

from dataclasses import replace

import numpy as np
import pytest

from spectrolib.run.plan import Plan, profile_windows
from spectrolib.run.profiles import BOOK, LAPTOP, PAPER, PROFILES, SMOKE, get
from spectrolib.text.corpus import Document


def test_profiles_go_by_name():
    assert [get(name) for name in ("smoke", "book", "laptop", "paper")] == [SMOKE, BOOK, LAPTOP, PAPER]
    assert all(name == profile.name for name, profile in PROFILES.items())
    with pytest.raises(ValueError, match="unknown profile 'huge': it must be one of smoke, book, laptop, paper"):
        get("huge")


def test_the_paper_profile_has_the_papers_numbers():
    s = PAPER.settings.plain()
    assert not (s.antithetic or s.tilt)
    assert (s.nbeta, s.gamma, s.batch_size, s.chains, s.draws, s.preconditioner) == (10, 300, 16, 4, 100, "rmsprop")
    assert PAPER.model == "EleutherAI/pythia-14m"


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_steps_are_small(profile):
    s = profile.settings
    assert s.relaxed_fraction(1 if s.preconditioner == "none" else 1 / s.rms_epsilon) < 0.2
    assert s.chains % 2 == 0, "split halves need an even number of chains"


@pytest.mark.parametrize("profile", [SMOKE, BOOK], ids=["smoke", "book"])
def test_windows_of_a_profile_are_disjoint_and_of_many_domains(profile, bundled):
    parts = profile_windows(profile, bundled)
    assert {role: len(windows) for role, windows in parts.items()} == {
        "sampling": profile.sampling_windows,
        "loss": profile.loss_windows,
        "probe": profile.probe_windows,
    }
    assert {windows.length for windows in parts.values()} == {profile.length}
    rows = {role: {row.tobytes() for row in windows.ids} for role, windows in parts.items()}
    assert not rows["sampling"] & rows["loss"]
    assert not set(parts["probe"].document) & set(parts["sampling"].document), "probes are from held-out documents"
    assert not set(parts["probe"].document) & set(parts["loss"].document)
    assert len(set(parts["probe"].domain)) >= min(15, profile.probe_windows)
    assert len(set(parts["loss"].domain)) >= min(8, profile.loss_windows)


def test_a_profile_makes_a_plan(bundled):
    plan = Plan.from_profile("smoke", model=bundled, seed=3, components=("l0h0",))
    assert plan.settings == replace(SMOKE.settings, seed=3)
    assert plan.components == ("l0h0",)
    assert plan.probe.ids.shape == (SMOKE.probe_windows, SMOKE.length)
    assert np.array_equal(plan.probe.ids, Plan.from_profile(SMOKE, model=bundled).probe.ids)


def test_a_profile_that_asks_for_too_much_is_refused(bundled):
    with pytest.raises(ValueError, match="more windows than the bundled ones"):
        profile_windows(replace(SMOKE, probe_windows=100_000), bundled)


def test_the_laptop_profile_is_to_first_order(bundled):
    plan = Plan.from_profile(replace(LAPTOP, source="bundled", probe_windows=2), model=bundled)
    assert plan.first_order and plan.channels == 2048 and plan.probe.length == 129
    assert Plan.from_profile("smoke", model=bundled).channels == 512
    assert not Plan.from_profile("smoke", model=bundled).first_order
    assert LAPTOP.probe_windows * (LAPTOP.length - 1) == 10_240


def test_probe_text_may_have_a_data_set_of_its_own(bundled, monkeypatch):
    asked = []

    def documents(name, limit):
        asked.append((name, limit))
        return [Document(f"{name} says {n}: " + "one two three " * 40, name) for n in range(limit)]

    monkeypatch.setattr("spectrolib.run.plan.hub_documents", documents)
    sizes = {"length": 17, "sampling_windows": 6, "loss_windows": 2, "probe_windows": 4}
    parts = profile_windows(replace(PAPER, **sizes), bundled)
    assert asked == [("timaeus/dsir-pile-10k:contents", 24), ("timaeus/pile-github", 8)]
    assert set(parts["probe"].domain) == {"timaeus/pile-github"} and len(parts["probe"]) == 4
    assert set(parts["sampling"].domain) == {"timaeus/dsir-pile-10k:contents"} and len(parts["loss"]) == 2
