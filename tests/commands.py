"""The command line, run in this process."""

import sys

from typer.testing import CliRunner

from spectrolib import cli

SPECTRO = [sys.executable, "-m", "spectrolib.cli"]


def spectro(*arguments) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


def refused(*arguments, code: int = 2) -> str:
    """The one line that a refused command prints."""
    exit_code, out, error = spectro(*arguments)
    assert exit_code == code, error
    assert not out
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def refused_after_plan(*arguments, code: int = 2) -> str:
    exit_code, out, error = spectro(*arguments)
    assert exit_code == code, error
    assert out.startswith("model ")
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error
