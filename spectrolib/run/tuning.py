"""Settings chosen for a model: short measurements over a grid, a verdict on the traces of each, and a choice.

The grid is small. γ says how far a chain may stray, nβ how much the loss holds it; step size and steps between draws
follow from γ by our rule (`profiles`): a step relaxes a tenth or a fifth of the distance to w*, and draws are 2.4
relaxations apart. What is chosen is healthy, and tells the most in a second: its reliability r counts as r / (1 - r),
which grows like the number of independent draws.

A trial is a first look: short windows, few of them to probe, two components besides the whole model, no mirrored
twins. Minibatches of short windows are noisier than those of a measurement with longer ones, so a verdict errs towards
caution; both members of a tilted team are there, the one at nβ - η, which the loss holds least, too.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np

from ..checks.diagnostics import acceptance, column_reliability, convergence
from ..checks.locality import TooLoose
from ..model.components import FULL, Component, names
from ..model.shapes import Shape
from ..posterior import ChainError, Settings
from ..text.jsonfiles import Fields, read_json
from .measure import measure
from .plan import Plan
from .store import save_json

FRACTIONS, RELAXATIONS = (0.2, 0.1), 2.4
"""Of the distance to w*, what a step relaxes; and how many relaxations lie between two draws."""
DRAWS = 12
"""Draws of each chain of a trial: as few as R-hat and effective draws can be had from."""
NOISE = 1.0
"""Nats by which noise in one component may raise the loss."""
LENGTH, PROBE = 33, 8
"""Tokens of a window, and windows to probe, of a trial, at most."""
HEALTHY = "healthy"
_WORDS = {
    "rises": ("loss fell", "w* is no minimum of this text's loss, or the steps are too long"),
    "no spikes": ("spiky", "single draws stand far above the rest: shorter steps, or a larger γ"),
    "chains agree": ("chains disagree", "they are in different places: more steps before the first draw"),
    "flat": ("not settled", "the loss still drifts: more steps before the first draw"),
}
"""By the rule of `diagnostics.acceptance` that fails: the verdict, and what it means."""


@dataclass(frozen=True)
class Trial:
    """One point of the grid, and what came of it."""

    settings: Settings
    verdict: str
    """``healthy``, or what is wrong, in a word."""
    why: str
    seconds: float
    rise: float = math.nan
    """Largest mean rise of the loss that one component makes, nats."""
    r_hat: float = math.nan
    """Largest."""
    effective: float = math.nan
    """Effective draws of all chains in a second, of the component that has the fewest."""
    reliability: float = math.nan
    """Median over components of the split-half reliability of a column."""
    traces: Mapping[str, list[list[float]]] | None = None
    """Loss rises of every chain, by component: (chains, draws), nats."""

    @property
    def worth(self) -> float:
        """Independent draws' worth of signal in a second, in no unit; 0 unless it is healthy."""
        r = min(self.reliability, 0.999)
        return r / (1 - r) / self.seconds if self.verdict == HEALTHY and r > 0 else 0.0


def grid(base: Settings, gammas: Sequence[float] = (1, 10, 100), nbetas: Sequence[float] = (1, 3)) -> list[Settings]:
    """The settings to try: multiples of the base's γ and nβ, each with two step sizes.

    A tilt of nβ keeps its share of nβ. Longer steps come first: their trials are the short ones. Chains have no
    mirrored twins, which would tell nothing of their health, and are as many as the base's, or one more.
    """
    reach = 1.0 if base.preconditioner == "none" else 1 / base.rms_epsilon  # of a step, where gradients are small
    found = []
    for factor in nbetas:
        for fraction in FRACTIONS:
            for gamma in (base.gamma * times for times in gammas):
                steps = math.ceil(RELAXATIONS / fraction)
                changes = {"gamma": gamma, "nbeta": base.nbeta * factor, "tilt": base.tilt * factor}
                changes |= {"step_size": 2 * fraction / (gamma * reach), "steps_between_draws": steps, "burn_in": steps}
                found.append(
                    replace(base, draws=DRAWS, chains=base.chains + base.chains % 2, antithetic=False, **changes)
                )
    return found


def few_components(shape: Shape) -> tuple[str, ...]:
    """The first layer's MLP, which the rest of the model bends most, and attention of the middle layer."""
    middle = [name for name in names(shape) if Component.of(name).layer == shape.layers // 2]
    return "l0 mlp", middle[0]


def first_look(plan: Plan) -> Plan:
    """The plan on windows so short, and on so few to probe, that a trial takes well under a minute."""
    short = {role: getattr(plan, role) for role in ("sampling", "loss", "probe")}
    short = {role: windows.cut(min(LENGTH, windows.length)) for role, windows in short.items()}
    count = min(PROBE, len(short["probe"]))
    return replace(plan, **short | {"probe": short["probe"].take(np.arange(count) * len(short["probe"]) // count)})


def verdict(result) -> tuple[str, str]:
    """What the traces of a measurement show, in a word, and why."""
    rises = result["rise"].sel(sampled=[n for n in result["sampled"].values if n != FULL])
    loudest = rises.idxmax("sampled").item()
    for rule, (word, meaning) in _WORDS.items():
        failed = [check for check in acceptance(result) if check.rule == rule and check.passed is False]
        if failed:
            worst = max(failed, key=lambda check: abs(check.value))
            why = f"{worst.component}: {worst.value:.3g}, not {worst.low:.3g} to {worst.high:.3g}; {meaning}"
            return word, why
    if rises.max() > NOISE:
        return "too much noise", f"noise in {loudest} raises the loss by {rises.max():.2g} nats: a larger γ"
    return HEALTHY, f"noise raises the loss by {rises.max():.2g} nats at most ({loudest})"


def attempt(plan: Plan, folder: Path, workers: int | None = None) -> Trial:
    """Measure with a plan's settings, and judge."""
    begin = time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)
    try:
        result = measure(plan, folder, workers=workers, progress=False)
    except (ChainError, TooLoose) as error:
        return Trial(plan.settings, "not local", str(error), time.monotonic() - begin)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    seconds, mixing = time.monotonic() - begin, convergence(result)
    chains = result["sampled"].values.tolist()
    own = [name for name in chains if name != FULL]
    traces = {name: result["loss_rise"].sel(sampled=name).values.tolist() for name in chains}
    return Trial(
        plan.settings,
        *verdict(result),
        seconds,
        rise=float(result["rise"].sel(sampled=own).max()),
        r_hat=float(mixing["r_hat"].max()),
        effective=float(mixing["effective_draws"].min()) / seconds,
        reliability=float(column_reliability(result).median()),
        traces=traces,
    )


def tune(
    plan: Plan,
    out: Path,
    *,
    seconds: float = 600.0,
    workers: int | None = None,
    report: Callable[[Trial], None] = lambda trial: None,
) -> list[Trial]:
    """Try the grid around a plan's settings, in order, while there is time; finished trials are kept in ``out``.

    Trials are on short windows (`first_look`).

    Args:
        plan: model, text and components, and the settings that the grid is built on.
        out: a folder. A repeated call goes on where it stopped.
        seconds: no trial is begun that would probably end later; the first one always is.
        report: called with each trial.

    Raises:
        ValueError: if the folder holds trials of another model or text.
    """
    out.mkdir(parents=True, exist_ok=True)
    plan = first_look(plan)
    file, asked = out / "tuning.json", {"model": plan.model.hash, "text": plan.probe.hash}
    held = json.loads(file.read_text()) if file.exists() else asked | {"trials": []}
    if {name: held.get(name) for name in asked} != asked:
        raise ValueError(f"{file} is of another model or text: name another folder")
    trials, begin = [_read(trial) for trial in held["trials"]], time.monotonic()
    known = {repr(trial.settings) for trial in trials}
    for settings in grid(plan.settings):
        if repr(settings) in known:
            continue
        if trials and time.monotonic() - begin + max(trial.seconds for trial in trials) > seconds:
            break
        trials.append(attempt(replace(plan, settings=settings), out / "trial", workers))
        save_json(out, file.name, asked | {"trials": [_written(trial) for trial in trials]})
        report(trials[-1])
    return trials


def best(trials: Sequence[Trial]) -> Trial | None:
    """The healthy trial that tells the most in a second; None without one."""
    return max((trial for trial in trials if trial.worth > 0), key=lambda trial: trial.worth, default=None)


def _written(trial: Trial) -> dict:
    """What is not known is None in JSON, which has no NaN."""
    values = asdict(trial).items()
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in values}


def _read(trial: dict) -> Trial:
    known = {name: value for name, value in trial.items() if value is not None}
    return Trial(**known | {"settings": Settings(**trial["settings"])})


# Files ---------------------------------------------------------------------------------------------------------------


def write_settings(trial: Trial, file: Path) -> None:
    """What `read_settings` reads."""
    save_json(file.parent, file.name, {"settings": asdict(trial.settings)})


def read_settings(file: str | Path) -> dict:
    """Settings by name, from a file of `tune` or of a run (manifest.json), or from a run folder.

    Raises:
        ValueError: if it is none of these, or holds a setting that there is not.
    """
    file = Path(file) / "manifest.json" if Path(file).is_dir() else Path(file)
    found = Fields(read_json(file), str(file)).table("settings").content
    unknown = sorted(found.keys() - {field.name for field in fields(Settings)})
    if unknown:
        raise ValueError(f"{file} holds settings that are not known: {', '.join(unknown)}")
    return dict(found)
