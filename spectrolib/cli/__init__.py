"""The command line, a module for each command: ``spectro measure``, ``info``, ``cluster``, ``check``, ``cards``,
``map``, ``near``, ``match``, ``plan`` and ``tune``.

Errors that the user can mend are one line on stderr: exit code 2 for bad input, 1 where a run failed, 130 after Ctrl-C.
"""

from __future__ import annotations

from typing import Annotated

import typer

from .cards import cards_command
from .check import check_command
from .cluster import cluster_command
from .info import info_command
from .map import map_command
from .match import match_command
from .measure import measure_command
from .near import near_command
from .plan import plan_command
from .terminal import speak_plainly
from .tune import tune_command

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_show_locals=False)
_COMMANDS = (
    measure_command,
    info_command,
    cluster_command,
    check_command,
    cards_command,
    map_command,
    near_command,
    match_command,
    plan_command,
    tune_command,
)
for _command in _COMMANDS:
    app.command(_command.__name__.removesuffix("_command"))(_command)


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
