"""A model is read as transformers reads it, or the check says how far off it is."""

import dataclasses

import numpy as np
import pytest
import torch
from families import KINDS, random_model
from measuring import windows

from spectrolib.model.agreement import TOLERANCE, check_agreement, reference_losses, wants_check
from spectrolib.model.loading import LanguageModel, load_model
from spectrolib.run.measure import measure
from spectrolib.text.corpus import Windows

FEW = Windows(np.random.default_rng(0).integers(0, 53, (2, 12)), ["a"] * 2, ["b"] * 2)


@pytest.mark.parametrize("kind", KINDS)
def test_every_family_agrees_from_its_folder(kind, tmp_path):
    random_model(kind).save_pretrained(tmp_path)
    assert check_agreement(load_model(tmp_path, device="cpu"), FEW) < 1e-3


def test_another_architecture_is_noticed():
    model = LanguageModel(random_model("llama"), None, "mine")
    assert check_agreement(model, FEW) < 1e-3
    model.shape = dataclasses.replace(model.shape, rotary_base=50.0)
    with pytest.raises(ValueError, match=r"model 'mine' is not read as transformers reads it: on 11 .* --no-check"):
        check_agreement(model, FEW)


def test_the_reference_is_a_plain_cross_entropy():
    module = random_model("gpt2")
    ids = torch.from_numpy(FEW.ids).long()
    expected = -module(ids[:, :-1]).logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    assert torch.allclose(reference_losses(LanguageModel(module, None), ids), expected, atol=1e-5)
    half = LanguageModel(random_model("gpt2").bfloat16(), None)
    assert (reference_losses(half, ids) - expected).abs().max() < 1  # the weights are rounded, nothing else
    assert half.model.dtype == torch.bfloat16


def test_it_is_on_for_all_but_the_bundled_model(narrow_plan, bundled, tiny_model, tmp_path, monkeypatch):
    assert wants_check(narrow_plan.model) and wants_check(tiny_model) and not wants_check(bundled)
    wrong = dataclasses.replace(narrow_plan, probe=windows(2, 40))
    monkeypatch.setitem(vars(wrong.model), "shape", dataclasses.replace(wrong.shape, norm_epsilon=0.5))
    with pytest.raises(ValueError, match="is not read as transformers reads it"):
        measure(wrong, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists() and TOLERANCE < 0.1
