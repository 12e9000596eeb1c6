"""Text put together again: characters in pieces, gaps, names, classes and families of tokens."""

import dataclasses

import cardmaking
import numpy as np
import pytest
import xarray as xr
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from spectrobook import shipped
from spectrolib.text.runningtext import FAMILIES, running_text, token_bytes, token_class, token_names, token_texts

TEXT = "naïve «Ж» 𝒳 = 'привет'\n    return 数\t<b>\r\n"


@pytest.fixture(scope="module")
def cut():
    """A result of one window by the bundled tokenizer, whose text has "�" for a part of a character."""
    tokenizer = shipped.tokenizer()
    ids = tokenizer.encode(TEXT, add_special_tokens=False).ids
    result = cardmaking.result([[tokenizer.decode([i], False) for i in ids]])
    return result.assign_coords(token_id=("token", np.array(ids)))


def test_bytes_of_tokens_are_those_of_the_text(cut):
    ids = cut["token_id"].values
    pieces = token_bytes(shipped.tokenizer(), ids)
    assert b"".join(pieces[i] for i in ids.tolist()) == TEXT.encode()
    assert any("�" in text for text in cut["text"].values)
    with pytest.raises(ValueError, match="token 99999 is not in this tokenizer's vocabulary"):
        token_bytes(shipped.tokenizer(), np.array([99999]))


def test_a_part_of_a_character_is_shown_as_the_whole_one(cut):
    text = running_text(cut, shipped.tokenizer())
    offset, parts = 0, 0
    for row, piece in enumerate(text.pieces):
        before, token, after = text.context(row, before=1000, after=1000)
        assert before + token + after == TEXT
        assert piece in token.encode()
        begin = len(before.encode())
        assert begin <= offset < begin + len(token.encode())
        parts += len(token.encode()) > len(piece)
        offset += len(piece)
    assert parts > 4
    assert "�" in "".join(running_text(cut).context(3, 1000, 1000))
    assert text.context(5, 3, 2)[0] == text.context(5, 1000, 0)[0][-3:] and text.context(5, 0, 0)[::2] == ("", "")


def test_contexts_are_found_byte_by_byte(cut):
    text = running_text(cut, shipped.tokenizer())
    ends = np.cumsum([len(piece) for piece in text.pieces])
    for context in ("naïve «Ж»", "привет", "\n    return 数"):
        end = TEXT.encode().index(context.encode()) + len(context.encode())
        assert text.ends_of(context).tolist() == [int((ends < end).sum())]
    assert text.ends_of("nowhere").tolist() == text.ends_of("").tolist() == []


def test_another_tokenizer_is_noticed(cut):
    other = cut.assign_coords(token_id=("token", np.roll(cut["token_id"].values, 1)))
    with pytest.raises(ValueError, match="the tokenizer is not the measured model's: it reads"):
        running_text(other, shipped.tokenizer())
    with pytest.raises(ValueError, match="no coordinate token_id, document: it names no tokens"):
        running_text(cut.drop_vars(["token_id", "document"]))


def test_rows_in_any_order_and_with_gaps():
    result = cardmaking.result([["a", "b", "c", "d", "e"], ["x", "y"]])
    rows = np.array([6, 0, 1, 5, 4, 3])  # without "c"
    text = running_text(result.isel(token=rows))
    passages = sorted("".join(text.pieces[r].decode() for r in rows) for rows in text.passages)
    assert passages == ["ab", "de", "xy"]
    words = [piece.decode() for piece in text.pieces]
    before = {word: words[i] if i >= 0 else None for word, i in zip(words, text.previous.tolist(), strict=True)}
    assert before == {"a": None, "b": "a", "d": None, "e": "d", "x": None, "y": "x"}
    assert text.context(words.index("e")) == ("d", "e", "")


def test_names_of_tokens():
    long = "=" * 40
    words = [" the", "\n", "\n       ", "    ", "\t", "'", long, long + "-", "é"]
    text = running_text(cardmaking.result([words]))
    cut_short = repr(long[:23] + "…")
    names = [text.names[i] for i in text.token_id.tolist()]
    numbers = text.token_id[6:8]
    shown = [f"{cut_short} (token {i})" for i in numbers]
    assert names == ["' the'", r"'\n'", "newline and 7 spaces", "4 spaces", r"'\t'", '"\'"', *shown, "'é'"]
    part = dataclasses.replace(text, pieces=(b"\xd0\xb4\xe4", *text.pieces[1:]))
    assert part.names[int(text.token_id[0])] == "bytes d0 b4 e4"


@pytest.mark.parametrize(
    ("text", "before", "line_start", "expected"),
    [
        (" the", "a", False, "word after space"),
        ("the", "a", False, "word continuation"),
        ("the", "(", False, "word without space"),
        ("12", "", False, "number"),
        ("x2_", "", False, "mixed word"),
        ("_", "", False, "underscore"),
        ("\n\n", "", False, "blank line"),
        ("\n    ", "", False, "newline with indentation"),
        ("    ", "\n", True, "indentation"),
        ("    ", "a", False, "spaces"),
        (" (", "", False, "opening bracket"),
        ("),", "", False, "mixed symbols"),
        (".\n", "", False, "symbols and newline"),
        ("==", "", False, "operator"),
        ("я", "", False, "letter beyond ASCII"),
        ("→", "", False, "symbol beyond ASCII"),
        ("�", "", False, "part of a character"),
        ("\x00", "", False, "control character"),
    ],
)
def test_classes(text, before, line_start, expected):
    assert token_class(text, before, line_start) == expected


@pytest.mark.parametrize(
    ("document", "domain", "words", "expected"),
    [
        (
            "a.py",
            "stdlib",
            ["x", " =", " foo", "(", "1", ")", "\n"],
            "names|code structure|names|code structure|numbers|code structure|formatting",
        ),
        (
            "a.py",
            "stdlib",
            ["x", "\n", "if", " x", ":", " #", " if", "."],
            "names|formatting|code structure|names|code structure|grammar|grammar|grammar",
        ),
        (
            "a.md",
            "readme",
            ["The", " cat", " (", "a", ")", ",", " **", "b", "**"],
            "grammar|grammar|grammar|grammar|grammar|grammar|markup|grammar|markup",
        ),
        (
            "a.html",
            "html",
            ["a", " <", "b", ">", "c", "</", "b", ">"],
            "grammar|markup|markup|markup|grammar|markup|markup|markup",
        ),
        (
            "a.tex",
            "latex",
            ["let", " $", "x", "$", " be"],
            "grammar|mathematical notation|mathematical notation|mathematical notation|grammar",
        ),
        ("de", "locales", ["und", " das", "."], "other languages|other languages|grammar"),
        ("a.txt", "readme", ["я", "é"], "other languages|other languages"),
    ],
)
def test_families(document, domain, words, expected):
    text = running_text(cardmaking.result([words], domains=[domain], documents=[document]))
    found = text.families().tolist()
    assert found == expected.split("|")
    assert set(found) <= set(FAMILIES)


# Tokenizers of other kinds -------------------------------------------------------------------------------------------

SENTENCE = "The chain walks, near the minimum; it stops. Ünï 日本 x1 the the chain"


def metaspace() -> Tokenizer:
    found = Tokenizer(models.Unigram())
    found.pre_tokenizer, found.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    found.train_from_iterator(
        [SENTENCE],
        trainers.UnigramTrainer(vocab_size=60, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False),
    )
    return found


def wordpiece() -> Tokenizer:
    found = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    found.normalizer, found.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    found.decoder = decoders.WordPiece()
    found.train_from_iterator(
        [SENTENCE], trainers.WordPieceTrainer(vocab_size=60, special_tokens=["[UNK]"], show_progress=False)
    )
    return found


def byte_fallback() -> Tokenizer:
    """As Llama 2 has it: blanks are letters, and a character that is no token is a few bytes."""
    words = ["<unk>", *(f"<0x{i:02X}>" for i in range(256)), "▁", *sorted({*SENTENCE} & {*map(chr, range(33, 127))})]
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e")]
    vocabulary = {word: i for i, word in enumerate([*words, *("".join(pair) for pair in merges)])}
    found = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    found.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    found.decoder = decoders.Sequence(parts)
    return found


def words() -> Tokenizer:
    found = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    found.pre_tokenizer = pre_tokenizers.Whitespace()
    found.train_from_iterator([SENTENCE], trainers.WordLevelTrainer(special_tokens=["[UNK]"], show_progress=False))
    return found


@pytest.mark.parametrize("kind", [metaspace, wordpiece, byte_fallback, words])
def test_tokens_of_any_tokenizer_join_to_what_it_decodes(kind):
    tokenizer = kind()
    ids = tokenizer.encode(SENTENCE, add_special_tokens=False).ids
    pieces = token_bytes(tokenizer, np.array(ids))
    assert b"".join(pieces[i] for i in ids).decode().lstrip(" ") == tokenizer.decode(ids, skip_special_tokens=False)


def test_the_text_of_a_result_is_the_one_that_was_measured():
    """Marks that look like special tokens, blanks before words, and numbers that no token has."""
    tokenizer = byte_fallback()
    tokenizer.add_special_tokens(["<end>"])
    ids = tokenizer.encode("the <end>é", add_special_tokens=False).ids
    texts = token_texts(tokenizer, np.array([*ids, 9999]))
    assert [texts[i] for i in ids] == [" the", " ", "<end>", " ", "�", "�"]
    assert texts[9999] == "" and token_texts(None, np.array([3, 3])) == {3: "3"}
    result = result_of(ids, [texts[i] for i in ids])
    read = running_text(result, tokenizer)
    assert b"".join(read.pieces).decode() == " the <end> é"
    earlier = [tokenizer.decode([i]) for i in ids]  # what results said before: without blanks and special tokens
    assert earlier[0] == "the" and earlier[2] == ""
    assert running_text(result_of(ids, earlier), tokenizer).pieces == read.pieces
    with pytest.raises(ValueError, match="the tokenizer is not the measured model's"):
        running_text(result_of(ids, ["a"] * len(ids)), tokenizer)


def result_of(ids: list[int], texts: list[str]) -> xr.Dataset:
    n = len(ids)
    columns = {"sequence": [0] * n, "position": range(1, n + 1), "token_id": ids, "text": texts}
    columns |= {"domain": ["d"] * n, "document": ["d.txt"] * n}
    return xr.Dataset(coords={name: ("token", np.array(list(values))) for name, values in columns.items()})


def test_tokens_beyond_the_tokenizer_go_by_their_number():
    names = token_names(shipped.tokenizer(), np.array([5, 5, 999_999]))
    assert set(names) == {5, 999_999} and names[999_999] == "token 999999" and names[5] != "token 5"
