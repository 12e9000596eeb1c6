r"""The two control measurements that ship beside the book's: at nβ = 0, and of a model that has learned nothing.

Both have the settings of profile `book`, but for what they change, with two teams of chains in place of four, and every
other of its probe windows. So compare them with the rows that half of the book's teams give.

* ``zero``: nβ = 0, the Gaussian around w*. Its teams run at nβ = ±tilt, so that the covariance is a response here too.
* ``untrained``: the entries of each weight tensor shuffled: the same numbers, nothing learned.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from spectrolib.model.activations import untrained
from spectrolib.model.loading import LanguageModel, load_model
from spectrolib.run.plan import Plan, profile_windows
from spectrolib.run.profiles import get

KEPT = ("susceptibility", "covariance", "half_susceptibility", "loss", "loss_rise", "rise")
"""Variables that ship."""


def plans(folder: Path, profile: str = "book") -> dict[str, Plan]:
    """The plan of each control; the model that has learned nothing lies in the folder."""
    constants, model = get(profile), load_model("bundled")
    windows = profile_windows(constants, model)
    windows["probe"] = windows["probe"].take(np.arange(0, len(windows["probe"]), 2))
    settings = replace(constants.settings, chains=2)
    return {
        "zero": Plan(model=model, settings=replace(settings, nbeta=0.0), **windows),
        "untrained": Plan(model=shuffled(model, folder / "shuffled"), settings=settings, **windows),
    }


def shuffled(model: LanguageModel, folder: Path, seed: int = 0) -> LanguageModel:
    """The model with the entries of each tensor shuffled, as a folder in the hub's format."""
    return _with_weights(model, folder, "weights shuffled", lambda: untrained(model, seed).weights)


def initial(model: LanguageModel, folder: Path, seed: int = 0) -> LanguageModel:
    """The model as it might have begun, as a folder in the hub's format.

    Matrices are Normal(0, 0.02), biases zero, gains of norms one: GPT-NeoX's plain start. (The bundled model was
    trained from projections of zero, where most gradients vanish.)
    """
    generator = torch.Generator().manual_seed(seed)

    def drawn(weight: Tensor, name: str) -> Tensor:
        if weight.ndim > 1:
            return torch.randn(weight.shape, generator=generator) * 0.02
        return torch.ones_like(weight) if name.endswith("weight") else torch.zeros_like(weight)

    make = lambda: {name: drawn(weight, name) for name, weight in model.weights.items()}  # noqa: E731
    return _with_weights(model, folder, "weights drawn anew", make)


def _with_weights(model: LanguageModel, folder: Path, what: str, make: Callable[[], Mapping]) -> LanguageModel:
    """The model with other weights, which are made unless the folder holds them."""
    if not (folder / "model.safetensors").exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(model.config))
        model.tokens.save(str(folder / "tokenizer.json"))
        save_file({name: tensor.half().contiguous() for name, tensor in make().items()}, folder / "part")
        (folder / "part").rename(folder / "model.safetensors")
    made = load_model(str(folder))
    made.name = f"{model.name}, {what}"
    return made
