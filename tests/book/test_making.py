"""Making shipped files again: the registry, run folders, what is shipped and when, and single entries in small."""

import functools
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import measuring
import numpy as np
import pytest
from spectrobook import directions, shipped
from spectrobook.__main__ import app
from spectrobook.making import registry, settings, steps, training
from spectrobook.making.installed import Corpus
from spectrobook.making.neox import Architecture
from spectrobook.making.registry import ENTRIES, ROOT, Entry
from typer.testing import CliRunner

from spectrolib.reading import tokenmap
from spectrolib.run import measure as carrying_out
from spectrolib.run import profiles, store
from spectrolib.run.measure import WorkerDied
from spectrolib.text.corpus import Document


def spectrobook(*arguments) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="python -m spectrobook")
    return result.exit_code, result.stdout, result.stderr


# The registry


def test_every_shipped_file_is_claimed_once():
    listed = subprocess.run(
        ["git", "ls-files", "spectrolib/bundled", "book/spectrobook/data"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("no git here")
    claimed = [entry.home / path for entry in ENTRIES.values() for path in entry.found(entry.home)]
    files = {ROOT / line for line in listed.stdout.splitlines()}
    assert files and len(claimed) == len(set(claimed))
    assert files - set(claimed) == set()


def test_an_entry_stands_below_those_that_it_needs():
    names = list(ENTRIES)
    assert all(names.index(need) < i for i, name in enumerate(names) for need in ENTRIES[name].needs)
    assert set(ENTRIES["figures"].needs) == set(names) - {"figures"}


def test_the_checks_name_tests_that_exist():
    tests = {path for entry in ENTRIES.values() for path in re.findall(r"tests/[\w/.]+\w", entry.check)}
    assert tests and [path for path in tests if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("arguments", [["--list"], []])
def test_the_list(arguments, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = spectrobook(*arguments)
    assert code == 0
    for name, entry in ENTRIES.items():
        needs = "all of these" if name == "figures" else ", ".join(entry.needs)
        assert re.search(rf"^{name} .*{needs} .*{entry.time} ", out, re.M)
        assert all(pattern in out for pattern in entry.files)


def test_the_shipped_map_is_of_the_shipped_measurement():
    assert tokenmap.held(shipped.LAYOUT, shipped.measured()) is not None


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
        assert folder.is_absolute()
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


def test_nothing_ships_by_default(toys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = spectrobook("first")
    assert code == 0 and toys.held("first") == OLD
    assert (tmp_path / "runs" / "making" / "first" / "made" / "two.txt").read_text() == "new"
    assert "to ship: python -m spectrobook first --runs runs/making --ship" in out


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


# Programs


def test_a_program_that_fails():
    registry.python("-c", "import os; assert os.environ['WORD'] == 'x'", WORD="x")
    with pytest.raises(WorkerDied, match="failed with exit code 3"):
        registry.python("-c", "raise SystemExit(3)")


def test_ctrl_c_ends_a_program(tmp_path):
    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, interrupt)
    code = "import os, signal, sys, time; from pathlib import Path; Path(sys.argv[1]).write_text(str(os.getpid())); "
    try:
        with pytest.raises(KeyboardInterrupt):
            registry.python("-c", code + "os.kill(os.getppid(), signal.SIGUSR1); time.sleep(60)", tmp_path / "pid")
    finally:
        signal.signal(signal.SIGUSR1, before)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_the_benchmarks_write_where_they_are_told(tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr(registry, "python", lambda *words, **environment: called.append((*words, *environment)))
    with pytest.raises(ValueError, match=r"efficiency reads .*: python -m spectrobook measurement makes them"):
        registry.efficiency(tmp_path / "efficiency")
    (tmp_path / "measurement" / "run" / "result.zarr").mkdir(parents=True)
    for name in ("efficiency", "clustering", "peeling", "figures"):
        ENTRIES[name].make(tmp_path / name)
        assert str(tmp_path / name / "made") in " ".join(map(str, called[-1])) or name == "figures"
    assert all((ROOT / words[0]).exists() for words in called)
    assert called[-1][-1] == "SPECTRO_FIGURES"


# Single entries, in small


@pytest.fixture
def tiny(monkeypatch) -> None:
    """Measurements of seconds."""
    short = replace(profiles.SMOKE.settings, burn_in=1, steps_between_draws=1, batch_size=2)
    sizes = {"length": 17, "sampling_windows": 6, "loss_windows": 2, "probe_windows": 4}
    small = replace(profiles.SMOKE, settings=short, **sizes)
    monkeypatch.setitem(profiles.PROFILES, "tiny", small)
    monkeypatch.setattr(registry, "PROFILE", "tiny")
    here = functools.partial(carrying_out.measure, executor=measuring.Inline(), progress=False)
    monkeypatch.setattr(carrying_out, "measure", here)


def test_a_measurement_that_is_stopped_goes_on(tiny, tmp_path, monkeypatch):
    runs, pack = tmp_path / "runs", store.pack
    monkeypatch.setattr(store, "pack", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert spectrobook("measurement", "--runs", runs)[0] == 130
    tasks = {file: file.stat().st_mtime_ns for file in (runs / "measurement" / "run" / "tasks").iterdir()}
    monkeypatch.setattr(store, "pack", pack)
    code, out, _ = spectrobook("measurement", "--runs", runs)
    assert code == 0 and "measurement is made" in out
    assert tasks == {file: file.stat().st_mtime_ns for file in (runs / "measurement" / "run" / "tasks").iterdir()}
    result = store.open_packed(runs / "measurement" / "made" / "measurement.zarr.zip")
    assert result.sizes["token"] == 4 * 16 and "half_susceptibility" in result


def test_controls(tiny, tmp_path):
    made = steps.make("controls", tmp_path)
    zero, untrained = (store.open_packed(made / f"measurement-{name}.zarr.zip") for name in ("zero", "untrained"))
    manifests = [json.loads(m) if isinstance(m := r.attrs["manifest"], str) else m for r in (zero, untrained)]
    assert [m["settings"]["nbeta"] for m in manifests] == [0.0, 10.0]
    assert manifests[0]["model"]["hash"] != manifests[1]["model"]["hash"]
    assert zero.sizes["token"] == untrained.sizes["token"] == 2 * 16  # every other window


def test_slopes(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(directions, "tabulate", functools.partial(directions.tabulate, text=3))
    table = directions.Table.open(steps.make("slopes", tmp_path) / "directions.npz")
    assert table.windows.tolist() == [0, 2] and len(table.components) == 32


def test_the_layout(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenmap, "layout", lambda vectors, k: np.zeros((len(vectors), 2)))
    made = steps.make("layout", tmp_path)
    assert len(tokenmap.held(made / "layout.npz", shipped.measured())) == len(shipped.vectors())


def test_the_model(tmp_path, monkeypatch):
    words = "alpha beta gamma delta draws chains tokens loss model weight step noise".split()
    text = lambda seed: " ".join(np.random.default_rng(seed).choice(words, 200))  # noqa: E731
    corpus = Corpus.from_documents(Document(text(i), "words", name=f"{i}") for i in range(80))
    monkeypatch.setattr(training, "installed_corpus", lambda: corpus)
    sizes = {"tokens": 256, "length": 16, "batch_windows": 8, "micro_windows": 2, "workers": 1}
    sizes |= {"sampling_windows": 4, "heldout_windows": 4, "validation_windows": 2, "tokenizer_bytes": 20_000}
    shape = Architecture(layers=1, heads=2, width=16, mlp=32, vocabulary=280, context=64)
    small = settings.TrainingSettings(**sizes, shape=shape)
    monkeypatch.setattr(settings, "TrainingSettings", lambda: small)
    made = steps.make("model", tmp_path)
    assert "`python -m spectrobook model`" in " ".join((made / "README.md").read_text().split())
