"""Small models and whole runs of them, which tests compare with."""

from pathlib import Path

import measuring
import pytest
from conftest import random_gpt_neox
from measuring import Inline, odd_plan, plan

from spectrolib.run.measure import measure


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model")
    shape = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": measuring.VOCABULARY}
    random_gpt_neox(**shape).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def whole(folder, tmp_path_factory) -> Path:
    """The folder of an uninterrupted run, all tasks in this process."""
    out = tmp_path_factory.mktemp("whole") / "run"
    measure(plan(folder), out, executor=Inline(), progress=False)
    return out


@pytest.fixture(scope="session")
def odd_folder(tmp_path_factory) -> Path:
    """A small model of odd sizes: nothing is a multiple of what a processor does at once."""
    path = tmp_path_factory.mktemp("model")
    random_gpt_neox(vocab_size=measuring.VOCABULARY).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def odd_whole(odd_folder, tmp_path_factory) -> Path:
    """The folder of a run without shards."""
    out = tmp_path_factory.mktemp("whole") / "run"
    measure(odd_plan(odd_folder), out, executor=Inline(), progress=False)
    return out
