"""Fixtures that several tests share: a tiny random GPT-NeoX of odd shapes, windows for it, one torch thread.

The shapes in the engine's signatures are checked at run time here, and nowhere else.
"""

import dataclasses
import os
from pathlib import Path

import browser
import numpy as np
import pytest
import torch
from hypothesis import settings as hypothesis_settings
from jaxtyping import install_import_hook
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

install_import_hook(["spectrolib.model.engine", "spectrolib.model.components"], "beartype.beartype")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start
torch.set_num_threads(1)
hypothesis_settings.register_profile("spectrolib", deadline=None, derandomize=True, max_examples=50)
hypothesis_settings.load_profile("spectrolib")

TINY = dict(
    vocab_size=53,
    hidden_size=30,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=44,
    max_position_embeddings=64,
    tie_word_embeddings=False,
)
TINY_CONFIG = {"model_type": "gpt_neox", "hidden_act": "gelu", **TINY}
"""The same as its file on disk says it."""


def random_gpt_neox(seed: int = 0, spread: float = 0.25, **changes) -> GPTNeoXForCausalLM:
    """A GPT-NeoX whose every weight is random, norms and biases too: no term of its gradient is zero or one."""
    model = GPTNeoXForCausalLM(GPTNeoXConfig(**{**TINY, **changes})).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        centre = 1.0 if "norm.weight" in name or "layernorm.weight" in name else 0.0
        parameter.data = centre + spread * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture(scope="session")
def tiny_gpt_neox() -> GPTNeoXForCausalLM:
    """2 layers, 3 heads of 10 dimensions (2 of them rotated), width 30, MLP 44, vocabulary 53."""
    return random_gpt_neox()


@pytest.fixture(scope="session")
def tiny_model(tiny_gpt_neox):
    """The same as a `LanguageModel` without a tokenizer."""
    from spectrolib.model.loading import LanguageModel  # here, since the hook above comes first

    return LanguageModel(tiny_gpt_neox, None, "tiny")


@pytest.fixture(scope="session")
def bundled():
    """The model that ships with the library."""
    from spectrolib.model.loading import load_model

    return load_model("bundled", device="cpu")


@pytest.fixture(scope="session")
def bundled_engine(bundled):
    from spectrolib.model.loading import engine_of

    return engine_of(bundled)


@pytest.fixture(scope="session")
def tiny_windows() -> np.ndarray:
    """7 windows of 12 tokens."""
    return np.random.default_rng(0).integers(0, TINY["vocab_size"], size=(7, 12))


@pytest.fixture(scope="session")
def narrow_folder(tmp_path_factory) -> Path:
    """The folder of a model of 2 layers and width 16."""
    import measuring

    path = tmp_path_factory.mktemp("narrow")
    shape = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    random_gpt_neox(**shape, vocab_size=measuring.VOCABULARY).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def narrow_plan(narrow_folder):
    """One component and 40 probe windows, sampled for no longer than a result takes."""
    import measuring

    from spectrolib.model.loading import load_model

    few = {"components": ("l0h0",), "blocks": 1, "probe": measuring.windows(2, 40)}
    short = dataclasses.replace(measuring.SETTINGS, draws=2, chains=1)
    return dataclasses.replace(
        measuring.plan(narrow_folder, short, **few), model=load_model(narrow_folder, device="cpu")
    )


@pytest.fixture(scope="session")
def narrow_run(narrow_plan, tmp_path_factory) -> Path:
    """Its run folder."""
    import measuring

    path = tmp_path_factory.mktemp("measured") / "run"
    measuring.measure(narrow_plan, path, executor=measuring.Inline(), progress=False)
    return path


@pytest.fixture(scope="module")
def chromium():
    """A running browser for a module's pages."""
    if not browser.executable():
        pytest.skip("no Chromium on this machine")
    with browser.chromium() as running:
        yield running
