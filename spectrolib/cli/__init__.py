"""The command line, a module for each command: ``spectro measure``, ``info``, ``cluster``, ``cards``, ``map``,
``match`` and ``plan``.

Errors that the user can mend are one line on stderr: exit code 2 for bad input, 1 where a run failed, 130 after Ctrl-C.
"""

from __future__ import annotations

from typing import Annotated

import typer

from .cards import cards
from .cluster import cluster
from .info import info
from .map import map_
from .match import match
from .measure import measure
from .plan import plan
from .terminal import speak_plainly

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_show_locals=False)
for _command in (measure, info, cluster, cards, map_, match, plan):
    app.command(_command.__name__.rstrip("_"))(_command)


def _version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        print(f"spectro {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Susceptibilities of language models: how every component of a model responds to every token in its context."""
    speak_plainly()
