"""The folder of a trained model: what it holds, what its card says."""

import json

import numpy as np
import pytest
import torch
from trainings import MICRO

from spectrobook.making.bundle import sample
from spectrobook.making.neox import window_losses


def test_the_folder_is_a_model_folder(finished):
    from transformers import AutoTokenizer

    from spectrolib.model.loading import load_weights
    from spectrolib.text.corpus import read_windows

    folder = finished[1]
    config, weights = load_weights(folder)
    assert config["num_hidden_layers"] == 2 and weights["embed_out.weight"].shape == (280, 16)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer("chains of draws")["input_ids"]) == "chains of draws"
    heldout = read_windows(folder / "windows.npz", "heldout")
    losses = window_losses(weights, torch.from_numpy(heldout.ids.astype(np.int64)), MICRO)
    stated = json.loads((folder / "training.json").read_text())["loss"]["heldout"]
    for domain in ("words", "terms"):
        assert losses.numpy()[heldout.domain == domain].mean() == pytest.approx(stated[domain], abs=1e-5)
    card = (folder / "README.md").read_text()
    assert f"**{stated['mean']:.3f}**" in card and "| words |" in card
    again = sample(weights, MICRO, tokenizer.backend_tokenizer, "#include <")
    assert again in card
