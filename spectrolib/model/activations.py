"""Activations of a language model: a layer's residual stream, what attention or the MLP adds to it, the MLP's neurons.

Sites have names, as components have: "l3 residual" is the residual stream after layer 3, counted from 0.
"""

from __future__ import annotations

import re

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from .engine import Engine
from .layers import attention_of, mlp_of, norm, norms_of
from .loading import engine_of

PARTS = ("residual", "attention", "mlp", "neurons")
_SITE = re.compile(rf"l(\d+) ({'|'.join(PARTS)})")


def place(site: str, layers: int | None = None) -> tuple[int, str]:
    """Layer and part of a site; the embedding counts as the residual after layer -1.

    Raises:
        ValueError: for an unknown site, or a layer that the model does not have.
    """
    found = _SITE.fullmatch(site)
    if site != "embed" and not found:
        raise ValueError(f"unknown site {site!r}: it must be 'embed' or like 'l3 residual', with one of {PARTS}")
    layer, part = (-1, "residual") if site == "embed" else (int(found[1]), found[2])
    if layers is not None and layer >= layers:
        raise ValueError(f"site {site!r} is beyond the model's {layers} layers (0 to {layers - 1})")
    return layer, part


def layer_parts(
    engine: Engine, ids: Int[Tensor, "windows time"], layer: int
) -> dict[str, Float[Tensor, "tokens axes"]]:
    """Activations of one layer at w*, by name.

    "before" and "residual" are the residual stream before and after the layer, "attention" and "mlp" what these add to
    it, "neurons" the MLP's inner activations. For layer -1 there is only "residual", the embedded tokens.
    """
    before = engine.residual(ids, max(layer, 0))
    if layer < 0:
        return {"residual": before}
    shape, weights = engine.shape, engine.weights
    before_attention, before_mlp = norms_of(shape, layer)
    attention, mlp = attention_of(weights, shape, layer), mlp_of(weights, shape, layer)
    windows = norm(before, weights, before_attention, shape).view(*ids.shape, -1)
    added = attention.out(attention.context(windows, shape, engine.rotary), shape).flatten(0, 1)
    neurons = mlp.neurons(norm(before if shape.parallel else before + added, weights, before_mlp, shape), shape)
    written = mlp.down(neurons, shape)
    return {
        "before": before,
        "residual": before + added + written,
        "attention": added,
        "mlp": written,
        "neurons": neurons,
    }


@torch.no_grad()
def activations(model, windows, site: str) -> Float[ndarray, "windows time axes"]:
    """Activations of a model at every position of every window.

    Args:
        model: a `LanguageModel`, or its `Engine`.
        windows: `Windows`, or token ids (windows, time).
        site: "l3 residual" is the residual stream *after* layer 3, counted from 0; "l3 attention" and "l3 mlp" are what
            that layer adds to it, "l3 neurons" the MLP's inner activations; "embed" is the residual before layer 0.

    Raises:
        ValueError: for a site that the model does not have, or windows that it cannot read.
    """
    engine = engine_of(model)
    layer, part = place(site, engine.shape.layers)
    ids = engine.ids(windows)
    if engine.shape.longest and ids.shape[1] > engine.shape.longest:  # here the last token is read too
        raise ValueError(
            f"windows must hold at most {engine.shape.longest} tokens to be read whole, got {ids.shape[1]}"
        )
    chunks = ids.split(max(1, engine.tokens_per_pass // ids.shape[1]))
    found = [layer_parts(engine, chunk, layer)[part].view(*chunk.shape, -1).cpu() for chunk in chunks]
    return torch.cat(found).numpy()


def untrained(model, seed: int = 0) -> Engine:
    """An engine whose weights are those of the model, with the entries of each tensor shuffled: a control that keeps
    the distribution of the weights and nothing that was learned.

    Args:
        model: a `LanguageModel`, or its `Engine`.
        seed: of the shuffling.
    """
    rng = np.random.default_rng(seed)
    mixed = {name: rng.permutation(w.cpu().numpy().ravel()).reshape(w.shape) for name, w in model.weights.items()}
    return Engine(model.shape, {name: torch.from_numpy(w) for name, w in mixed.items()})


@torch.no_grad()
def spliced_loss(
    engine: Engine,
    inputs: Int[Tensor, "windows time"],
    targets: Int[Tensor, "windows time"],
    layer: int,
    part: str,
    values: Float[Tensor, "tokens width"],
) -> float:
    """Mean loss with ``values`` in place of the activations of one part of a layer, nats per token.

    Args:
        inputs: token ids that the model reads.
        targets: the next token at each of their positions.
        layer: number of the layer.
        part: "residual" replaces the residual stream after the layer; "attention" or "mlp" what that part adds.
        values: one row for each token of ``inputs``, window by window.
    """
    size = max(1, engine.tokens_per_pass // inputs.shape[1])
    total = 0.0
    pieces = values.float().to(engine.device).split(size * inputs.shape[1])
    for ids, wanted, piece in zip(inputs.split(size), targets.split(size), pieces, strict=True):
        if part == "residual":
            after = piece.contiguous()
        else:
            own = layer_parts(engine, ids, layer)
            after = own["residual"] - own[part] + piece
        total += float(engine.finish(after, layer + 1, wanted)[0].sum())
    return total / targets.numel()
