"""Structure of text: marked examples, Python's own tokenizer as a second opinion, windows against whole documents."""

import io
import textwrap
import tokenize
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spectrolib.text import lexing

MARKS = {"C": "comment", "S": "string", "D": "docstring", "T": "tag", "M": "mathematics", "K": "code span"}


def marked(text: bytes, kind: str) -> str:
    """A letter for each byte: its innermost region."""
    found = np.full(len(text), ".")
    for letter in "CSDTMK":
        found[lexing.structure(text, kind).inside[MARKS[letter]]] = letter
    return "".join(found)


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("python", "x = 'a#b' # c'd", "....SSSSS.CCCCC"),
        ("python", 'def f():\n    """A."""', "............." + "DDDDDDDD"),
        ("python", 'end of it.\n    """\n    x', "DDDDDDDDDDDDDDDDDD......"),
        ("python", "it's 'b'", ".....SSS"),
        ("c", 'a = "x"; // y', "....SSS..CCCC"),
        ("c", "old */ b /* c", "CCCCCC...CCCC"),
        ("css", "a{b:'c'} /* d */", "....SSS..CCCCCCC"),
        ("hash", "a: #b\n#c", "...CC.CC"),
        ("hash", "a#b '#'", "....SSS"),
        ("json", '{"a": 1}', ".SSS...."),
        ("json", 'cd": 1, "e"', "SSS.....SSS"),
        ("html", "a <b> c <!-- d --> e", "..TTT...CCCCCCCCCC.."),
        ("html", "b> c < d", "TT......"),
        ("latex", "a $x$ \\(y\\) % c", "..MMM.MMMMM.CCC"),
        ("latex", "x\\) b", "MMM.."),
        ("prose", "costs $5 or $6", ".............."),
        ("prose", "let $x^2$ `b` <i>", "....MMMMM.KKK.TTT"),
        ("prose", ":math:`a` ``b``", "MMMMMMMMM.KKKKK"),
    ],
)
def test_regions(kind, text, expected):
    assert marked(text.encode(), kind) == expected


def test_attributes_of_tags_are_strings_inside_tags():
    at = lexing.structure(b'<a href="b" c>', "html")
    assert at.inside["tag"].all()
    assert np.flatnonzero(at.inside["string"]).tolist() == [8, 9, 10]


def test_brackets_that_opened_before_the_text():
    at = lexing.structure(b"a) b(c]", "python")
    assert at.depth.tolist() == [1, 1, 0, 0, 0, 1, 1]
    assert at.bracket.tolist() == ["(", "(", "", "", "", "(", "("]
    deeper = lexing.structure(b"a)b}c", "c")
    assert deeper.depth.tolist() == [2, 2, 1, 1, 0]
    assert deeper.bracket.tolist() == ["(", "(", "{", "{", ""]
    assert not lexing.structure(b"1) b 2) c :)", "prose").depth.any()
    assert not lexing.structure(b"'(' # [", "python").depth.any()


def test_lines():
    at = lexing.structure(b"a b\n  c\n\n\td", "prose")
    assert at.indent.tolist() == [-1, -1, -1, -1, 2, 2, 2, 2, 0, 4, 4]
    assert np.flatnonzero(at.first).tolist() == [6, 10]


def _offsets(source: str) -> list[int]:
    return np.concatenate([[0], np.cumsum([len(line) for line in source.splitlines(keepends=True)])]).tolist()


def by_python(source: str) -> np.ndarray:
    """(bytes,) "C" in comments, "S" in strings of any kind, "." elsewhere, by Python's tokenizer."""
    found, start = np.full(len(source), "."), _offsets(source)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING):
            letter = "C" if token.type == tokenize.COMMENT else "S"
            (row, column), (last, end) = token.start, token.end
            found[start[row - 1] + column : start[last - 1] + end] = letter
    return found


SOURCES = [Path(module.__file__) for module in (textwrap, tokenize, np.testing)] + [Path(lexing.__file__)]


def simple(path: Path) -> str:
    return path.read_text(encoding="utf-8").encode("ascii", "replace").decode()


def by_us(source: str) -> np.ndarray:
    return np.array(list(marked(source.encode(), "python").replace("D", "S")))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_python_as_python_reads_it(path):
    source = simple(path)
    assert (by_us(source) == by_python(source)).mean() > 0.999


def test_windows_are_read_nearly_as_the_whole():
    """What a cut loses: a window of 500 bytes from anywhere, against the truth that the whole document tells."""
    rng, agree = np.random.default_rng(0), []
    for path in SOURCES:
        source = simple(path)
        truth = by_python(source)
        for start in rng.integers(len(source) - 500, size=40):
            agree.append((by_us(source[start : start + 500]) == truth[start : start + 500]).mean())
    assert np.mean(agree) > 0.9
    assert np.median(agree) == 1


@pytest.mark.parametrize(
    ("document", "domain", "text", "expected"),
    [
        ("a/b.py", "stdlib", b"", "python"),
        ("a/b.py", "docstrings", b"", "prose"),
        ("a/b.py", "latex", b"", "latex"),
        ("Pile-CC/3", "Pile-CC", b"import x\nself.y\n", "prose"),
        ("row 7", "Github", b"import x\nself.y = 3\n", "python"),
        ("row 7", "Github", b"<p>a</p><b>c</b>", "html"),
        ("row 7", "Github", b"int a;\nint b;\n", "c"),
        ("row 7", "", b"plain words", "prose"),
        ("pile-arxiv:2", "pile-arxiv", b"", "latex"),
        ("x/METADATA", "readme", b"", "prose"),
        ("src/a.py:0", "src", b"", "python"),
        ("A.TEX.gz:0", "", b"", "latex"),
        ("rows.jsonl:12", "", b"plain words", "prose"),
        ("rows.jsonl", "", b"plain words", "json"),
    ],
)
def test_kinds(document, domain, text, expected):
    assert lexing.kind(document, domain, text) == expected


@given(st.binary(max_size=200), st.sampled_from(lexing.KINDS))
def test_any_bytes_will_do(text, kind):
    at = lexing.structure(text, kind)
    assert all(len(values) == len(text) for values in (*at.inside.values(), at.depth, at.bracket, at.indent, at.first))
    assert (at.depth >= 0).all()
    assert ((at.bracket != "") == (at.depth > 0)).all()


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="unknown kind of document 'cobol'"):
        lexing.structure(b"", "cobol")
