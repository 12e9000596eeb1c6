"""What the commands share: errors in one line, rows of words, numbers for people."""

from __future__ import annotations

import math
import shutil
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape


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
    except KeyboardInterrupt as error:
        words = f"stopped: {stopped}" if stopped else "; ".join(["stopped", *error.args, "the same command goes on"])
        console(stderr=True).print(words, soft_wrap=True)
        raise typer.Exit(130) from None


def _fail(error: Exception, code: int) -> None:
    console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
    raise typer.Exit(code)


def console(**options) -> Console:
    """A terminal of the user's width."""
    return Console(highlight=False, width=_width(), **options)


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
