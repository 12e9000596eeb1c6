"""A small corpus, and a training that was carried out on it."""

import pytest
from spectrobook.making.installed import Corpus
from spectrobook.making.training import train
from trainings import SETTINGS, text

from spectrolib.text.corpus import Document


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    return Corpus.from_documents(Document(text(i), "words" if i % 2 else "terms", name=f"{i}") for i in range(160))


@pytest.fixture(scope="session")
def finished(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished")
    return out, train(SETTINGS, out, corpus)
