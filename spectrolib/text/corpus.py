"""Texts and the token windows cut from them.

`Document`s come from local files and folders, from data sets of the Hugging Face hub, or from the installed corpus
(`installed.py`). `windows_from_documents` cuts them into `Windows`: equally long pieces of single documents, balanced
over domains. `bundled_windows` reads the windows that come with the library.
"""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, TextIO

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from . import lexing
from .hub import asking_hub
from .jsonfiles import check_fetched

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    AnyTokenizer = Tokenizer | PreTrainedTokenizerFast

BUNDLED = Path(__file__).parents[1] / "bundled"


@dataclass(frozen=True)
class Document:
    """One text, with where it comes from.

    The text is repaired when the document is made: lone surrogates, which no file can hold, become "\ufffd", and a byte
    order mark is dropped. Labels lose control characters, which would act on a terminal.
    """

    text: str
    domain: str
    package: str = ""
    name: str = ""
    licence: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", _whole_characters(self.text).removeprefix("\ufeff"))
        for label in ("domain", "package", "name", "licence"):
            object.__setattr__(self, label, _CONTROL.sub("", _whole_characters(getattr(self, label))))


_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x1f\x7f-\x9f]")
"""Escape codes of terminals, and single control characters."""


def _whole_characters(text: str) -> str:
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


_SURROGATE = re.compile("[\ud800-\udfff]")


def content_hash(content: str | bytes) -> str:
    """SHA-256, in hexadecimal."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# Local files and the hub


def local_documents(path: str | Path, *, limit: int | None = None) -> Iterator[Document]:
    """Documents of a text file, a JSON Lines file, a Parquet file, or a folder of these; see `text_files`.

    Rows of .jsonl and .parquet need a field "text". The domain is the row's "domain" or "meta.pile_set_name" (also
    "pile_set_name"), otherwise the name of the file, or inside a folder of the folder it lies in.

    Raises:
        ValueError: if nothing is at `path`, nothing there is one of these, a file cannot be read or is not UTF-8, a row
            has no text, or ``limit`` is below 1.
    """
    path = Path(path)
    files, left_out = text_files(path)
    if not files:
        found = f" (found {named(left_out)})" if left_out else ""
        raise ValueError(
            f"no text in {path}{found}: expected .txt, .md, .tex, source files, .jsonl (or .gz, .xz, .zst), .parquet"
        )

    def documents() -> Iterator[Document]:
        for file in files:
            name, domain = file.name, file.name.split(".")[0]
            if path.is_dir():
                name, domain = file.relative_to(path).as_posix(), file.parent.name
            with _naming(file):
                for number, row in enumerate(_reader(file)(file)):
                    yield _document(row, f"{name}:{number}", domain)

    return _first(documents(), limit)


def text_files(path: str | Path) -> tuple[list[Path], list[Path]]:
    """The files that `local_documents` reads, and those that it leaves out, each in order of name.

    If ``path`` is a file, it is read whatever its suffix, unless it is binary (zero bytes in a file neither compressed
    nor .parquet). In a folder, and in folders linked there, suffixes decide: prose, LaTeX, markup and source files
    (`lexing.SOURCES`), .jsonl and .parquet are read. Hidden files and folders are passed over. README.md is left out:
    it describes the data.

    Raises:
        ValueError: if nothing is at ``path``.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"no such file or folder: {path}")
    if not path.is_dir():
        with path.open("rb") as content:
            binary = b"\0" in content.read(4096) and lexing.suffix_of(path.name) == path.suffix[1:].lower()
        wanted = _suffix(path) in _ROWS or not binary
        return ([path], []) if wanted else ([], [path])
    inside = sorted(_inside(path, set()))
    read = [file for file in inside if _suffix(file) in lexing.SOURCES | _ROWS and file.name.lower() != "readme.md"]
    return read, sorted(set(inside) - set(read))


_ROWS = {"jsonl", "parquet"}


def named(files: Sequence[Path], most: int = 3) -> str:
    """How many files there are, and the first of them."""
    rest = ", ..." if len(files) > most else ""
    return f"{len(files)}: " + ", ".join(file.name for file in files[:most]) + rest


def _inside(folder: Path, seen: set[Path]) -> Iterator[Path]:
    """Files below a folder, through links too, each folder once."""
    seen.add(folder.resolve())
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_file():
            yield entry
        elif entry.is_dir() and entry.resolve() not in seen:
            yield from _inside(entry, seen)


def _suffix(path: Path) -> str:
    return lexing.suffix_of(path.name)


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Say in one line which file cannot be read."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text: {error}") from error
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise ValueError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def hub_documents(
    name: str | Path, *, split: str = "train", limit: int | None = None, domain: str | None = None
) -> Iterator[Document]:
    """Documents of a data set on the hub, streamed; `name` may be a local folder in the hub's format.

    Examples: "NeelNanda/pile-10k"; the Pile subsets "timaeus/pile-github", "timaeus/pile-arxiv", ..., whose domain is
    the last part of the name; "timaeus/dsir-pile-10k:contents", with the column that holds the text; and
    "Salesforce/wikitext[wikitext-2-raw-v1]", with the name of a subset.

    Raises:
        ImportError: if `datasets` is missing (the extra "hub" brings it).
        ValueError: if there is no such data set or split, or its rows have no text.
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError("hub data sets need the extra: pip install 'spectrolib[hub]'") from error
    place, subset, column = hub_source(name)
    known = (
        "give the name of a public data set of the hub, such as 'NeelNanda/pile-10k', or a local folder in its format"
    )
    local = Path(place).exists()
    with asking_hub(f"data set {str(name)!r}, split {split!r}", known, local=local):
        rows = datasets.load_dataset(place, subset, split=split, streaming=True)
    called = Path(place).resolve().name if local else place  # the same wherever a folder lies: windows depend on it
    default = domain or PurePosixPath(called).name.removeprefix("pile-")
    documents = (_document(row, f"{called}/{split}:{n}", default, column) for n, row in enumerate(rows))
    return _first(documents, limit)


def hub_source(name: str | Path) -> tuple[str, str | None, str]:
    """Data set, subset or None, and column of text of a name such as "owner/name[subset]:column".

    The column is "text" where none is named.
    """
    parts = re.fullmatch(r"(.+?)(?:\[([^\]]+)\])?(?::([\w.-]+))?", str(name), re.DOTALL)
    return (parts[1], parts[2], parts[3] or "text") if parts else (str(name), None, "text")


def settled_source(name: str | Path) -> str:
    """A data set's name that means the same from any working directory: that of a local folder whole, and its column.

    A column is always named, so that it is told from the folder as text.
    """
    place, subset, column = hub_source(name)
    if not Path(place).exists():
        return str(name)
    return f"{Path(place).resolve()}{f'[{subset}]' if subset else ''}:{column}"


def _first(documents: Iterator[Document], limit: int | None) -> Iterator[Document]:
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be positive, got {limit}")
    return itertools.islice(documents, limit)


def _document(row: dict, name: str, domain: str, column: str = "text") -> Document:
    if not isinstance(row, dict) or not isinstance(row.get(column), str):
        found = sorted(row) if isinstance(row, dict) else repr(row)
        raise ValueError(f"{name}: a row needs a field {column!r} with text, found {found}")
    meta = row.get("meta") if isinstance(row.get("meta"), dict) else {}
    stated = row.get("domain") or meta.get("pile_set_name") or row.get("pile_set_name")
    return Document(row[column], str(stated or domain), name=name, licence=str(row.get("licence") or ""))


def _reader(path: Path) -> Callable[[Path], Iterator[dict]]:
    return {"parquet": _read_parquet, "jsonl": _read_lines}.get(_suffix(path), _read_text)


def _read_text(path: Path) -> Iterator[dict]:
    with _open(path) as content:
        yield {"text": content.read()}


def _read_lines(path: Path) -> Iterator[dict]:
    with _open(path) as lines:
        for line in lines:
            if line.strip():
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise ValueError(f"{path}: a line is not JSON: {error}") from error
                yield row


def _open(path: Path) -> TextIO:
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    if suffix == ".xz":
        return lzma.open(path, "rt", encoding="utf-8")
    if suffix == ".zst":
        import fsspec  # knows zstd where the zstandard package is installed

        return fsspec.open(str(path), "rt", compression="zstd", encoding="utf-8").open()
    return path.open(encoding="utf-8")


def _read_parquet(path: Path) -> Iterator[dict]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("Parquet files need the extra: pip install 'spectrolib[hub]'") from error
    for batch in pyarrow.parquet.ParquetFile(path).iter_batches(256):
        yield from batch.to_pylist()


# ---------------------------------------------------------------------------------------------------------------------
# Windows


@dataclass(frozen=True)
class Windows:
    """Equally long token windows, each cut from inside one document.

    A window of T tokens holds T - 1 predictions.
    """

    ids: Int[ndarray, "windows length"]
    domain: ndarray
    """(windows,) str"""
    document: ndarray
    """(windows,) str"""
    provenance: dict = field(default_factory=dict)
    """source, tokenizer hash, hash of the documents"""
    vocabulary: int | None = None
    """number of tokens that the tokenizer knows; ids are checked against it"""

    def __post_init__(self) -> None:
        ids = np.asarray(self.ids)
        if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(f"ids must be integers of shape (windows, length), got {ids.dtype} {ids.shape}")
        if ids.shape[0] == 0:
            raise ValueError("no windows: the set is empty")
        if ids.shape[1] < 2:
            raise ValueError(f"a window needs at least 2 tokens (one prediction), got length {ids.shape[1]}")
        top = np.iinfo(np.int32).max if self.vocabulary is None else self.vocabulary
        if ids.min() < 0 or ids.max() >= top:
            raise ValueError(f"token ids run from {ids.min()} to {ids.max()}, beyond the vocabulary of {top}")
        for label in ("domain", "document"):
            values = np.asarray(getattr(self, label), dtype=str)
            if values.shape != ids.shape[:1]:
                raise ValueError(f"{label} must have one entry per window ({ids.shape[0]}), got shape {values.shape}")
            object.__setattr__(self, label, values)
        object.__setattr__(self, "ids", np.ascontiguousarray(ids, dtype=np.int32))

    def __len__(self) -> int:
        return self.ids.shape[0]

    @property
    def length(self) -> int:
        return self.ids.shape[1]

    def take(self, index: Int[ndarray, " chosen"] | slice) -> Windows:
        """The windows at `index`, in its order."""
        index = np.arange(len(self))[index]
        return replace(self, ids=self.ids[index], domain=self.domain[index], document=self.document[index])

    def cut(self, length: int) -> Windows:
        """The first `length` tokens of each window."""
        if length > self.length:
            raise ValueError(f"cannot cut windows of {self.length} tokens to {length}")
        return replace(self, ids=self.ids[:, :length])

    @cached_property
    def hash(self) -> str:
        """SHA-256 over ids, domains and documents."""
        digest = hashlib.sha256(repr(self.ids.shape).encode() + self.ids.tobytes())
        digest.update("\0".join([*self.domain, *self.document]).encode())
        return digest.hexdigest()


def windows_from_documents(
    documents: Iterable[Document],
    tokenizer: AnyTokenizer,
    *,
    length: int,
    count: int,
    seed: int = 0,
    per_document: int | None = None,
    source: str = "documents",
) -> Windows:
    """`count` windows of `length` tokens, as evenly over the domains as their documents allow.

    Domains take turns; each turn gives one window from the domain's next document (in random order), at a random place.
    Windows of one document do not overlap. Documents with the same text count as one.

    Args:
        per_document: largest number of windows from one document. By default 4, and without limit if that gives fewer
            than ``count`` windows.

    Raises:
        ValueError: if the documents hold fewer such windows, or length < 2.
    """
    most = 4 if per_document is None else per_document
    if length < 2 or count < 1 or most < 1:
        raise ValueError(f"need length >= 2, count >= 1, per_document >= 1; got {length}, {count}, {most}")
    tokenizer, queues = bare_tokenizer(tokenizer), _by_domain(documents)
    chosen = _chosen(queues, tokenizer, length, count, most, seed)
    if len(chosen) < count and per_document is None:
        chosen = _chosen(queues, tokenizer, length, count, None, seed)
    if len(chosen) < count:
        limit = "" if per_document is None else f", {per_document} of a document at most"
        raise ValueError(
            f"the documents give {len(chosen)} windows of {length} tokens{limit}, {count} were asked for: give more "
            "text, or ask for fewer windows or shorter ones"
        )
    chosen.sort(key=lambda c: (c[1].domain, c[1].name))
    return Windows(
        np.stack([ids for ids, _ in chosen]),
        np.array([d.domain for _, d in chosen]),
        np.array([d.name for _, d in chosen]),
        {
            "source": source,
            "tokenizer": tokenizer_hash(tokenizer),
            "content": content_hash("".join(content_hash(d.text) for _, d in chosen)),
            "seed": seed,
            "origin": {d.name: f"{d.package} ({d.licence})" for _, d in chosen if d.package},
        },
        tokenizer.get_vocab_size(),
    )


def _by_domain(documents: Iterable[Document]) -> dict[str, list[Document]]:
    """Documents by their domain, each text once."""
    found: dict[str, list[Document]] = {}
    seen: set[str] = set()
    for document in documents:
        content = content_hash(document.text)
        if content not in seen:
            seen.add(content)
            found.setdefault(document.domain, []).append(document)
    return found


def _chosen(
    queues: dict[str, list[Document]], tokenizer: Tokenizer, length: int, count: int, most: int | None, seed: int
) -> list[tuple[ndarray, Document]]:
    """Windows from the domains in turns: ``count`` of them, or all that there are."""
    rng = np.random.default_rng(seed)
    turns = [_pieces(queues[d], tokenizer, length, most, rng) for d in sorted(queues)]
    found: list[tuple[ndarray, Document]] = []
    while turns and len(found) < count:
        for turn in list(turns):
            piece = next(turn, None)
            if piece is None:
                turns.remove(turn)
            elif len(found) < count:
                found.append(piece)
    return found


def _pieces(
    documents: list[Document], tokenizer: Tokenizer, length: int, most: int | None, rng: np.random.Generator
) -> Iterator[tuple[ndarray, Document]]:
    """Windows of one domain: one from every document in random order, then a second from each, ..."""
    order = [documents[i] for i in rng.permutation(len(documents))]
    slots: dict[int, list[ndarray]] = {}
    for turn in itertools.count():
        for number, document in enumerate(order):
            if turn == 0 and len(document.text) >= length:
                ids = encode(tokenizer, document.text)
                cells = len(ids) // length
                shift = int(rng.integers(len(ids) - cells * length + 1))
                starts = shift + length * rng.permutation(cells)[:most]
                slots[number] = [ids[s : s + length] for s in starts]
            if turn < len(slots.get(number, [])):
                yield slots[number][turn], document
        if turn >= max(map(len, slots.values()), default=0):
            return


def _backend(tokenizer: AnyTokenizer) -> Tokenizer:
    """The `tokenizers.Tokenizer` inside a fast tokenizer of transformers."""
    return getattr(tokenizer, "backend_tokenizer", tokenizer)


def encode(tokenizer: AnyTokenizer, text: str) -> Int[ndarray, " tokens"]:
    """Token ids of a text, without special tokens."""
    return np.array(_backend(tokenizer).encode(text, add_special_tokens=False).ids, dtype=np.int32)


def bare_tokenizer(tokenizer: AnyTokenizer) -> Tokenizer:
    """A copy of a tokenizer that turns the same text into the same tokens every time, and adds none.

    It leaves out the post-processor, which adds special tokens and which transformers may change; truncation and
    padding; and BPE dropout, which merges at random.
    """
    from tokenizers import Tokenizer

    bare = Tokenizer.from_str(_backend(tokenizer).to_str())
    bare.post_processor = None
    bare.no_truncation()
    bare.no_padding()
    if getattr(bare.model, "dropout", None) is not None:
        bare.model.dropout = None
    return bare


def open_tokenizer(file: Path) -> Tokenizer:
    """The bare tokenizer of a tokenizer.json.

    Raises:
        ValueError: if the file is none.
    """
    from tokenizers import Tokenizer

    check_fetched(file)
    try:
        found = Tokenizer.from_file(str(file))
    except Exception as error:  # the library has no other kind
        raise ValueError(f"{file} is not a tokenizer of the tokenizers library: {error}") from error
    return bare_tokenizer(found)


def tokenizer_hash(tokenizer: AnyTokenizer) -> str:
    """SHA-256 of the tokenizer's definition, without the parts that `bare_tokenizer` leaves out."""
    return content_hash(bare_tokenizer(tokenizer).to_str())


# ---------------------------------------------------------------------------------------------------------------------
# The windows that come with the library


def write_windows(path: Path, **pools: Windows) -> None:
    """Write pools of windows (ids below 65 536) into one compressed file."""
    arrays: dict[str, ndarray] = {}
    for name, pool in pools.items():
        arrays[f"{name}/ids"] = pool.ids.astype(np.uint16)
        arrays[f"{name}/domain"] = pool.domain
        arrays[f"{name}/document"] = pool.document
        arrays[f"{name}/provenance"] = np.array(json.dumps(pool.provenance | {"vocabulary": pool.vocabulary}))
    np.savez_compressed(path, **arrays)


def bundled_windows(split: str) -> Windows:
    """Windows of 257 tokens that come with the library.

    There are 1 024 of "sampling", from the text the bundled model was trained on, and 480 of "heldout", from documents
    it never saw.

    provenance["origin"] gives the distribution and the licence of each document.
    """
    if split not in ("sampling", "heldout"):
        raise ValueError(f"unknown split {split!r}: the bundled windows are 'sampling' and 'heldout'")
    return read_windows(BUNDLED / "windows.npz", split)


def read_windows(path: Path, name: str) -> Windows:
    """One pool of a file that `write_windows` wrote."""
    with np.load(path) as arrays:
        provenance = json.loads(str(arrays[f"{name}/provenance"]))
        vocabulary = provenance.pop("vocabulary")
        parts = (arrays[f"{name}/{part}"] for part in ("ids", "domain", "document"))
        return Windows(*parts, provenance, vocabulary)
