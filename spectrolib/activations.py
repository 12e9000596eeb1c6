"""Activations of a language model: any layer's residual stream, what attention or MLP add to it, the MLP's neurons.

Sites have names, as components have: "l3 residual" is the residual stream after layer 3, counted from 0.
"""

from __future__ import annotations

import re

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from .corpus import Windows, bundled_windows
from .engine import Engine
from .layers import activate

PARTS = ("residual", "attention", "mlp", "neurons")
_SITE = re.compile(rf"l(\d+) ({'|'.join(PARTS)})")


def place(site: str, layers: int | None = None) -> tuple[int, str]:
    """Layer and part of a site; the embedding counts as the residual after layer -1.

    Raises:
        ValueError: for a name that is none, or a layer that is not there.
    """
    found = _SITE.fullmatch(site)
    if site != "embed" and not found:
        raise ValueError(f"unknown site {site!r}: it must be 'embed' or like 'l3 residual', with one of {PARTS}")
    layer, part = (-1, "residual") if site == "embed" else (int(found[1]), found[2])
    if layers is not None and layer >= layers:
        raise ValueError(f"site {site!r} is beyond the model's {layers} layers (0 to {layers - 1})")
    return layer, part


def parts(engine: Engine, ids: Int[Tensor, "windows time"], layer: int) -> dict[str, Float[Tensor, "tokens axes"]]:
    """Residual before and after a layer, and what attention and MLP add between."""
    before = engine.residual(ids, max(layer, 0))
    if layer < 0:
        return {"residual": before}
    frozen = engine.layers[layer]
    after, context = frozen.forward(before, ids.shape[1])
    plain = F.layer_norm(before, before.shape[-1:], eps=engine.shape.norm_epsilon)
    neurons = activate(engine.shape, F.linear(plain, frozen.up, frozen.up_bias))
    return {
        "before": before,
        "residual": after,
        "attention": F.linear(context, frozen.out, frozen.out_bias),
        "mlp": F.linear(neurons, frozen.down, frozen.down_bias),
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
    engine = model if isinstance(model, Engine) else Engine.of(model)
    layer, part = place(site, engine.shape.layers)
    ids = engine.ids(windows)
    chunks = ids.split(max(1, engine.tokens_per_pass // ids.shape[1]))
    found = [parts(engine, chunk, layer)[part].view(*chunk.shape, -1).cpu() for chunk in chunks]
    return torch.cat(found).numpy()


def untrained(model, seed: int = 0) -> Engine:
    """The model's engine with the entries of each of its tensors shuffled: the same numbers, nothing learned."""
    rng = np.random.default_rng(seed)
    mixed = {name: rng.permutation(w.cpu().numpy().ravel()).reshape(w.shape) for name, w in model.weights.items()}
    return Engine(model.shape, {name: torch.from_numpy(w) for name, w in mixed.items()})


def probe_windows(result, pool: Windows | None = None) -> Windows:
    """The windows that a result was measured on, one for each of its sequences, found in a pool.

    A result holds the predicted tokens alone; the first token of each window, which is only context, is in the pool.

    Args:
        result: as from `spectrolib.measure`, with all or some of its tokens.
        pool: where to look, by default the held-out windows that come with the library.

    Raises:
        ValueError: if a sequence is not in the pool.
    """
    pool = bundled_windows("heldout") if pool is None else pool
    sequence, position, token = (np.asarray(result[name].values) for name in ("sequence", "position", "token_id"))
    rows = []
    for s in np.unique(sequence):
        mine = sequence == s
        fits = position[mine].max() < pool.length and (pool.ids[:, position[mine]] == token[mine]).all(axis=1)
        if not np.any(fits):
            raise ValueError(f"sequence {s} of the result is in none of the {len(pool)} windows: give its own pool")
        rows.append(int(np.argmax(fits)))
    return pool.take(np.array(rows)).cut(int(position.max()) + 1)


def token_rows(result, windows: Windows, at: str) -> Int[ndarray, " tokens"]:
    """For each token of a result, the row of its activations in the flattened (windows, time) table.

    Args:
        windows: those of `probe_windows`.
        at: "predicted": the position of the token y itself, whose susceptibility was measured. "context": the one
            before it, where the model predicts y and has not seen it.

    Raises:
        ValueError: for another ``at``.
    """
    if at not in ("context", "predicted"):
        raise ValueError(f"at must be 'context' or 'predicted', got {at!r}")
    number = np.unique(result.sequence.values, return_inverse=True)[1]
    return number * windows.length + result.position.values - (at == "context")


@torch.no_grad()
def spliced_loss(
    engine: Engine,
    inputs: Int[Tensor, "windows time"],
    targets: Int[Tensor, "windows time"],
    layer: int,
    part: str,
    values: Float[Tensor, "tokens width"],
) -> float:
    """Mean loss with ``values`` in place of what a part of a layer gives, nats per token."""
    size = max(1, engine.tokens_per_pass // inputs.shape[1])
    total = 0.0
    pieces = values.float().to(engine.device).split(size * inputs.shape[1])
    for ids, wanted, piece in zip(inputs.split(size), targets.split(size), pieces, strict=True):
        if part == "residual":
            after = piece.contiguous()
        else:
            own = parts(engine, ids, layer)
            after = own["residual"] - own[part] + piece
        total += float(engine.finish(after, layer + 1, wanted)[0].sum())
    return total / targets.numel()
