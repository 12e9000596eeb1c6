"""Local texts, hub data sets, and the windows cut from them."""

import gzip
import json
import lzma

import numpy as np
import pytest

from spectrobook.making.training import train_tokenizer
from spectrolib.text import corpus, lexing
from spectrolib.text.corpus import Document, Windows, windows_from_documents

WORDS = "the chain walks near the minimum and every draw tells a little about the shape of the loss".split()


def text(seed: int, words: int = 300) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, words))


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([text(0, 2000)], vocabulary=300)


def documents(domains=("a", "b", "c"), each=8) -> list[Document]:
    return [
        Document(text(i), d, name=f"{d}/{i}") for k, d in enumerate(domains) for i in range(k * 100, k * 100 + each)
    ]


# Windows


def windows(**changes) -> Windows:
    fields = {"ids": np.arange(12).reshape(3, 4), "domain": list("aab"), "document": ["x", "y", "z"]}
    return Windows(**fields | changes)


def test_windows_take_and_cut():
    w = windows(provenance={"source": "s"}, vocabulary=12)
    assert len(w) == 3 and w.length == 4 and w.ids.dtype == np.int32
    part = w.take(np.array([2, 0])).cut(2)
    assert part.ids.tolist() == [[8, 9], [0, 1]]
    assert part.domain.tolist() == ["b", "a"] and part.document.tolist() == ["z", "x"]
    assert part.provenance == {"source": "s"}


def test_hash_depends_on_ids_and_labels():
    hashes = {windows().hash, windows(ids=np.arange(12).reshape(3, 4) + 1).hash, windows(domain=list("abb")).hash}
    assert len(hashes) == 3
    assert windows().hash == windows().hash
    assert windows().cut(2).hash != windows().hash


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": np.zeros((3, 1), int)}, "at least 2 tokens"),
        ({"ids": np.zeros((0, 4), int), "domain": [], "document": []}, "empty"),
        ({"ids": np.zeros((3, 4))}, "integers"),
        ({"ids": np.zeros(4, int)}, r"\(windows, length\)"),
        ({"vocabulary": 11}, "beyond the vocabulary of 11"),
        ({"ids": np.full((3, 4), -1)}, "beyond the vocabulary"),
        ({"domain": list("ab")}, "one entry per window"),
        ({"document": list("ab")}, "one entry per window"),
    ],
)
def test_windows_reject(changes, message):
    with pytest.raises(ValueError, match=message):
        windows(**changes)


def test_cut_longer_than_the_windows():
    with pytest.raises(ValueError, match="4 tokens to 5"):
        windows().cut(5)


# Cutting documents


def test_windows_lie_inside_single_documents_and_balance_domains(tokenizer):
    found = windows_from_documents(documents(), tokenizer, length=16, count=30, seed=1)
    texts = {d.name: d.text for d in documents()}
    assert found.ids.shape == (30, 16)
    assert {d: int((found.domain == d).sum()) for d in "abc"} == {"a": 10, "b": 10, "c": 10}
    for ids, name in zip(found.ids, found.document, strict=True):
        assert tokenizer.decode(ids.tolist()) in texts[name]
    assert found.provenance["tokenizer"] == corpus.tokenizer_hash(tokenizer)
    assert found.vocabulary == 300


def test_windows_of_a_document_are_few_and_do_not_overlap(tokenizer):
    count = 3 * 8 * 2
    found = windows_from_documents(documents(), tokenizer, length=16, count=count, per_document=2)
    names, times = np.unique(found.document, return_counts=True)
    assert len(names) == 24 and set(times) == {2}
    for document in documents():
        stream = corpus.encode(tokenizer, document.text)
        views = np.lib.stride_tricks.sliding_window_view(stream, 16)
        first, second = (np.flatnonzero((views == w).all(1))[0] for w in found.ids[found.document == document.name])
        assert abs(first - second) >= 16
    with pytest.raises(
        ValueError, match=f"give {count} windows of 16 tokens, 2 of a document at most, {count + 1} were asked"
    ):
        windows_from_documents(documents(), tokenizer, length=16, count=count + 1, per_document=2)


def test_one_long_document_gives_as_many_windows_as_it_holds(tokenizer):
    book = Document(text(1, 4_000), "book", name="book.txt")
    found = windows_from_documents([book], tokenizer, length=16, count=200)
    stream = corpus.encode(tokenizer, book.text)
    views = np.lib.stride_tricks.sliding_window_view(stream, 16)
    starts = sorted(int(np.flatnonzero((views == ids).all(1))[0]) for ids in found.ids)
    assert min(np.diff(starts)) >= 16
    cells = len(stream) // 16
    assert len(windows_from_documents([book], tokenizer, length=16, count=cells)) == cells
    with pytest.raises(ValueError, match=f"give {cells} windows of 16 tokens, {cells + 1} were asked for: give more"):
        windows_from_documents([book], tokenizer, length=16, count=cells + 1)
    with pytest.raises(ValueError, match="give 4 windows of 16 tokens, 4 of a document at most, 5 were"):
        windows_from_documents([book], tokenizer, length=16, count=5, per_document=4)


def test_the_limit_of_a_document_is_lifted_only_where_it_must(tokenizer):
    default, limited = (
        windows_from_documents(documents(), tokenizer, length=16, count=60, per_document=most) for most in (None, 4)
    )
    assert default.hash == limited.hash


def test_a_text_that_stands_many_times_counts_once(tokenizer):
    copies = [Document(text(5, 300), f"d{i % 3}", name=f"copy {i}") for i in range(40)]
    found = windows_from_documents([*copies, *documents(("a",))], tokenizer, length=16, count=40)
    names = {name for name in found.document.tolist() if name.startswith("copy")}
    assert names == {"copy 0"}
    assert len({ids.tobytes() for ids in found.ids}) == 40


def test_a_small_domain_gives_what_it_has(tokenizer):
    few = [*documents(("a", "b")), Document(text(9, 60), "tiny", name="tiny")]
    found = windows_from_documents(few, tokenizer, length=16, count=30, per_document=4)
    small = int((found.domain == "tiny").sum())
    assert 1 <= small <= 4
    assert abs(int((found.domain == "a").sum()) - int((found.domain == "b").sum())) <= 1


def test_windows_depend_on_the_seed_alone(tokenizer):
    first, again, other = (
        windows_from_documents(documents(), tokenizer, length=16, count=12, seed=s).hash for s in (0, 0, 1)
    )
    assert first == again != other


@pytest.mark.parametrize("bad", [{"length": 1}, {"count": 0}, {"per_document": 0}])
def test_window_numbers_must_be_sensible(tokenizer, bad):
    with pytest.raises(ValueError, match="need length >= 2"):
        windows_from_documents(documents(), tokenizer, **{"length": 8, "count": 3} | bad)


def test_windows_file_keeps_everything(tokenizer, tmp_path):
    pool = windows_from_documents(documents(), tokenizer, length=16, count=12)
    corpus.write_windows(tmp_path / "w.npz", sampling=pool)
    back = corpus.read_windows(tmp_path / "w.npz", "sampling")
    assert back.hash == pool.hash and back.provenance == pool.provenance and back.vocabulary == pool.vocabulary


def settled(tokenizer, **changes):
    """A copy with settings saved in it, as a tokenizer.json keeps them."""
    from tokenizers import Tokenizer

    copy = Tokenizer.from_str(tokenizer.to_str())
    if "truncation" in changes:
        copy.enable_truncation(max_length=10)
    if "padding" in changes:
        copy.enable_padding(length=2000)
    if "dropout" in changes:
        copy.model.dropout = 0.5
    return Tokenizer.from_str(copy.to_str())


@pytest.mark.parametrize("settings", [["truncation"], ["padding"], ["dropout"], ["truncation", "padding", "dropout"]])
def test_settings_saved_in_a_tokenizer_change_no_window(tokenizer, tmp_path, settings):
    changed = settled(tokenizer, **dict.fromkeys(settings))
    assert changed.to_str() != tokenizer.to_str()
    plain = windows_from_documents(documents(), tokenizer, length=16, count=30)
    assert windows_from_documents(documents(), changed, length=16, count=30).hash == plain.hash
    assert corpus.tokenizer_hash(changed) == corpus.tokenizer_hash(tokenizer)
    changed.save(str(tmp_path / "tokenizer.json"))
    read = corpus.open_tokenizer(tmp_path / "tokenizer.json")
    assert all(np.array_equal(corpus.encode(read, d.text), corpus.encode(tokenizer, d.text)) for d in documents()[:3])


@pytest.mark.parametrize("content", ["[]", "{}", "", "version https://git-lfs.github.com/spec/v1\n"])
def test_a_file_that_is_no_tokenizer(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=r"tokenizer\.json is (not a tokenizer|a Git LFS pointer)"):
        corpus.open_tokenizer(tmp_path / "tokenizer.json")


def test_what_no_file_can_hold_is_mended(tokenizer):
    found = Document("\ufeffone \ud83d two\udc00", "\x1b[1;31mred\x1b[0m\n\x07", name="a\udcff.txt")
    assert found == Document("one \ufffd two\ufffd", "red", name="a\ufffd.txt")
    assert Document("a\ufeffb", "prose, [bold]").text == "a\ufeffb"  # within a text it is a character
    broken = [Document(f"{d.text} \ud800", d.domain, name=d.name) for d in documents()]
    assert len(windows_from_documents(broken, tokenizer, length=16, count=30)) == 30


# The windows that come with the library


@pytest.mark.parametrize(("split", "count"), [("sampling", 1024), ("heldout", 480)])
def test_bundled_windows(split, count):
    found = corpus.bundled_windows(split)
    assert found.ids.shape == (count, 257) and found.vocabulary == 4096
    domains, times = np.unique(found.domain, return_counts=True)
    assert len(domains) >= 12 and times.max() <= 2 * count / len(domains)
    assert set(found.provenance["origin"]) == set(found.document)
    assert not any("GPL" in origin for origin in found.provenance["origin"].values())


def test_bundled_pools_share_no_document():
    sampling, heldout = (corpus.bundled_windows(s) for s in ("sampling", "heldout"))
    pairs = [set(zip(w.domain.tolist(), w.document.tolist(), strict=True)) for w in (sampling, heldout)]
    assert not pairs[0] & pairs[1]


def test_unknown_bundled_split():
    with pytest.raises(ValueError, match="'sampling' and 'heldout'"):
        corpus.bundled_windows("validation")


# Local files and the hub's format


ROWS = [
    {"text": "first text", "meta": {"pile_set_name": "Github"}},
    {"text": "second text", "meta": {"pile_set_name": "ArXiv"}},
    {"text": "third text"},
]


def write_rows(path):
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines.encode()))
    elif path.suffix == ".xz":
        path.write_bytes(lzma.compress(lines.encode()))
    else:
        path.write_text(lines)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.jsonl.xz"])
def test_local_lines(tmp_path, name):
    write_rows(tmp_path / name)
    found = list(corpus.local_documents(tmp_path / name))
    assert [d.text for d in found] == [r["text"] for r in ROWS]
    assert [d.domain for d in found] == ["Github", "ArXiv", "rows"]
    assert len({d.name for d in found}) == 3


def test_local_folder(tmp_path):
    (tmp_path / "poems").mkdir()
    (tmp_path / "poems" / "one.txt").write_text("roses", encoding="utf-8")
    write_rows(tmp_path / "rows.jsonl")
    (tmp_path / "README.md").write_text("a card")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    found = list(corpus.local_documents(tmp_path))
    assert [d.text for d in found] == ["roses", *(r["text"] for r in ROWS)]
    assert found[0].domain == "poems"
    assert len(list(corpus.local_documents(tmp_path, limit=2))) == 2


def test_files_that_people_have(tmp_path):
    (tmp_path / "src" / "deep").mkdir(parents=True)
    contents = {"A.TXT": "one", "paper.tex": "two", "b.txt.gz": "three", "src/deep/c.py": "four", "src/d.Md.XZ": "five"}
    for name, text in contents.items():
        content = text.encode()
        pack = {".gz": gzip.compress, ".xz": lzma.compress}.get((tmp_path / name).suffix.lower(), bytes)
        (tmp_path / name).write_bytes(pack(content))
    for name in ("e.pdf", "data.csv", "README.md", ".git/f.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("other")
    found = list(corpus.local_documents(tmp_path))
    assert {d.text for d in found} == set(contents.values())
    kinds = {d.text: lexing.kind(d.name, d.domain, b"") for d in found}
    assert (kinds["two"], kinds["four"], kinds["three"]) == ("latex", "python", "prose")
    _, left_out = corpus.text_files(tmp_path)
    assert (
        corpus.named(left_out) == "3: README.md, data.csv, e.pdf" and corpus.named(left_out, 1) == "3: README.md, ..."
    )
    for name, text in contents.items():
        assert [d.text for d in corpus.local_documents(tmp_path / name)] == [text]


def test_folders_that_are_linked_are_read_once(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.txt").write_text("linked")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "text" / "again").symlink_to(tmp_path / "text")
    assert [d.text for d in corpus.local_documents(tmp_path / "text")] == ["linked"]


def test_a_file_that_is_named_is_read_whatever_its_suffix(tmp_path):
    for name in ("notes", "log.2024", "table.csv"):
        (tmp_path / name).write_text("a text")
        assert [d.text for d in corpus.local_documents(tmp_path / name)] == ["a text"]
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0")
    with pytest.raises(ValueError, match=r"no text in .*picture\.png \(found 1: picture\.png\): expected \.txt"):
        corpus.local_documents(tmp_path / "picture.png")


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.gz", "a.txt.xz", "a.jsonl.xz"])
def test_broken_files_are_one_line_that_names_them(tmp_path, name):
    pack = gzip.compress if name.endswith("gz") else lzma.compress
    whole = pack(json.dumps({"text": text(0)}).encode())
    for content in (whole[:-9], whole[: len(whole) // 2], b"no archive at all"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name} cannot be read: ") as refused:
            list(corpus.local_documents(tmp_path))
        assert "\n" not in str(refused.value)


def test_local_errors(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        corpus.local_documents(tmp_path / "absent")
    with pytest.raises(ValueError, match="no text in"):
        corpus.local_documents(tmp_path)
    with pytest.raises(ValueError, match="limit must be positive"):
        write_rows(tmp_path / "rows.jsonl")
        corpus.local_documents(tmp_path, limit=0)
    (tmp_path / "rows.jsonl").write_text('{"content": "x"}\n')
    with pytest.raises(ValueError, match="needs a field 'text'"):
        list(corpus.local_documents(tmp_path))
    (tmp_path / "rows.jsonl").write_text('{"text": "x\n')
    with pytest.raises(ValueError, match="not JSON"):
        list(corpus.local_documents(tmp_path))
    (tmp_path / "rows.jsonl").unlink()
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(ValueError, match="not UTF-8"):
        list(corpus.local_documents(tmp_path))


def hub_folder(path):
    """A data set folder as the hub has it: a card and Parquet files under data/."""
    import pyarrow
    import pyarrow.parquet

    (path / "data").mkdir(parents=True)
    (path / "README.md").write_text("---\nlicense: mit\n---\n# Pile subset\n")
    table = pyarrow.table({"text": [r["text"] for r in ROWS], "meta": [{"pile_set_name": "Github"}] * 3})
    pyarrow.parquet.write_table(table, path / "data" / "train-00000-of-00001.parquet")
    return path


def test_hub_folder(tmp_path):
    pytest.importorskip("datasets")
    folder = hub_folder(tmp_path / "pile-github")
    found = list(corpus.hub_documents(folder))
    assert [d.text for d in found] == [r["text"] for r in ROWS]
    assert {d.domain for d in found} == {"Github"}
    assert [d.text for d in corpus.hub_documents(folder, limit=1)] == ["first text"]
    assert [d.text for d in corpus.local_documents(folder)] == [r["text"] for r in ROWS]


def test_hub_lines_take_their_domain_from_the_name(tmp_path):
    pytest.importorskip("datasets")
    folder = tmp_path / "pile-github"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"text": "only text"}\n')
    (found,) = corpus.hub_documents(folder)
    assert (found.text, found.domain) == ("only text", "github")


def test_unknown_data_set(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=r"cannot get data set .*NeelNanda/pile-10k"):
        corpus.hub_documents(tmp_path / "no-such-data")
    folder = hub_folder(tmp_path / "pile")
    with pytest.raises(ValueError, match="split 'test'"):
        corpus.hub_documents(folder, split="test")


def test_hub_needs_its_extra(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"spectrolib\[hub\]"):
        corpus.hub_documents("NeelNanda/pile-10k")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("NeelNanda/pile-10k", ("NeelNanda/pile-10k", None, "text")),
        ("timaeus/dsir-pile-10k:contents", ("timaeus/dsir-pile-10k", None, "contents")),
        ("Salesforce/wikitext[wikitext-2-raw-v1]:body", ("Salesforce/wikitext", "wikitext-2-raw-v1", "body")),
        (r"C:\texts\pile", (r"C:\texts\pile", None, "text")),
    ],
)
def test_names_of_data_sets_may_say_subset_and_column(name, parts):
    assert corpus.hub_source(name) == parts


def test_names_of_local_data_sets_hold_from_any_working_directory(tmp_path, monkeypatch):
    (tmp_path / "set").mkdir()
    monkeypatch.chdir(tmp_path)
    assert corpus.settled_source("set") == f"{tmp_path}/set:text"
    assert corpus.settled_source("./set[part]:body") == f"{tmp_path}/set[part]:body"
    assert corpus.hub_source(corpus.settled_source("set[part]")) == (f"{tmp_path}/set", "part", "text")
    assert corpus.settled_source("owner/name[part]") == "owner/name[part]"


def test_hub_rows_from_another_column(tmp_path):
    pytest.importorskip("datasets")
    folder = tmp_path / "dsir"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"contents": "only text"}\n')
    (found,) = corpus.hub_documents(f"{folder}:contents")
    assert (found.text, found.domain) == ("only text", "dsir")
    with pytest.raises(ValueError, match=r"needs a field 'text' with text, found \['contents'\]"):
        list(corpus.hub_documents(folder))
