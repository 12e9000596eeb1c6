"""JSON that is not what is meant: one line, by name."""

import math

import pytest

from spectrolib.text.jsonfiles import Fields, check_fetched, read_json, short

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", r"must hold a JSON object, \{\.\.\.\}, and holds \[\]"),
        ("null", "and holds null"),
        ('"a"', 'and holds "a"'),
        ("7", "and holds 7"),
        ("{", "is not valid JSON"),
        ("", "is not valid JSON"),
        (POINTER, "is a Git LFS pointer, not the file itself: fetch it with `git lfs pull`"),
    ],
)
def test_files_that_hold_no_object(tmp_path, content, message):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=message) as refused:
        read_json(tmp_path / "a.json")
    assert "a.json" in str(refused.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        read_json(tmp_path / "absent.json")
    with pytest.raises(ValueError, match="cannot be read: Is a directory"):
        read_json(tmp_path)
    (tmp_path / "a.json").write_bytes(b"\xff{}")
    with pytest.raises(ValueError, match="is not valid JSON"):
        read_json(tmp_path / "a.json")


def test_an_object_is_read_with_a_byte_order_mark_too(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "a.json") == {"a": 1}
    check_fetched(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("ask", "right", "wrong", "kind"),
    [
        ("whole", [1, 40], ["2", 2.0, True, 0, -3, [], {}], "a whole number of at least 1"),
        ("real", [1, 0.5], ["2", True, 0, -0.5, math.nan, math.inf, []], "a positive number"),
        ("flag", [True, False], ["true", 1, 0, []], "true or false"),
        ("word", ["", "a"], [1, True, [], {}], "a text"),
        ("words", [[], ["a"]], ["a", [1], {}], "a list of texts"),
    ],
)
def test_fields_are_of_their_kind(ask, right, wrong, kind):
    for value in right:
        assert getattr(Fields({"x": value}, "it"), ask)("x") == value
    for value in wrong:
        with pytest.raises(ValueError, match=f"x is .* in it: it must be {kind}"):
            getattr(Fields({"x": value}, "it"), ask)("x", right[0])
    for content in ({}, {"x": None}):
        assert getattr(Fields(content, "it"), ask)("x", right[0]) == right[0]
        with pytest.raises(ValueError, match="it lacks 'x'"):
            getattr(Fields(content, "it"), ask)("x")


def test_tables_and_what_nobody_asked_for():
    fields = Fields({"inner": {"a": 1}, "b": 2, "c": None}, "it")
    with pytest.raises(ValueError, match="a is 1 in inner in it: it must be a text"):
        fields.table("inner").word("a")
    with pytest.raises(ValueError, match="must be an object"):
        fields.table("b")
    assert list(Fields({"a": 1, "b": 2, "c": None}, "it", {"a"}).unasked()) == [("b", 2)]
    assert "a" in fields.table("inner") and "c" not in fields


def test_values_are_shown_in_one_short_line():
    assert short({"a": None}) == '{"a": null}'
    assert len(short(list(range(100)))) == 60
