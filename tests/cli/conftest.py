"""A model, a text and a profile, small enough for commands."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import random_gpt_neox
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from spectrolib.run import profiles


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """A small model whose tokens are bytes."""
    path = tmp_path_factory.mktemp("model")
    shape = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 257}
    random_gpt_neox(**shape, bos_token_id=0, eos_token_id=0).save_pretrained(path)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({"<end>": 0} | {letter: i + 1 for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>"}')
    return path


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    """Three books of two hundred lines."""
    path, rng = tmp_path_factory.mktemp("text"), np.random.default_rng(0)
    for name in ("prose", "verse", "code"):
        (path / name).mkdir()
        words = rng.integers(0, 26, (200, 12, 5)) + ord("a")
        lines = [" ".join(bytes(word.tolist()).decode() for word in line) for line in words]
        (path / name / "book.txt").write_text("\n".join(lines))
    return path


@pytest.fixture
def small(monkeypatch) -> profiles.Profile:
    """A profile of seconds, under the name `smoke`."""
    tiny = replace(profiles.SMOKE, length=9, sampling_windows=6, loss_windows=2, probe_windows=3)
    monkeypatch.setitem(profiles.PROFILES, "smoke", tiny)
    return tiny
