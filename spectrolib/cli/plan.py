"""``spectro plan``."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Annotated

import typer

from .terminal import duration, one_line_errors, print_rows


def plan_command(
    model: Annotated[str, typer.Option(help="A model by name, such as pythia-1.4b or gpt2; bundled, or a folder.")],
    tokens: Annotated[str, typer.Option(help="Probe tokens, such as 20k or 4.25M.")],
    draws: Annotated[int | None, typer.Option(help="Draws of each chain; by default those of profile paper.")] = None,
    chains: Annotated[int | None, typer.Option(help="Chains of each component.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps between draws.")] = None,
    batch: Annotated[int | None, typer.Option(help="Windows in a minibatch.")] = None,
    length: Annotated[int, typer.Option(help="Tokens of a window.")] = 257,
    plain: Annotated[bool, typer.Option("--plain", help="Chains on their own instead of teams.")] = False,
    card: Annotated[str, typer.Option(help="h200, h100, a100, l40s or 4090.")] = "h200",
    precision: Annotated[
        str, typer.Option(help="Of the products: float32 (ours), or what tf32 or bf16 would give.")
    ] = "float32",
    efficiency: Annotated[
        float | None, typer.Option(help="Share of the card's limit to assume.", show_default="0.33")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
) -> None:
    """Say what a measurement would take: operations, memory, disk, hours here and on a card, and where they go."""
    with one_line_errors():
        from ..run import cost
        from ..run.profiles import PAPER
        from ..run.workers import available_cores

        given = {"draws": draws, "chains": chains, "steps_between_draws": steps, "batch_size": batch}
        base = PAPER.settings.plain() if plain else PAPER.settings
        settings = replace(base, **{name: value for name, value in given.items() if value is not None})
        work = cost.Work(cost.shape_of(model), cost.count_of(tokens), settings, length=length)
        share = cost.EFFICIENCY if efficiency is None else efficiency
        found = cost.cost_summary(work, cost.card_of(card), precision, share, model, available_cores())
    print(json.dumps(found, indent=2)) if as_json else print_rows(_plan_in_words(found))


def _plan_in_words(found: dict) -> dict[str, str]:
    from ..run.cost import bytes_text

    s, hours, disk = found["settings"], found["hours"], found["disk"]
    team = f"teams of {s['members']}" if s["members"] > 1 else "no teams"
    listed = lambda values: ", ".join(f"{name} {value:.0%}" for name, value in values.items() if value >= 0.005)  # noqa: E731
    whole = sum(found["operations_by_kind"].values())
    needed, card, here = sum(found["memory"].values()), found["card_memory"], found["processor"]
    return {
        "model": f"{found['model']}: {found['parameters']:,} weights, {found['components']} components and the whole",
        "work": f"{found['tokens']:,} probe tokens and {s['loss_tokens']:,} for L(w); {s['chains']} chains ({team}) x "
        f"{s['draws']} draws, {s['steps_between_draws']} steps apart, batches of {s['batch_size']} x {s['length']}",
        "operations": f"{found['operations']:.3g} in {found['tasks']} tasks; {listed(found['share'])} of the time",
        "by component": listed({name: part / whole for name, part in found["operations_by_kind"].items()}),
        "time": f"about {duration(here['seconds'])} on {here['cores']} cores of this machine",
        "on a card": hours_in_words(
            hours["assumed"], hours["low"], hours["high"], found["card"], found["precision"], found["efficiency"]
        ),
        "limit": ", ".join(f"{name}: {bound}" for name, bound in found["bound"].items()),
        "memory": f"about {bytes_text(needed)} for the largest task, of {bytes_text(card)}: "
        + ", ".join(f"{name} {bytes_text(size)}" for name, size in found["memory"].items())
        + _fits(found["fit"], needed, card),
        "disk": ", ".join(f"{name} {bytes_text(size)}" for name, size in disk.items() if name != "losses of every draw")
        + f" (keeping the losses of every draw would be {bytes_text(disk['losses of every draw'])})",
        "clustering": f"about {duration(found['clustering_seconds'])} on two cores after it"
        + ("; extrapolated" if found["tokens"] > 500_000 or found["components"] > 32 else ""),
    }


def _fits(fit: dict | None, needed: float, card: float) -> str:
    if needed <= 0.9 * card:
        return ""
    if fit is None:
        return ". It does not fit: take a card with more, or --plain"
    cut = f" and the probe text in {fit['parts']} parts" if fit["parts"] > 1 else ""
    return f". It fits with passes of {fit['tokens_per_pass']:,} tokens{cut}"


def hours_in_words(assumed: float, low: float, high: float, card: str, precision: str, efficiency: float) -> str:
    """Hours on a card (`cost.CardHours`), and what they stand on."""
    from ..run.cost import EFFICIENCY_RANGE

    worse, better = EFFICIENCY_RANGE
    return (
        f"{_hours(assumed)} on one {card} in {precision}, assuming {efficiency:.0%} of its limit; {_hours(low)} at "
        f"{better:.0%}, {_hours(high)} at {worse:.0%}. No card was measured: a data sheet's rates, and a guess"
    )


def _hours(hours: float) -> str:
    if hours < 0.025:
        return f"{hours * 3600:.2g} s"
    return f"{hours * 60:.2g} min" if hours < 1.5 else f"{hours:,.1f} h" if hours < 100 else f"{hours:,.0f} h"
