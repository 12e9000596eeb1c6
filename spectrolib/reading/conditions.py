"""What can be said of a token in its context from the text, and from the model's output: what rules are made of.

Every condition is a column of zeros and ones over the tokens, with words for it. No condition looks at a
susceptibility, and none at what follows the token, with one exception: the structure of its line and its document
(`lexing`) is guessed from the whole window. Conditions on the output (`OUTPUT`) look at w* alone: the token's loss, and
what the model expects in its place.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from scipy import sparse

from ..model.guesses import Guesses
from ..text.runningtext import KEYWORDS, MISSING, RunningText


class Condition(NamedTuple):
    """A statement that is true or false of a token in its context."""

    group: str
    """What it looks at; see `GROUPS`."""
    text: str
    """In words that a rule can be read from."""
    value: str
    """What distinguishes it in its group, such as the name of a token."""


GROUPS = {
    "token": "the predicted token",
    "class": "class of the token",
    "letters": "its letters: capitals, length, script",
    "before": "the token before",
    "pair": "the two tokens before",
    "class before": "class of the token before",
    "two before": "the token two before",
    "place": "position in the window",
    "domain": "domain, and what the document is written in",
    "region": "inside a string, comment, docstring, tag, code span or mathematics, or not",
    "brackets": "brackets known to be open",
    "line": "indentation, and whether it comes first on its line",
    "repeat": "what came earlier in the window",
    "frequency": "rank of the token among all that were measured",
    "loss": "the token's own loss",
    "expected": "the token that the model holds for the likeliest there",
    "certainty": "how sure the model is of it, and whether it is right",
}
"""What conditions look at; a rule names its conditions in this order."""
OUTPUT = ("loss", "expected", "certainty")
"""Groups that need more than the text: what the model gives at w*."""
LOSSES = (0.01, 0.03, 0.1, 0.3, 1.0, 2.0, 4.0, 6.0, 8.0)
"""Nats that a token's loss may lie below or above."""
SURE = (0.1, 0.3, 0.5, 0.7, 0.9, 0.99)
"""Probabilities of the likeliest token that may be reached or not."""
WRITTEN_IN = {
    "python": "Python",
    "c": "C or a language like it",
    "css": "style sheets",
    "hash": "settings or scripts with # comments",
    "json": "JSON",
    "html": "HTML or XML",
    "latex": "LaTeX",
    "prose": "prose",
}
"""The kinds of `lexing`, in words."""


@dataclass(frozen=True)
class Features:
    """Which condition holds for which token."""

    matrix: sparse.csr_array
    """(tokens, conditions) of 0 and 1."""
    conditions: tuple[Condition, ...]
    text: RunningText

    def column(self, condition: int) -> Bool[ndarray, " tokens"]:
        """Where a condition holds."""
        start, end = self._columns.indptr[condition : condition + 2]
        holds = np.zeros(len(self.text), dtype=bool)
        holds[self._columns.indices[start:end]] = True
        return holds

    @cached_property
    def totals(self) -> Int[ndarray, " conditions"]:
        """How many tokens meet each condition."""
        return np.asarray(self.matrix.sum(axis=0))

    @cached_property
    def _columns(self) -> sparse.csc_array:
        return self.matrix.tocsc()

    def group(self, name: str) -> Int[ndarray, " some"]:
        """The columns of a group."""
        return np.flatnonzero([condition.group == name for condition in self.conditions])

    def only(self, *groups: str) -> Features:
        """The conditions of some groups alone.

        Raises:
            ValueError: for a group that is none of `GROUPS`.
        """
        if strangers := sorted(set(groups) - set(GROUPS)):
            raise ValueError(f"no group of conditions {', '.join(strangers)}: they are {', '.join(GROUPS)}")
        chosen = np.flatnonzero([condition.group in groups for condition in self.conditions])
        return replace(self, matrix=self.matrix[:, chosen], conditions=tuple(self.conditions[i] for i in chosen))


def describe(
    text: RunningText,
    min_count: int = 10,
    *,
    loss: Float[ndarray, " tokens"] | None = None,
    guesses: Guesses | None = None,
    names: Mapping[int, str] | None = None,
) -> Features:
    """Every condition of every token.

    Args:
        min_count: conditions that fewer tokens meet, or that all meet, are left out.
        loss: of each token at w*, nats; without it no condition speaks of it.
        guesses: what the model expects at each token (`model.guesses`), likewise.
        names: how tokens are called that may be expected but stand nowhere in the text, by id; "token 7" where none is
            given.

    Raises:
        ValueError: for another number of losses or guesses than tokens.
    """
    columns = _Columns(min_count)
    _name_tokens(text, columns)
    _name_structure(text, columns)
    _name_repeats(text, columns)
    for what, values in (("losses", loss), ("guesses", None if guesses is None else guesses.token)):
        if values is not None and len(values) != len(text):
            raise ValueError(f"{len(text)} tokens need as many {what}, got {len(values)}")
    if loss is not None:
        _name_losses(loss, columns)
    if guesses is not None:
        _name_guesses(text, guesses, names or {}, columns)
    held = np.concatenate([rows for _, rows in columns.found]) if columns.found else np.zeros(0, dtype=np.int64)
    which = np.repeat(np.arange(len(columns.found)), [len(rows) for _, rows in columns.found])
    shape = len(text), len(columns.found)
    matrix = sparse.csr_array((np.ones(len(held), dtype=np.int32), (held, which)), shape=shape)
    return Features(matrix, tuple(condition for condition, _ in columns.found), text)


class _Columns:
    """Conditions as they are found, with the rows where they hold."""

    def __init__(self, min_count: int):
        self.min_count = min_count
        self.found: list[tuple[Condition, Int[ndarray, " rows"]]] = []

    def mask(self, group: str, text: str, holds: Bool[ndarray, " n"]) -> None:
        """One condition."""
        rows = np.flatnonzero(holds)
        if self.min_count <= len(rows) < len(holds):
            self.found.append((Condition(group, text, text), rows))

    def values(self, group: str, values: ndarray, say: Callable[[str], str], known=None) -> None:
        """One condition for each value that is frequent enough; ``known``: where the value is known."""
        rows = np.arange(len(values)) if known is None else np.flatnonzero(known)
        order = rows[np.argsort(values[rows], kind="stable")]
        starts = np.flatnonzero(np.r_[True, values[order][1:] != values[order][:-1]]) if len(order) else []
        for same in np.split(order, starts[1:]) if len(order) else []:
            if self.min_count <= len(same) < len(values):
                value = str(values[same[0]])
                self.found.append((Condition(group, say(value), value), np.sort(same)))


def _name_tokens(text: RunningText, columns: _Columns) -> None:
    named = np.array([text.names[i] for i in text.token_id.tolist()], dtype=object)
    before = text.previous
    second = np.where(before >= 0, before[before], -1)
    columns.values("token", named, lambda v: v)
    columns.values("before", named[before], lambda v: f"after {v}", before >= 0)
    columns.values("two before", named[second], lambda v: f"two tokens after {v}", second >= 0)
    pairs = np.array([f"{a} then {b}" for a, b in zip(named[second], named[before], strict=True)], dtype=object)
    columns.values("pair", pairs, lambda v: f"after {v}", second >= 0)
    columns.values("domain", text.domain, lambda v: f"in the domain {v}")
    columns.values("domain", text.surroundings.kind, lambda v: f"in a document of {WRITTEN_IN[v]}")
    _, index, counts = np.unique(text.token_id, return_inverse=True, return_counts=True)
    rank = np.argsort(np.argsort(-counts, kind="stable"), kind="stable")[index]
    for low, high in ((0, 10), (10, 100), (100, 1000)):
        phrase = f"token ranked {low + 1} to {high} by frequency" if low else f"one of the {high} most frequent tokens"
        columns.mask("frequency", phrase, (rank >= low) & (rank < high))
    columns.mask("frequency", "not one of the 1000 most frequent tokens", rank >= 1000)


def _name_structure(text: RunningText, columns: _Columns) -> None:
    at, before = text.surroundings, text.previous
    columns.values("class", at.token_class, lambda v: v)
    columns.values("class before", at.token_class[before], lambda v: f"after {_article(v)}", before >= 0)
    bodies = [t.strip() for t in at.text]
    letters = [b if b.isalpha() else "" for b in bodies]
    columns.mask("letters", "all capitals", np.array([len(b) > 1 and b.isupper() for b in letters]))
    columns.mask("letters", "capitalised", np.array([b[:1].isupper() and b[1:].islower() for b in letters]))
    columns.mask("letters", "lower case", np.array([bool(b) and b.islower() for b in letters]))
    columns.mask("letters", "single letter", np.array([len(b) == 1 for b in letters]))
    columns.mask("letters", "keyword of a programming language", np.array([b in KEYWORDS for b in bodies]))
    columns.mask("letters", "part of a character", np.array([_is_part(p) for p in text.pieces]))
    scripts = np.array([_script(b) for b in bodies], dtype=object)
    columns.values("letters", scripts, lambda v: f"{v} letter", scripts != "")
    for name, holds in at.inside.items():
        phrase = name if name == "mathematics" else _article(name)
        columns.mask("region", f"inside {phrase}", holds)
        columns.mask("region", f"outside {'mathematics' if name == 'mathematics' else name + 's'}", ~holds)
    for least in (1, 2, 3):
        columns.mask("brackets", f"at bracket depth {least} or more", at.depth >= least)
    columns.mask("brackets", "outside brackets", at.depth == 0)
    columns.values("brackets", at.bracket, lambda v: f"innermost open bracket {v}", at.bracket != "")
    columns.mask("line", "first on its line", at.first)
    columns.mask("line", "not first on its line", ~at.first)
    columns.mask("line", "on a line without indentation", at.indent == 0)
    columns.mask("line", "on a line indented by 1 to 4 blanks", (at.indent >= 1) & (at.indent <= 4))
    columns.mask("line", "on a line indented by 5 to 8 blanks", (at.indent >= 5) & (at.indent <= 8))
    columns.mask("line", "on a line indented by more than 8 blanks", at.indent > 8)
    for last in (8, 32):
        columns.mask("place", f"among the first {last} tokens of the window", text.position <= last)
    columns.mask("place", "in the second half of the window", text.position > text.position.max(initial=0) / 2)


def _name_repeats(text: RunningText, columns: _Columns) -> None:
    n = len(text)
    seen, follows, third = (np.zeros(n, dtype=bool) for _ in range(3))
    for rows in text.passages:
        words, pairs, triples = set(), set(), set()
        ids = text.token_id[rows].tolist()
        for i, row in enumerate(rows):
            pair, triple = tuple(ids[i - 1 : i + 1]), tuple(ids[i - 2 : i + 1])
            seen[row], follows[row], third[row] = ids[i] in words, pair in pairs, triple in triples
            words.add(ids[i])
            pairs.update([pair] if i else [])
            triples.update([triple] if i > 1 else [])
    before = text.previous
    second = np.where(before >= 0, before[before], -1)
    columns.mask("repeat", "token seen earlier in the window", seen)
    columns.mask("repeat", "token new to the window", ~seen)
    columns.mask("repeat", "repeats a pair of tokens seen earlier in the window", follows)
    columns.mask("repeat", "repeats three tokens seen earlier in the window", third)
    columns.mask("repeat", "ends a pair of tokens new to the window", ~follows)
    columns.mask("repeat", "same as the token before", (before >= 0) & (text.token_id == text.token_id[before]))
    columns.mask("repeat", "same as the token two before", (second >= 0) & (text.token_id == text.token_id[second]))


def _name_losses(loss: Float[ndarray, " tokens"], columns: _Columns) -> None:
    for nats in LOSSES:
        columns.mask("loss", f"of loss below {nats:g} nats", loss < nats)
        columns.mask("loss", f"of loss above {nats:g} nats", loss > nats)


def _name_guesses(text: RunningText, guesses: Guesses, names: Mapping[int, str], columns: _Columns) -> None:
    called = dict(names) | text.names
    expected = np.array([called.get(i, f"token {i}") for i in guesses.token.tolist()], dtype=object)
    columns.values("expected", expected, lambda v: f"where the model expects {v}")
    columns.mask("certainty", "which the model expects", guesses.rank == 1)
    columns.mask("certainty", "which the model does not expect", guesses.rank > 1)
    for most in (5, 20, 100):
        columns.mask("certainty", f"not among the {most} tokens that the model expects most", guesses.rank > most)
        columns.mask("certainty", f"among the {most} tokens that the model expects most", guesses.rank <= most)
    for least in SURE:
        columns.mask("certainty", f"where the model is sure to {least:.0%} or more", guesses.probability >= least)
        columns.mask("certainty", f"where the model is sure to less than {least:.0%}", guesses.probability < least)


def _article(noun: str) -> str:
    if noun.startswith("word "):  # "after a word after space" is no English
        return f"a {noun.replace(' after ', ' that follows a ')}"
    if noun in ("indentation", "spaces", "mixed symbols", "symbols and newline", "sentence punctuation"):
        return noun
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _is_part(piece: bytes) -> bool:
    return MISSING.encode() in piece or _whole_bytes(piece) != piece


def _whole_bytes(piece: bytes) -> bytes:
    return piece.decode("utf-8", "ignore").encode()


def _script(body: str) -> str:
    """The script of the first letter beyond ASCII: "Cyrillic", "CJK", "accented Latin"."""
    for c in body:
        if ord(c) > 127 and c.isalpha():
            script = unicodedata.name(c, "unknown").split()[0]
            return {"LATIN": "accented Latin", "CJK": "CJK", "MICRO": "Greek"}.get(script, script.capitalize())
    return ""
