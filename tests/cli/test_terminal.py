"""What the commands share: errors of one line, rows, numbers for people."""

import io
import os
import subprocess

import pytest
from commands import SPECTRO

from spectrolib.cli import terminal


def test_an_error_of_a_real_process_is_one_line_and_leaves_nothing(tmp_path):
    run = [*SPECTRO, "measure", "--out", str(tmp_path / "run"), "--profile", "none"]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "error: unknown profile 'none': it must be one of smoke, book, laptop, paper\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("ascii", "nbeta >= 2 x gamma ? ?"),
        ("latin-1", "nbeta >= 2 × gamma ? ?"),
        ("cp1252", "nbeta >= 2 × gamma ? ?"),
        ("utf-8", "nβ ≥ 2 × γ Ж 😀"),
    ],
)
def test_letters_that_a_terminal_lacks_are_spelled_out(encoding, expected, monkeypatch):
    written = io.BytesIO()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(terminal.sys, name, io.TextIOWrapper(written, encoding=encoding))
    terminal.speak_plainly()
    print("nβ ≥ 2 × γ Ж 😀", flush=True)
    found = written.getvalue().decode(encoding).rstrip("\r\n")
    assert found == expected


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_real_process_speaks_in_any_encoding(encoding, tmp_path):
    run = [*SPECTRO, "measure", "--out", str(tmp_path / "run"), "--dry-run"]
    done = subprocess.run(run, capture_output=True, env=os.environ | {"PYTHONIOENCODING": encoding})
    assert done.returncode == 0, done.stderr
    assert b"nbeta 10, gamma 300" in done.stdout


def test_what_the_system_refuses_is_one_line(capsys):
    with pytest.raises(terminal.typer.Exit), terminal.one_line_errors():
        raise OSError(28, "No space left on device", "/run/tasks/a.part.npz")
    said = capsys.readouterr().err
    assert said == "error: /run/tasks/a.part.npz: No space left on device; what is finished is kept\n"
