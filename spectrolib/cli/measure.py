"""``spectro measure``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .info import reliability
from .plan import hours_in_words
from .terminal import duration, one_line_errors, print_rows

if TYPE_CHECKING:
    from ..model.loading import LanguageModel
    from ..run.plan import Plan
    from ..run.profiles import Profile
    from ..run.replay import PastRun
    from ..text.overlap import Remembered


def measure_command(
    out: Annotated[Path, typer.Option(help="Run folder. An interrupted run goes on with the same command.")],
    profile: Annotated[
        str, typer.Option(help="Constants of the run: smoke, book, laptop or paper.", show_default="smoke")
    ] = "",
    like: Annotated[
        str,
        typer.Option(help="Run folder to repeat: its model, text and settings, but for what is given besides."),
    ] = "",
    model: Annotated[
        str,
        typer.Option(help="bundled, a folder, a .gguf file, a name on the hub, or smollm2; by default the profile's."),
    ] = "",
    revision: Annotated[
        str,
        typer.Option(help="Branch, tag or commit on the hub, such as step1000 of a Pythia.", show_default="main"),
    ] = "",
    text: Annotated[
        str,
        typer.Option(
            help="Local text to take all windows from: a file, or a folder of prose, LaTeX, source files or JSON Lines."
        ),
    ] = "",
    data: Annotated[
        str, typer.Option(help="Data set on the hub to take all windows from: owner/name, owner/name[subset]:column.")
    ] = "",
    probe: Annotated[str, typer.Option(help="Local text to take the probe windows from; the others stay.")] = "",
    probe_data: Annotated[str, typer.Option(help="Data set on the hub to take the probe windows from.")] = "",
    tokens: Annotated[str, typer.Option(help="Probe tokens, such as 20k.", show_default="the profile's")] = "",
    length: Annotated[int | None, typer.Option(help="Tokens of a window.")] = None,
    windows: Annotated[int | None, typer.Option(help="Windows to sample from.")] = None,
    components: Annotated[str, typer.Option(help='Such as "l0h0, l3 mlp, embed"; by default all.')] = "",
    estimator: Annotated[
        str,
        typer.Option(help="two_chain, or one_chain: without a chain of the whole model.", show_default="two_chain"),
    ] = "",
    settings: Annotated[
        str, typer.Option(help="Posterior and sampler of `spectro tune` (settings.json), or of another run's folder.")
    ] = "",
    nbeta: Annotated[float | None, typer.Option(help="Weight of the loss, nβ; 0 is the control.")] = None,
    gamma: Annotated[float | None, typer.Option(help="Localisation γ.")] = None,
    step_size: Annotated[float | None, typer.Option(help="Step size ε.")] = None,
    draws: Annotated[int | None, typer.Option(help="Draws of each chain.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps between draws.")] = None,
    chains: Annotated[int | None, typer.Option(help="Chains of each component.")] = None,
    batch: Annotated[int | None, typer.Option(help="Windows in a minibatch.")] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Chains on their own instead of teams, more draws.")] = False,
    channels: Annotated[
        int | None,
        typer.Option(
            help="Channels of resolved rows, shared by the components; 0 for the paper's rows alone. By default 512, "
            "or 2048 to first order."
        ),
    ] = None,
    first_order: Annotated[
        bool, typer.Option("--first-order", help="Gradients of every token in place of chains: no sampling.")
    ] = False,
    seed: Annotated[int | None, typer.Option(help="Seed of noise and minibatches.", show_default="0")] = None,
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
    check: Annotated[
        bool | None,
        typer.Option(
            "--check/--no-check",
            help="Compare the losses of a few tokens with transformers' first. By default for models but the bundled.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print plan and cost, and stop.")] = False,
) -> None:
    """Measure the susceptibility of every probe token for every component."""
    from ..model.loading import load_model
    from ..run.cost import bytes_of
    from ..run.measure import fitted, measure
    from ..run.profiles import get
    from ..run.replay import PastRun
    from ..run.store import finished_tasks
    from ..run.tuning import read_settings
    from ..run.workers import start_forkserver

    overrides = {"nbeta": nbeta, "gamma": gamma, "step_size": step_size, "draws": draws, "chains": chains}
    overrides |= {"steps_between_draws": steps, "batch_size": batch, "seed": seed}
    with one_line_errors():
        if like and profile:
            raise ValueError("the constants are those of the run that --like names: leave --profile out")
        recipe = PastRun(like) if like else None
        own = {} if recipe else {"seed": 0}
        own |= read_settings(settings) | {"seed": 0} if settings else {}
        own |= {name: value for name, value in overrides.items() if value is not None}
        constants = _sized(recipe.profile if recipe else get(profile or "smoke"), tokens, length, windows)
        changes = _changes(constants, components, estimator, own, plain)
        limit, changes["shards"] = bytes_of(memory) if memory else None, shards
        changes |= {"channels": channels, "first_order": first_order or constants.first_order}
        if recipe:
            changes = _as_it_was(recipe, changes, len(own.keys() & {"draws"}) > 0 or plain)
            text, data, probe, probe_data, same = _texts_like(
                recipe, text, data, probe, probe_data, bool(model or tokens or length or windows)
            )
        if not dry_run:
            start_forkserver()  # it imports what the workers need while this process imports what it needs
        texts = texts_for(text, data, probe, probe_data, _most_documents(recipe, constants))
        revised = revision or (recipe.revision if recipe and not model else "")
        found = load_model(model or constants.model, revision=revised or None, device=device)
        if recipe and not (model or revision):
            recipe.check_model(found)
        plan = fitted(plan_for(constants, changes, found, texts), out, limit)
        if recipe:
            recipe.check_windows(plan, same)
            print_rows({"like": like})
        _print_plan(plan, workers, bank)
        _print_overlap(plan, texts)
        _print_left_out(text, probe)
        if dry_run:
            return
        try:
            result = measure(plan, out, executor=executor, workers=workers, bank=bank or None, check=check)
        except KeyboardInterrupt:
            finished = finished_tasks(out)
            done = sum(map(len, finished.values()))
            raise KeyboardInterrupt(f"{done} of {done + len(plan.left(finished))} tasks are done") from None
        _print_summary(result, out)


def _sized(profile: Profile, tokens: str, length: int | None, windows: int | None) -> Profile:
    """The profile with other sizes of text."""
    from ..run.cost import count_of

    given = {"length": length, "sampling_windows": windows}
    if wrong := [name for name, value in given.items() if value is not None and value < (2 if name == "length" else 1)]:
        raise ValueError(f"{wrong[0]} is {given[wrong[0]]}: a run needs windows, of at least 2 tokens")
    profile = replace(profile, **{name: value for name, value in given.items() if value is not None})
    return replace(profile, probe_windows=-(-count_of(tokens) // (profile.length - 1))) if tokens else profile


def _changes(constants: Profile, components: str, estimator: str, settings: dict, plain: bool) -> dict:
    """What the command line changes of a profile's plan: everything that can be checked without the model."""
    from ..estimator import ESTIMATORS

    if estimator and estimator not in ESTIMATORS:
        raise ValueError(f"unknown estimator {estimator!r}: it must be one of {', '.join(ESTIMATORS)}")
    base = constants.settings.plain() if plain else constants.settings
    changes: dict = {"settings": replace(base, **settings)} | ({"estimator": estimator} if estimator else {})
    if components:
        changes["components"] = tuple(name.strip() for name in components.split(","))
    return changes


def _as_it_was(recipe: PastRun, changes: dict, other_draws: bool) -> dict:
    """A plan's changes with those of a run below them; draws of another number have blocks of their own."""
    given = {name: value for name, value in changes.items() if value is not None}
    held = dict(recipe.changes)
    if other_draws:
        held.pop("blocks", None)
    if changes["first_order"] != bool(recipe.manifest.get("first_order")):
        held["channels"] = None
    return held | given


def _texts_like(
    recipe: PastRun, text: str, data: str, probe: str, probe_data: str, other_size: bool
) -> tuple[str, str, str, str, tuple[str, ...]]:
    """Texts of a run where no others are given, and the roles whose windows must then be those of the run."""
    others = {"all": bool(text or data), "probe": bool(probe or probe_data)}
    if not (others["all"] and others["probe"]):
        sources = recipe.sources
        apart = sources["probe"] != sources["sampling"] and not recipe.is_bundled("probe")
        if not others["all"] and not recipe.is_bundled("sampling"):
            text, data = _local_or_hub(sources["sampling"])
        if not others["probe"] and apart:
            probe, probe_data = _local_or_hub(sources["probe"])
    same = () if others["all"] or other_size else ("sampling", "loss", *(() if others["probe"] else ("probe",)))
    return text, data, probe, probe_data, same


def _local_or_hub(source: str) -> tuple[str, str]:
    """A source of windows as one given with --text, or with --data, where a local folder has its column behind it."""
    from ..text.corpus import hub_source

    place = hub_source(source)[0]
    text = Path(source).exists() or (Path(source).is_absolute() and place == source)
    return (source, "") if text else ("", source)


def _most_documents(recipe: PastRun | None, constants: Profile) -> dict[str, int]:
    """How many documents a run took of the data sets of its profile (`plan.profile_windows`)."""
    from ..run.replay import profile_of_source

    known = None if recipe is None else profile_of_source(recipe.windows["sampling"].content.get("source") or "")
    if known is None:
        return {}
    total = constants.sampling_windows + constants.loss_windows + constants.probe_windows
    return {known.source: 2 * total} | ({known.probe_source: 2 * constants.probe_windows} if known.probe_source else {})


def texts_for(
    text: str, data: str, probe: str = "", probe_data: str = "", most: Mapping[str, int] | None = None
) -> dict[str, tuple[Remembered, str]]:
    """Documents to cut all windows from, and the probe windows, with what they are called; refused if not there.

    Args:
        most: documents to take, by data set; all by default.
    """
    from ..text.corpus import hub_documents, local_documents, settled_source
    from ..text.overlap import Remembered

    found = {}
    for role, local, hub, names in (
        ("all", text, data, "--text or --data"),
        ("probe", probe, probe_data, "--probe or --probe-data"),
    ):
        if local and hub:
            raise ValueError(f"give {names}, not both")
        if local or hub:
            place = str(Path(local).resolve()) if local else settled_source(hub)
            documents = local_documents(local) if local else hub_documents(hub, limit=(most or {}).get(hub))
            found[role] = (Remembered(documents), place)
    return found


def _print_overlap(plan: Plan, texts: dict) -> None:
    """What the probe text has in common with the text that is sampled from, where a user gave either."""
    from ..text.overlap import STRETCH, shared_stretches

    found = []
    if len(texts) == 2 and (twice := texts["probe"][0].also_in(texts["all"][0])):
        several = f"{len(twice)} documents of the probe text stand in the other text too ({', '.join(twice[:3])}, ...)"
        one = f"one document of the probe text stands in the other text too ({twice[0]})"
        found.append(one if len(twice) == 1 else several)
    if texts and (shared := int(shared_stretches(plan.probe.ids, plan.sampling.ids, plan.loss.ids).sum())):
        stretch = min(STRETCH, plan.probe.length)
        found.append(
            f"{shared} of {len(plan.probe)} probe windows hold {stretch} tokens in a row that stand in the windows to "
            "sample from too: they are not new to the posterior"
        )
    if found:
        print_rows({"overlap": "; ".join(found)})


def _print_left_out(*places: str) -> None:
    """Files in folders of text that are no text to us."""
    from ..text.corpus import named, text_files

    for place in filter(None, places):
        read, left_out = text_files(place)
        if left_out:
            print_rows({"left out": f"of {place}, where {len(read)} files were read, {named(left_out)}"})


def plan_for(constants: Profile, changes: dict, model: LanguageModel, texts: dict) -> Plan:
    """The plan of a profile with those changes, its windows cut from the texts that `texts_for` found."""
    from ..run.plan import Plan, cut_probe_windows, text_windows

    if "all" in texts:
        changes = changes | text_windows(constants, model, *texts["all"])
    if "probe" in texts:
        changes = changes | {"probe": cut_probe_windows(constants, model, *texts["probe"])}
    return Plan.from_profile(constants, model=model, **changes)


def _print_plan(plan: Plan, workers: int | None, bank: str = "") -> None:
    from ..run.bank import bank_bytes
    from ..run.cost import CARDS, EFFICIENCY, Work, bytes_text, disk, hours_of, need, of
    from ..run.workers import available_cores

    s, shape, counted, shards = plan.settings, plan.shape, of(plan), len(plan.stretches())
    count, held = min(workers or available_cores(), len(plan.tasks)), need(plan)
    card = CARDS["h200"]
    guess = hours_of(plan, card)
    cut = f" in {shards} shards, each of which repeats the chains" if shards > 1 else ""
    cut += f", passes of {plan.tokens_per_pass:,} tokens" if plan.tokens_per_pass else ""
    sampler = "SGLD" if s.preconditioner == "none" else f"SGLD with {s.preconditioner}"
    named = ", ".join(plan.components) if len(plan.components) <= 8 else f"{len(plan.components)}"
    and_full = ", and the whole model" if "full" in plan.sampled else ""
    domains = Counter(map(str, plan.probe.domain))
    predictions = plan.probe.ids[:, 1:].size
    rows = {
        "model": f"{plan.model.name} ({shape.layers} layers x {shape.heads} heads, width {shape.width}, "
        f"vocabulary {shape.vocabulary:,})",
        "components": f"{named}{and_full}; estimator {plan.estimator}",
        "windows": f"{len(plan.sampling):,} to sample from, {len(plan.loss)} for L(w), {len(plan.probe)} to probe, of "
        f"{plan.probe.length} tokens: {predictions:,} probe tokens",
        "probe text": ", ".join(f"{domain} {number}" for domain, number in sorted(domains.items())),
        "posterior": f"nβ {s.nbeta:g}, γ {s.gamma:g}; {sampler}, step size {s.step_size:g}, batch {s.batch_size}",
        "chains": f"{s.chains} x {s.draws} draws, {s.steps_between_draws} steps apart after {s.burn_in}; seed {s.seed}",
        "channels": f"{plan.width} of each component, in each half" if plan.width else "none",
        "cost": f"{len(plan.tasks)} tasks{cut}; {counted.token_steps:.3g} tokens through steps, "
        f"{counted.token_evaluations:.3g} token losses, {counted.operations:.3g} operations",
        "memory": f"about {bytes_text(sum(held.values()))} a worker for the largest task: "
        + ", ".join(f"{name} {bytes_text(size)}" for name, size in held.items())
        + f"; then {bytes_text(disk(Work.of(plan))['result'])} for the result",
        "time": f"about {duration(counted.seconds(count))} on {count} cores",
        "on a card": hours_in_words(guess.hours, guess.low, guess.high, card.name, "float32", EFFICIENCY),
    }
    if plan.first_order:
        rows = {name: text for name, text in rows.items() if name not in ("posterior", "chains")}
        rows["components"] = f"{named}, to first order: a gradient of every token, no chains; seed {s.seed}"
        rows["cost"] = f"{len(plan.tasks)} tasks; {predictions:,} gradients, {counted.operations:.3g} operations"
    if bank:
        rows["draws"] = (
            f"kept in {bank}, {bytes_text(bank_bytes(Work.of(plan)))} in all; those that are there cost no steps"
        )
    print_rows(rows)


def _print_summary(result, out: Path) -> None:
    if "loss_rise" not in result:
        tokens, columns = result["susceptibility"].shape
        channels = result.sizes["half"] * result.sizes["channel"]
        print_rows(
            {
                "result": f"{out / 'result.zarr'}: {tokens:,} tokens x {columns} components, {channels:,} channels",
                "more": f"spectro cluster {out}",
            }
        )
        return
    from ..checks.diagnostics import acceptance

    checks = acceptance(result)
    failed = Counter(check.rule for check in checks if check.passed is False)
    tokens, columns = result["susceptibility"].shape
    judged = [check for check in checks if check.passed is not None]
    passed, broken = sum(check.passed for check in judged), ", ".join(f"{n} x {r}" for r, n in failed.items())
    open_ones = f"; {len(checks) - len(judged)} need more draws" if len(judged) < len(checks) else ""
    rows = {
        "result": f"{out / 'result.zarr'}: {tokens:,} tokens x {columns} components",
        "chains": f"{passed} of {len(judged)} checks pass" + (f"; failed: {broken}" if failed else "") + open_ones,
        "reliability": reliability(result),
        "more": f"spectro info {out}",
    }
    print_rows(rows)
