"""The command line: ``spectro measure``, ``spectro info``, ``spectro cluster``, ``spectro train``.

Errors that the user can mend are one line on stderr: exit code 2 for bad input, 1 where a run failed, 130 after Ctrl-C.
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
import textwrap
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from .plan import Plan
    from .profiles import Profile

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_show_locals=False)


@contextmanager
def _one_line_errors() -> Iterator[None]:
    from .measure import WorkerDied
    from .posterior import ChainError

    try:
        yield
    except (ValueError, ImportError) as error:
        _fail(error, 2)
    except (ChainError, WorkerDied) as error:
        _fail(error, 1)
    except KeyboardInterrupt as error:
        _console(stderr=True).print("; ".join(["stopped", *error.args, "the same command goes on"]), soft_wrap=True)
        raise typer.Exit(130) from None


def _fail(error: Exception | str, code: int) -> None:
    _console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
    raise typer.Exit(code)


def _console(**options) -> Console:
    return Console(highlight=False, width=_width(), **options)


def _width() -> int:
    return shutil.get_terminal_size((120, 24)).columns


def _version(wanted: bool) -> None:
    if wanted:
        from . import __version__

        print(f"spectro {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Susceptibilities of language models: how every component of a model responds to every token in its context."""


# measure -----------------------------------------------------------------------------------------------------------


@app.command()
def measure(
    out: Annotated[Path, typer.Option(help="Run folder. An interrupted run goes on with the same command.")],
    profile: Annotated[str, typer.Option(help="Constants of the run: smoke, book or paper.")] = "smoke",
    model: Annotated[str, typer.Option(help="bundled, a folder, or a name on the hub; by default the profile's.")] = "",
    text: Annotated[str, typer.Option(help="Local text file or folder to take all windows from.")] = "",
    data: Annotated[str, typer.Option(help="Data set on the hub to take all windows from.")] = "",
    components: Annotated[str, typer.Option(help='Such as "l0h0, l3 mlp, embed"; by default all.')] = "",
    estimator: Annotated[str, typer.Option(help="two_chain or one_chain.")] = "two_chain",
    nbeta: Annotated[float | None, typer.Option(help="Weight of the loss, nβ; 0 is the control.")] = None,
    gamma: Annotated[float | None, typer.Option(help="Localisation γ.")] = None,
    step_size: Annotated[float | None, typer.Option(help="Step size ε.")] = None,
    draws: Annotated[int | None, typer.Option(help="Draws of each chain.")] = None,
    chains: Annotated[int | None, typer.Option(help="Chains of each component.")] = None,
    tilt: Annotated[float | None, typer.Option(help="Run each chain at nβ ± this too: less noise.")] = None,
    antithetic: Annotated[bool, typer.Option("--antithetic", help="Give each chain a mirrored twin.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of noise and minibatches.")] = 0,
    workers: Annotated[int | None, typer.Option(help="Processes; by default one per core.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print plan and cost, and stop.")] = False,
) -> None:
    """Measure the susceptibility of every probe token for every component."""
    from .measure import measure as carry_out
    from .workers import start_forkserver

    overrides = {"nbeta": nbeta, "gamma": gamma, "step_size": step_size, "draws": draws, "chains": chains}
    overrides |= {"tilt": tilt, "antithetic": antithetic or None}
    with _one_line_errors():
        settings = {name: value for name, value in overrides.items() if value is not None} | {"seed": seed}
        constants, changes = _changes(profile, text, data, components, estimator, settings)
        if not dry_run:
            start_forkserver()  # it imports what the workers need while this process imports what it needs
        plan = _plan(constants, changes, model, text, data)
        _print_plan(plan, workers)
        if dry_run:
            return
        try:
            result = carry_out(plan, out, workers=workers)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"{_finished(out)} of {len(plan.tasks)} tasks are done") from None
        _print_summary(result, out)


def _changes(
    profile: str, text: str, data: str, components: str, estimator: str, settings: dict
) -> tuple[Profile, dict]:
    """The profile, and what the command line changes of its plan: everything that can be checked without the model."""
    from .estimator import ESTIMATORS
    from .profiles import get

    constants = get(profile)
    if text and data:
        raise ValueError("give --text or --data, not both")
    if estimator not in ESTIMATORS:
        raise ValueError(f"unknown estimator {estimator!r}: it must be one of {', '.join(ESTIMATORS)}")
    changes: dict = {"settings": replace(constants.settings, **settings), "estimator": estimator}
    if components:
        changes["components"] = tuple(name.strip() for name in components.split(","))
    return constants, changes


def _plan(constants: Profile, changes: dict, model: str, text: str, data: str) -> Plan:
    from .corpus import hub_documents, local_documents
    from .models import load_model
    from .plan import Plan, text_windows

    documents = local_documents(text) if text else hub_documents(data) if data else None
    language_model = load_model(model or constants.model)
    if documents is not None:
        changes = changes | text_windows(constants, language_model, documents, text or data)
    return Plan.from_profile(constants, model=language_model, **changes)


def _finished(out: Path) -> int:
    return sum(not file.name.endswith(".part.npz") for file in (out / "tasks").glob("*.npz"))


def _print_plan(plan: Plan, workers: int | None) -> None:
    from .workers import available_cores

    s, shape, cost = plan.settings, plan.shape, plan.cost()
    count = min(workers or available_cores(), cost.tasks)
    sampler = "SGLD" if s.preconditioner == "none" else f"SGLD with {s.preconditioner}"
    named = ", ".join(plan.components) if len(plan.components) <= 8 else f"{len(plan.components)}"
    domains = Counter(map(str, plan.probe.domain))
    predictions = plan.probe.ids[:, 1:].size
    rows = {
        "model": f"{plan.model.name} ({shape.layers} layers x {shape.heads} heads, width {shape.width}, "
        f"vocabulary {shape.vocabulary:,})",
        "components": f"{named}, and the whole model; estimator {plan.estimator}",
        "windows": f"{len(plan.sampling):,} to sample from, {len(plan.loss)} for L(w), {len(plan.probe)} to probe, of "
        f"{plan.probe.length} tokens: {predictions:,} probe tokens",
        "probe text": ", ".join(f"{domain} {number}" for domain, number in sorted(domains.items())),
        "posterior": f"nβ {s.nbeta:g}, γ {s.gamma:g}; {sampler}, step size {s.step_size:g}, batch {s.batch_size}",
        "chains": f"{s.chains} x {s.draws} draws, {s.steps_between_draws} steps apart after {s.burn_in}; seed {s.seed}",
        "cost": f"{cost.tasks} tasks, {cost.token_steps:.3g} tokens through steps, {cost.token_evaluations:.3g} token "
        f"losses, {cost.operations:.3g} operations",
        "time": f"about {_duration(cost.seconds(count))} on {count} cores",
    }
    _print_rows(rows)


def _print_rows(rows: dict[str, str]) -> None:
    indent = max(map(len, rows)) + 2
    for key, value in rows.items():
        print(textwrap.fill(value, _width(), initial_indent=key.ljust(indent), subsequent_indent=" " * indent))


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _print_summary(result, out: Path) -> None:
    from .diagnostics import acceptance

    checks = acceptance(result)
    failed = Counter(check.rule for check in checks if check.passed is False)
    tokens, columns = result["susceptibility"].shape
    passed, broken = sum(check.passed is True for check in checks), ", ".join(f"{n} x {r}" for r, n in failed.items())
    rows = {
        "result": f"{out / 'result.zarr'}: {tokens:,} tokens x {columns} components",
        "chains": f"{passed} of {len(checks)} checks pass" + (f"; failed: {broken}" if failed else ""),
        "reliability": _reliability(result),
        "more": f"spectro info {out}",
    }
    _print_rows(rows)


def _reliability(result) -> str:
    from .diagnostics import column_reliability, token_reliability

    if "half_susceptibility" not in result:
        return "unknown: it takes 2 chains"
    columns, tokens = column_reliability(result), token_reliability(result)
    return (
        f"columns median {float(columns.median()):.2f} ({float(columns.min()):.2f} to {float(columns.max()):.2f}); "
        f"token vectors, half the chains against the rest, median cosine {float(tokens.median()):.2f}"
    )


# info --------------------------------------------------------------------------------------------------------------


@app.command()
def info(run: Annotated[Path, typer.Argument(help="Run folder of `spectro measure`.")]) -> None:
    """Say what a run folder holds: the plan, the state, whether the chains are in order, how reliable the result is."""
    from .components import FULL
    from .engine import groups
    from .store import open_result, read_manifest

    console = _console()
    with _one_line_errors():
        manifest = read_manifest(run)
        settings = manifest["settings"]
        total = len(groups([*manifest["components"], FULL])) * settings["chains"]
        _print_rows(
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
                "state": f"{_finished(run)} of {total} tasks are done",
            },
        )
        if (run / "result.zarr").exists():
            _print_diagnostics(console, open_result(run))


def _print_diagnostics(console: Console, result) -> None:
    from .diagnostics import RULES, acceptance, column_reliability, convergence

    checks = acceptance(result)
    per_rule = list(dict.fromkeys(check.rule for check in checks if check.component != "all"))
    table = Table(*["component", *per_rule, "effective draws", "reliability"], box=None)
    chains = convergence(result)
    reliability = column_reliability(result) if "half_susceptibility" in result else None
    for name in result["sampled"].values.tolist():
        mine = {check.rule: check for check in checks if check.component == name}
        known = reliability is not None and name in reliability["component"]
        table.add_row(
            name,
            *(_mark(mine[rule]) for rule in per_rule),
            _number(float(chains["effective_draws"].sel(sampled=name)), ".0f"),
            _number(float(reliability.sel(component=name)), ".2f") if known else "",
        )
    console.print()
    console.print(table)
    console.print()
    for check in checks:
        if check.component == "all":
            console.print(f"{check.rule}: {_mark(check)} ({check.demand}; {RULES[check.rule]})")
    for rule in per_rule:
        (demand,) = {check.demand for check in checks if check.rule == rule}
        console.print(f"{rule}: {demand}; {RULES[rule]}")
    console.print(f"reliability: {_reliability(result)}")


def _mark(check) -> str:
    value = _number(check.value, ".3g")
    return f"[red]{value} x[/]" if check.passed is False else value


def _number(value: float, form: str) -> str:
    return "?" if math.isnan(value) else format(value, form)


# cluster -----------------------------------------------------------------------------------------------------------


@app.command()
def cluster(
    run: Annotated[Path, typer.Argument(help="Run folder of `spectro measure`.")],
    k: Annotated[int, typer.Option(help="Neighbours of each token; fewer look closer.")] = 45,
    symmetrise: Annotated[str, typer.Option(help="mutual or union: which pairs the graph keeps.")] = "mutual",
    rows: Annotated[str, typer.Option(help="How rows are standardised: center, zscore or none.")] = "center",
    whiten: Annotated[bool, typer.Option("--whiten", help="Scale principal axes to one variance.")] = False,
    method: Annotated[str, typer.Option(help="fast or literal.")] = "fast",
    seed: Annotated[int, typer.Option(help="Seed of whatever is random.")] = 0,
    min_size: Annotated[int, typer.Option(help="Tokens of the smallest cluster.")] = 20,
    max_size: Annotated[
        int | None, typer.Option(help="Tokens of the largest cluster.", show_default="1000, or n/4")
    ] = None,
    barrier: Annotated[float, typer.Option(help="How distinct clusters must be; 1 cuts up the main body too.")] = 1.3,
    certify: Annotated[int, typer.Option(help="Clusters to check against exact solutions.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Cluster the tokens of a finished run: writes RUN/clusters.npz and RUN/clusters.json, prints a summary."""
    from .clustering import check
    from .graph import check_symmetrise
    from .peeling import Options

    with _one_line_errors():
        check_symmetrise(symmetrise)
        check(Options(0.001, 1e-7, 0.99, min_size, True, max_size, barrier), 0.001, method)
        options = {"method": method, "seed": seed, "min_size": min_size, "max_size": max_size, "barrier": barrier}
        settings = {"k": k, "symmetrise": symmetrise, "rows": rows, "whiten": whiten, **options}
        try:
            summary = _cluster(run, settings, options, max(certify, 0))
        except KeyboardInterrupt:
            _console(stderr=True).print("stopped: nothing was written")
            raise typer.Exit(130) from None
        print(json.dumps(summary, indent=2)) if as_json else _print_rows(_clusters_in_words(summary, run))
        if not summary["finished"]:
            _console(stderr=True).print("stopped: the clusters found so far are written, marked as unfinished")
            raise typer.Exit(130)


def _cluster(run: Path, settings: dict, options: dict, certify: int) -> dict:
    """Standardise, join, cluster, write; the summary."""
    import time

    from . import clustering, graph
    from .estimator import standardise
    from .store import open_result

    chi = open_result(run)["susceptibility"].values
    begin = time.perf_counter()
    rows = None if settings["rows"] == "none" else settings["rows"]
    vectors = standardise(chi, rows=rows, whiten=settings["whiten"])
    near = graph.nearest(vectors, settings["k"], seed=settings["seed"])
    joined = graph.join(near, settings["symmetrise"])
    graph_seconds = time.perf_counter() - begin
    found = clustering.conductance_clusters(joined, **options, progress=True)
    exact = clustering.certify(joined, found, sample=certify if found.finished else 0, seed=settings["seed"])
    summary = {
        "run": str(run),
        "tokens": len(vectors),
        "components": chi.shape[1],
        "settings": settings,
        "graph": {"mean_degree": joined.nnz / len(vectors), "recall": graph.recall(vectors, near)},
        **clustering.summary(found),
        "exact": {"clusters": exact.clusters.tolist(), "overlap": exact.overlap.tolist()},
        "seconds": {"graph": graph_seconds, "all": time.perf_counter() - begin},
    }
    clustering.save_clusters(found, run, summary)
    return summary


def _clusters_in_words(summary: dict, run: Path) -> dict[str, str]:
    sizes, cuts, left, exact = summary["sizes"], summary["conductance"], summary["left"], summary["exact"]
    settings, graph, seconds = summary["settings"], summary["graph"], summary["seconds"]
    shown = ", ".join(map(str, sizes[:12])) + (", ..." if len(sizes) > 12 else "")
    words = {
        "tokens": f"{summary['tokens']:,} x {summary['components']} components",
        "graph": f"{settings['symmetrise']}, k = {settings['k']}: mean degree {graph['mean_degree']:.1f}, recall "
        f"{graph['recall']:.4f}",
        "clusters": f"{len(sizes)}, by {settings['method']} peeling from {summary['seeds_tried']:,} seeds",
    }
    if sizes:
        words["sizes"] = f"median {statistics.median(sizes):g}: {shown}"
        words["conductance"] = f"median {statistics.median(cuts):.3f} ({min(cuts):.3f} to {max(cuts):.3f})"
    if exact["clusters"]:
        words["exact walk"] = (
            f"cuts the same sets up to a Jaccard overlap of {statistics.median(exact['overlap']):.2f} (median of "
            f"{len(exact['clusters'])} clusters)"
        )
    return words | {
        "coverage": f"{summary['coverage']:.1%}; the rest: " + ", ".join(f"{why} {n:,}" for why, n in left.items()),
        "time": f"{_duration(seconds['all'])}, of which graph {_duration(seconds['graph'])}",
        "files": f"{run / 'clusters.npz'}, {run / 'clusters.json'}",
    }


# train -------------------------------------------------------------------------------------------------------------


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Run folder; the model is written to OUT/model.")],
    tokens: Annotated[int | None, typer.Option(help="Tokens to train on.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights and data order.")] = 0,
    workers: Annotated[int | None, typer.Option(help="Processes, each on one thread.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Train the bundled model's tokenizer and weights on the text that ships with the installed packages."""
    with _one_line_errors():
        from .training import TrainingSettings
        from .training import train as carry_out

        given = {"tokens": tokens, "workers": workers}
        settings = TrainingSettings(
            seed=seed, device=device, **{name: value for name, value in given.items() if value is not None}
        )
        folder = carry_out(settings, out)
        losses = json.loads((folder / "training.json").read_text())["loss"]
        print(f"{folder}: validation loss {losses['heldout']['mean']:.3f} nats per token")


if __name__ == "__main__":
    app()
