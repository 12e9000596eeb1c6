"""The command line: ``spectro measure``, ``spectro info``, ``spectro cluster``, ``spectro cards``,
``spectro map``, ``spectro plan``, ``spectro train``, ``spectro match``.

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
    from .corpus import Document
    from .models import LanguageModel
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
    revision: Annotated[
        str,
        typer.Option(help="Branch, tag or commit on the hub, such as step1000 of a Pythia.", show_default="main"),
    ] = "",
    text: Annotated[str, typer.Option(help="Local text file or folder to take all windows from.")] = "",
    data: Annotated[str, typer.Option(help="Data set on the hub to take all windows from.")] = "",
    probe: Annotated[str, typer.Option(help="Local text to take the probe windows from; the others stay.")] = "",
    components: Annotated[str, typer.Option(help='Such as "l0h0, l3 mlp, embed"; by default all.')] = "",
    estimator: Annotated[str, typer.Option(help="two_chain or one_chain.")] = "two_chain",
    nbeta: Annotated[float | None, typer.Option(help="Weight of the loss, nβ; 0 is the control.")] = None,
    gamma: Annotated[float | None, typer.Option(help="Localisation γ.")] = None,
    step_size: Annotated[float | None, typer.Option(help="Step size ε.")] = None,
    draws: Annotated[int | None, typer.Option(help="Draws of each chain.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps between draws.")] = None,
    chains: Annotated[int | None, typer.Option(help="Chains of each component.")] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Chains on their own instead of teams, more draws.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of noise and minibatches.")] = 0,
    workers: Annotated[int | None, typer.Option(help="Processes; by default one per core.")] = None,
    memory: Annotated[
        str, typer.Option(help="What a worker may need, such as 4GB: fixes shards.", show_default="no limit")
    ] = "",
    bank: Annotated[
        str,
        typer.Option(help="Folder of draws: those that it holds are not sampled again.", show_default="none"),
    ] = "",
    shards: Annotated[int, typer.Option(help="Parts of the probe text, each a task: less memory, more to spread.")] = 1,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:1; by default cuda where there is one.")] = "auto",
    executor: Annotated[
        str, typer.Option(help="local, or the address of a Dask scheduler, tcp://host:port.")
    ] = "local",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print plan and cost, and stop.")] = False,
) -> None:
    """Measure the susceptibility of every probe token for every component."""
    from .measure import fitted
    from .measure import measure as carry_out
    from .models import load_model
    from .scale import bytes_of
    from .store import finished_tasks
    from .workers import start_forkserver

    overrides = {"nbeta": nbeta, "gamma": gamma, "step_size": step_size, "draws": draws, "chains": chains}
    overrides["steps_between_draws"] = steps
    with _one_line_errors():
        settings = {name: value for name, value in overrides.items() if value is not None} | {"seed": seed}
        constants, changes = _changes(profile, text, data, components, estimator, settings, plain)
        limit, changes["shards"] = bytes_of(memory) if memory else None, shards
        if not dry_run:
            start_forkserver()  # it imports what the workers need while this process imports what it needs
        texts = _texts(text, data, probe)
        found = load_model(model or constants.model, revision=revision or None, device=device)
        plan = fitted(_plan(constants, changes, found, texts), out, limit)
        _print_plan(plan, workers, bank)
        if dry_run:
            return
        try:
            result = carry_out(plan, out, executor=executor, workers=workers, bank=bank or None)
        except KeyboardInterrupt:
            finished = finished_tasks(out)
            done = sum(map(len, finished.values()))
            raise KeyboardInterrupt(f"{done} of {done + len(plan.left(finished))} tasks are done") from None
        _print_summary(result, out)


def _changes(
    profile: str, text: str, data: str, components: str, estimator: str, settings: dict, plain: bool
) -> tuple[Profile, dict]:
    """The profile, and what the command line changes of its plan: everything that can be checked without the model."""
    from .estimator import ESTIMATORS
    from .profiles import get

    constants = get(profile)
    if text and data:
        raise ValueError("give --text or --data, not both")
    if estimator not in ESTIMATORS:
        raise ValueError(f"unknown estimator {estimator!r}: it must be one of {', '.join(ESTIMATORS)}")
    base = constants.settings.plain() if plain else constants.settings
    changes: dict = {"settings": replace(base, **settings), "estimator": estimator}
    if components:
        changes["components"] = tuple(name.strip() for name in components.split(","))
    return constants, changes


def _texts(text: str, data: str, probe: str) -> dict[str, tuple[Iterator[Document], str]]:
    """Documents to cut all windows from, and the probe windows, with what they are called; refused if not there."""
    from .corpus import hub_documents, local_documents

    found = {"all": (local_documents(text), text)} if text else {"all": (hub_documents(data), data)} if data else {}
    return found | ({"probe": (local_documents(probe), probe)} if probe else {})


def _plan(constants: Profile, changes: dict, model: LanguageModel, texts: dict) -> Plan:
    from .plan import Plan, probe_windows, text_windows

    if "all" in texts:
        changes = changes | text_windows(constants, model, *texts["all"])
    if "probe" in texts:
        changes = changes | {"probe": probe_windows(constants, model, *texts["probe"])}
    return Plan.from_profile(constants, model=model, **changes)


def _print_plan(plan: Plan, workers: int | None, bank: str = "") -> None:
    from .bank import size
    from .scale import Work, disk, need
    from .workers import available_cores

    s, shape, cost, shards = plan.settings, plan.shape, plan.cost(), len(plan.stretches())
    count, held = min(workers or available_cores(), len(plan.tasks)), need(plan)
    cut = f" in {shards} shards, each of which repeats the chains" if shards > 1 else ""
    cut += f", passes of {plan.tokens_per_pass:,} tokens" if plan.tokens_per_pass else ""
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
        "cost": f"{len(plan.tasks)} tasks{cut}; {cost.token_steps:.3g} tokens through steps, "
        f"{cost.token_evaluations:.3g} token losses, {cost.operations:.3g} operations",
        "memory": f"about {_bytes(sum(held.values()))} a worker for the largest task: "
        + ", ".join(f"{name} {_bytes(size)}" for name, size in held.items())
        + f"; then {_bytes(disk(Work.of(plan))['result'])} for the result",
        "time": f"about {_duration(cost.seconds(count))} on {count} cores",
    }
    if bank:
        rows["draws"] = f"kept in {bank}, {_bytes(size(Work.of(plan)))} in all; those that are there cost no steps"
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
    judged = [check for check in checks if check.passed is not None]
    passed, broken = sum(check.passed for check in judged), ", ".join(f"{n} x {r}" for r, n in failed.items())
    open_ones = f"; {len(checks) - len(judged)} need more draws" if len(judged) < len(checks) else ""
    rows = {
        "result": f"{out / 'result.zarr'}: {tokens:,} tokens x {columns} components",
        "chains": f"{passed} of {len(judged)} checks pass" + (f"; failed: {broken}" if failed else "") + open_ones,
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
    from .store import finished_tasks, open_result, read_manifest

    console = _console()
    with _one_line_errors():
        manifest = read_manifest(run)
        settings = manifest["settings"]
        total = len(groups([*manifest["components"], FULL])) * settings["chains"]
        stretches = finished_tasks(run).values()
        windows = manifest["windows"]["probe"]["shape"][0] if "probe" in manifest["windows"] else 0
        done = sum(None in own or sum(end - first for first, end in own) >= windows for own in stretches)
        begun = f", {len(stretches) - done} in part" if len(stretches) > done else ""
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
                "state": f"{done} of {total} tasks are done{begun}",
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
    estimator: Annotated[
        str, typer.Option(help="two_chain or one_chain: whose rows.", show_default="the measured one")
    ] = "",
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
    from .estimator import with_estimator
    from .graph import check_symmetrise
    from .peeling import Options
    from .store import open_result

    with _one_line_errors():
        check_symmetrise(symmetrise)
        check(Options(0.001, 1e-7, 0.99, min_size, True, max_size, barrier), 0.001, method)
        options = {"method": method, "seed": seed, "min_size": min_size, "max_size": max_size, "barrier": barrier}
        result = open_result(run)
        result = with_estimator(result, estimator) if estimator else result
        shape = {"k": k, "symmetrise": symmetrise, "rows": rows, "whiten": whiten}
        settings = {"estimator": result.attrs.get("estimator", ""), **shape, **options}
        try:
            summary = _cluster(run, result["susceptibility"].values, settings, options, max(certify, 0))
        except KeyboardInterrupt:
            _console(stderr=True).print("stopped: nothing was written")
            raise typer.Exit(130) from None
        print(json.dumps(summary, indent=2)) if as_json else _print_rows(_clusters_in_words(summary, run))
        if not summary["finished"]:
            _console(stderr=True).print("stopped: the clusters found so far are written, marked as unfinished")
            raise typer.Exit(130)


def _cluster(run: Path, chi, settings: dict, options: dict, certify: int) -> dict:
    """Standardise, join, cluster, write; the summary."""
    import time

    from . import clustering, graph
    from .estimator import standardise

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


# cards -------------------------------------------------------------------------------------------------------------


@app.command()
def cards(
    run: Annotated[Path, typer.Argument(help="Run folder of `spectro measure`, after `spectro cluster`.")],
    model: Annotated[str, typer.Option(help="Whose tokenizer reads the tokens; by default the measured model's.")] = "",
    examples: Annotated[int, typer.Option(help="Members to show of each cluster.", min=0)] = 12,
    seed: Annotated[int, typer.Option(help="Seed of the examples and of the halves that rules are fitted on.")] = 0,
    name_url: Annotated[
        str,
        typer.Option(
            envvar="SPECTRO_NAME_URL",
            help="Let a language model name the clusters: an address that speaks OpenAI's protocol, such as "
            "http://localhost:8000/v1. Excerpts are sent there.",
        ),
    ] = "",
    name_model: Annotated[str, typer.Option(envvar="SPECTRO_NAME_MODEL", help="Which model to ask there.")] = "",
    name_key: Annotated[
        str, typer.Option(envvar="SPECTRO_NAME_KEY", help="Its key; better in the variable.", show_default=False)
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Describe the clusters of a run: writes RUN/cards.json and RUN/catalogue.html, prints a summary."""
    with _one_line_errors():
        try:
            found, summary = _cards(run, model, examples, seed, (name_url, name_model, name_key))
        except KeyboardInterrupt:
            _console(stderr=True).print("stopped: nothing was written")
            raise typer.Exit(130) from None
    if as_json:
        print(json.dumps(summary, indent=2))
    else:
        _print_cards(found, summary, run)


def _cards(run: Path, model: str, examples: int, seed: int, name: tuple[str, str, str]) -> tuple[list, dict]:
    """Cards and catalogue, written; the summary."""
    from . import cards as room
    from . import catalogue, clustering, naming
    from .features import describe
    from .runningtext import MISSING, running_text

    url, asked, key = name
    endpoint = naming.Endpoint(url, asked, key) if url or asked else None
    result, found = _clustered_result(run), clustering.open_clusters(run)
    cut = any(MISSING in str(text) for text in result["text"].values) if "text" in result.coords else False
    tokenizer = _tokenizer(run, model) if cut or model else None
    text = running_text(result, tokenizer)
    described = room.cards(
        result, found, features=describe(text), **_standardisation(run), examples=examples, seed=seed
    )
    if endpoint is not None:
        described = naming.name_cards(described, text, found.labels, endpoint, seed=seed)
    rules = [card.rule for card in described if card.rule is not None]
    summary = {
        "run": str(run),
        "clusters": len(described),
        "confident": sum(rule.confident for rule in rules),
        "without_rule": len(described) - len(rules),
        "precision": _median(rule.precision.value for rule in rules),
        "recall": _median(rule.recall.value for rule in rules),
        "families": dict(Counter(card.family for card in described).most_common()),
        "seed": seed,
        "cut_characters": cut and tokenizer is None,
        "named_by": endpoint.model if endpoint else None,
    }
    about = f"{len(found.labels):,} tokens of {run.resolve().name}, of which {found.coverage:.0%} are in a cluster."
    room.save_cards(described, run, summary)
    catalogue.write(described, run, title=f"Clusters of {run.resolve().name}", about=about)
    return described, summary


def _median(values) -> float | None:
    known = [value for value in values if not math.isnan(value)]
    return statistics.median(known) if known else None


def _settings_of_clusters(run: Path) -> dict:
    """The settings of `spectro cluster`; none if it was not run."""
    file = run / "clusters.json"
    if not file.exists():
        return {}
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")).get("settings", {}))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is damaged ({error}): run `spectro cluster {run}` again") from error


def _clustered_result(run: Path):
    """The result, by the estimator that was clustered."""
    from .estimator import with_estimator
    from .store import open_result

    result = open_result(run)
    estimator = _settings_of_clusters(run).get("estimator")
    return with_estimator(result, estimator) if estimator else result


def _standardisation(run: Path) -> dict:
    """How `spectro cluster` standardised the vectors."""
    settings = {"rows": "center", "whiten": False} | _settings_of_clusters(run)
    return {"rows": None if settings["rows"] == "none" else settings["rows"], "whiten": settings["whiten"]}


def _tokenizer(run: Path, model: str):
    """The tokenizer of the model that is named, or of the measured one if it is at hand; None if it is not."""
    from .models import load_model
    from .store import read_manifest

    if model:
        return load_model(model).tokens
    try:
        measured = read_manifest(run)["model"]
        return load_model(measured["name"], revision=measured["revision"]).tokens
    except (ValueError, ImportError, KeyError):
        return None


def _print_cards(found: list, summary: dict, run: Path) -> None:
    rules = f"{summary['confident']} confident"
    if summary["precision"] is not None:
        rules += f"; medians: precision {summary['precision']:.2f}, recall {summary['recall']:.2f}"
    if summary["without_rule"]:
        rules += f"; none for {summary['without_rule']} clusters, which are in too few windows"
    words = {
        "clusters": f"{summary['clusters']}",
        "rules": rules,
        "families": ", ".join(f"{family} {number}" for family, number in summary["families"].items()),
    }
    if summary["cut_characters"]:
        words["note"] = "characters cut into several tokens show as �: name the measured model with --model"
    _print_rows(words)
    table = Table("cluster", "tokens", "precision", "recall", "label", box=None)
    for card in found[:12]:
        rule = (card.rule.precision.value, card.rule.recall.value) if card.rule else (math.nan, math.nan)
        label = card.name.label if card.name else card.label
        table.add_row(str(card.cluster), str(card.size), *(_number(v, ".2f") for v in rule), escape(_visible(label)))
    _console().print(table)
    _print_rows({"files": f"{run / 'cards.json'}, {run / 'catalogue.html'}"})


def _visible(text: str) -> str:
    from .figures import visible

    return visible(text)


# map ---------------------------------------------------------------------------------------------------------------


@app.command("map")
def map_(
    run: Annotated[Path, typer.Argument(help="Run folder of `spectro measure`, after `spectro cluster`.")],
    model: Annotated[str, typer.Option(help="Whose tokenizer reads the tokens; by default the measured model's.")] = "",
    k: Annotated[int, typer.Option(help="Neighbours that UMAP looks at; itself is one.")] = 45,
    seed: Annotated[int, typer.Option(help="Seed of the layout.")] = 0,
) -> None:
    """Draw a map of the tokens of a run: writes RUN/map.html and RUN/layout.npz, with cards where there are some."""
    with _one_line_errors():
        try:
            _print_rows(_map(run, model, k, seed))
        except KeyboardInterrupt:
            _console(stderr=True).print("stopped: no map was written")
            raise typer.Exit(130) from None


def _map(run: Path, model: str, k: int, seed: int) -> dict[str, str]:
    """Lay out, write the page; what was done, in words."""
    import time

    from . import clustering, tokenmap
    from .cards import open_cards
    from .estimator import standardise
    from .runningtext import MISSING

    begin = time.perf_counter()
    result, found = _clustered_result(run), clustering.open_clusters(run)
    cards = open_cards(run) if (run / "cards.json").exists() else []
    cut = "text" in result.coords and any(MISSING in str(text) for text in result["text"].values)
    tokenizer = _tokenizer(run, model) if cut or model else None
    vectors = standardise(result["susceptibility"].values, **_standardisation(run))
    before = time.perf_counter()
    with _console(stderr=True).status(f"laying out {len(vectors):,} tokens"):
        positions = tokenmap.layout(vectors, k=k, seed=seed, cache=run / "layout.npz")
    laid_out = time.perf_counter() - before
    title, catalogue = f"Tokens of {run.resolve().name}", "catalogue.html" if cards else ""
    names = {"tokenizer": tokenizer, "title": title, "catalogue": catalogue}
    size = tokenmap.write(tokenmap.page(result, found, positions, cards=cards, **names), run / "map.html")
    words = {
        "tokens": f"{len(vectors):,}, {found.coverage:.0%} of them in {len(found.sizes)} clusters",
        "cards": f"of {len(cards)} clusters" if cards else f"none: run `spectro cards {run}`, then this again",
    }
    if cut and tokenizer is None:
        words["note"] = "characters cut into several tokens show as �: name the measured model with --model"
    return words | {
        "time": f"{_duration(time.perf_counter() - begin)}, of which layout {_duration(laid_out)}",
        "files": f"{run / 'map.html'} ({size / 1e6:.2f} MB), {run / 'layout.npz'}",
    }


# plan --------------------------------------------------------------------------------------------------------------


@app.command("plan")
def plan_(
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
    ] = ("float32"),
    efficiency: Annotated[
        float | None, typer.Option(help="Share of the card's limit to assume.", show_default="0.33")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
) -> None:
    """Say what a measurement would take: operations, memory, disk, hours on a card, and where the time goes."""
    with _one_line_errors():
        from . import scale
        from .profiles import PAPER

        given = {"draws": draws, "chains": chains, "steps_between_draws": steps, "batch_size": batch}
        base = PAPER.settings.plain() if plain else PAPER.settings
        settings = replace(base, **{name: value for name, value in given.items() if value is not None})
        work = scale.Work(scale.shape_of(model), scale.number(tokens), settings, length=length)
        share = scale.EFFICIENCY if efficiency is None else efficiency
        found = scale.summary(work, scale.card_of(card), precision, share, model)
    print(json.dumps(found, indent=2)) if as_json else _print_rows(_plan_in_words(found))


def _plan_in_words(found: dict) -> dict[str, str]:
    from .scale import EFFICIENCY_RANGE

    s, hours, disk = found["settings"], found["hours"], found["disk"]
    team = f"teams of {s['members']}" if s["members"] > 1 else "no teams"
    listed = lambda values: ", ".join(f"{name} {value:.0%}" for name, value in values.items() if value >= 0.005)  # noqa: E731
    whole = sum(found["operations_by_kind"].values())
    needed, card = sum(found["memory"].values()), found["card_memory"]
    low, high = EFFICIENCY_RANGE
    return {
        "model": f"{found['model']}: {found['parameters']:,} weights, {found['components']} components and the whole",
        "work": f"{found['tokens']:,} probe tokens and {s['loss_tokens']:,} for L(w); {s['chains']} chains ({team}) x "
        f"{s['draws']} draws, {s['steps_between_draws']} steps apart, batches of {s['batch_size']} x {s['length']}",
        "operations": f"{found['operations']:.3g} in {found['tasks']} tasks; {listed(found['share'])} of the time",
        "by component": listed({name: part / whole for name, part in found["operations_by_kind"].items()}),
        "time": f"{_hours(hours['assumed'])} on one {found['card']} in {found['precision']}, assuming "
        f"{found['efficiency']:.0%} of its limit; {_hours(hours['low'])} at {high:.0%}, {_hours(hours['high'])} at "
        f"{low:.0%}. No card was measured: a data sheet's rates, and a guess",
        "limit": ", ".join(f"{name}: {bound}" for name, bound in found["bound"].items()),
        "memory": f"about {_bytes(needed)} for the largest task, of {_bytes(card)}: "
        + ", ".join(f"{name} {_bytes(size)}" for name, size in found["memory"].items())
        + _fits(found["fit"], needed, card),
        "disk": ", ".join(f"{name} {_bytes(size)}" for name, size in disk.items() if name != "losses of every draw")
        + f" (keeping the losses of every draw would be {_bytes(disk['losses of every draw'])})",
        "clustering": f"about {_duration(found['clustering_seconds'])} on two cores after it"
        + ("; extrapolated" if found["tokens"] > 500_000 or found["components"] > 32 else ""),
    }


def _fits(fit: dict | None, needed: float, card: float) -> str:
    if needed <= 0.9 * card:
        return ""
    if fit is None:
        return ". It does not fit: take a card with more, or --plain"
    cut = f" and the probe text in {fit['parts']} parts" if fit["parts"] > 1 else ""
    return f". It fits with passes of {fit['tokens_per_pass']:,} tokens{cut}"


def _hours(hours: float) -> str:
    return f"{hours * 60:.2g} min" if hours < 1.5 else f"{hours:,.1f} h" if hours < 100 else f"{hours:,.0f} h"


def _bytes(size: float) -> str:
    from .scale import bytes_text

    return bytes_text(size)


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


# match -------------------------------------------------------------------------------------------------------------


@app.command("match")
def match_(
    run: Annotated[Path, typer.Argument(help="Run folder of `spectro measure`, after `spectro cluster`.")],
    dictionaries: Annotated[
        list[str] | None,
        typer.Option(
            help="Folder of sparse autoencoders (of sparsify, or of Marks et al.), bundled/NAME, or a name on the hub; "
            "may be given several times. By default those that ship for the bundled model."
        ),
    ] = None,
    sites: Annotated[str, typer.Option(help='Only these, such as "l3 residual, l4 mlp".')] = "",
    model: Annotated[str, typer.Option(help="Whose activations are read; by default the measured model's.")] = "",
    score: Annotated[str, typer.Option(help="By which the best feature is chosen: f1 or average_precision.")] = "f1",
    permutations: Annotated[int, typer.Option(help="Shuffles of the labels, for each of the two nulls.")] = 300,
    seed: Annotated[int, typer.Option(help="Seed of the shuffles.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Compare the clusters of a run with features of sparse autoencoders: writes RUN/matches.json, prints a summary."""
    with _one_line_errors():
        try:
            wanted = [site.strip() for site in sites.split(",") if site.strip()]
            settings = {"score": score, "permutations": permutations, "seed": seed}
            summary = _match(run, dictionaries or [], wanted, model, settings)
        except KeyboardInterrupt:
            _console(stderr=True).print("stopped: nothing was written")
            raise typer.Exit(130) from None
    print(json.dumps(summary, indent=2)) if as_json else _print_matches(summary, run)


def _match(run: Path, names: list[str], sites: list[str], model: str, settings: dict) -> dict:
    """Activations, features, matches at both positions and against both nulls, written; the summary."""
    import time

    from . import clustering, matching
    from . import dictionaries as shelf
    from .activations import measured_windows, token_rows
    from .engine import Engine
    from .store import open_result

    begin = time.perf_counter()
    matching.check(settings["score"], settings["permutations"])
    result, clusters = open_result(run), clustering.open_clusters(run)
    if len(clusters.labels) != result.sizes["token"] or not len(clusters.sizes):
        raise ValueError(f"{run} has no clusters of its {result.sizes['token']:,} tokens: run `spectro cluster {run}`")
    reader, measured = _reader(run, model)
    listed = shelf.listed(names or shelf.shipped_for(reader), sites)
    books = [(name, shelf.load(name, site)) for name, site in listed]
    for _, book in books:
        shelf.check_fits(book, reader)
    windows = measured_windows(result, reader)
    rows = {at: token_rows(result, windows, at) for at in ("predicted", "context")}
    found, engine = [], Engine.of(reader)
    with _console(stderr=True).status("") as status:
        for number, (name, book) in enumerate(books):
            status.update(f"{escape(name)}, {book.site} ({number + 1} of {len(books)})")
            magnitudes = shelf.features(book, engine, windows)
            about = {"dictionary": name, "site": book.site, "k": book.k, "control": shelf.of_shuffled_weights(book)}
            for at, mine in rows.items():
                compared = matching.compare(clusters, magnitudes[mine], result["token_id"].values, **settings)
                found.append((about | {"at": at}, compared))
    found += _together(found, settings["score"])
    summary = {
        "run": str(run),
        "tokens": len(clusters.labels),
        "clustered": int((clusters.labels >= 0).sum()),
        "clusters": len(clusters.sizes),
        "model": {"name": reader.name, "hash": reader.hash, "measured": measured},
        "settings": settings,
        "nulls": list(matching.NULLS),
        "false_discovery_rate": matching.LEVEL,
        "dictionaries": [about | matching.summary(compared) for about, compared in found],
        "seconds": time.perf_counter() - begin,
    }
    matching.save_matches([about | matching.columns(compared) for about, compared in found], run, summary)
    return summary


def _together(found: list, score: str) -> list:
    """The features of all dictionaries side by side, at each position; none for a single one."""
    from . import matching

    own, joined = [(about, compared) for about, compared in found if not about["control"]], []
    site = "side by side" if len(own) == len(found) else "without the control"
    for at in ("predicted", "context"):
        here = [(about["dictionary"], compared) for about, compared in own if about["at"] == at]
        if len(here) > 1:
            about = {"dictionary": "all of them", "site": site, "k": None, "control": False, "at": at}
            of_all = {null: matching.together([m[null] for _, m in here], score) for null in matching.NULLS}
            joined.append((about, of_all))
    return joined


def _reader(run: Path, name: str):
    """The model whose activations are read, and whether it is the measured one."""
    from .models import load_model
    from .store import read_manifest

    measured = read_manifest(run)["model"]
    if name:
        found = load_model(name)
        return found, found.hash == measured["hash"]
    kept = run / "model"  # of a model that came from no folder
    try:
        found = load_model(kept) if kept.is_dir() else load_model(measured["name"], revision=measured["revision"])
    except ValueError as error:
        raise ValueError(f"{error}; name the measured model with --model") from error
    if not kept.is_dir() and measured["hash"] not in ("", found.hash):
        raise ValueError(
            f"model {measured['name']!r} is another one now (hash {found.hash[:12]}) than the one that was measured "
            f"({measured['hash'][:12]}): name that one with --model"
        )
    return found, True


def _print_matches(summary: dict, run: Path) -> None:
    settings, model, rows = summary["settings"], summary["model"], summary["dictionaries"]
    other = "" if model["measured"] else "; not the model that was measured"
    score = "F1" if settings["score"] == "f1" else "average precision"
    level = summary["false_discovery_rate"]
    least = math.ceil(summary["clusters"] / (level * (settings["permutations"] + 1)))
    few = f". With so few shuffles the first count is 0, or {least} and more" if least > 1 else ""
    few = few if least <= summary["clusters"] else ". There are too few shuffles for the first count: it is 0"
    words = {
        "clusters": f"{summary['clusters']}, of {summary['clustered']:,} of {summary['tokens']:,} tokens",
        "activations": f"of {model['name']}{other}; at the token itself (predicted) and before it (context)",
        "chance": f"{settings['permutations']} shuffles of the labels among any tokens, and as many among occurrences "
        f"of the same token; seed {settings['seed']}",
        "score": f"{score} of each cluster's best feature, median; the share of clusters that reach a threshold, in "
        "brackets the same after labels were shuffled among occurrences of the same token",
        "beat": "clusters whose best feature beats those of the shuffles; in brackets clusters with any feature that "
        f"shares more tokens than shuffles would; at most {level:.0%} of either are false, on average{few}",
    }
    _print_rows(words)
    reached = (f"≥ {rate['threshold']:g}" for rate in rows[0]["rates"])
    table = Table(box=None)
    table.add_column("dictionary", overflow="fold")
    for head in ("at", "score", *reached, *(f"beat {null.removesuffix(' token')}" for null in summary["nulls"])):
        table.add_column(head, no_wrap=True)
    for pair in _by_dictionary(rows):
        cells = [[escape(pair[0]["dictionary"].removeprefix("bundled/")), pair[0]["site"]]]
        cells += zip(*map(_match_cells, pair), strict=True)
        table.add_row(*map("\n".join, cells))
    _console().print(table)
    _print_rows({"time": _duration(summary["seconds"]), "files": f"{run / 'matches.json'}"})


def _by_dictionary(rows: list[dict]) -> Iterator[list[dict]]:
    """The rows of the two positions of each dictionary."""
    yield from (rows[i : i + 2] for i in range(0, len(rows), 2))


def _match_cells(row: dict) -> list[str]:
    rates = (f"{rate['rate']:.0%} ({rate['chance']['same token']['rate']:.0%})" for rate in row["rates"])
    beat = (f"{counts['best']} ({counts['any']})" for counts in row["beat_chance"].values())
    return [row["at"], _number(row["score"], ".2f"), *rates, *beat]


if __name__ == "__main__":
    app()
