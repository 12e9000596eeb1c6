r"""A light look at the structure of a piece of text: strings, comments, tags, mathematics, brackets, indentation.

Nothing here is a parser. A window starts in the middle of a document, so what came before it has to be guessed from
what follows: a ``*/`` without its ``/*`` says that the window began in a comment, a ``)`` without its ``(`` that it
began inside parentheses. What leaves no trace in the window is missed. So true depths may be larger, and the regions of
a window's first tokens are the least certain.

All positions are bytes: text is passed as bytes and read as Latin-1, since all that matters here is ASCII. So a
character that is cut in two does no harm.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from jaxtyping import Bool, Int
from numpy import ndarray

REGIONS = ("comment", "string", "docstring", "tag", "mathematics", "code span")
CODE = ("python", "c", "css", "hash", "json")
"""Kinds of document whose brackets nest, and whose words are names."""
KINDS = (*CODE, "html", "latex", "prose")

_SUFFIXES = {
    "python": "py pyi pyx pxd tp",
    "c": "c h cc cpp cxx hpp hh cu cuh js mjs ts tsx jsx java go rs swift kt scala cs php proto",
    "css": "css scss less",
    "hash": "cmake sh bash yml yaml toml cfg ini conf po pot rb pl r mk dockerfile",
    "json": "json jsonl ipynb",
    "html": "html htm xml xhtml svg jinja j2 vue xsl",
    "latex": "tex sty cls bib dtx",
    "prose": "md rst txt csv tsv dat afm zi log",
}
_KIND_OF_SUFFIX = {suffix: kind for kind, suffixes in _SUFFIXES.items() for suffix in suffixes.split()}
_DOMAINS = {
    "latex": "latex arxiv",
    "python": "python doctests",
    "prose": "docstrings licences readme pubmed freelaw wikipedia enron hackernews cc uspto gutenberg europarl",
    "c": "c cpp javascript",
    "json": "json",
    "html": "html",
    "css": "css",
}
_KIND_OF_DOMAIN = {domain: kind for kind, domains in _DOMAINS.items() for domain in domains.split()}
_TRACES = {
    "html": r"</\w+>|/>|<\w+[ >]",
    "latex": r"\\(?:begin|end|cite|ref|frac|section|label|math\w+)\b",
    "python": r"\bdef \w+\(|\bself\.|^\s*(?:import|from) \w|^\s*(?:if|for|while|with|class|else|try)\b.*:\s*$",
    "c": r";[ \t]*$|\)[ \t]*\{|^\s*(?://|#include|\*/)",
    "json": r'"[^"\n]*"\s*:\s',
}


SOURCES = frozenset(_KIND_OF_SUFFIX) - set(_SUFFIXES["json"].split()) - set("csv tsv dat afm zi log".split())
"""Suffixes of files that hold text to read, as opposed to tables or data."""
COMPRESSED = ("gz", "xz", "zst")


def suffix_of(name: str) -> str:
    """The suffix of a file's name, in small letters and without that of its compression."""
    path = PurePosixPath(name.lower())
    if path.suffix[1:] in COMPRESSED:
        path = path.with_suffix("")
    return path.suffix[1:]


def kind(document: str, domain: str, text: bytes = b"") -> str:
    """What a document is written in, one of `KINDS`: told by its domain, else the suffix of its name, else its text.

    Args:
        document: its name, such as "src/main.py".
        domain: the domain of its text, such as "pile-github".
        text: a piece of it, looked at only where neither name nor domain decides.
    """
    suffix = suffix_of(re.sub(r":\d+$", "", document))
    suffix = "" if suffix == "jsonl" and ":" in document else suffix  # a row of it is any text
    of_domain = _KIND_OF_DOMAIN.get(domain.lower().removeprefix("pile-"))
    if of_domain in ("prose", "latex"):  # docstrings are named after the .py file that holds them
        return of_domain
    return _KIND_OF_SUFFIX.get(suffix) or of_domain or _by_its_looks(text.decode("latin-1"))


def _by_its_looks(text: str) -> str:
    found = {kind: len(re.findall(trace, text, re.M)) for kind, trace in _TRACES.items()}
    best = max(found, key=found.__getitem__)
    return best if found[best] >= 2 else "prose"


_PREFIX = "[rbfuRBFU]{0,2}"


def _quoted(quote: str) -> str:
    """A string that ends on its line, or is cut off by the end of the text."""
    return rf"(?<!\w){_PREFIX}{quote}(?:\\.|[^{quote}\\\n])*(?:{quote}|\Z)"


_STRING = f"(?P<string>{_quoted(chr(34))}|{_quoted(chr(39))})"
_DOCSTRING = rf"(?P<docstring>(?<!\w){_PREFIX}(?:\"\"\".*?(?:\"\"\"|\Z)|'''.*?(?:'''|\Z)))"
_STARRED = r"/\*.*?(?:\*/|\Z)"
_SPAN = r"(?P<code_span>```.*?(?:```|\Z)|``[^`\n]+``|`[^`\n]+`)"
_MATHS = (
    r":math:`[^`]*(?:`|\Z)|\.\. math::.*?(?=\n\n\S|\Z)|\$\$.*?(?:\$\$|\Z)|\\\(.*?(?:\\\)|\Z)|\\\[.*?(?:\\\]|\Z)"
    r"|\\begin\{(equation|align|eqnarray|gather|multline)(\*?)\}.*?(?:\\end\{|\Z)"
)
_DOLLARS = r"(?<![\\$])\$(?![\s$])[^$\n]*(?:\n[^$\n]+)?(?<![\s\\])\$"
_SURE_DOLLARS = r"(?<![\\$\w])\$(?=[^$\n]*[\\^_])[^$\n]+\$"  # in prose a dollar may be a price
_PATTERNS = {
    name: re.compile(pattern, re.S)
    for name, pattern in {
        "python": rf"(?P<comment>\#[^\n]*)|{_DOCSTRING}|{_STRING}",
        "c": rf"(?P<comment>//[^\n]*|{_STARRED})|{_STRING}|(?P<string_>`[^`]*(?:`|\Z))",
        "css": rf"(?P<comment>{_STARRED}|(?<![:\w])//[^\n]*)|{_STRING}",
        "hash": rf"(?P<comment>(?<!\S)\#[^\n]*)|{_STRING}",
        "json": r"(?P<string>\"(?:\\.|[^\"\\\n])*(?:\"|\Z))",
        "html": r"(?P<comment><!--.*?(?:-->|\Z))|(?P<tag><[/!?]?[A-Za-z][^<>]*(?:>|\Z)|\{[{%\#].*?(?:[}%\#]\}|\Z))",
        "latex": rf"(?P<comment>(?<!\\)%[^\n]*)|(?P<mathematics>{_MATHS}|{_DOLLARS})|{_SPAN}",
        "prose": rf"(?P<mathematics>{_MATHS}|{_SURE_DOLLARS})|{_SPAN}|(?P<tag></?[A-Za-z][\w-]*(?:\s[^<>\n]*)?>)",
    }.items()
}
_ATTRIBUTE = re.compile(r"=\s*(\"[^\"]*(?:\"|\Z)|'[^']*(?:'|\Z))")
_OPEN = {"(": ")", "[": "]", "{": "}"}
_CLOSE = {closing: opening for opening, closing in _OPEN.items()}


@dataclass(frozen=True)
class Structure:
    """What is known of every byte of a text."""

    inside: dict[str, Bool[ndarray, " bytes"]]
    """By name of the region, see `REGIONS`."""
    depth: Int[ndarray, " bytes"]
    """How many brackets are known to be open before the byte. In code, those in strings and comments do not count."""
    bracket: ndarray
    """(bytes,) the innermost open bracket, "" for none."""
    indent: Int[ndarray, " bytes"]
    """Blanks at the start of the byte's line (a tab goes to the next multiple of 4); -1 on the first line, whose start
    is not seen."""
    first: Bool[ndarray, " bytes"]
    """Whether the byte is the first of its line that is no blank."""


def structure(text: bytes, kind: str) -> Structure:
    """The structure of a text of the given kind.

    Raises:
        ValueError: for a kind that is not one of `KINDS`.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind of document {kind!r}: one of {', '.join(KINDS)}")
    characters = text.decode("latin-1")
    inside = _regions(characters, kind)
    depth, bracket = _brackets(characters, kind, inside)
    return Structure(inside, depth, bracket, *_lines(characters))


def _regions(text: str, kind: str) -> dict[str, Bool[ndarray, " bytes"]]:
    inside = {name: np.zeros(len(text), dtype=bool) for name in REGIONS}
    name, start = _began_inside(text, kind)
    if start:
        inside[name][:start] = True
    for match in _PATTERNS[kind].finditer(text, start):
        name = match.lastgroup.rstrip("_").replace("_", " ")
        inside[name][match.start() : match.end()] = True
        if name == "tag":
            for value in _ATTRIBUTE.finditer(text, match.start(), match.end()):
                inside["string"][value.start(1) : value.end(1)] = True
    return inside


_ENDS = {
    "c": [("comment", "*/", "/*")],
    "css": [("comment", "*/", "/*")],
    "html": [("comment", "-->", "<!--"), ("tag", ">", "<")],
    "latex": [("mathematics", r"\)", r"\("), ("mathematics", r"\]", r"\[")],
}


def _began_inside(text: str, kind: str) -> tuple[str, int]:
    """The region that the text begins in, and where this ends; 0 for none."""
    if kind == "python":
        return "docstring", _end_of_docstring(text)
    if kind == "json":
        end = re.search(r'[^\\\s\[{:,]"(?=[,:\]}\n])', text)
        return "string", end.end() if end and '"' not in text[: end.start()] else 0
    for name, closing, opening in _ENDS.get(kind, []):
        end, start = text.find(closing), text.find(opening)
        if end >= 0 and (start < 0 or end < start):
            return name, end + len(closing)
    return "", 0


def _end_of_docstring(text: str) -> int:
    """Where a docstring ends that began before the text: at the first triple quote, if this looks like an end.

    It does if there are words before it on its line, or if it stands alone below a line that opens no block.
    """
    quote = re.search(r"\"\"\"|'''", text)
    if quote is None:
        return 0
    above, _, before = text[: quote.start()].rpartition("\n")
    after = text[quote.end() :].partition("\n")[0]
    before = before.strip()
    if before:
        opens = re.search(r"(?:[=(,\[{:]|\breturn|\bin)\s*[rbfuRBFU]{0,2}$|^[rbfuRBFU]{1,2}$", before)
        return 0 if opens or quote[0] in after else quote.end()
    alone = not after.strip()
    block = above.rstrip().endswith((":", "=", "(", ","))
    return quote.end() if alone and above.strip() and not block else 0


def _brackets(text: str, kind: str, inside: dict) -> tuple[Int[ndarray, " bytes"], ndarray]:
    quiet = inside["string"] | inside["comment"] | inside["docstring"] if kind in CODE else np.zeros(len(text), bool)
    depth, innermost = np.zeros(len(text), dtype=np.int64), np.full(len(text), "", dtype="<U1")
    stack: list[str] = []
    last = 0
    for match in re.finditer(r"[()\[\]{}]", text):
        here, symbol = match.start(), match[0]
        if quiet[here]:
            continue
        depth[last : here + 1] += len(stack)
        if stack:
            innermost[last : here + 1] = stack[-1]
        last = here + 1
        if symbol in _OPEN:
            stack.append(symbol)
        elif stack:
            stack.pop()
        elif kind in CODE:  # opened before the text began; in prose it may be an item of a list, or a smile
            depth[: here + 1] += 1
            innermost[: here + 1][innermost[: here + 1] == ""] = _CLOSE[symbol]
    depth[last:] += len(stack)
    if stack:
        innermost[last:] = stack[-1]
    return depth, innermost


def _lines(text: str) -> tuple[Int[ndarray, " bytes"], Bool[ndarray, " bytes"]]:
    indent, first = np.full(len(text), -1, dtype=np.int64), np.zeros(len(text), dtype=bool)
    for line in re.finditer(r"\n([ \t]*)", text):
        end = text.find("\n", line.end())
        indent[line.start(1) : end + 1 if end >= 0 else len(text)] = len(line[1].expandtabs(4))
        if line.end() < len(text) and text[line.end()] not in "\r\n":
            first[line.end()] = True
    return indent, first
