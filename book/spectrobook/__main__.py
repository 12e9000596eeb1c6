"""``python -m spectrobook NAME``: the files that ship with the project, made again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from spectrolib.cli.terminal import console, one_line_errors

from .making.registry import ENTRIES, ROOT
from .making.steps import make, ship

app = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False)


@app.command()
def main(
    name: Annotated[str, typer.Argument(help="What to make, or all.", show_default=False)] = "",
    runs: Annotated[Path, typer.Option(help="Folder of the run folders; each is RUNS/NAME.")] = Path("runs/making"),
    ships: Annotated[bool, typer.Option("--ship", help="Then put it where it ships.")] = False,
    listed: Annotated[bool, typer.Option("--list", help="Say what there is to make, and stop.")] = False,
) -> None:
    """Make a file that ships with the project again, in a run folder; with --ship, in its place too.

    It is made of what ships. So with all, what changes upstream reaches the rest only with --ship. An interrupted
    command goes on where it stopped.
    """
    with one_line_errors():
        if listed or not name:
            console().print(table())
            return
        names = [one for one in ENTRIES if ENTRIES[one].make] if name == "all" else [name]  # not those by hand
        for one in names:
            make(one, runs)
            if ships:
                print(f"{one} ships in {ship(one, runs)}")
        if not ships:
            print(f"to ship: python -m spectrobook {name} --runs {runs} --ship")


def table() -> Table:
    """What there is to make."""
    found = Table("name", "files", "needs", "time", "check", box=None, header_style="bold", pad_edge=False)
    for name, entry in ENTRIES.items():
        home = entry.home.relative_to(ROOT) if entry.home.is_relative_to(ROOT) else entry.home
        needs = "all of these" if set(entry.needs) == set(ENTRIES) - {name} else ", ".join(entry.needs)
        found.add_row(name, "\n".join([f"{home}:", *entry.files]), needs, entry.time, entry.check, end_section=True)
    return found


if __name__ == "__main__":
    app(prog_name="python -m spectrobook")
