"""A real model on the book's text (chapter A real model): the text, and what ships of the measurement.

Both models read the same stretches: the shipped windows turned back into text. So the tokens of SmolLM2 need not ship:
how many bytes each has is enough.
"""

from __future__ import annotations

import functools
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from spectrolib.clustering import Clustering
from spectrolib.model.loading import LanguageModel, load_model
from spectrolib.reading.cards import Card, open_cards
from spectrolib.run import profiles
from spectrolib.run.plan import Plan, profile_windows
from spectrolib.text.corpus import Windows, encode, tokenizer_hash
from spectrolib.text.runningtext import token_bytes

from . import DATA

if TYPE_CHECKING:
    import xarray as xr

EVERY = 2
"""One of so many of the book's probe windows is read."""
SAMPLING = 64
"""Windows over which the mean loss is taken."""
LENGTH = 257
"""Tokens of a shipped window: more text than the real model's 129 tokens hold."""
NAME = "SmolLM2-135M"


# Text ----------------------------------------------------------------------------------------------------------------


def shared_windows(model: LanguageModel) -> dict[str, Windows]:
    """The windows, uncut, in the bundled model's tokens: ``probe`` and ``sampling``."""
    whole = profile_windows(replace(profiles.get("book"), length=LENGTH), model)
    chosen = np.arange(0, len(whole["probe"]), EVERY)
    order = np.concatenate([chosen[::2], chosen[1::2]])  # so that half of a run is of all domains too
    return {"probe": whole["probe"].take(order), "sampling": whole["sampling"].take(np.arange(SAMPLING))}


def text_of(windows: Windows, model: LanguageModel) -> list[str]:
    """The text of each window, without pieces of characters at its ends."""
    known = token_bytes(model.tokens, np.unique(windows.ids))
    return [b"".join(known[i] for i in ids.tolist()).decode(errors="ignore") for ids in windows.ids]


def reread(windows: Windows, old: LanguageModel, new: LanguageModel, length: int) -> Windows:
    """The text of windows as another model reads it: of each, the first so many tokens.

    Raises:
        ValueError: if a window holds fewer.
    """
    ids = [encode(new.tokens, text)[:length] for text in text_of(windows, old)]
    if short := sum(len(own) < length for own in ids):
        raise ValueError(f"{short} windows hold fewer than {length} tokens of model {new.name!r}")
    source = {"source": f"{windows.provenance['source']}, read again", "tokenizer": tokenizer_hash(new.tokens)}
    return Windows(np.stack(ids), windows.domain, windows.document, source, new.tokens.get_vocab_size())


def small_plan(model: LanguageModel, count: int, seed: int = 0) -> Plan:
    """A measurement to first order of any model, on so many of the stretches that the chapter's runs read."""
    profile, small = profiles.get("book"), load_model("bundled", device="cpu")
    texts = {role: known.take(np.arange(count)) for role, known in shared_windows(small).items()}
    if model.hash == small.hash:
        read = {role: known.cut(profile.length) for role, known in texts.items()}
    else:
        read = {role: reread(known, small, model, profile.length) for role, known in texts.items()}
    settings = replace(profile.settings, seed=seed)
    return Plan(model, loss=read["sampling"], **read, settings=settings, first_order=True)


def token_lengths(windows: Windows, model: LanguageModel) -> Int[ndarray, "windows length"]:
    """Bytes of each token."""
    known = token_bytes(model.tokens, np.unique(windows.ids))
    return np.array([[len(known[i]) for i in ids] for ids in windows.ids.tolist()])


# What ships ----------------------------------------------------------------------------------------------------------


@functools.cache
def table() -> dict:
    """Everything that is not of single tokens; ``python -m spectrobook real`` makes it."""
    return json.loads((DATA / "real.json").read_text())


@functools.cache
def arrays() -> dict[str, ndarray]:
    """What stands for single tokens; keys begin with the model's name."""
    with np.load(DATA / "real.npz") as stored:
        return {name: stored[name] for name in stored.files}


@functools.cache
def tokens() -> xr.Dataset:
    """The tokens of SmolLM2, with the coordinates of a measured result, and their losses."""
    import xarray as xr

    model = load_model("bundled", device="cpu")
    held, text = shared_windows(model)["probe"], []
    lengths = arrays()["smollm2/lengths"].astype(np.int64)
    for own, whole in zip(lengths, text_of(held, model), strict=True):
        ends = own.cumsum()
        text += [whole.encode()[end - size : end].decode(errors="replace") for size, end in zip(own, ends, strict=True)]
    count, length = lengths.shape
    said = np.array(text, dtype=object).reshape(count, length)
    each = {
        "sequence": np.repeat(np.arange(count), length - 1),
        "position": np.tile(np.arange(1, length), count),
        "token_id": np.unique(said[:, 1:].astype(str), return_inverse=True)[1].ravel(),
        "text": said[:, 1:].ravel(),
        "domain": np.repeat(held.domain, length - 1).astype(object),
        "document": np.repeat(held.document, length - 1).astype(object),
    }
    coords = {name: ("token", values) for name, values in each.items()}
    return xr.Dataset({"loss": ("token", arrays()["smollm2/loss"])}, coords=coords)


@functools.cache
def clusters() -> Clustering:
    """Its clusters that come back."""
    labels, share = arrays()["smollm2/labels"], arrays()["smollm2/share"]
    number, unknown = np.arange(len(share)), np.full(len(share), np.nan)
    why = np.where(labels >= 0, "cluster", "main body")
    return Clustering(labels, unknown, number, np.bincount(labels[labels >= 0]), number, why, len(share), share=share)


@functools.cache
def cards() -> tuple[Card, ...]:
    """Their cards."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "cards.json").write_bytes(arrays()["cards"].tobytes())
        return tuple(open_cards(folder))
