"""A text, and a second model that reads it."""

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from spectrolib.text.corpus import bundled_windows


@pytest.fixture(scope="session")
def bytewise():
    """A model whose tokens are single bytes."""
    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokens = Tokenizer(models.BPE(letters, []))
    tokens.pre_tokenizer, tokens.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return SimpleNamespace(name="bytewise", tokens=tokens)


@pytest.fixture(scope="session")
def some_windows():
    """Eight shipped windows."""
    return bundled_windows("heldout").take(np.arange(0, 480, 60))


@pytest.fixture(autouse=True)
def closed_figures():
    """No test leaves a figure open."""
    yield
    plt.close("all")
