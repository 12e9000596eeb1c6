r"""Planted languages: sequence sources whose every token has a known reason.

At each position one *reason* is drawn, and it names the next token:

* ``bigram``: a fixed successor of the previous token;
* ``skip``: a fixed successor of the token ``lag`` places back;
* ``copy``: the latest *name* again;
* ``bracket``: the innermost open bracket closes (by the end of the window all have);
* ``agree``: a *verb* of the class of the latest *subject*, however far back it is;
* ``count``: the number after the latest *number*;
* ``start``: a name, a subject, a number or an opening bracket that later tokens will depend on;
* ``noise``: any token.

So the true conditional distribution is a mixture with known parts,

    q(y|x) = Σ_r p(r|x) q_r(y|x),

and the reason of a token y after x is known twice: as it was drawn, and as P(r|x, y) = p(r|x) q_r(y|x) / q(y|x), what
somebody who knows the language can say of it. Reasons draw on overlapping sets of tokens, so with enough overlap
neither the token nor its predecessor gives the reason away.

This is our construction: the paper has no planted language.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor

from spectrolib.posterior import stable_seed
from spectrolib.text.corpus import Windows, content_hash

from . import DATA
from .making.bundle import write_json
from .making.neox import Architecture, initial_weights, total_loss, window_losses
from .making.optimiser import Optimiser
from .making.settings import TrainingSettings
from .making.training import END, save_tokenizer

REASONS = ("bigram", "skip", "copy", "bracket", "agree", "count", "start", "noise")
BIGRAM, SKIP, COPY, BRACKET, AGREE, COUNT, START, NOISE = range(len(REASONS))
_SETS = (BIGRAM, SKIP, COPY, AGREE, COUNT)
"""Reasons that have a set of ordinary tokens."""


@dataclass(frozen=True)
class Language:
    """A planted language.

    Raises:
        ValueError: if a value is out of range; the message names it.
    """

    tokens: int = 12
    """Tokens in the set of each reason."""
    overlap: float = 0.75
    """Part of its set that a reason shares with all others: 0, the token tells the reason; 1, one set for all."""
    noise: float = 0.05
    """Probability of a token drawn at random."""
    frequency: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
    """Weights of bigram, skip, copy, bracket, agree, count."""
    fresh: float = 0.1
    """Probability that copy, agree and count start anew although they could go on."""
    lag: int = 3
    """How far back ``skip`` looks."""
    classes: int = 2
    """Classes of subjects and verbs."""
    kinds: int = 3
    """Kinds of brackets."""
    depth: int = 2
    """Brackets that can be open at once."""
    seed: int = 0
    """Fixes sets and successors: the language, not what is drawn from it."""

    def __post_init__(self) -> None:
        for name, least in (("lag", 2), ("classes", 1), ("kinds", 1), ("depth", 1), ("seed", 0)):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < least:
                raise ValueError(f"{name} must be an integer of at least {least}, got {getattr(self, name)!r}")
        if not isinstance(self.tokens, int) or self.tokens < 3 * self.classes:
            raise ValueError(f"tokens must be an integer of at least 3 * classes = {3 * self.classes}: {self.tokens!r}")
        for name in ("overlap", "noise", "fresh"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {getattr(self, name)!r}")
        weights = np.asarray(self.frequency, dtype=float)
        if weights.shape != (6,) or not (weights >= 0).all() or not weights.sum() - weights[BRACKET] > 0:
            raise ValueError(
                "frequency must hold six weights, none negative, for bigram, skip, copy, bracket, agree and count, and "
                f"more than brackets; got {self.frequency!r}"
            )

    @property
    def shared(self) -> int:
        """Tokens that all sets have in common."""
        return round(self.overlap * self.tokens)

    @cached_property
    def words(self) -> tuple[str, ...]:
        """The begin (token 0), brackets, tokens that reasons share (x), tokens of one reason alone (b, s, c, a, n)."""
        own = [f"{letter}{i}" for letter in "bscan" for i in range(self.tokens - self.shared)]
        brackets = [f"{side}{_kind(i)}" for side in "()" for i in range(self.kinds)]
        return (END, *brackets, *(f"x{i}" for i in range(self.shared)), *own)

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return len(self.words)

    @cached_property
    def opening(self) -> Int[ndarray, " kinds"]:
        """Ids of the opening brackets; the closing ones follow, in the same order."""
        return np.arange(1, self.kinds + 1)

    @cached_property
    def maps(self) -> Maps:
        """Sets, successors and roles of the tokens, drawn with the language's seed."""
        rng, vocabulary = np.random.default_rng(self.seed), self.vocabulary
        first = 1 + 2 * self.kinds
        common = np.arange(first, first + self.shared)
        own = np.arange(first + self.shared, vocabulary).reshape(len(_SETS), -1)
        sets = {reason: rng.permutation(np.concatenate([common, own[i]])) for i, reason in enumerate(_SETS)}
        successors = [rng.permutation(np.resize(sets[reason], vocabulary)) for reason in (BIGRAM, SKIP)]
        subjects, verbs = np.split(sets[AGREE], [self.tokens // 3])
        of_class, agreeing = np.full(vocabulary, -1), np.zeros((self.classes, vocabulary))
        of_class[subjects] = np.arange(len(subjects)) % self.classes
        agreeing[np.arange(len(verbs)) % self.classes, verbs] = 1
        following = np.full(vocabulary, -1)
        following[sets[COUNT]] = np.roll(sets[COUNT], -1)
        starts = {COPY: sets[COPY], AGREE: subjects, COUNT: sets[COUNT], BRACKET: self.opening}
        return Maps(
            sets,
            successors[0],
            successors[1],
            np.isin(np.arange(vocabulary), sets[COPY]),
            of_class,
            agreeing / agreeing.sum(axis=1, keepdims=True),
            following,
            {reason: _uniform(tokens, vocabulary) for reason, tokens in starts.items()},
            _uniform(np.arange(first, vocabulary), vocabulary),
        )


class Maps(NamedTuple):
    """What the tokens of a language mean to its reasons."""

    sets: dict[int, ndarray]
    """Tokens of each reason."""
    after: Int[ndarray, " vocabulary"]
    """``bigram``: what follows a token."""
    later: Int[ndarray, " vocabulary"]
    """``skip``: what comes ``lag`` places after a token."""
    name: Bool[ndarray, " vocabulary"]
    of_class: Int[ndarray, " vocabulary"]
    """Class of a subject; -1 for what is none."""
    agreeing: Float[ndarray, "classes vocabulary"]
    """Distribution of the verbs of a class."""
    following: Int[ndarray, " vocabulary"]
    """The next number; -1 for what is no number."""
    starts: dict[int, ndarray]
    """Distribution of what a reason starts with."""
    any: Float[ndarray, " vocabulary"]
    """``noise``: every token but the begin and brackets."""


def _kind(i: int) -> str:
    return "" if i == 0 else str(i + 1)


def _uniform(tokens: Int[ndarray, " n"], vocabulary: int) -> Float[ndarray, " vocabulary"]:
    return np.isin(np.arange(vocabulary), tokens) / len(tokens)


class _State:
    """What decides the next token of each window, updated token by token."""

    def __init__(self, language: Language, windows: int):
        self.language, self.rows = language, np.arange(windows)
        self.recent = np.zeros((windows, language.lag), dtype=int)
        self.name, self.subject, self.number = np.full((3, windows), -1)
        self.stack = np.zeros((windows, language.depth + 1), dtype=int)
        self.level = np.zeros(windows, dtype=int)

    def parts(self, left: int) -> Float[ndarray, "windows reasons vocabulary"]:
        """p(r|x) q_r(y|x), where ``left`` tokens are still to come."""
        language, maps, rows = self.language, self.language.maps, self.rows
        weight = np.asarray(language.frequency) / sum(language.frequency) * (1 - language.noise)
        parts = np.zeros((len(rows), len(REASONS), language.vocabulary))
        parts[rows, BIGRAM, maps.after[self.recent[:, -1]]] = weight[BIGRAM]
        parts[rows, SKIP, maps.later[self.recent[:, 0]]] = weight[SKIP]
        for reason, state in ((COPY, self.name), (AGREE, self.subject), (COUNT, self.number)):
            on = np.where(state >= 0, weight[reason] * (1 - language.fresh), 0.0)
            if reason == AGREE:
                parts[:, AGREE] = on[:, None] * maps.agreeing[state]
            else:
                parts[rows, reason, state] = on
            parts[:, START] += (weight[reason] - on)[:, None] * maps.starts[reason]
        may_open = (self.level < language.depth) & (self.level + 2 <= left)
        close, start = _shares(self.level > 0, may_open)
        parts[rows, BRACKET, self._closing()] = weight[BRACKET] * close
        parts[:, START] += weight[BRACKET] * start[:, None] * maps.starts[BRACKET]
        parts[:, NOISE] = language.noise * maps.any
        must = self.level >= left
        parts[must] = 0
        parts[must, BRACKET, self._closing()[must]] = 1
        return parts / parts.sum(axis=(1, 2), keepdims=True)

    def _closing(self) -> Int[ndarray, " windows"]:
        return self.stack[self.rows, self.level] + self.language.kinds

    def advance(self, token: Int[ndarray, " windows"]) -> None:
        """Take in the next token of each window."""
        maps, kinds = self.language.maps, self.language.kinds
        self.recent = np.column_stack([self.recent[:, 1:], token])
        self.name = np.where(maps.name[token], token, self.name)
        self.subject = np.where(maps.of_class[token] >= 0, maps.of_class[token], self.subject)
        self.number = np.where(maps.following[token] >= 0, maps.following[token], self.number)
        opens, closes = (token >= 1) & (token <= kinds), (token > kinds) & (token <= 2 * kinds)
        self.level = self.level + opens - closes
        self.stack[self.rows[opens], self.level[opens]] = token[opens]


def _shares(may_close: Bool[ndarray, " windows"], may_open: Bool[ndarray, " windows"]) -> tuple[ndarray, ndarray]:
    """How ``bracket`` divides its probability between closing and opening: evenly where it may do both."""
    both = np.maximum(may_close + may_open.astype(float), 1)
    return may_close / both, may_open / both


def _follow(language: Language, ids: Int[ndarray, "windows length"]) -> Iterator[tuple[int, ndarray]]:
    """Position and `_State.parts` along windows; reads a token only after its parts were handed out."""
    state, length = _State(language, len(ids)), ids.shape[1]
    for t in range(1, length):
        yield t, state.parts(length - t)
        state.advance(ids[:, t])


def draw(language: Language, windows: int, length: int, seed: int) -> tuple[Windows, Int[ndarray, "windows time"]]:
    """Windows of a planted language, and the reason of each predicted token.

    Args:
        windows: how many.
        length: tokens of a window, the begin included: there are length - 1 predictions.
        seed: fixes what is drawn.

    Returns:
        The windows, as `measure` takes them, and labels that index `REASONS`.

    Raises:
        ValueError: for fewer than 1 window or 2 tokens.
    """
    if windows < 1 or length < 2:
        raise ValueError(f"need at least 1 window of at least 2 tokens, got {windows} of {length}")
    rng = np.random.default_rng(seed)
    ids, labels = np.zeros((windows, length), dtype=np.int32), np.zeros((windows, length - 1), dtype=np.int8)
    for t, parts in _follow(language, ids):
        steps = parts.reshape(windows, -1).cumsum(axis=1)
        chosen = (steps < rng.random((windows, 1)) * steps[:, -1:]).sum(axis=1)
        labels[:, t - 1], ids[:, t] = np.divmod(chosen, language.vocabulary)
    provenance = {
        "source": f"planted language {content_hash(json.dumps(asdict(language)))[:16]}",
        "language": asdict(language),
        "seed": seed,
    }
    names = [f"window {i}" for i in range(windows)]
    return Windows(ids, ["planted"] * windows, names, provenance, language.vocabulary), labels


def _parts_of(language: Language, windows: Windows) -> Iterator[tuple[int, ndarray, ndarray]]:
    """Position, `_State.parts`, and their values at the token that came.

    Raises:
        ValueError: if a window does not begin with token 0, or holds a token that cannot follow.
    """
    ids = windows.ids
    if ids.max() >= language.vocabulary or ids[:, 0].any():
        raise ValueError(f"windows of this language begin with token 0 and have ids below {language.vocabulary}")
    for t, parts in _follow(language, ids):
        here = np.take_along_axis(parts, ids[:, t, None, None], axis=2)[..., 0]
        if not here.any(axis=1).all():
            window = int(np.flatnonzero(~here.any(axis=1))[0])
            raise ValueError(f"window {window}: token {ids[window, t]} at position {t} cannot follow in this language")
        yield t, parts, here


def conditional(language: Language, windows: Windows) -> Float[ndarray, "windows time vocabulary"]:
    """q(y|x), exactly, after every context of the windows.

    Raises:
        ValueError: if the windows are none of this language.
    """
    return np.stack([parts.sum(axis=1) for _, parts, _ in _parts_of(language, windows)], axis=1)


def bayes_losses(language: Language, windows: Windows) -> Float[ndarray, "windows time"]:
    """-log q(y|x) of every predicted token, in nats: no model does better on average.

    Raises:
        ValueError: if the windows are none of this language.
    """
    return -np.log(np.stack([here.sum(axis=1) for *_, here in _parts_of(language, windows)], axis=1))


def responsibility(language: Language, windows: Windows) -> Float[ndarray, "windows time reasons"]:
    """P(r|x, y), exactly: how sure one can be of the reason of every predicted token.

    Raises:
        ValueError: if the windows are none of this language.
    """
    found = np.stack([here for *_, here in _parts_of(language, windows)], axis=1)
    return found / found.sum(axis=2, keepdims=True)


# ---- a tiny transformer that has learnt one


LENGTH = 33
"""Tokens of a window of the shipped model's language."""
FOLDER = DATA / "planted"
"""The shipped model, trained on ``Language()``: `loading.load_model` takes this path."""
CHUNK = 50
"""Steps whose windows are drawn together."""


def recipe(language: Language, *, steps: int = 1000, seed: int = 0) -> TrainingSettings:
    """Settings of a training of two layers of four heads, width 64: a few minutes on one core."""
    shape = Architecture(
        layers=2, heads=4, width=64, mlp=256, vocabulary=language.vocabulary, context=LENGTH, rotary=1.0
    )
    length, batch = LENGTH - 1, 64
    return TrainingSettings(
        tokens=steps * length * batch,
        length=length,
        batch_windows=batch,
        micro_windows=batch,
        adam_lr=5e-3,
        warmup=min(50, steps),
        decay=0.3,
        workers=1,
        seed=seed,
        shape=shape,
    )


def train(language: Language, settings: TrainingSettings) -> tuple[dict[str, Tensor], Float[ndarray, " steps"]]:
    """Train on text of the language that is drawn as it is needed, so that no window comes twice.

    Returns:
        The weights by the hub's names, and the loss of each step in nats per token.
    """
    weights = {name: w.requires_grad_() for name, w in initial_weights(settings.shape, settings.seed).items()}
    optimiser, losses = Optimiser(weights, settings), []
    for step in range(settings.steps):
        if step % CHUNK == 0:
            chunk = draw(
                language, CHUNK * settings.batch_windows, settings.length + 1, stable_seed("text", settings.seed, step)
            )[0].ids.reshape(CHUNK, settings.batch_windows, -1)
        batch = torch.from_numpy(chunk[step % CHUNK].astype(np.int64))
        loss = total_loss(weights, batch, settings.shape) / settings.step_tokens
        loss.backward()
        optimiser.step(settings.rate(step))
        for weight in weights.values():
            weight.grad = None
        losses.append(loss.item())
    return {name: weight.detach() for name, weight in weights.items()}, np.array(losses)


def export(
    language: Language,
    settings: TrainingSettings,
    weights: dict[str, Tensor],
    losses: Float[ndarray, " steps"],
    folder: Path,
) -> Path:
    """Write a model folder in the hub's format: float16 weights, a tokenizer whose words are the language's, a card.

    ``planted.json`` holds the language, the settings and the losses, those of the rounded weights on new windows too.
    """
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(language.words)}, unk_token=END))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    save_tokenizer(tokenizer, folder)
    rounded = {name: weight.half().contiguous() for name, weight in weights.items()}
    save_file(rounded, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    write_json(folder / "config.json", settings.shape.config())
    new, _ = draw(language, 500, settings.length + 1, stable_seed("new text", settings.seed))
    reached = window_losses(
        {k: w.float() for k, w in rounded.items()}, torch.from_numpy(new.ids.astype(np.int64)), settings.shape
    )
    summary = {
        "language": asdict(language),
        "settings": asdict(settings),
        "tokens": settings.steps * settings.step_tokens,
        "losses": {"model": float(reached.double().mean()), "bayes": float(bayes_losses(language, new).mean())},
        "curve": losses.round(4).tolist(),
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
    }
    write_json(folder / "planted.json", summary)
    (folder / "README.md").write_text(_CARD.format(**summary, shape=settings.shape), encoding="utf-8")
    return folder


_CARD = """---
library_name: transformers
license: mit
pipeline_tag: text-generation
tags: [gpt_neox, interpretability]
---

# A model of a planted language

A GPT-NeoX of {shape.layers} layers and {shape.heads} heads, width {shape.width}, vocabulary {shape.vocabulary},
trained on {tokens:,} tokens that `spectrobook.language` drew from a language whose every token has a known reason. On
new windows its loss is {losses[model]:.3f} nats per token; {losses[bayes]:.3f} is the least that any model can reach.
`planted.json` holds the language, the settings and the losses of the training. Words are separated by spaces. It knows
no other language.

Made by `python -m spectrobook planted`.
"""
