"""A check that a model is read correctly: the engine's losses on a few tokens against those of transformers."""

from __future__ import annotations

import copy

import torch
from jaxtyping import Float
from torch import Tensor

from ..text.corpus import BUNDLED, Windows
from .loading import LanguageModel, engine_of

TOLERANCE = 0.01
"""The largest difference of a token's loss, in nats, that passes. In float32, correct results differ by 1e-4 or
less."""


def wants_check(model: LanguageModel) -> bool:
    """Whether `check_agreement` is worth its time: not for the bundled model, nor for a GGUF file."""
    return model.path is None or (model.path != BUNDLED and (model.path / "config.json").is_file())


def check_agreement(model: LanguageModel, windows: Windows) -> float:
    """Compare the losses of the first window's tokens with those of transformers, in float32.

    It takes seconds, and the memory of a second copy of the model while it runs.

    Returns:
        The largest difference, nats.

    Raises:
        ValueError: if it is larger than `TOLERANCE`, or NaN.
    """
    window = windows.take(slice(1))
    ours = engine_of(model).losses(window).flatten().cpu()
    theirs = reference_losses(model, torch.from_numpy(window.ids).long()).flatten()
    difference = float((ours - theirs).abs().max())
    if not difference <= TOLERANCE:
        raise ValueError(
            f"model {model.name!r} is not read as transformers reads it: on {window.length - 1} tokens their losses "
            f"differ by up to {difference:.3g} nats (mean {ours.mean():.3f} here, {theirs.mean():.3f} there). Its "
            "configuration or weights are of a kind that is not known here; --no-check measures it all the same"
        )
    return difference


def reference_losses(model: LanguageModel, ids: Tensor) -> Float[Tensor, "windows time"]:
    """Losses of all tokens but the first of each window, by transformers, nats."""
    module = model.module(torch.float32) if model.path is not None else copy.deepcopy(model.model).float().eval()
    with torch.no_grad():
        logits = module(ids[:, :-1].to(module.device), use_cache=False).logits.float().cpu()
    return torch.nn.functional.cross_entropy(logits.mT, ids[:, 1:], reduction="none")
