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
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, TextIO

import numpy as np
from jaxtyping import Int
from numpy import ndarray

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    AnyTokenizer = Tokenizer | PreTrainedTokenizerFast

BUNDLED = Path(__file__).parents[1] / "bundled"


@dataclass(frozen=True)
class Document:
    """One text, with where it comes from."""

    text: str
    domain: str
    package: str = ""
    name: str = ""
    licence: str = ""


def content_hash(content: str | bytes) -> str:
    """SHA-256, in hexadecimal."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# Local files and the hub


def local_documents(path: str | Path, *, limit: int | None = None) -> Iterator[Document]:
    """Documents of a text file, a JSON Lines file (.jsonl, also .gz, .xz, .zst), a Parquet file, or a folder of these.

    Rows need a field "text". The domain is the row's "domain" or "meta.pile_set_name" (also "pile_set_name"), otherwise
    the name of the file, or inside a folder of the folder it lies in. A README.md in a folder is its card, no text.

    Raises:
        ValueError: if nothing is at `path`, nothing there is one of these, a file is not UTF-8, or a row has no text.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"no such file or folder: {path}")
    inside = sorted(p for p in path.rglob("*") if p.name.lower() != "readme.md") if path.is_dir() else [path]
    files = [p for p in inside if p.is_file() and _reader(p)]
    if not files:
        raise ValueError(f"no text in {path}: expected .txt, .md, .rst, .py, .jsonl (.gz, .xz, .zst) or .parquet")

    def documents() -> Iterator[Document]:
        for file in files:
            name, domain = file.name, file.name.split(".")[0]
            if path.is_dir():
                name, domain = file.relative_to(path).as_posix(), file.parent.name
            for number, row in enumerate(_reader(file)(file)):
                yield _document(row, f"{name}:{number}", domain)

    return _first(documents(), limit)


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
    try:
        rows = datasets.load_dataset(place, subset, split=split, streaming=True)
    except Exception as error:  # the many ways in which the hub says that something is not there
        raise ValueError(
            f"cannot open data set {str(name)!r}, split {split!r}: give the name of a public data set of the hub, such "
            f"as 'NeelNanda/pile-10k', or a local folder in its format ({type(error).__name__}: {str(error)[:200]})"
        ) from error
    default = domain or PurePosixPath(place).name.removeprefix("pile-")
    documents = (_document(row, f"{place}/{split}:{n}", default, column) for n, row in enumerate(rows))
    return _first(documents, limit)


def hub_source(name: str | Path) -> tuple[str, str | None, str]:
    """Data set, subset or None, and column of text of a name such as "owner/name[subset]:column".

    The column is "text" where none is named.
    """
    parts = re.fullmatch(r"(.+?)(?:\[([^\]]+)\])?(?::([\w.-]+))?", str(name), re.DOTALL)
    return (parts[1], parts[2], parts[3] or "text") if parts else (str(name), None, "text")


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


def _reader(path: Path) -> Callable[[Path], Iterator[dict]] | None:
    if path.suffix in (".txt", ".md", ".rst", ".py"):
        return _read_text
    if path.suffix == ".parquet":
        return _read_parquet
    return _read_lines if path.name.endswith((".jsonl", ".jsonl.gz", ".jsonl.xz", ".jsonl.zst")) else None


def _read_text(path: Path) -> Iterator[dict]:
    try:
        yield {"text": path.read_text(encoding="utf-8")}
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error


def _read_lines(path: Path) -> Iterator[dict]:
    with _open(path) as lines:
        for line in lines:
            if line.strip():
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise ValueError(f"{path}: a line is not JSON: {error}") from error


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    if path.suffix == ".xz":
        return lzma.open(path, "rt", encoding="utf-8")
    if path.suffix == ".zst":
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
    per_document: int = 4,
    source: str = "documents",
) -> Windows:
    """`count` windows of `length` tokens, as evenly over the domains as their documents allow.

    Domains take turns; each turn gives one window from the domain's next document (in random order), at a random place;
    windows of one document do not overlap, and no document gives more than `per_document`.

    Raises:
        ValueError: if the documents hold fewer such windows, or length < 2.
    """
    if length < 2 or count < 1 or per_document < 1:
        raise ValueError(f"need length >= 2, count >= 1, per_document >= 1; got {length}, {count}, {per_document}")
    rng = np.random.default_rng(seed)
    queues: dict[str, list[Document]] = {}
    for document in documents:
        queues.setdefault(document.domain, []).append(document)
    turns = [_pieces(queues[d], tokenizer, length, per_document, rng) for d in sorted(queues)]
    chosen: list[tuple[ndarray, Document]] = []
    while turns and len(chosen) < count:
        for turn in list(turns):
            piece = next(turn, None)
            if piece is None:
                turns.remove(turn)
            elif len(chosen) < count:
                chosen.append(piece)
    if len(chosen) < count:
        raise ValueError(f"the documents give {len(chosen)} windows of {length} tokens, {count} were asked for")
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
        _backend(tokenizer).get_vocab_size(),
    )


def _pieces(
    documents: list[Document], tokenizer: AnyTokenizer, length: int, per_document: int, rng: np.random.Generator
) -> Iterator[tuple[ndarray, Document]]:
    """Windows of one domain: one from every document in random order, then a second from each, ..."""
    order = [documents[i] for i in rng.permutation(len(documents))]
    slots: dict[int, list[ndarray]] = {}
    for turn in range(per_document):
        for number, document in enumerate(order):
            if turn == 0 and len(document.text) >= length:
                ids = encode(tokenizer, document.text)
                cells = len(ids) // length
                shift = int(rng.integers(len(ids) - cells * length + 1))
                starts = shift + length * rng.permutation(cells)[:per_document]
                slots[number] = [ids[s : s + length] for s in starts]
            if turn < len(slots.get(number, [])):
                yield slots[number][turn], document


def _backend(tokenizer: AnyTokenizer) -> Tokenizer:
    """The `tokenizers.Tokenizer` inside a fast tokenizer of transformers."""
    return getattr(tokenizer, "backend_tokenizer", tokenizer)


def encode(tokenizer: AnyTokenizer, text: str) -> Int[ndarray, " tokens"]:
    """Token ids of a text, without special tokens."""
    return np.array(_backend(tokenizer).encode(text, add_special_tokens=False).ids, dtype=np.int32)


def bare_tokenizer(tokenizer: AnyTokenizer) -> Tokenizer:
    """A copy without the post-processor, which adds special tokens, and which transformers sets as it likes."""
    from tokenizers import Tokenizer

    bare = Tokenizer.from_str(_backend(tokenizer).to_str())
    bare.post_processor = None
    return bare


def tokenizer_hash(tokenizer: AnyTokenizer) -> str:
    """SHA-256 of the tokenizer's definition, but for its post-processor."""
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
