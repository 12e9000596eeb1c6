"""``spectro tune``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from .measure import plan_for, texts_for
from .terminal import number, one_line_errors, print_rows


def tune_command(
    out: Annotated[Path, typer.Option(help="Folder for the trials. The same command goes on where it stopped.")],
    profile: Annotated[str, typer.Option(help="Settings that the grid is built on: smoke, book or paper.")] = "smoke",
    model: Annotated[str, typer.Option(help="As for `spectro measure`.")] = "",
    text: Annotated[str, typer.Option(help="Local text file or folder.")] = "",
    data: Annotated[str, typer.Option(help="Data set on the hub.")] = "",
    components: Annotated[str, typer.Option(help="By default two, of the first and the middle layer.")] = "",
    minutes: Annotated[float, typer.Option(help="No trial is begun that would probably end later.", min=0)] = 10.0,
    workers: Annotated[int | None, typer.Option(help="Processes; by default one per core.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:1; by default cuda where there is one.")] = "auto",
) -> None:
    """Find settings for a model: short runs over γ, nβ, step size and steps, a verdict on each, a choice."""
    with one_line_errors():
        from ..model.loading import load_model
        from ..run import tuning
        from ..run.profiles import get
        from ..run.traces import trace_page
        from ..run.workers import start_forkserver

        constants = get(profile)
        texts = texts_for(text, data)
        start_forkserver()
        found = load_model(model or constants.model, device=device)
        named = tuple(name.strip() for name in components.split(",")) if components else None
        changes = {"components": named or tuning.few_components(found.shape), "channels": 0}
        plan = plan_for(constants, changes, found, texts)
        tried = tuning.tune(plan, out, seconds=60 * minutes, workers=workers, report=_say)
        (out / "traces.html").write_text(trace_page(tried), encoding="utf-8")
        chosen = tuning.best(tried)
        if chosen is None:
            raise ValueError(f"none of {len(tried)} trials is healthy: {out / 'traces.html'} shows their traces")
        usual = {name: getattr(constants.settings, name) for name in ("draws", "chains", "antithetic")}
        tuning.write_settings(replace(chosen, settings=replace(chosen.settings, **usual)), out / "settings.json")
        s, healthy = chosen.settings, sum(trial.verdict == tuning.HEALTHY for trial in tried)
        print_rows(
            {
                "chosen": f"γ {s.gamma:g}, nβ {s.nbeta:g}, step size {s.step_size:.2g}, draws {s.steps_between_draws} "
                "steps apart",
                "looked at": f"{', '.join(plan.components)} and the whole model, on windows of "
                f"{min(tuning.LENGTH, plan.probe.length)} tokens",
                "why": f"of {healthy} healthy trials of {len(tried)} it tells the most in a second: reliability "
                f"{number(chosen.reliability, '.2f')} in {chosen.seconds:.0f} s; {chosen.why}",
                "traces": str(out / "traces.html"),
                "more": f"spectro measure --settings {out / 'settings.json'} ...",
            }
        )


def _say(trial) -> None:
    """One trial, as it ends."""
    s = trial.settings
    facts = (
        f"R-hat {number(trial.r_hat, '.3f')}, {number(trial.effective, '.3g')} effective draws a second, reliability "
    )
    facts += number(trial.reliability, ".2f") if trial.traces else "?"
    print(
        f"γ {s.gamma:g}, nβ {s.nbeta:g}, ε {s.step_size:.2g}, {s.steps_between_draws} steps: {trial.verdict}; {facts}",
        flush=True,
    )
