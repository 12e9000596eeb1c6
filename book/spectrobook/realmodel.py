"""A real model on the book's text (chapter A real model): the text, what ships of the measurement, and its figures.

Both models read the same stretches: the shipped windows turned back into text. So the tokens of SmolLM2 need not ship:
how many bytes each has is enough.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy import ndarray

from spectrolib.clustering import Clustering
from spectrolib.model.components import Component
from spectrolib.model.loading import LanguageModel, load_model
from spectrolib.reading.cards import Card, open_cards
from spectrolib.run import profiles
from spectrolib.run.plan import Plan, profile_windows
from spectrolib.text.corpus import Windows, encode, tokenizer_hash
from spectrolib.text.runningtext import token_bytes

from . import DATA, panels, show
from .figures import BLUE, PALETTE, VERMILION

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


def nearest() -> Int[ndarray, "tokens k"]:
    """The nearest tokens of each by its row, the nearest first."""
    return arrays()["near"].astype(np.int64)


# Figures and the gallery ---------------------------------------------------------------------------------------------

KINDS = {"attention": ("o", BLUE), "MLP": ("s", VERMILION), "embedding, unembedding": ("D", PALETTE[2])}


def kind_of(name: str) -> str:
    """Of a component, one of `KINDS`."""
    return "embedding, unembedding" if "embed" in name else "MLP" if name.endswith("mlp") else "attention"


def places(components: Sequence[str]) -> dict[str, int]:
    """Where each component stands: its layer; the embedding before the first, the unembedding after the last.

    The gap grows with the layers, so that their names have room on a small figure.
    """
    layer = {name: Component.of(name).layer for name in components if "embed" not in name}
    last = max(layer.values())
    gap = 1 + last // 10
    ends = {"embed": -gap, "unembed": last + gap}
    return {name: ends[name] if name in ends else layer[name] for name in components}


def name_layers(ax: Axes, components: Sequence[str]) -> None:
    """Ticks at some layers; E is the embedding, U the unembedding."""
    at = places(components)
    last = max(layer for name, layer in at.items() if "embed" not in name)
    ticks = {layer: str(layer) for layer in range(0, last + 1, 1 if last < 10 else 6)}
    ticks |= {at[name]: name[0].upper() for name in at if "embed" in name}
    ax.set_xticks(list(ticks), list(ticks.values()))
    ax.set_xlabel("layer")


def gamma_figure(both: Mapping[str, Mapping], gammas: Sequence[float]) -> Figure:
    """How much of each token's change is linear, component by component, for each γ.

    Args:
        both: of each model, by the name that is shown, what the table has.
    """
    fig, axes = plt.subplots(1, len(both), figsize=(6.4, 3.7), sharey=True)
    for ax, (title, one) in zip(axes, both.items(), strict=True):
        at = places(one["components"])
        for gamma, colour in zip(gammas, (VERMILION, BLUE, PALETTE[2]), strict=True):
            for name, by_gamma in one["gamma"].items():
                mark = KINDS[kind_of(name)][0]
                ax.plot(at[name], by_gamma[f"{gamma:g}"]["linear"], mark, color=colour, markersize=5, alpha=0.8)
            ax.plot([], [], "o", color=colour, label=f"γ = {gamma:,.0f}")
        ax.set(ylim=(0, 1.03), title=title)
        name_layers(ax, one["components"])
    axes[0].set_ylabel("share that is linear")
    for kind, (mark, _) in KINDS.items():
        axes[0].plot([], [], mark, color="0.4", label=kind)
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return fig


def lengths_figure(both: Mapping[str, Mapping]) -> Figure:
    """How long a token's gradient is with respect to each component, root mean square over tokens."""
    fig, axes = plt.subplots(1, len(both), figsize=(6.4, 3.4), sharey=True)
    for ax, (title, one) in zip(axes, both.items(), strict=True):
        at = places(one["components"])
        for kind, (mark, colour) in KINDS.items():
            known = zip(one["components"], one["length of a gradient"], strict=True)
            own = [(at[name], length) for name, length in known if kind_of(name) == kind]
            ax.plot(*zip(*own, strict=True), mark, color=colour, markersize=4.5, label=kind)
        ax.set(yscale="log", title=title)
        name_layers(ax, one["components"])
        ax.set_yticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
        ax.set_yticks([], minor=True)
    axes[0].set_ylabel("nats per unit of weight")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return fig


def controls_figure(controls: Sequence[Mapping]) -> Figure:
    """Rows of gradients beside other rows: blue the repetition, vermilion what is simpler."""
    lines = {control["rows"]: control for control in controls}
    colours = {name: BLUE if name.startswith("another sketch") else VERMILION for name in lines}
    titles = {"come back": "clusters\nthat survive", "neighbours": "neighbours\nkept"}
    titles |= {"within tokens": "agreement within\none token"}
    return panels.dot_plot(lines, titles, colours=colours, size=(6.4, 2.9), limits=(-0.1, 1.0))


def best_overlap(mine: Int[ndarray, " tokens"], theirs: Int[ndarray, " tokens"]) -> Float[ndarray, " clusters"]:
    """The largest Jaccard index of each of my clusters with one of theirs; zero for one without a token here."""
    found = np.zeros(int(mine.max(initial=-1)) + 1)
    for cluster in np.unique(mine[mine >= 0]):
        own = mine == cluster
        partners = np.unique(theirs[own & (theirs >= 0)])
        shares = [(own & (theirs == p)).sum() / (own | (theirs == p)).sum() for p in partners]
        found[cluster] = max(shares, default=0.0)
    return found


def spellings(card: Card) -> dict[str, int]:
    """The words of a cluster's most frequent tokens, whatever their case and the blanks around them: how often each."""
    counts: dict[str, int] = {}
    for written, count in card.tokens:
        word = written.strip("'\"").replace("\\n", " ").strip().lower() or "blank"
        counts[word] = counts.get(word, 0) + count
    return counts


def portrait(card: Card, *, shown: int = 4) -> show.Markup:
    """A cluster as a reader meets it: its tokens, how often it came back, and members in different documents."""
    seen, lines = set(), []
    for example in card.examples:
        if example.document not in seen and len(lines) < shown:
            seen.add(example.document)
            lines.append(show.in_context(example.before[-44:], example.token, example.after[:24]))
    address = show.Markup(f'<a href="../real-catalogue.html#cluster-{card.cluster}"><b>Cluster {card.cluster}</b></a>')
    names = ", ".join(name for name, _ in card.tokens[:5]).replace("  ", "\u00a0\u00a0")  # blanks that a page keeps
    where = f"{card.size} tokens in {show.counted(card.documents, 'document')}"
    head = f": {names} · {where} · back in {card.share:.0%} of the repetitions"
    return show.block(show.lines([show.Markup(address + show.escaped(head)), *lines]), style="margin-bottom:1.2em")
