"""Kinds of text that people have: whatever `spectro measure` took, the commands after it can read."""

import gzip
import json
from dataclasses import replace

import numpy as np
import pytest
from commands import spectro
from tokenizers import Tokenizer

from spectrolib import clustering
from spectrolib.model.loading import load_model
from spectrolib.reading import tokenmap
from spectrolib.run import profiles, store
from spectrolib.text.corpus import local_documents
from spectrolib.text.runningtext import running_text

WORDS = "the chain walks near a minimum and every draw tells little about its naïve shape — «Ж» 語 😀".split()


def words(rng, count: int) -> str:
    return " ".join(rng.choice(WORDS, count))


def prose(rng) -> str:
    return "\ufeff" + "\n\n".join(words(rng, 80).capitalize() + "." for _ in range(30))


def latex(rng) -> str:
    heads = (f"\\section{{{words(rng, 3)}}} % {words(rng, 2)}\n" for _ in range(25))
    lines = (f"{head}{words(rng, 20)} $\\alpha_{{{i}}} < \\beta^2$\n" for i, head in enumerate(heads))
    return f"\\begin{{document}}\n{''.join(lines)}\\end{{document}}\n"


def verse(rng) -> str:
    return "\n".join(("\n" if i % 5 == 4 else "    ") + words(rng, 5) + "," for i in range(90))


def code(rng) -> str:
    return "".join(
        f'def f{i}(x):\n\t"""{words(rng, 5)}"""\n\treturn x[{i}] + 0x{i:x}  # {words(rng, 2)}\n\n' for i in range(40)
    )


def markup(rng) -> str:
    lines = (f'<p class="a{i}">{words(rng, 6)} &amp; <end> <|endoftext|></p>\r\n' for i in range(50))
    return f"<html>\n{''.join(lines)}</html>\n"


def rows(rng) -> str:
    """Of documents in which characters are broken, under a name that would colour a terminal."""
    each = (
        {"text": f"\ud800 {words(rng, 60)} \udc00\x1b[31m", "domain": "\x1b[31mred [bold]\x1b[0m"} for _ in range(12)
    )
    return "".join(json.dumps(row) + "\n" for row in each)


KINDS = {
    "Long.TXT": prose,
    "paper.tex": latex,
    "verse.txt.gz": verse,
    "a.py": code,
    "page.html": markup,
    "r.jsonl": rows,
}


@pytest.fixture
def marked(folder, tmp_path):
    """The model, with a tokenizer that knows a mark and has settings saved in it."""
    for file in folder.iterdir():
        (tmp_path / "model").mkdir(exist_ok=True)
        (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    file = str(tmp_path / "model" / "tokenizer.json")
    tokenizer = Tokenizer.from_file(file)
    tokenizer.add_special_tokens(["<end>"])
    tokenizer.enable_truncation(max_length=100)
    tokenizer.enable_padding(length=150)
    tokenizer.save(file)
    return tmp_path / "model"


def test_what_was_measured_can_be_read(marked, monkeypatch, tmp_path):
    profile = replace(profiles.SMOKE, length=33, sampling_windows=8, loss_windows=2, probe_windows=26)
    monkeypatch.setitem(profiles.PROFILES, "smoke", profile)
    monkeypatch.setattr(tokenmap, "_umap", lambda rows, k, seed: rows[:, :2])
    contents = {name: write(np.random.default_rng(0)) for name, write in KINDS.items()}
    for name, text in contents.items():
        (tmp_path / "text" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "text" / name).write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    run = tmp_path / "run"
    given = ("--model", marked, "--text", tmp_path / "text", "--components", "l0h0,l1 mlp", "--workers", 1)
    exit_code, out, error = spectro("measure", *given, "--out", run, "--first-order", "--channels", 8)
    assert exit_code == 0, error
    assert "\x1b" not in out
    result = store.open_result(run)
    cluster(run, result.sizes["token"])
    for command in ("info", "cards", "map"):
        exit_code, out, error = spectro(command, run)
        assert exit_code == 0, (command, error)
        assert "\x1b" not in out

    read = running_text(result, load_model(marked, device="cpu").tokens)
    seen = {}
    for passage in read.passages:
        name = str(read.document[passage[0]]).rpartition(":")[0]
        mended = (
            contents[name] if name != "r.jsonl" else "".join(d.text for d in local_documents(tmp_path / "text" / name))
        )
        text = b"".join(read.pieces[row] for row in passage)
        assert text in mended.replace("\r\n", "\n").encode() or text in mended.encode()
        seen[name] = read.kinds[read.places[int(passage[0])][0]]
    assert seen["paper.tex"] == "latex" and seen["a.py"] == "python" and seen["page.html"] == "html"
    assert set(seen) == set(KINDS)


def cluster(run, tokens: int) -> None:
    """Two clusters at random: what they are of is no matter here."""
    labels = np.random.default_rng(0).integers(-1, 2, tokens)
    why, some = np.where(labels < 0, "main body", "cluster"), np.arange(2)
    sizes = np.bincount(labels[labels >= 0])
    found = clustering.Clustering(labels, np.array([0.1, 0.2]), some, sizes, some, why, 2)
    store.save_clusters(found, run, {"settings": {"rows": "center"}})
