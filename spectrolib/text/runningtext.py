"""The text that a result was measured on, put together again from its tokens, and what kind of token each one is.

A result holds the predicted tokens of each window in order, so its rows alone give the text again, except for the first
token of each window, which nothing predicts. Nothing here looks at a susceptibility.

Tokens of a byte-level BPE are bytes, not characters: a Cyrillic letter may be two tokens. With the tokenizer, text is
put together byte by byte. Without it, the text stored in the result is used, in which a part of a character is "�".
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int
from numpy import ndarray

from . import lexing

MISSING = "\ufffd"
FAMILIES = (
    "grammar",
    "names",
    "code structure",
    "mathematical notation",
    "markup",
    "numbers",
    "formatting",
    "other languages",
)
"""Families of tokens, decided by a token's text and its surroundings alone; see `RunningText.families`."""

# Text ----------------------------------------------------------------------------------------------------------------


def _bytes_of_letters() -> dict[str, int]:
    """The letters by which byte-level BPE writes bytes (GPT-2): itself if it can be printed, else the next from 256."""
    printed = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printed]
    return {chr(b): b for b in printed} | {chr(256 + i): b for i, b in enumerate(others)}


def token_bytes(tokenizer, ids: Int[ndarray, " n"]) -> dict[int, bytes]:
    """The bytes of tokens of a byte-level BPE (a `tokenizers.Tokenizer`), by id; of others, the bytes of their text.

    Raises:
        ValueError: if an id is beyond the tokenizer's vocabulary.
    """
    described = json.loads(tokenizer.to_str())
    letters = _bytes_of_letters()
    added = {entry["id"]: entry["content"] for entry in described.get("added_tokens") or []}
    parts = described.get("decoder") or {}
    decoders = {part.get("type") for part in [parts, *parts.get("decoders", [])]}
    reads = _after_another(tokenizer, added)
    found = {}
    for i in np.unique(ids).tolist():
        word = tokenizer.id_to_token(i)
        if word is None:
            raise ValueError(f"token {i} is not in this tokenizer's vocabulary: give the one of the measured model")
        if i in added:
            found[i] = added[i].encode()
        elif "ByteLevel" in decoders and all(letter in letters for letter in word):
            found[i] = bytes(letters[c] for c in word)
        elif "ByteFallback" in decoders and re.fullmatch("<0x[0-9A-F]{2}>", word):
            found[i] = bytes([int(word[3:5], 16)])
        else:
            found[i] = reads(i).encode()
    return found


def _after_another(tokenizer, added: Mapping[int, str]) -> Callable[[int], str]:
    """A function that decodes a token as it stands after another one, since decoders drop the blank of a first word."""
    words = sorted(tokenizer.get_vocab(with_added_tokens=False).items(), key=lambda word: word[1])
    first = next((i for word, i in words if word.strip("▁Ġ#").isalpha() and i not in added), None)
    start = "" if first is None else tokenizer.decode([first], False)

    def reads(i: int) -> str:
        pair = "" if first is None else tokenizer.decode([first, i], False)
        return pair[len(start) :] if start and pair.startswith(start) else tokenizer.decode([i], False)

    return reads


def token_texts(tokenizer, ids: Int[ndarray, " n"]) -> dict[int, str]:
    """The text of each token by its id, as it stands inside a text; a part of a character is "�".

    Without a tokenizer (None) it is the id itself as text. An id that the tokenizer does not know has an empty text.
    """
    unique = np.unique(ids)
    if tokenizer is None:
        return {int(i): str(i) for i in unique}
    known = token_bytes(tokenizer, [i for i in unique.tolist() if tokenizer.id_to_token(i) is not None])
    return {int(i): _decode(known.get(int(i), b"")) for i in unique}


@dataclass(frozen=True)
class RunningText:
    """The probe tokens of a result, with the window and the position of each, so that neighbours can be found."""

    pieces: tuple[bytes, ...]
    """The bytes of each token."""
    token_id: Int[ndarray, " n"]
    sequence: Int[ndarray, " n"]
    position: Int[ndarray, " n"]
    domain: ndarray
    document: ndarray

    def __len__(self) -> int:
        return len(self.pieces)

    @cached_property
    def passages(self) -> list[Int[ndarray, " tokens"]]:
        """The rows of each stretch of text without a gap, in order. A stretch is a window, unless rows are missing."""
        order = np.lexsort((self.position, self.sequence))
        apart = (np.diff(self.sequence[order]) != 0) | (np.diff(self.position[order]) != 1)
        return np.split(order, np.flatnonzero(apart) + 1)

    @cached_property
    def previous(self) -> Int[ndarray, " n"]:
        """The row of the token before each token, -1 where a passage begins."""
        before = np.full(len(self), -1)
        for rows in self.passages:
            before[rows[1:]] = rows[:-1]
        return before

    @cached_property
    def documents(self) -> Int[ndarray, " n"]:
        """The number of each token's document."""
        return np.unique(self.document, return_inverse=True)[1]

    @cached_property
    def windows(self) -> Int[ndarray, " n"]:
        """The number of each token's window."""
        return np.unique(self.sequence, return_inverse=True)[1]

    @cached_property
    def places(self) -> dict[int, tuple[int, int]]:
        """For each row, the number of its passage and its place in it."""
        return {int(row): (p, i) for p, rows in enumerate(self.passages) for i, row in enumerate(rows)}

    def context(self, row: int, before: int = 60, after: int = 30) -> tuple[str, str, str]:
        """The text before a token, the token's own text, and the text after it.

        ``before`` and ``after`` limit the numbers of characters. A token that is part of a character is shown as the
        whole character.
        """
        passage, place = self.places[row]
        pieces = [self.pieces[r] for r in self.passages[passage]]
        text = b"".join(pieces)
        start = sum(map(len, pieces[:place]))
        begin, end = _whole(text, start, start + len(pieces[place]))
        left, right = _decode(text[:begin]), _decode(text[end:])
        return left[-before:] if before else "", _decode(text[begin:end]), right[:after]

    def ends_of(self, context: str) -> Int[ndarray, " places"]:
        """The rows of the tokens in which a piece of text ends, wherever it occurs in a passage, in the order of the
        text.

        If it ends exactly at the end of some tokens, only these rows are returned; otherwise those of the tokens inside
        which it ends.
        """
        wanted, found = context.encode("utf-8", "replace"), []
        for rows, joined, ends in self._joined:
            at = joined.find(wanted) if wanted else -1
            while at >= 0:
                token = int(np.searchsorted(ends, at + len(wanted)))
                found.append((rows[token], ends[token] == at + len(wanted)))
                at = joined.find(wanted, at + 1)
        whole = [row for row, together in found if together]
        return np.array(list(dict.fromkeys(whole or (row for row, _ in found))), dtype=np.int64)

    @cached_property
    def _joined(self) -> list[tuple[Int[ndarray, " tokens"], bytes, Int[ndarray, " tokens"]]]:
        """For each passage its rows, its bytes, and the place in these bytes at which each token ends."""
        pieces = [[self.pieces[r] for r in rows] for rows in self.passages]
        ends = [np.cumsum([len(piece) for piece in own]) for own in pieces]
        return list(zip(self.passages, map(b"".join, pieces), ends, strict=True))

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """What each passage is written in; see `lexing.kind`."""
        first = [rows[0] for rows in self.passages]
        joined = (b"".join(self.pieces[r] for r in rows) for rows in self.passages)
        named = ((str(self.document[r]), str(self.domain[r])) for r in first)
        return tuple(lexing.kind(*names, text) for names, text in zip(named, joined, strict=True))

    @cached_property
    def surroundings(self) -> Surroundings:
        """Structure and class of every token."""
        return _surroundings(self)

    @cached_property
    def names(self) -> dict[int, str]:
        """The name of each token in conditions on tokens, by id: its text as Python writes it, or its bytes."""
        return _names(dict(zip(self.token_id.tolist(), self.pieces, strict=True)))

    def families(self) -> ndarray:
        """(n,) the family of each token, one of `FAMILIES`, by its text and its surroundings."""
        return _families(self)


def running_text(result, tokenizer=None) -> RunningText:
    """The text of a result, from its coordinates alone.

    Args:
        result: of `measure.measure`, with the coordinates sequence, position, token_id, text, domain and document.
        tokenizer: the `tokenizers.Tokenizer` of the measured model. Without it, characters that are cut into several
            tokens read "�".

    Raises:
        ValueError: if a coordinate is missing, or the tokenizer is not the one of the result.
    """
    wanted = ("sequence", "position", "token_id", "text", "domain", "document")
    if missing := [name for name in wanted if name not in result.coords]:
        raise ValueError(f"the result has no coordinate {', '.join(missing)}: it names no tokens in running text")
    ids, text = result["token_id"].values, [str(t) for t in result["text"].values]
    if tokenizer is None:
        pieces = tuple(t.encode("utf-8", "replace") for t in text)
    else:
        known = token_bytes(tokenizer, ids)
        pieces = tuple(known[i] for i in ids.tolist())
        for piece, said in zip(pieces, text, strict=True):
            if MISSING not in said and _decode(piece) not in (said, f" {said}") and said:
                raise ValueError(f"the tokenizer is not the measured model's: it reads {piece!r} where {said!r} stands")
    named = (np.asarray(result[name].values, dtype=str).astype(object) for name in ("domain", "document"))
    return RunningText(pieces, ids, result["sequence"].values, result["position"].values, *named)


def token_names(tokenizer, ids: Int[ndarray, " n"]) -> dict[int, str]:
    """Names of tokens in conditions, as `RunningText.names`, for any ids and without a text.

    A model may have more token ids than its tokenizer knows; these are called "token" and their number.
    """
    unique = np.unique(ids).tolist()
    known = [i for i in unique if tokenizer.id_to_token(i) is not None]
    return {i: f"token {i}" for i in unique} | _names(token_bytes(tokenizer, known))


def _names(pieces: Mapping[int, bytes]) -> dict[int, str]:
    names: dict[int, str] = {}
    for i, piece in pieces.items():
        try:
            names[i] = _called(piece.decode())
        except UnicodeDecodeError:
            names[i] = "bytes " + piece.hex(" ")
    called = Counter(names.values())
    return {i: name if called[name] == 1 else f"{name} (token {i})" for i, name in names.items()}


def _decode(text: bytes) -> str:
    return text.decode("utf-8", "replace")


def _whole(text: bytes, begin: int, end: int) -> tuple[int, int]:
    """The smallest span of whole characters around a span of bytes."""
    while 0 < begin < len(text) and text[begin] & 0xC0 == 0x80:
        begin -= 1
    while 0 < end < len(text) and text[end] & 0xC0 == 0x80:
        end += 1
    return begin, end


def _called(text: str, most: int = 24) -> str:
    blanks = len(text) - len(text.rstrip(" "))
    if blanks > 1 and text in (" " * blanks, "\n" + " " * blanks):
        return f"{'newline and ' if text[0] == chr(10) else ''}{blanks} spaces"
    return repr(text if len(text) <= most else f"{text[: most - 1]}…")


# Classes of tokens ---------------------------------------------------------------------------------------------------

_SYMBOLS = {
    "opening bracket": "([{",
    "closing bracket": ")]}",
    "quote": "\"'`",
    "sentence punctuation": ".,;:?!",
    "operator": "=+-*/<>!&|^%~@",
    "underscore": "_",
    "backslash": "\\",
}


def token_class(text: str, before: str = "", line_start: bool = False) -> str:
    """The class of a token, by its text, the character before it, and whether nothing but blanks precede on its line.

    ``text`` is in whole characters: for a token that is part of a character, the whole one.
    """
    body = text.strip(" \t")
    if not text.strip():
        if "\n" in text or "\r" in text:
            if text.endswith((" ", "\t")):
                return "newline with indentation"
            return "blank line" if text.count("\n") > 1 else "newline"
        return "indentation" if line_start else "spaces"
    if "\n" in body:
        return "symbols and newline"
    if MISSING in body:
        return "part of a character"
    if not body.isascii():
        return "letter beyond ASCII" if any(c.isalpha() for c in body) else "symbol beyond ASCII"
    if body.isalpha():
        if text[0] in " \t":
            return "word after space"
        return "word continuation" if before.isalpha() else "word without space"
    if body.isdigit():
        return "number"
    if body.replace("_", "").isalnum():
        return "mixed word"
    for name, symbols in _SYMBOLS.items():
        if set(body) <= set(symbols):
            return name
    return "control character" if not body.isprintable() else "mixed symbols"


class Surroundings(NamedTuple):
    """What each token is, and the structure of the text around it (`lexing.Structure`)."""

    text: list[str]
    """The token's text, in whole characters."""
    token_class: ndarray
    """(n,) see `token_class`."""
    kind: ndarray
    """(n,) what its passage is written in, one of `lexing.KINDS`."""
    inside: dict[str, Bool[ndarray, " n"]]
    """Whether the token is inside each of `lexing.REGIONS`."""
    depth: Int[ndarray, " n"]
    bracket: ndarray
    indent: Int[ndarray, " n"]
    first: Bool[ndarray, " n"]
    """Whether the token holds the first character of its line that is no blank."""


def _surroundings(text: RunningText) -> Surroundings:
    n = len(text)
    whole, classes, kinds = [""] * n, np.full(n, "", dtype=object), np.full(n, "", dtype=object)
    inside = {name: np.zeros(n, dtype=bool) for name in lexing.REGIONS}
    depth, indent = np.zeros(n, dtype=np.int64), np.full(n, -1)
    bracket, first = np.full(n, "", dtype=object), np.zeros(n, dtype=bool)
    for rows, kind in zip(text.passages, text.kinds, strict=True):
        pieces = [text.pieces[r] for r in rows]
        joined = b"".join(pieces)
        if not joined:
            continue
        at = lexing.structure(joined, kind)
        ends = np.cumsum([len(p) for p in pieces])
        kinds[rows] = kind
        for row, piece, end in zip(rows.tolist(), pieces, ends.tolist(), strict=True):
            start = end - len(piece)
            begin, stop = _whole(joined, start, end)
            whole[row] = _decode(joined[begin:stop])
            line = joined[joined.rfind(b"\n", 0, start) + 1 : start]
            alone = not line.strip() and (len(line) < start)
            earlier = _decode(joined[_whole(joined, max(0, begin - 1), begin)[0] : begin])
            classes[row] = token_class(whole[row], earlier, alone)
            solid = min(start + len(piece) - len(piece.lstrip(b" \t")), len(joined) - 1)
            for name, mask in at.inside.items():
                inside[name][row] = mask[solid]
            last = min(max(end - 1, 0), len(joined) - 1)
            depth[row], bracket[row] = at.depth[min(start, last)], at.bracket[min(start, last)]
            indent[row], first[row] = at.indent[last], at.first[start:end].any()
    return Surroundings(whole, classes, kinds, inside, depth, bracket, indent, first)


KEYWORDS = frozenset(
    "and as assert async await break case catch class cdef const continue cpdef def default del do elif else enum "
    "except export extern false finally for from function global if import in inline int is lambda let namespace new "
    "None nonlocal not null or pass private public raise return self static struct super switch template this throw "
    "true True False try typedef typename using var virtual void while with yield bool char float double".split()
)
_WORDS = ("word after space", "word without space", "word continuation", "mixed word", "underscore")
_FORMATTING = ("newline", "newline with indentation", "blank line", "indentation", "spaces")
_PUNCTUATION = frozenset(".,;:?!'\"()[]-")
"""What prose needs without any markup."""
_FOREIGN = ("locales", "translations")


def _families(text: RunningText) -> ndarray:
    at = text.surroundings
    found = np.full(len(text), "grammar", dtype=object)
    words, code = np.isin(at.token_class, _WORDS), np.isin(at.kind, lexing.CODE)
    prose = at.inside["comment"] | at.inside["docstring"]
    keyword = np.array([t.strip() in KEYWORDS for t in at.text])
    found[code & words & ~prose] = "names"
    found[code & ~words & ~prose] = "code structure"
    found[code & words & ~prose & keyword & ~at.inside["string"]] = "code structure"
    tagged = at.inside["tag"] | at.inside["code span"]
    found[tagged | ((at.kind == "html") & ~words & ~prose)] = "markup"
    punctuation = np.array([set(t.strip()) <= _PUNCTUATION for t in at.text], dtype=bool)
    markdown = ~words & ~punctuation & (at.kind == "prose")
    found[markdown] = "markup"
    found[at.inside["mathematics"] | ((at.kind == "latex") & (at.token_class == "backslash"))] = "mathematical notation"
    found[np.isin(text.domain, _FOREIGN) & words] = "other languages"
    found[np.isin(at.token_class, ["letter beyond ASCII", "part of a character"])] = "other languages"
    found[at.token_class == "number"] = "numbers"
    found[np.isin(at.token_class, _FORMATTING)] = "formatting"
    return found
