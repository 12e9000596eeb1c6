"""What the commands share: errors in one line, rows of words, numbers for people, letters that a terminal knows."""

from __future__ import annotations

import codecs
import math
import shutil
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape

_SPELLED = {
    "β": "beta",
    "γ": "gamma",
    "ε": "eps",
    "≥": ">=",
    "≤": "<=",
    "×": "x",
    "·": "|",
    "…": "...",
    "–": "-",
    "χ": "chi",
}
"""Letters of ours, for terminals that have others."""


def speak_plainly() -> None:
    """Let what the terminal's encoding lacks be spelled out, or shown as a question mark, in place of an error."""
    codecs.register_error("spectro", _spelled)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="spectro")


def _spelled(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_SPELLED.get(letter, "?") for letter in error.object[error.start : error.end]), error.end


@contextmanager
def one_line_errors(stopped: str = "") -> Iterator[None]:
    """Errors that the user can mend as one line and an exit code.

    Args:
        stopped: what Ctrl-C leaves behind; by default a run that goes on.
    """
    from ..posterior import ChainError
    from ..run.measure import WorkerDied

    try:
        yield
    except (ValueError, ImportError) as error:
        _fail(error, 2)
    except (ChainError, WorkerDied) as error:
        _fail(error, 1)
    except BrokenPipeError:  # whoever reads has enough
        raise
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        _fail(f"{place}{error.strerror or error}; what is finished is kept", 1)
    except KeyboardInterrupt as error:
        words = f"stopped: {stopped}" if stopped else "; ".join(["stopped", *error.args, "the same command goes on"])
        console(stderr=True).print(words, soft_wrap=True)
        raise typer.Exit(130) from None


def _fail(error: Exception | str, code: int) -> None:
    console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
    raise typer.Exit(code)


def console(**options) -> Console:
    """A terminal of the user's width; where there is none, nothing moves, whatever FORCE_COLOR asks for."""
    stream = sys.stderr if options.get("stderr") else sys.stdout
    return Console(highlight=False, width=_width(), force_terminal=stream.isatty(), **options)


def _width() -> int:
    return shutil.get_terminal_size((120, 24)).columns


def print_rows(rows: dict[str, str]) -> None:
    """A line for each, or a hanging paragraph."""
    indent = max(map(len, rows)) + 2
    for key, value in rows.items():
        print(textwrap.fill(value, _width(), initial_indent=key.ljust(indent), subsequent_indent=" " * indent))


def duration(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def number(value: float, form: str) -> str:
    """A number in that format, or a question mark for what is unknown."""
    return "?" if math.isnan(value) else format(value, form)
