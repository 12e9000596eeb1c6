"""Activations of a language model: any layer's residual stream, what attention or MLP add to it, the MLP's neurons.

Sites have names, as components have: "l3 residual" is the residual stream after layer 3, counted from 0.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from .corpus import Windows, bundled_windows, local_documents
from .engine import Engine
from .layers import attention_of, mlp_of, norm, norms_of
from .models import engine_of
from .plan import text_windows
from .profiles import PAPER

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
    found = [parts(engine, chunk, layer)[part].view(*chunk.shape, -1).cpu() for chunk in chunks]
    return torch.cat(found).numpy()


def untrained(model, seed: int = 0) -> Engine:
    """The model's engine with the entries of each of its tensors shuffled: the same numbers, nothing learned."""
    rng = np.random.default_rng(seed)
    mixed = {name: rng.permutation(w.cpu().numpy().ravel()).reshape(w.shape) for name, w in model.weights.items()}
    return Engine(model.shape, {name: torch.from_numpy(w) for name, w in mixed.items()})


def probe_windows(result, pool: Windows | None = None) -> Windows:
    """The windows that a result was measured on, one for each of its sequences.

    A result holds the predicted tokens. The first token of each window is only context: results hold it since they have
    the coordinate ``first_token``. For others, and for parts of windows, it is found in a pool.

    Args:
        result: as from `spectrolib.measure`, with all or some of its tokens.
        pool: where to look, whatever the result holds. By default in the result itself, then among the held-out windows
            that come with the library.

    Raises:
        ValueError: if a sequence is not in the pool.
    """
    own = _whole_windows(result) if pool is None else None
    if own is not None:
        return own
    pool = bundled_windows("heldout") if pool is None else pool
    sequence, position, token = (np.asarray(result[name].values) for name in ("sequence", "position", "token_id"))
    document = np.asarray(result["document"].values) if "document" in result else None
    rows = []
    for s in np.unique(sequence):
        mine = sequence == s
        fits = position[mine].max() < pool.length and (pool.ids[:, position[mine]] == token[mine]).all(axis=1)
        if not np.any(fits):
            raise ValueError(f"sequence {s} of the result is in none of the {len(pool)} windows: give its own pool")
        if document is not None:  # two documents may share a passage
            own = fits & (pool.document == document[mine][0])
            fits = own if np.any(own) else fits
        rows.append(int(np.argmax(fits)))
    return pool.take(np.array(rows)).cut(int(position.max()) + 1)


def _whole_windows(result) -> Windows | None:
    """The windows as a result itself has them; None if it lacks their first tokens, or others.

    Shorter windows end in zeros, which no token before them sees.
    """
    if "first_token" not in result:
        return None
    names = ("sequence", "position", "token_id", "first_token", "domain", "document")
    sequence, position, token, first, domain, document = (np.asarray(result[name].values) for name in names)
    _, start, number, length = np.unique(sequence, return_index=True, return_inverse=True, return_counts=True)
    ids = np.zeros((len(start), int(position.max()) + 1), dtype=np.int64)
    ids[:, 0], ids[number, position] = first[start], token
    places = np.zeros(ids.shape, dtype=bool)
    places[number, position] = True
    whole = np.arange(1, ids.shape[1]) <= length[:, None]
    return Windows(ids, domain[start], document[start]) if np.array_equal(places[:, 1:], whole) else None


def measured_windows(result, model=None) -> Windows:
    """The windows that a whole result was measured on, beyond doubt: for numbers that are to stand beside its own.

    A result without first tokens has them rebuilt: from the windows that come with the library, or from the local text
    that its manifest names. They must have the hash that is in the manifest.

    Args:
        model: the measured `LanguageModel`, whose tokenizer cuts the text again.

    Raises:
        ValueError: if no windows with that hash are to be had.
    """
    own = _whole_windows(result)
    if own is not None:
        return own
    said = json.loads(result.attrs.get("manifest", "{}")).get("windows", {})
    probe = {"hash": "", "source": None} | said.get("probe", {})
    for found in _rebuilt(result, said, model):
        if found.hash == probe["hash"]:
            return found
    where = f", nor can they be cut from {probe['source']!r}" if probe["source"] else ""
    raise ValueError(
        "the result does not hold the first token of each window, as new ones do, and its windows (hash "
        f"{probe['hash'][:12] or 'unknown'}) are not among those that come with the library{where}: measure it again "
        "to compare it with features"
    )


def _rebuilt(result, said: Mapping, model) -> Iterator[Windows]:
    """What the windows of a result may be."""
    try:
        yield probe_windows(result, bundled_windows("heldout"))
    except ValueError:
        pass
    shapes = {role: windows.get("shape") for role, windows in said.items()}
    source = said.get("probe", {}).get("source")
    if source and Path(source).exists() and getattr(model, "tokens", None) and len(shapes) == 3:
        sizes = {f"{role}_windows": count for role, (count, _) in shapes.items()}
        profile = replace(PAPER, length=shapes["probe"][1], **sizes)
        try:
            yield text_windows(profile, model, local_documents(source), source)["probe"]
        except ValueError:  # the text is another now
            pass


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
