"""The registry of shipped files: each claimed once, below what it needs; single entries in small."""

import functools
import os
import re
import signal
import subprocess

import numpy as np
import pytest
from typer.testing import CliRunner

from spectrobook import directions
from spectrobook.__main__ import app
from spectrobook.making import registry, settings, steps, training
from spectrobook.making.installed import Corpus
from spectrobook.making.neox import Architecture
from spectrobook.making.registry import ENTRIES, ROOT
from spectrolib.run import store
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


def test_slopes(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(directions, "tabulate", functools.partial(directions.tabulate, text=3))
    table = directions.Table.open(steps.make("slopes", tmp_path) / "directions.npz")
    assert table.windows.tolist() == [0, 2] and len(table.components) == 32


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
