"""Making and shipping: what is finished is not made again, all files ship or none, errors are one line."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from spectrobook.__main__ import app
from spectrobook.making import registry, steps
from spectrobook.making.registry import ENTRIES, Entry


def spectrobook(*arguments) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="python -m spectrobook")
    return result.exit_code, result.stdout, result.stderr


# Run folders, on entries that write a word


class Toys:
    """Two entries, the second of which needs the first and a source; and how often each was made."""

    def __init__(self, path: Path):
        self.homes = {"first": path / "home", "second": path / "home" / "inner"}
        self.calls: list[str] = []
        self.stop = False
        (path / "source.txt").write_text("a")
        self.homes["second"].mkdir(parents=True)
        (self.homes["first"] / "one.txt").write_text("old")
        (self.homes["first"] / "strange.txt").write_text("of nobody")
        (self.homes["second"] / "gone.txt").write_text("old")
        self.entries = {
            "first": Entry(self.homes["first"], ("one.txt", "two.txt"), self.first, "1 s", "look"),
            "second": Entry(self.homes["second"], ("*.txt",), self.second, "1 s", "look", ("first",), ("source.txt",)),
            "by-hand": Entry(self.homes["first"], ("strange.txt",), None, "by hand", "from the news"),
        }

    def first(self, folder: Path) -> None:
        self.calls.append("first")
        for name in ("one", "two"):
            (folder / "made" / f"{name}.txt").write_text("new")

    def second(self, folder: Path) -> None:
        if not (folder / "half").exists():
            self.calls.append("half")
            (folder / "half").write_text("done")
        if self.stop:
            raise KeyboardInterrupt
        self.calls.append("second")
        (folder / "made" / "sum.txt").write_text((self.homes["first"] / "one.txt").read_text())

    def held(self, name: str) -> dict[str, str]:
        return {file.name: file.read_text() for file in sorted(self.homes[name].glob("*.txt"))}


@pytest.fixture
def toys(tmp_path, monkeypatch) -> Iterator[Toys]:
    found, real = Toys(tmp_path), dict(ENTRIES)
    monkeypatch.setattr(steps, "ROOT", tmp_path)
    ENTRIES.clear()
    ENTRIES.update(found.entries)
    yield found
    ENTRIES.clear()
    ENTRIES.update(real)


OLD = {"one.txt": "old", "strange.txt": "of nobody"}


def test_nothing_ships_by_default(toys, tmp_path):
    runs = tmp_path / "runs"
    code, out, _ = spectrobook("first", "--runs", runs)
    assert code == 0 and toys.held("first") == OLD
    assert (runs / "first" / "made" / "two.txt").read_text() == "new"
    assert f"to ship: python -m spectrobook first --runs {runs} --ship" in " ".join(out.split())


def test_what_is_finished_is_not_made_again(toys, tmp_path):
    spectrobook("first", "--runs", tmp_path / "runs")
    code, out, _ = spectrobook("first", "--runs", tmp_path / "runs", "--ship")
    assert code == 0 and toys.calls == ["first"] and "made already" in out
    assert toys.held("first") == {"one.txt": "new", "strange.txt": "of nobody", "two.txt": "new"}
    (tmp_path / "runs" / "first" / "made" / "one.txt").write_text("damaged")
    assert "not what they were" in spectrobook("first", "--runs", tmp_path / "runs")[1]
    assert toys.calls == ["first", "first"]


def test_changed_inputs_ask_for_it_anew(toys, tmp_path):
    second = lambda: spectrobook("second", "--runs", tmp_path / "runs")[1]  # noqa: E731
    second()
    assert "made already" in second() and toys.calls == ["half", "second"]
    (tmp_path / "source.txt").write_text("b")
    assert "made anew: sources changed" in second()
    spectrobook("first", "--runs", tmp_path / "runs", "--ship")
    assert "made anew: first changed" in second()
    assert toys.calls == ["half", "second"] * 2 + ["first"] + ["half", "second"]
    assert (tmp_path / "runs" / "second" / "made" / "sum.txt").read_text() == "new"


def test_a_changed_maker_is_named_and_nothing_is_forced(toys, tmp_path):
    runs = tmp_path / "runs"
    first = lambda: spectrobook("first", "--runs", runs)[1]  # noqa: E731
    first()
    said = json.loads((runs / "first" / "maker.json").read_text())
    assert "since then" not in first()
    (runs / "first" / "maker.json").write_text(json.dumps(said | {"its function": "another", "gone.py": "0"}))
    out = " ".join(first().split())
    assert "is made already" in out and toys.calls == ["first"]
    assert f"since then gone.py, its function changed: delete {runs / 'first'}" in out
    (runs / "first" / "maker.json").unlink()  # of an earlier version
    assert "since then" not in first()


def test_makers_are_told_by_their_code_and_constants(monkeypatch):
    files = {name: set(steps.maker(name)) for name, entry in ENTRIES.items() if entry.make}
    assert {"book/spectrobook/making/controls.py", "its function"} <= files["controls"]
    assert "benchmarks/clustering.py" in files["clustering"]
    assert "benchmarks/efficiency/grid.py" in files["efficiency"]
    assert "book/spectrobook/purity.py" in files["planted"]
    before = steps.maker("measurement")
    monkeypatch.setattr(registry, "PROFILE", "smoke")
    assert steps.maker("measurement") != before


def test_all_in_order_and_shipped_one_after_another(toys, tmp_path):
    code, _, _ = spectrobook("all", "--runs", tmp_path / "runs", "--ship")
    assert code == 0 and toys.calls == ["first", "half", "second"]
    assert toys.held("second") == {"sum.txt": "new"}  # of the first as it ships now; what was made no more is gone
    assert toys.held("first")["strange.txt"] == "of nobody"


def test_ctrl_c_is_one_line_and_work_goes_on(toys, tmp_path):
    toys.stop = True
    code, out, error = spectrobook("second", "--runs", tmp_path / "runs", "--ship")
    assert (code, out, error) == (130, "", "stopped; the same command goes on\n")
    assert toys.held("second") == {"gone.txt": "old"}
    toys.stop = False
    assert spectrobook("second", "--runs", tmp_path / "runs")[0] == 0
    assert toys.calls == ["half", "second"]


@pytest.mark.parametrize("failing", range(3))
def test_all_files_ship_or_none(toys, tmp_path, monkeypatch, failing):
    """The second file that is put in place meets a full disk, or the first, or taking the old ones away."""
    steps.make("first", tmp_path / "runs")
    real, moves = os.replace, []

    def move(source, target):
        moves.append(source)
        if len(moves) == failing + 1:
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(steps.os, "replace", move)
    with pytest.raises(ValueError, match="cannot be written: No space left"):
        steps.ship("first", tmp_path / "runs")
    assert toys.held("first") == OLD
    assert sorted(file.name for file in tmp_path.iterdir()) == ["home", "runs", "source.txt"]


def test_errors_are_one_line(toys, tmp_path):
    runs = ("--runs", tmp_path / "runs")
    refused = lambda name: spectrobook(name, *runs)  # noqa: E731
    assert refused("none") == (
        2,
        "",
        "error: nothing called 'none' ships: it must be one of first, second, by-hand, or all\n",
    )
    assert refused("by-hand") == (2, "", "error: by-hand is written by hand, from the news\n")
    assert not (tmp_path / "runs").exists()
    with pytest.raises(ValueError, match=r"first is not made in .*: python -m spectrobook first makes it"):
        steps.ship("first", tmp_path / "runs")
    (tmp_path / "runs" / "first").mkdir(parents=True)
    (tmp_path / "runs" / "first" / "letters.txt").write_text("mine")
    assert "holds something else: name another folder" in refused("first")[2]
    assert (tmp_path / "runs" / "first" / "letters.txt").exists()
    (tmp_path / "file").touch()
    assert "cannot be written" in spectrobook("first", "--runs", tmp_path / "file")[2]


def test_files_that_are_missing_or_too_many(toys, tmp_path):
    ENTRIES["first"] = replace(ENTRIES["first"], files=("one.txt",))
    with pytest.raises(ValueError, match=r"not made as registered: two\.txt"):
        steps.make("first", tmp_path / "runs")
    ENTRIES["first"] = replace(ENTRIES["first"], files=("one.txt", "two.txt", "three*"))
    with pytest.raises(ValueError, match=r"not made as registered: three\*"):
        steps.make("first", tmp_path / "runs")
