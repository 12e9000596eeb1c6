"""The installed corpus: text that ships inside Python and the installed distributions, so that it needs no network.

About 66 MB in 20 domains: programs, tests, headers, English prose and LaTeX from docstrings, doctests, licences, HTML,
tables, other languages. Caps per domain and per distribution keep Python from drowning the rest; texts that occur twice
are taken once; minified, binary and base64-like files are left out, and so are distributions under copyleft terms.
"""

from __future__ import annotations

import ast
import csv
import hashlib
import importlib.metadata
import inspect
import re
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from spectrolib.text.corpus import Document, content_hash


@dataclass(frozen=True)
class Domain:
    """How much of one kind of text the installed corpus takes."""

    megabytes: float
    """cap for the domain"""
    share: float
    """largest part of the cap that one distribution may fill"""
    what: str
    platform: bool = False
    """the files differ between platforms or patch releases, so the text is stable only on one platform"""
    heldout: float = 0.02
    """part of the documents that is held out"""


DOMAINS = {
    "python": Domain(16, 0.12, "Python sources of the distributions"),
    "python-tests": Domain(7, 0.15, "Python tests"),
    "stubs": Domain(3, 0.4, "Python type stubs", heldout=0.03),
    "cython": Domain(2.5, 0.4, "Cython sources", heldout=0.06),
    "docstrings": Domain(9, 0.2, "English prose in Python docstrings"),
    "latex": Domain(2.5, 0.5, "paragraphs with LaTeX in docstrings; LaTeX style files", heldout=0.15),
    "doctests": Domain(4, 0.35, "interactive examples in docstrings", heldout=0.04),
    "licences": Domain(2, 0.3, "licence texts and notices, each paragraph once", heldout=0.1),
    "readme": Domain(4, 0.2, "Markdown and reStructuredText, package descriptions", heldout=0.1),
    "html": Domain(2, 0.5, "HTML, XML, SVG and templates", heldout=0.1),
    "css": Domain(1.5, 0.6, "CSS and SCSS", heldout=0.1),
    "javascript": Domain(3, 0.5, "JavaScript, not minified", heldout=0.1),
    "json": Domain(4, 0.35, "JSON", heldout=0.1),
    "config": Domain(2, 0.6, "YAML, TOML, INI", heldout=0.1),
    "tables": Domain(2.5, 0.45, "tables of numbers", heldout=0.1),
    "translations": Domain(
        5, 1, "messages translated into other languages (the translations of .po files)", heldout=0.1
    ),
    "locales": Domain(3, 1, "names of languages, places and months in other languages", heldout=0.1),
    "build": Domain(0.7, 0.7, "CMake, shell and batch files", heldout=0.1),
    "c": Domain(8, 0.6, "C and C++ sources and headers", platform=True),
    "stdlib": Domain(6, 1, "the standard library of Python", platform=True),
}

_SUFFIXES = {
    "python": "py",
    "stubs": "pyi",
    "cython": "pyx pxd pxi tp",
    "c": "h hpp cuh c cc cpp cu",
    "readme": "md rst",
    "html": "html htm xml xsl svg jinja jinja2 j2",
    "css": "css scss",
    "javascript": "js ts mjs",
    "json": "json ipynb",
    "config": "yaml yml toml cfg ini mplstyle",
    "tables": "csv dat afm tab arff zi tsv",
    "translations": "po",
    "latex": "sty tex cls",
    "build": "cmake sh bat ps1 in",
}
_DOMAIN_OF = {suffix: domain for domain, suffixes in _SUFFIXES.items() for suffix in suffixes.split()}

# Licences in the sense of "a copy with its notice may be passed on". Anything that matches the second pattern is left
# out as a whole, even where it is one choice of several; vendored trees under other terms are named in the third.
_PERMISSIVE = re.compile(
    r"\b(MIT|BSD|0BSD|Apache|ISC|ISCL|PSF|Python Software Foundation|Zlib|MPL|Mozilla|CC0|Unlicense|BSL|HPND)\b", re.I
)
_COPYLEFT = re.compile(r"\b(A|L)?GPL|General Public License|EUPL|CDDL|CeCILL|Eclipse|EPL\b", re.I)
_OTHER_TERMS = re.compile(r"(^|/)(_vendored|pydevd\w*)/")
_LICENCE_OF = {"psutil": "BSD-3-Clause", "babel": "BSD-3-Clause"}

_LICENCE_FILE = re.compile(r"^(licen[cs]e|copying|notice|authors|third.?party)", re.I)
_TEST_FILE = re.compile(r"(^|/)(tests?|testing)/|(^|/)(test_[^/]*|[^/]*_test|conftest)\.py$")
_OPAQUE = re.compile(r"[A-Za-z0-9+/=]{300}")  # base64 and its like
_MATH = re.compile(r":math:|\.\. math::|\\(frac|sum|int|left|right|sqrt|prod|partial|mathbb|mathrm|begin|cdot|infty)\b")
_LARGEST, _SMALLEST = 100_000, 200  # characters of a document


@dataclass(frozen=True)
class Corpus:
    """Documents, and a manifest that says what they are: versions, bytes per domain, hashes."""

    documents: tuple[Document, ...]
    manifest: dict = field(repr=False)

    @classmethod
    def from_documents(cls, documents: Iterable[Document]) -> Corpus:
        """A corpus of any documents, local or from the hub, in place of the installed ones."""
        documents = tuple(sorted(documents, key=lambda d: (d.domain, d.name)))
        return cls(documents, _manifest(documents, {}, {}, {}))

    def split(self, split: str) -> tuple[Document, ...]:
        """The documents of "train" or of "heldout"; none is in both, and no text is in the corpus twice."""
        if split not in ("train", "heldout"):
            raise ValueError(f"unknown split {split!r}: it is 'train' or 'heldout'")
        return tuple(d for d in self.documents if split_of(d) == split)


def split_of(document: Document) -> str:
    """ "heldout" for a part of the documents, by the hash of their name, otherwise "train".

    The part is 2 %, and more in small domains, which would otherwise have next to nothing held out.
    """
    part = DOMAINS[document.domain].heldout if document.domain in DOMAINS else 0.02
    return "heldout" if _bucket(document.name, 1000, salt="split") < 1000 * part else "train"


def _bucket(name: str, buckets: int, salt: str) -> int:
    return int(content_hash(f"{salt}:{name}")[:12], 16) % buckets


def installed_corpus(
    distributions: Sequence[str] | None = None, *, site: str | Path | None = None, stdlib: bool = True
) -> Corpus:
    """The text inside the installed distributions and the standard library.

    Deterministic for given versions: files are visited in the order of the hashes of their names, and each domain and
    each distribution in it stops at a cap. A file is read only if its cap still has room.

    Args:
        distributions: names of the distributions to read; all installed ones by default.
        site: a site-packages folder to look in instead of the running interpreter's path.
        stdlib: also read the standard library.

    Raises:
        ValueError: if a named distribution is not installed, or no text is found.
    """
    found = {_canonical(d.name): d for d in importlib.metadata.distributions(**({"path": [str(site)]} if site else {}))}
    names = sorted(found) if distributions is None else sorted({_canonical(n) for n in distributions})
    if missing := [n for n in names if n not in found]:
        raise ValueError(f"not installed: {', '.join(missing)}; the corpus is read from installed distributions")
    sources, versions, licences, skipped = [], {}, {}, {}
    for name in names:
        licence = _licence(found[name])
        if name == "spectrolib":
            continue
        if _COPYLEFT.search(licence) or not _PERMISSIVE.search(licence):
            skipped[name] = licence
            continue
        versions[name], licences[name] = found[name].version, licence
        sources += [(name, licence, path, file) for path, file in _files(found[name])]
    if stdlib:
        root = Path(sysconfig.get_path("stdlib"))
        sources += [("python", "PSF-2.0", f"python/{p}", root / p) for p in _stdlib_files(root)]
    documents = _collect(sources)
    if not documents:
        raise ValueError("no text was found in the installed distributions")
    return Corpus(documents, _manifest(documents, versions, licences, skipped))


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _licence(distribution: importlib.metadata.Distribution) -> str:
    """The licence expression; in older metadata, the classifiers or the first line of the licence field."""
    metadata = distribution.metadata
    classifiers = [c.split(" :: ")[-1] for c in metadata.get_all("Classifier") or [] if c.startswith("License")]
    field_line = ((metadata.get("License") or "").strip().splitlines() or [""])[0]
    stated = metadata.get("License-Expression") or " / ".join(classifiers) or field_line
    return stated or _LICENCE_OF.get(_canonical(distribution.name), "")


def _files(distribution: importlib.metadata.Distribution) -> Iterator[tuple[str, Path]]:
    """Files named in RECORD (read directly: `Distribution.files` is ten times slower)."""
    for row in csv.reader((distribution.read_text("RECORD") or "").splitlines()):
        path = row[0] if row else ""
        if path and ".." not in path and not path.endswith(".pyc") and not _OTHER_TERMS.search(path):
            yield path, Path(distribution.locate_file(path))


def _stdlib_files(root: Path) -> list[str]:
    skip = {"site-packages", "__pycache__", "test", "tests", "lib2to3", "turtledemo"}
    files = (p.relative_to(root) for p in root.rglob("*.py"))
    return sorted(p.as_posix() for p in files if not skip & set(p.parts))


def _domain(package: str, path: str) -> str | None:
    pure = PurePosixPath(path)
    if package == "python":
        return "stdlib"
    if "locale-data" in pure.parts:
        return "locales" if pure.suffix == ".dat" else None
    if pure.parent.name.endswith(".dist-info") and pure.name == "METADATA":
        return "readme"
    suffix = pure.suffix[1:].lower()
    if _LICENCE_FILE.match(pure.name) and suffix != "py":
        return "licences"
    if suffix == "py":
        if _TEST_FILE.search(path):
            return "python-tests"
        # A source file is either kept whole or taken apart into prose, LaTeX and examples: never both.
        return "docstrings" if _bucket(path, 2, salt="role") else "python"
    if "LC_MESSAGES" in path and suffix != "po":  # the same messages, escaped
        return None
    if suffix == "txt":
        return "tables" if "data" in path or "test" in path else None
    return _DOMAIN_OF.get(suffix)


def _collect(sources: list[tuple[str, str, str, Path]]) -> tuple[Document, ...]:
    taken: dict[tuple[str, str], int] = {}
    seen: set[str] = set()
    paragraphs: set[str] = set()
    documents = []

    def room(domain: str, package: str) -> bool:
        cap = DOMAINS[domain].megabytes * 1e6
        return taken.get((domain, ""), 0) < cap and taken.get((domain, package), 0) < cap * DOMAINS[domain].share

    for package, licence, path, file in sorted(sources, key=lambda s: content_hash(s[2])):
        domain = _domain(package, path)
        if domain is None or not room(domain, package):
            continue
        for kind, text in _read(domain, path, file, paragraphs):
            text = _cut(text)
            digest = content_hash(" ".join(text.split()))
            if _unfit(kind, text) or digest in seen or not room(kind, package):
                continue
            seen.add(digest)
            documents.append(Document(text, kind, package, path, licence))
            for key in ((kind, ""), (kind, package)):
                taken[key] = taken.get(key, 0) + len(text.encode())
    return tuple(sorted(documents, key=lambda d: (d.domain, d.name)))


def _read(domain: str, path: str, file: Path, paragraphs: set[str]) -> Iterable[tuple[str, str]]:
    """(domain, text) pairs that one file gives."""
    try:
        if domain == "locales":
            return [(domain, _locale_names(PurePosixPath(path).stem))]
        text = file.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return []
    text = text.replace("\r\n", "\n").replace("\f", "\n").lstrip("\ufeff")
    if domain == "docstrings":
        return _take_apart(text).items()
    if domain == "licences":
        return [(domain, _unseen_paragraphs(text, paragraphs))]
    if domain == "translations":
        return [(domain, _messages(text))]
    if path.endswith(".dist-info/METADATA"):
        return [(domain, text.partition("\n\n")[2])]
    return [(domain, text)]


def _cut(text: str) -> str:
    return text if len(text) <= _LARGEST else text[:_LARGEST].rpartition("\n")[0]


def _unfit(domain: str, text: str) -> bool:
    """Too short, binary, minified, or base64-like."""
    if len(text) < _SMALLEST or "\0" in text:
        return True
    lines = text.splitlines()
    longest, mean = max(map(len, lines)), len(text) / len(lines)
    prose = domain in ("readme", "licences", "translations", "locales")
    return ((longest > 2_000 or mean > 160) and not prose) or longest > 20_000 or bool(_OPAQUE.search(text))


def _take_apart(source: str) -> dict[str, str]:
    """Paragraphs of the docstrings of a Python file, by domain."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return {}
    parts: dict[str, list[str]] = {"docstrings": [], "latex": [], "doctests": []}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(ast.get_docstring(node, clean=False) or "")):
            if ">>>" in paragraph:
                parts["doctests"].append(paragraph)
            elif _MATH.search(paragraph):
                parts["latex"].append(paragraph)
            elif len(paragraph) > 60:
                parts["docstrings"].append(paragraph)
    return {domain: "\n\n".join(found) for domain, found in parts.items()}


def _unseen_paragraphs(text: str, seen: set[str]) -> str:
    kept = []
    for paragraph in re.split(r"\n\s*\n", text):
        digest = content_hash(re.sub(r"\W+", " ", paragraph).strip().lower())
        if digest not in seen:
            seen.add(digest)
            kept.append(paragraph)
    return "\n\n".join(kept)


def _messages(catalogue: str) -> str:
    """The translations of a gettext catalogue, without the English they translate."""
    quoted = re.compile(r'"((?:[^"\\]|\\.)*)"')
    messages = []
    for entry in re.split(r"\n\s*\n", catalogue)[1:]:
        found = re.search(r'^msgstr(?:\[0\])? ("(?:.|\n)*)', entry, re.M)
        if found and "#, fuzzy" not in entry:
            message = "".join(quoted.findall(found[1])).replace('\\"', '"').replace("\\n", "\n").strip()
            messages += [message] if message else []
    return "\n".join(messages)


def _locale_names(name: str) -> str:
    """Names that babel knows in one language: languages, territories, months, days, units."""
    if "_" in name:  # regional variants repeat their language
        return ""
    from babel import localedata

    data = localedata.load(name, merge_inherited=False)
    lines: list[str] = []

    def gather(value: object) -> None:
        if isinstance(value, dict):
            flat = [v for v in value.values() if isinstance(v, str)]
            lines.extend([", ".join(flat)] if flat else [])
            for key in sorted(value, key=str):
                gather(value[key])

    for section in ("languages", "territories", "months", "days", "unit_display_names", "unit_patterns"):
        gather(data.get(section, {}))
    return "\n".join(line[:4_000] for line in lines)


def _manifest(
    documents: Iterable[Document], versions: dict[str, str], licences: dict[str, str], skipped: dict[str, str]
) -> dict:
    domains: dict[str, dict] = {}
    whole, portable = hashlib.sha256(), hashlib.sha256()
    for document in documents:
        platform = document.domain in DOMAINS and DOMAINS[document.domain].platform
        entry = domains.setdefault(document.domain, {"documents": 0, "bytes": 0, "heldout": 0, "platform": platform})
        size = len(document.text.encode())
        entry["documents"] += 1
        entry["bytes"] += size
        entry["heldout"] += size * (split_of(document) == "heldout")
        line = f"{document.domain}\0{document.name}\0{content_hash(document.text)}\n".encode()
        whole.update(line)
        if not platform:
            portable.update(line)
    return {
        "distributions": versions,
        "licences": licences,
        "skipped": skipped,
        "python": sysconfig.get_python_version(),
        "domains": domains,
        "bytes": sum(d["bytes"] for d in domains.values()),
        "hash": whole.hexdigest(),
        "hash_portable": portable.hexdigest(),
    }
