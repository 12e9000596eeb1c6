"""A small corpus and a training on it; measurements of seconds."""

import functools
from dataclasses import replace

import measuring
import pytest
from trainings import SETTINGS, text

from spectrobook.making import registry
from spectrobook.making.installed import Corpus
from spectrobook.making.training import train
from spectrolib.run import measure as carrying_out
from spectrolib.run import profiles
from spectrolib.text.corpus import Document


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    return Corpus.from_documents(Document(text(i), "words" if i % 2 else "terms", name=f"{i}") for i in range(160))


@pytest.fixture(scope="session")
def finished(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished")
    return out, train(SETTINGS, out, corpus)


@pytest.fixture
def tiny(monkeypatch) -> None:
    """Measurements of seconds."""
    short = replace(profiles.SMOKE.settings, burn_in=1, steps_between_draws=1, batch_size=2)
    sizes = {"length": 17, "sampling_windows": 6, "loss_windows": 2, "probe_windows": 4}
    small = replace(profiles.SMOKE, settings=short, **sizes)
    monkeypatch.setitem(profiles.PROFILES, "tiny", small)
    monkeypatch.setattr(registry, "PROFILE", "tiny")
    here = functools.partial(carrying_out.measure, executor=measuring.Inline(), progress=False)
    monkeypatch.setattr(carrying_out, "measure", here)
