"""``spectro info``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from .terminal import console, number, one_line_errors, print_rows


def info_command(run: Annotated[Path, typer.Argument(help="Run folder of `spectro measure`.")]) -> None:
    """Say what a run folder holds: the plan, the state, whether the chains are in order, how reliable the result is."""
    from ..model.engine import groups
    from ..run.cost import chains_of
    from ..run.store import finished_tasks, open_result, run_manifest

    with one_line_errors():
        manifest = run_manifest(run)
        settings = manifest["settings"]
        first_order = manifest.get("first_order", False)
        sampled = chains_of(manifest["components"], manifest["estimator"])
        total = 1 if first_order else len(groups(sampled)) * settings["chains"]
        stretches = finished_tasks(run).values()
        windows = manifest["windows"]["probe"]["shape"][0] if "probe" in manifest["windows"] else 0
        done = sum(None in own or sum(end - first for first, end in own) >= windows for own in stretches)
        begun = f", {len(stretches) - done} in part" if len(stretches) > done else ""
        print_rows(
            {
                "model": f"{manifest['model']['name']} (hash {manifest['model']['hash'][:12]})",
                "windows": "; ".join(
                    f"{role} {windows['shape'][0]} x {windows['shape'][1]} tokens ({windows['source']})"
                    for role, windows in manifest["windows"].items()
                ),
                "components": ", ".join(manifest["components"]),
                "estimator": manifest["estimator"],
                "settings": ", ".join(f"{name} {value}" for name, value in settings.items()),
                "versions": ", ".join(f"{name} {value}" for name, value in manifest["versions"].items()),
                "state": f"{done} of {total} tasks are done{begun}",
            },
        )
        if (run / "result.zarr").exists() and "loss_rise" in (result := open_result(run)):
            _print_diagnostics(console(), result)


def _print_diagnostics(terminal: Console, result) -> None:
    from ..checks.diagnostics import RULES, acceptance, column_reliability, convergence

    checks = acceptance(result)
    per_rule = list(dict.fromkeys(check.rule for check in checks if check.component != "all"))
    table = Table(*["component", *per_rule, "effective draws", "reliability"], box=None)
    chains = convergence(result)
    columns = column_reliability(result) if "half_susceptibility" in result else None
    for name in result["sampled"].values.tolist():
        mine = {check.rule: check for check in checks if check.component == name}
        known = columns is not None and name in columns["component"]
        table.add_row(
            name,
            *(_mark(mine[rule]) for rule in per_rule),
            number(float(chains["effective_draws"].sel(sampled=name)), ".0f"),
            number(float(columns.sel(component=name)), ".2f") if known else "",
        )
    terminal.print()
    terminal.print(table)
    terminal.print()
    for check in checks:
        if check.component == "all":
            terminal.print(f"{check.rule}: {_mark(check)} ({check.demand}; {RULES[check.rule]})")
    for rule in per_rule:
        (demand,) = {check.demand for check in checks if check.rule == rule}
        terminal.print(f"{rule}: {demand}; {RULES[rule]}")
    terminal.print(f"reliability: {reliability(result)}")


def _mark(check) -> str:
    value = number(check.value, ".3g")
    return f"[red]{value} x[/]" if check.passed is False else value


def reliability(result) -> str:
    """How well columns and token vectors repeat, in words."""
    from ..checks.diagnostics import column_reliability, token_reliability

    if "half_susceptibility" not in result:
        return "unknown: it takes 2 chains"
    columns, tokens = column_reliability(result), token_reliability(result)
    return (
        f"columns median {float(columns.median()):.2f} ({float(columns.min()):.2f} to {float(columns.max()):.2f}); "
        f"token vectors, half the chains against the rest, median cosine {float(tokens.median()):.2f}"
    )
