r"""How many draws, operations and seconds a reliable susceptibility takes, for each estimator and over settings.

    python benchmarks/efficiency.py runs/efficiency                      # sample what is missing, then the tables
    python benchmarks/efficiency.py runs/efficiency --report             # the tables alone, of what is there
    python benchmarks/efficiency.py runs/efficiency --run runs/book --json book/spectrobook/data/efficiency.json

The work falls into cells: one component at one setting, some replicates with noise and minibatches of their own. Each
finished cell is a file and a row in ``cells.jsonl``; an interrupted run goes on with the next one. Seconds are CPU
seconds of one thread.

What is compared. All estimators read the same chains: six for each replicate, with noise ±ξ at nβ, nβ + η and nβ - η.

    name        covariance                              first moment             two-chain value from
    plain       sample covariance, one chain            mean, one chain          both of them
    antithetic  sample covariance, a mirrored pair      mean, a mirrored pair    both of them
    pairs       response, a tilted pair                 mean, a tilted pair      (not shown)
    quads       response, two mirrored tilted pairs     mean, all four           both of them
    own         as quads, but driven by the loss windows alone: the covariance with their loss, as the plain one

The two-chain value is taken per unit of rise (`per_rise`), as the z-score makes it.

How reliability is had. Over replicates r of tables X_r (tokens x components), let W be the mean of their covariance
over tokens and B the mean of that between different ones: B is signal, W - B is noise. With m times the draws the
covariance is K = B + (W - B) / m, so a column has reliability B_cc / K_cc (Spearman and Brown). Rows are columns scaled
by D = diag(K)^-1/2 and centred by P: their reliability is tr(P D B D) / tr(P D K D), near the mean cosine of rows from
two measurements. A plain covariance is almost all noise, its own B almost all error; its signal is that of the response
of chains that are driven by the text on which its g is taken (`own_text`). Errors are jackknife standard errors over
replicates.

What it costs. Seconds a step and a token are measured in the cells and priced for `PRICED` probe tokens, the book's.
Chains at nβ = 0 need no gradient; the two-chain value of a table pays for the unrestricted chain as well.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

COMPONENTS = ("l1h0", "l3h1", "l2 mlp", "embed", "unembed")
"""Two heads, an MLP, the embedding and the unembedding, at the centre of the grid."""
GRID = ("l3h1", "l2 mlp")
NBETA, GAMMA = (0.0, 10.0, 30.0, 100.0), (100.0, 300.0, 1000.0, 3000.0)
CENTRE = 10.0, 300.0
STRONG = (1000.0, 3000.0)
"""More nβ, at the centre's γ: where does the posterior begin to see the loss?"""
PROBE_WINDOWS = 4
PRICED = 20_480
TARGETS = (0.5, 0.8, 0.9)
CLUSTERS = 8
"""Of k-means on the rows of the centre."""


@dataclass(frozen=True)
class Cell:
    """One component at one setting."""

    component: str
    nbeta: float
    gamma: float
    team: str
    """``single``; ``pair``: nβ ± tilt, common noise; ``quad``: both mirrored too; ``six``: and both noises at nβ."""
    replicates: int
    draws: int
    tilt: float = 10.0
    batch: int = 4
    steps: int = 6
    """Between draws."""
    noise: str = ""
    """The component whose noise it takes; its own by default."""

    @property
    def name(self) -> str:
        """A name fit for a file."""
        values = {key: value for key, value in asdict(self).items() if value != ""}
        return "_".join(str(f"{v:g}" if isinstance(v, float) else v) for v in values.values()).replace(" ", "-")

    @property
    def settings(self):
        """The settings of one of its chains; εγ/2 is 0.195 whatever γ."""
        from spectrolib.posterior import Settings

        return Settings(
            nbeta=self.nbeta,
            gamma=self.gamma,
            step_size=0.39 / self.gamma,
            batch_size=self.batch,
            chains=1,
            draws=self.draws,
            steps_between_draws=self.steps,
            burn_in=8,
            preconditioner="none",
        )

    @property
    def members(self) -> list:
        """Its chains: those at nβ ± tilt, then those at nβ."""
        from spectrolib.posterior import Member

        if self.team == "single":
            return [Member(self.nbeta, False, 0.0)]
        signs = (False,) if self.team == "pair" else (False, True)
        tilted = [Member(self.nbeta + tilt, sign, tilt) for sign in signs for tilt in (self.tilt, -self.tilt)]
        return tilted + [Member(self.nbeta, sign, 0.0) for sign in signs if self.team == "six"]


def cells() -> list[Cell]:
    """All of them, those that answer most first."""
    nbeta, gamma = CENTRE
    near = sorted(GAMMA, key=lambda g: abs(math.log(g / gamma)))
    centre = [Cell(name, nbeta, gamma, "six", 6, 6) for name in (*COMPONENTS, "full")]
    grid = [Cell(name, n, g, "pair", 8 if g == gamma else 4, 3) for g in near for n in NBETA for name in GRID]
    strong = [Cell(name, n, gamma, "pair", 4, 3) for n in STRONG for name in GRID]
    local = [Cell("full", n, g, "single", 1, 2) for g in near for n in NBETA]
    few = [replace(_pair(name), replicates=4) for name in GRID]
    tilt = [replace(cell, nbeta=n, tilt=t) for cell in few for n, t in ((10.0, 2.0), (30.0, 30.0), (100.0, 100.0))]
    other = [replace(_pair("l3h0"), replicates=4, noise=noise) for noise in ("", "l3h1")]
    batch = [replace(cell, batch=batch) for cell in few for batch in (1, 16)]
    steps = [replace(cell, steps=steps) for cell in few for steps in (2, 12)]
    return centre + grid + strong + local + tilt + other + batch + steps


def _pair(component: str) -> Cell:
    return Cell(component, *CENTRE, "pair", 8, 3)


# Sampling ------------------------------------------------------------------------------------------------------------


class Work(NamedTuple):
    """A model and the windows that a cell needs."""

    engine: object
    sampling: ndarray
    loss: ndarray
    probe: ndarray


def bundled_work() -> Work:
    """The bundled model, with the book's windows: all for minibatches and the loss, a few to probe."""
    import spectrolib
    from spectrolib.model.loading import engine_of
    from spectrolib.run.plan import profile_windows
    from spectrolib.run.profiles import get

    model = spectrolib.load_model("bundled", device="cpu")
    windows = profile_windows(get("book"), model)
    probe = windows["probe"].ids
    return Work(
        engine_of(model),
        windows["sampling"].ids,
        windows["loss"].ids,
        probe[np.arange(PROBE_WINDOWS) * len(probe) // PROBE_WINDOWS],
    )


def sample_cell(work: Work, cell: Cell) -> dict[str, ndarray]:
    """The replicates of a cell.

    Returns:
        ``excess`` (replicates, draws, chains, tokens) and ``rise`` (replicates, draws, chains): d and g, nats;
        ``width`` and ``own_width``: standard deviation of w - w* over the component's weights, and of w* itself;
        ``gradient_seconds`` and ``update_seconds`` of a chain's step, ``evaluation_seconds`` of a token; and where a
        chain was no longer local, ``message`` in place of the rest.
    """
    from spectrolib.model.engine import one_thread
    from spectrolib.posterior import ChainError

    with one_thread():
        try:
            parts = [_replicate(work, cell, seed) for seed in range(cell.replicates)]
        except ChainError as error:
            return {"message": np.array(str(error))}
    return {key: np.stack([part[key] for part in parts]) for key in parts[0]}


def _replicate(work: Work, cell: Cell, seed: int) -> dict[str, ndarray]:
    from spectrolib.posterior import Chain, lockstep

    settings, members = replace(cell.settings, seed=seed), cell.members
    group = work.engine.group((cell.component,) * len(members))
    chains = [
        Chain(start, settings, name=cell.noise or cell.component, member=member)
        for start, member in zip(group.start, members, strict=True)
    ]
    driven = sum(chain.driven for chain in chains)
    clock = {"gradient": 0.0, "evaluation": 0.0}

    def timed(key: str, function: Callable) -> Callable:
        def call(*arguments):
            begin = time.process_time()
            result = function(*arguments)
            clock[key] += time.process_time() - begin
            return result

        return call

    moving = work.engine.group((cell.component,) * max(driven, 1))
    gradients = timed("gradient", moving.minibatch_gradients(work.sampling, settings, 0))
    losses, loss, probe = timed("evaluation", group.losses), group.cache(work.loss), group.cache(work.probe)
    loss_start = work.engine.losses(work.loss).double().mean()
    probe_start = work.engine.losses(work.probe).double()
    rises, excesses, widths = [], [], []
    begin = time.process_time()
    for draw in lockstep(chains, gradients, settings):
        rise = losses(draw.positions, loss).double().mean(dim=(1, 2)) - loss_start
        excess = losses(draw.positions, probe).double() - probe_start - rise[:, None, None]
        for chain, own in zip(chains, rise.tolist(), strict=True):
            chain.check(own, draw.index)
        rises.append(rise.numpy())
        excesses.append(excess.flatten(1).numpy())
        widths.append([float((chain.position - chain.centre).std()) for chain in chains])
    updates = time.process_time() - begin - sum(clock.values())
    evaluated = cell.draws * len(members) * (work.loss[:, 1:].size + work.probe[:, 1:].size)
    return {
        "excess": np.array(excesses, dtype=np.float32),
        "rise": np.array(rises),
        "width": np.mean(widths),
        "own_width": float(group.start[0].std()),
        "gradient_seconds": clock["gradient"] / max(settings.steps * driven, 1),
        "update_seconds": updates / (settings.steps * len(members)),
        "evaluation_seconds": clock["evaluation"] / evaluated,
    }


def first_order(work: Work, component: str, windows: int = 256) -> Float[ndarray, " tokens"]:
    """-<∇L, ∇l> / γ but for the factor: the slope of every probe token's loss along the mean gradient at w*."""
    import torch
    from spectrobook.directions import mirrored

    from spectrolib.model.engine import one_thread

    with one_thread():
        group = work.engine.group([component])
        rows = np.arange(min(windows, len(work.sampling)))
        _, (gradient,) = group.gradients(group.start, group.cache(work.sampling), rows)
        step = -0.3 * gradient / torch.linalg.vector_norm(gradient)
        return mirrored(work.engine, work.probe, {component: step[None]}).odd[0, :, 0]


OWN_DRAWS = 3
LONG = ("l3h1", "l2 mlp", "unembed")
"""Components of the long plain runs."""


def long_run(work: Work, component: str, draws: int = 500, replicates: int = 8) -> dict[str, ndarray]:
    """A long plain run, and the response: do they estimate the same number?

    They can agree only if the observable g and the loss that drives the chains are of the same text. So both take four
    loss windows, all of them at each step, and one probe window. At nβ = 0, where steps of the plain chain need no
    gradient and draws are cheap.

    Returns:
        ``plain``, ``response`` (replicates, tokens): minus the sample covariance of one chain of so many draws, and the
        response of one team of four chains with four draws.
    """
    from spectrolib.model.engine import one_thread
    from spectrolib.posterior import Chain, lockstep

    text, probe = work.loss[:4], work.probe[:1]
    cell = Cell(component, 0.0, CENTRE[1], "single", replicates, draws, steps=12)
    teams = replace(cell, team="six", draws=4, steps=6)
    with one_thread():
        group = work.engine.group((component,) * replicates)
        settings = replace(cell.settings, seed=1000)
        chains = [Chain(start, settings, name=component, chain=k) for k, start in enumerate(group.start)]
        losses, rises = [], []
        loss, cached = group.cache(text), group.cache(probe)
        for draw in lockstep(chains, None, settings):
            rises.append(group.losses(draw.positions, loss).double().mean(dim=(1, 2)).numpy())
            losses.append(group.losses(draw.positions, cached).flatten(1).double().numpy())
        small = work._replace(sampling=text, loss=text, probe=probe)
        quads = [_replicate(small, teams, seed)["excess"] for seed in range(replicates)]
    g, excess = np.array(rises), np.array(losses) - np.array(rises)[..., None]
    return {
        "plain": -np.stack([sample_covariance(g[:, [k]], excess[:, [k]]) for k in range(replicates)]),
        "response": np.stack([response(one[:, :4].astype(float), cell.tilt) for one in quads]),
    }


def own_text(work: Work, component: str, replicates: int = 6) -> Float[ndarray, "replicates tokens"]:
    """The response of teams that are driven by the loss windows alone, all of them at each step.

    It is minus the covariance with the loss of those windows: what the sample covariance of the centre estimates, whose
    g is taken on them. Its own noise is far smaller, so the signal of the sample covariance is read off here.
    """
    from spectrolib.model.engine import one_thread

    cell = Cell(component, *CENTRE, "quad", replicates, OWN_DRAWS, batch=len(work.loss))
    with one_thread():
        parts = [_replicate(work._replace(sampling=work.loss), cell, seed)["excess"] for seed in range(replicates)]
    return np.stack([response(excess.astype(float), cell.tilt) for excess in parts])


def sample(folder: Path, work: Work, wanted: Iterable[Cell]) -> None:
    """Sample the cells that the folder does not hold yet."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = list(wanted)
    for component in COMPONENTS:
        file = folder / f"own_{component.replace(' ', '-')}.npy"
        if not file.exists():
            np.save(file, own_text(work, component))
    for component in LONG:
        file = folder / f"long_{component.replace(' ', '-')}.npz"
        if not file.exists():
            np.savez(file, **long_run(work, component))
    for component in dict.fromkeys(cell.component for cell in wanted if cell.component != "full"):
        file = folder / f"slope_{component.replace(' ', '-')}.npy"
        if not file.exists():
            np.save(file, first_order(work, component))
    for i, cell in enumerate(wanted, 1):
        file = folder / f"{cell.name}.npz"
        if file.exists():
            continue
        begin = time.process_time()
        arrays = sample_cell(work, cell)
        np.savez(file.with_suffix(".part.npz"), **arrays)
        os.replace(file.with_suffix(".part.npz"), file)
        row = asdict(cell) | {"seconds": time.process_time() - begin, "passed": "message" not in arrays}
        with (folder / "cells.jsonl").open("a") as rows:
            rows.write(json.dumps(row) + "\n")
        print(f"cell {i} of {len(wanted)}: {cell.name}, {row['seconds']:.0f} s", flush=True)


# From chains to estimates --------------------------------------------------------------------------------------------


CHAINS = {"plain": slice(4, 5), "antithetic": slice(4, 6), "pairs": slice(0, 2), "quads": slice(0, 4)}
"""The chains of a team of six that an estimator reads: see `Cell.members`."""
ESTIMATORS = tuple(
    f"{quantity}_{team}"
    for quantity, teams in (
        ("covariance", ("plain", "antithetic", "pairs", "quads")),
        ("moment", ("plain", "antithetic", "quads")),
        ("two_chain", ("plain", "antithetic", "quads")),
    )
    for team in teams
)

OWN = "covariance_own"
"""The response of teams that are driven by the loss windows alone: the number of the plain covariance (`own_text`)."""
REPORTED = (*ESTIMATORS, OWN)


def response(excess: Float[ndarray, "draws chains tokens"], tilt: float) -> Float[ndarray, " tokens"]:
    """∂<d>/∂(nβ), the mean over pairs of chains at nβ + η and nβ - η: minus the covariance."""
    return (excess[:, 0::2] - excess[:, 1::2]).mean(axis=(0, 1)) / (2 * tilt)


def sample_covariance(
    rise: Float[ndarray, "draws chains"], excess: Float[ndarray, "draws chains tokens"]
) -> Float[ndarray, " tokens"]:
    """Cov(g, d) over all draws of the chains, without bias: divided by their number less one."""
    g, d = rise.flatten(), excess.reshape(rise.size, -1)
    return (g - g.mean()) @ d / (g.size - 1)


def per_rise(
    covariance: Float[ndarray, " tokens"],
    rise: float,
    restricted: Float[ndarray, " tokens"],
    full: Float[ndarray, " tokens"],
) -> Float[ndarray, " tokens"]:
    """The two-chain value over ḡ, the mean rise: -(Cov / ḡ + <d>_C - <d>_F).

    ḡ is one number for each column, which the z-score removes, and its noise with it. Left in, that noise would count
    against rows: 99 % of a raw column is common to all, and where ḡ wavers by a tenth, more of that is left in centred
    rows than there is signal. ``rise`` may be ḡ over all replicates, since the covariance is a small part.
    """
    return -(covariance / rise + restricted - full)


def estimates(
    arrays: dict[str, ndarray], full: dict[str, ndarray], tilt: float
) -> dict[str, Float[ndarray, "r tokens"]]:
    """Every estimate of one component, for each replicate of a team of six; the two-chain value as `per_rise`.

    Args:
        arrays, full: of the component and of the unrestricted chain, as `sample_cell` gives them.
    """
    found: dict[str, list[ndarray]] = {name: [] for name in ESTIMATORS}
    for r in range(len(arrays["rise"])):
        for name in ESTIMATORS:
            quantity, team = name.rsplit("_", 1)
            mine = CHAINS[team]
            excess, rise = arrays["excess"][r][:, mine].astype(float), arrays["rise"][r][:, mine]
            moment = excess.mean(axis=(0, 1))
            tilted = team in ("pairs", "quads")
            covariance = -response(excess, tilt) if tilted else sample_covariance(rise, excess)
            whole = full["excess"][r][:, mine].astype(float).mean(axis=(0, 1))
            two_chain = per_rise(covariance, arrays["rise"][:, :, mine].mean(), moment, whole)
            found[name].append({"covariance": covariance, "moment": moment, "two_chain": two_chain}[quantity])
    return {name: np.stack(tables) for name, tables in found.items()}


# Signal and noise ----------------------------------------------------------------------------------------------------


class Split(NamedTuple):
    """Covariances over tokens between the columns of a table."""

    signal: Float[ndarray, "components components"]
    """B, between different replicates."""
    noise: Float[ndarray, "components components"]
    """W - B, of one replicate."""


def split(tables: Float[ndarray, "replicates tokens components"]) -> Split:
    """Signal and noise of replicates that are independent given the signal; neither estimate is biased."""
    x = tables - tables.mean(axis=1, keepdims=True)
    tokens, replicates = x.shape[1], len(x)
    within = np.einsum("rtc,rtd->cd", x, x) / (replicates * tokens)
    total = x.sum(axis=0)
    between = (total.T @ total / tokens - replicates * within) / (replicates * (replicates - 1))
    return Split(between, within - between)


def column_reliability(parts: Split, m: float = 1.0) -> Float[ndarray, " components"]:
    """B / (B + noise / m) of each column: the correlation of two measurements of m replicates each."""
    signal = np.maximum(np.diag(parts.signal), 0)
    return signal / np.maximum(signal + np.diag(parts.noise) / m, 1e-300)


def row_reliability(parts: Split, m: float = 1.0) -> float:
    """tr(P D B D) / tr(P D K D), of rows that are standardised: z-scored columns, then centred rows."""
    whole = parts.signal + parts.noise / m
    scale = (np.maximum(np.diag(parts.signal), 0) + np.diag(parts.noise) / m) ** -0.5
    size = len(scale)
    centre = np.eye(size) - 1 / size
    share = lambda table: float((centre * (scale[:, None] * table * scale)).sum())  # noqa: E731
    return share(parts.signal) / share(whole) if share(whole) > 0 else math.nan  # by chance, where no signal is found


def replicates_for(reliability: Callable[[float], float], target: float) -> float:
    """How many replicates reach a reliability that grows with their number; NaN where a million do not."""
    low, high = -12.0, math.log(1e6)
    if not reliability(math.exp(high)) >= target:
        return math.nan
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if reliability(math.exp(middle)) >= target else (middle, high)
    return math.exp(high)


def jackknife(values: Float[ndarray, "replicates ..."]) -> Float[ndarray, ...]:
    """Standard error of a statistic, from its values without each of the replicates."""
    n = len(values)
    return np.sqrt((n - 1) / n * ((values - values.mean(axis=0)) ** 2).sum(axis=0))


def interval(value: float, error: float, replicates: int) -> tuple[float, float]:
    """A 90 % interval by Student's t."""
    from scipy.stats import t

    half = float(t.ppf(0.95, replicates - 1)) * error
    return value - half, value + half


def without(tables: ndarray) -> list[ndarray]:
    """The tables without each of the replicates, after the whole."""
    return [tables, *(np.delete(tables, r, axis=0) for r in range(len(tables)))]


# Prices --------------------------------------------------------------------------------------------------------------


class Price(NamedTuple):
    """What one team of a component costs: at the start, and for each draw."""

    start: float
    draw: float

    def of(self, draws: float) -> float:
        """At least one draw is paid."""
        return self.start + max(draws, 1.0) * self.draw


def price(cell: Cell, chains: int, driven: int, step: float, update: float, token: float, tokens: float) -> Price:
    """The price of a team.

    Args:
        chains, driven: its chains, and those of them whose steps need a gradient.
        step, update: a chain's gradient, and the rest of its step.
        token: the loss of one token.
        tokens: how many are evaluated at each draw.
    """
    one = driven * step + chains * update
    return Price(cell.settings.burn_in * one, cell.steps * one + chains * token * tokens)


def driven(cell: Cell, mine: slice = slice(None)) -> int:
    """How many of the cell's chains need a gradient."""
    return sum(cell.settings.drives(member) for member in cell.members[mine])


def costs(work: Work, cell: Cell, arrays: dict[str, ndarray]) -> dict[str, float]:
    """Seconds, measured, and operations, counted, of a chain's gradient, of its update, and of a token's loss."""
    from spectrolib.model.operations import evaluation_operations, step_operations

    shape, time = work.engine.shape, work.sampling.shape[1] - 1
    seconds = {
        key: float(np.median(arrays[key])) for key in ("gradient_seconds", "update_seconds", "evaluation_seconds")
    }
    return seconds | {
        "gradient_operations": cell.batch * time * step_operations(cell.component, shape, time),
        "evaluation_operations": evaluation_operations(cell.component, shape, time),
    }


def prices(cell: Cell, cost: dict[str, float], mine: slice, tokens: int) -> dict[str, Price]:
    """The price of some chains of a cell, in seconds and in operations."""
    count = len(cell.members[mine])
    moving = driven(cell, mine)
    return {
        "seconds": price(
            cell,
            count,
            moving,
            cost["gradient_seconds"],
            cost["update_seconds"],
            cost["evaluation_seconds"],
            tokens,
        ),
        "operations": price(
            cell, count, moving, cost["gradient_operations"], 0.0, cost["evaluation_operations"], tokens
        ),
    }


def together(parts: Iterable[Price]) -> Price:
    """The price of several teams."""
    return Price(*np.sum([tuple(part) for part in parts], axis=0).tolist())


# The report ----------------------------------------------------------------------------------------------------------


class Centre:
    """The centre of the grid: tables of all estimates, their split into signal and noise, what their chains cost."""

    def __init__(self, work: Work, held: dict[Cell, dict[str, ndarray]], own: Callable[[str], ndarray]):
        mine = {cell: arrays for cell, arrays in held.items() if cell.team == "six"}
        self.cells = {cell.component: cell for cell in mine}
        self.names = [name for name in self.cells if name != "full"]
        full = mine[self.cells["full"]]
        columns = [estimates(mine[self.cells[name]], full, self.cells[name].tilt) for name in self.names]
        self.tables = {key: np.stack([column[key] for column in columns], axis=-1) for key in ESTIMATORS}
        self.tables[OWN] = np.stack([own(name) for name in self.names], axis=-1)
        self.replicates, self.draws = full["rise"].shape[:2]
        self.costs = {name: costs(work, cell, mine[cell]) for name, cell in self.cells.items()}
        self.loss_windows, self.loss_tokens = len(work.loss), int(work.loss[:, 1:].size)

    def splits(self, estimator: str) -> list[Split]:
        """Of all replicates, and without each. A sample covariance has the signal of the response to its own text."""
        own = [split(tables) for tables in without(self.tables[estimator])]
        if not sampled(estimator):
            return own
        signals = [split(tables).signal for tables in without(self.tables[OWN])]
        return [parts._replace(signal=signal) for parts, signal in zip(own, signals, strict=True)]

    def worth(self, estimator: str) -> float:
        """Draws of a team that the noise of a replicate stands for: a sample covariance has one fewer."""
        if estimator == OWN:
            return float(OWN_DRAWS)
        chains = len(range(6)[CHAINS[estimator.rsplit("_", 1)[1]]])
        return self.draws - 1 / chains if sampled(estimator) else float(self.draws)

    def price(self, component: str, estimator: str) -> dict[str, Price]:
        """Of one team, evaluated on the book's probe tokens."""
        cell, cost, tokens = self.cells[component], self.costs[component], PRICED + self.loss_tokens
        if estimator != OWN:
            return prices(cell, cost, CHAINS[estimator.rsplit("_", 1)[1]], tokens)
        wider = self.loss_windows / cell.batch
        cost = cost | {name: wider * cost[name] for name in ("gradient_seconds", "gradient_operations")}
        return prices(replace(cell, team="quad"), cost, slice(None), tokens)

    def table_price(self, estimator: str) -> dict[str, Price]:
        """Of all components, and of the unrestricted chain where the estimator asks for it."""
        names = [*self.names, "full"] if estimator.startswith("two_chain") else self.names
        each = [self.price(name, estimator) for name in names]
        return {unit: together(one[unit] for one in each) for unit in ("seconds", "operations")}


def sampled(estimator: str) -> bool:
    """Whether it is a sample covariance."""
    return estimator in ("covariance_plain", "covariance_antithetic")


def needed(reliability: Callable[[float], float], worth: float, price: dict[str, Price]) -> dict[str, dict]:
    """Draws, seconds and operations that each of `TARGETS` takes."""
    draws = {str(target): worth * replicates_for(reliability, target) for target in TARGETS}
    return {"draws_for": draws} | {
        f"{unit}_for": {target: of.of(n) if n == n else math.nan for target, n in draws.items()}
        for unit, of in price.items()
    }


def column_rows(centre: Centre) -> list[dict]:
    """One row for each component and estimator."""
    rows = []
    for estimator in REPORTED:
        parts = centre.splits(estimator)
        whole, *rest = [column_reliability(p) for p in parts]
        x = centre.tables[estimator]
        for i, component in enumerate(centre.names):
            pairs = np.corrcoef(x[:, :, i])[np.triu_indices(centre.replicates, 1)]
            rows.append(
                {
                    "component": component,
                    "estimator": estimator,
                    "reliability": whole[i],
                    "error": jackknife(np.array(rest))[i],
                    "direct": pairs.mean(),
                    "signal": math.sqrt(max(parts[0].signal[i, i], 0)),
                    "noise": math.sqrt(parts[0].noise[i, i]),
                }
                | needed(
                    lambda m, i=i, p=parts[0]: column_reliability(p, m)[i],
                    centre.worth(estimator),
                    centre.price(component, estimator),
                )
            )
    return rows


def table_rows(centre: Centre) -> list[dict]:
    """One row for each estimator: the standardised rows of all components, and k-means on them."""
    rows = []
    for estimator in REPORTED:
        parts = centre.splits(estimator)
        values = [row_reliability(p) for p in parts]
        x = centre.tables[estimator]
        half = centre.replicates // 2
        chosen = [c for c in itertools.combinations(range(centre.replicates), half) if 0 in c]
        halves = [(x[list(c)].mean(axis=0), np.delete(x, c, axis=0).mean(axis=0)) for c in chosen]
        ari = agreement(itertools.combinations(map(labels, x), 2))
        ari_half = agreement((labels(a), labels(b)) for a, b in halves)
        rows.append(
            {
                "estimator": estimator,
                "reliability": values[0],
                "error": jackknife(np.array(values[1:])),
                "cosine": np.mean([cosine(a, b) for a, b in itertools.combinations(x, 2)]),
                "ari": ari,
                "half": half,
                "half_reliability": row_reliability(parts[0], half),
                "half_ari": ari_half,
                "curve": curve(lambda m, p=parts[0]: row_reliability(p, m), centre, estimator),
            }
            | needed(
                lambda m, p=parts[0]: row_reliability(p, m), centre.worth(estimator), centre.table_price(estimator)
            )
        )
    return rows


def curve(reliability: Callable[[float], float], centre: Centre, estimator: str) -> dict[str, list[float]]:
    """Reliability of rows as the draws of a team add up."""
    draws, worth, price = np.geomspace(1, 1e5, 31), centre.worth(estimator), centre.table_price(estimator)
    return {"draws": draws, "reliability": [reliability(n / worth) for n in draws]} | {
        unit: [of.of(n) for n in draws] for unit, of in price.items()
    }


def cosine(a: Float[ndarray, "tokens components"], b: Float[ndarray, "tokens components"]) -> float:
    """Median over tokens of the cosine between standardised rows of two tables."""
    from spectrolib.estimator import standardise

    a, b = standardise(a), standardise(b)
    return float(np.median((a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))))


def labels(table: Float[ndarray, "tokens components"]) -> Int[ndarray, " tokens"]:
    """Clusters of standardised rows by k-means."""
    from sklearn.cluster import KMeans

    from spectrolib.estimator import standardise

    return KMeans(CLUSTERS, n_init=2, random_state=0).fit_predict(standardise(table))


def agreement(pairs: Iterable[tuple[ndarray, ndarray]]) -> float:
    """Mean adjusted Rand index of two labellings."""
    from spectrobook.clouds import adjusted_rand

    return float(np.mean([adjusted_rand(a, b) for a, b in pairs]))


def gains(centre: Centre, target: float = 0.8) -> list[dict]:
    """How many times less than the plain one each estimator costs at a reliability of the rows of ``target``."""
    rows = []
    for estimator in REPORTED:
        plain = f"{estimator.rsplit('_', 1)[0]}_plain"
        if estimator == plain:
            continue
        row: dict = {"estimator": estimator, "against": plain, "reliability": target}
        for unit in ("seconds", "operations"):
            spent = []
            for name in (plain, estimator):
                worth, cost = centre.worth(name), centre.table_price(name)[unit]
                draws = [
                    worth * replicates_for(lambda m, p=p: row_reliability(p, m), target) for p in centre.splits(name)
                ]
                spent.append(np.log([cost.of(n) for n in draws]))
            whole, *rest = spent[0] - spent[1]
            low, high = interval(whole, jackknife(np.array(rest)), centre.replicates)
            row |= {unit: math.exp(whole), f"{unit}_low": math.exp(low), f"{unit}_high": math.exp(high)}
        rows.append(row)
    return rows


def same_number(folder: Path) -> list[dict]:
    """Does the plain sample covariance estimate what the response does? The slope of one on the other is 1 if so.

    It is Σ cov(plain_r, response_s) / Σ cov(response_r, response_s) over r ≠ s, so noise does not lower it.
    """
    rows = []
    for component in LONG:
        file = folder / f"long_{component.replace(' ', '-')}.npz"
        if not file.exists():
            continue
        with np.load(file) as arrays:
            plain, other = arrays["plain"], arrays["response"]
        slopes = [float(crossed(a, b) / crossed(b, b)) for a, b in zip(without(plain), without(other), strict=True)]
        low, high = interval(slopes[0], float(jackknife(np.array(slopes[1:]))), len(plain))
        rows.append(
            {"component": component, "slope": slopes[0], "low": low, "high": high, "alike": likeness(plain, other)}
            | {"plain": plain.mean(axis=0), "plain_error": plain.std(axis=0, ddof=1) / math.sqrt(len(plain))}
            | {"response": other.mean(axis=0), "response_error": other.std(axis=0, ddof=1) / math.sqrt(len(other))}
        )
    return rows


def crossed(
    a: Float[ndarray, "replicates tokens ..."], b: Float[ndarray, "replicates tokens ..."]
) -> Float[ndarray, ...]:
    """Mean over different replicates r, s of the covariance over tokens of a_r and b_s."""
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    n = min(len(a), len(b))
    same = (a[:n] * b[:n]).mean(axis=1).sum(axis=0)
    return ((a.sum(axis=0) * b.sum(axis=0)).mean(axis=0) - same) / (len(a) * len(b) - n)


def likeness(a: Float[ndarray, "replicates tokens"], b: Float[ndarray, "replicates tokens"]) -> dict[str, float]:
    """Correlation of what two sets of replicates estimate, free of noise, with a 90 % interval; replicate r of one may
    share its noise with replicate r of the other."""
    n = min(len(a), len(b))
    values = [
        crossed(x, y) / math.sqrt(max(crossed(x, x) * crossed(y, y), 1e-300))
        for x, y in zip(without(a[:n]), without(b[:n]), strict=True)
    ]
    low, high = interval(values[0], float(jackknife(np.array(values[1:]))), n)
    return {"value": float(values[0]), "low": max(low, -1.0), "high": min(high, 1.0)}


def along(a: Float[ndarray, "replicates tokens"], known: Float[ndarray, " tokens"]) -> dict[str, float]:
    """The same with a column that is known without noise."""
    centred = known - known.mean()
    values = [
        (x.mean(axis=0) @ centred) / len(known) / math.sqrt(max(crossed(x, x), 1e-300)) / known.std()
        for x in without(a)
    ]
    low, high = interval(values[0], float(jackknife(np.array(values[1:]))), len(a))
    return {"value": float(values[0]), "low": max(low, -1.0), "high": min(high, 1.0)}


def responses(cell: Cell, arrays: dict[str, ndarray]) -> Float[ndarray, "replicates tokens"]:
    """Of a cell of pairs."""
    return np.stack([response(excess.astype(float), cell.tilt) for excess in arrays["excess"]])


def cell_row(work: Work, cell: Cell, arrays: dict[str, ndarray]) -> dict:
    """What a cell of single chains or of pairs says by itself."""
    row = {key: getattr(cell, key) for key in ("component", "nbeta", "gamma", "tilt", "batch", "steps")} | {
        "noise_of": cell.noise
    }
    row |= {"replicates": cell.replicates, "passed": "message" not in arrays}
    if "message" in arrays:
        return row | {"message": str(arrays["message"])}
    row |= {key: float(np.mean(arrays[key])) for key in ("rise", "width", "own_width")}
    if cell.team == "single":
        return row
    x, moments = responses(cell, arrays)[..., None], arrays["excess"].mean(axis=(1, 2), dtype=float)[..., None]
    parts = split(x)
    tokens = PRICED + work.loss[:, 1:].size
    cost = prices(cell, costs(work, cell, arrays), slice(None), tokens)
    reliable = lambda tables: float(column_reliability(split(tables))[0])  # noqa: E731
    return (
        row
        | {
            "reliability": reliable(x),
            "error": float(jackknife(np.array([reliable(some) for some in without(x)[1:]]))),
            "signal": math.sqrt(max(parts.signal[0, 0], 0)),
            "noise": math.sqrt(parts.noise[0, 0] * cell.draws),
            "moment": reliable(moments),
            "moment_error": float(jackknife(np.array([reliable(some) for some in without(moments)[1:]]))),
        }
        | needed(lambda m: column_reliability(parts, m)[0], cell.draws, cost)
    )


def grid_rows(work: Work, folder: Path, held: dict[Cell, dict[str, ndarray]]) -> list[dict]:
    """The cells over nβ and γ, beside the slope along the mean gradient and the response at nβ = 0."""
    rows = []
    for cell, arrays in held.items():
        if cell.team == "six" or _varies(cell):
            continue
        row = cell_row(work, cell, arrays)
        if row["passed"] and cell.team == "pair":
            x = responses(cell, arrays)
            row["first_order"] = along(x, np.load(folder / f"slope_{cell.component.replace(' ', '-')}.npy"))
            zero = next((c for c in held if replace(c, replicates=cell.replicates) == replace(cell, nbeta=0.0)), cell)
            if cell.nbeta and zero is not cell and "message" not in held[zero]:
                row["zero"] = likeness(x, responses(zero, held[zero]))
        rows.append(row)
    return rows


def _varies(cell: Cell) -> str:
    """Which setting besides nβ and γ is not the grid's: ``tilt``, ``batch``, ``steps``, ``noise`` or none."""
    usual = {"tilt": 10.0, "batch": 4, "steps": 6, "noise": ""}
    changed = [name for name, value in usual.items() if getattr(cell, name) != value]
    return changed[0] if changed else ("noise" if cell.component == "l3h0" else "")


def variant_rows(work: Work, held: dict[Cell, dict[str, ndarray]]) -> list[dict]:
    """The cells in which something else varies."""
    return [
        {"what": _varies(cell)} | cell_row(work, cell, arrays)
        for cell, arrays in held.items()
        if cell.team == "pair" and _varies(cell)
    ]


def shared_noise(held: dict[Cell, dict[str, ndarray]]) -> dict | None:
    """Rows of two heads whose chains have noise of their own, or the same: reliability of their difference."""
    first = _pair("l3h1")
    own, same = replace(_pair("l3h0"), replicates=4), replace(_pair("l3h0"), replicates=4, noise="l3h1")
    if not {first, own, same} <= held.keys():
        return None
    table = lambda other: np.stack([responses(c, held[c])[:4] for c in (first, other)], axis=-1)  # noqa: E731
    found = {}
    for name, other in (("own", own), ("same", same)):
        values = [row_reliability(split(tables)) for tables in without(table(other))]
        found |= {name: values[0], f"{name}_error": float(jackknife(np.array(values[1:])))}
    return found


def run_rows(path: Path) -> dict:
    """Reliability of a finished run of teams: each chain number is a replicate of all its columns."""
    from spectrolib.estimator import merge_all, one_chain, terms
    from spectrolib.run.store import RunFolder, read_manifest

    manifest = read_manifest(path)
    run, names = RunFolder(path, manifest), manifest["components"]
    chains = range(manifest["settings"]["chains"])
    tables: dict[str, list] = {"covariance_quads": [], "two_chain_quads": []}
    for k in chains:
        records: dict = {}
        for file in sorted((path / "tasks").glob(f"*.chain{k}.npz")):
            records |= run.load_task(file.stem)
        sums = {name: merge_all(record.sums) for name, record in records.items()}
        parts = [terms(sums[name], sums["full"]) for name in names]
        tables["covariance_quads"].append(np.stack([one_chain(sums[name]) for name in names], axis=-1))
        tables["two_chain_quads"].append(
            np.stack([per_rise(t.covariance, t.rise, t.restricted, t.full) for t in parts], axis=-1)
        )
    found: dict = {"replicates": len(chains), "draws": manifest["settings"]["draws"], "components": names}
    for name, replicates in tables.items():
        x = np.stack(replicates)
        parts, draws = split(x), found["draws"]
        values = [row_reliability(p, len(chains)) for p in map(split, without(x))]
        found[name] = {
            "columns": column_reliability(parts, len(chains)),
            "rows": values[0],
            "rows_error": float(jackknife(np.array(values[1:]))),
            "draws_for": {
                str(target): draws * replicates_for(lambda m, p=parts: row_reliability(p, m), target)
                for target in TARGETS
            },
        }
    return found


def report(folder: Path, work: Work, run: Path | None = None) -> dict:
    """All tables, of the cells that are there."""
    held = {}
    for cell in cells():
        file = folder / f"{cell.name}.npz"
        if file.exists():
            with np.load(file) as arrays:
                held[cell] = dict(arrays)
    centre = Centre(work, held, lambda name: np.load(folder / f"own_{name.replace(' ', '-')}.npy"))
    settings = asdict(centre.cells["full"]) | {"step_size": centre.cells["full"].settings.step_size, "burn_in": 8}
    return {
        "command": f"python benchmarks/efficiency.py {folder} {f'--run {run} ' if run else ''}--json FILE",
        "versions": {name: version(name) for name in ("spectrolib", "torch", "numpy")},
        "tokens": int(work.probe[:, 1:].size),
        "priced_tokens": PRICED,
        "loss_tokens": centre.loss_tokens,
        "settings": {key: settings[key] for key in settings if key not in ("component", "team", "noise")},
        "costs": centre.costs,
        "columns": column_rows(centre),
        "rows": table_rows(centre),
        "gains": gains(centre),
        "same_number": same_number(folder),
        "grid": grid_rows(work, folder, held),
        "variants": variant_rows(work, held),
        "shared_noise": shared_noise(held),
        "run": run_rows(run) if run else None,
    }


def plain_numbers(value):
    """As JSON holds it: floats to five digits, what is not a number as null."""
    if isinstance(value, dict):
        return {key: plain_numbers(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [plain_numbers(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value


def show(found: dict) -> None:
    """The main tables, as text."""
    text = lambda x: f"{x:>9.3g}" if isinstance(x, float) else f"{'-' if x is None else x:>9}"  # noqa: E731
    for row in found["columns"] + found["rows"]:
        needs = [row[f"{unit}_for"]["0.8"] for unit in ("draws", "seconds", "operations")]
        print(
            f"{row.get('component', 'rows'):10} {row['estimator']:22}",
            *map(text, (row["reliability"], row["error"], *needs)),
        )
    for row in found["gains"]:
        print(f"gain {row['estimator']:22}", *(text(row[key]) for key in ("seconds", "seconds_low", "seconds_high")))
    for row in found["grid"]:
        print(
            f"{row['component']:8} nβ {row['nbeta']:4g} γ {row['gamma']:5g}",
            *(text(row.get(key)) for key in ("rise", "width", "reliability", "moment")),
            *(text((row.get(key) or {}).get("value")) for key in ("first_order", "zero")),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of the cells")
    parser.add_argument("--report", action="store_true", help="sample nothing")
    parser.add_argument("--run", type=Path, help="a finished run whose reliability is added")
    parser.add_argument("--json", type=Path, help="write the report here")
    arguments = parser.parse_args()
    work = bundled_work()
    if not arguments.report:
        sample(arguments.folder, work, cells())
    found = plain_numbers(report(arguments.folder, work, arguments.run))
    show(found)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
