"""The tables of the benchmark, of the cells that a folder holds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy import ndarray

from spectrolib.estimator import merge_all, one_chain, terms
from spectrolib.model.operations import evaluation_operations, step_operations
from spectrolib.run.store import RunFolder, read_manifest

from .analysis import (
    CHAINS,
    ESTIMATORS,
    OWN,
    REPORTED,
    Price,
    Split,
    agreement,
    along,
    column_reliability,
    cosine,
    crossed,
    estimates,
    interval,
    jackknife,
    labels,
    likeness,
    per_rise,
    prices,
    replicates_for,
    responses,
    row_reliability,
    sampled,
    split,
    together,
    without,
)
from .grid import LONG, OWN_DRAWS, Cell, cells, pair, varies
from .runs import Work

PRICED = 20_480
TARGETS = (0.5, 0.8, 0.9)


def costs(work: Work, cell: Cell, arrays: dict[str, ndarray]) -> dict[str, float]:
    """Seconds, measured, and operations, counted, of a chain's gradient, of its update, and of a token's loss."""
    shape, time = work.engine.shape, work.sampling.shape[1] - 1
    seconds = {
        key: float(np.median(arrays[key])) for key in ("gradient_seconds", "update_seconds", "evaluation_seconds")
    }
    return seconds | {
        "gradient_operations": cell.batch * time * step_operations(cell.component, shape, time),
        "evaluation_operations": evaluation_operations(cell.component, shape, time),
    }


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
        if cell.team == "six" or varies(cell):
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


def variant_rows(work: Work, held: dict[Cell, dict[str, ndarray]]) -> list[dict]:
    """The cells in which something else varies."""
    return [
        {"what": varies(cell)} | cell_row(work, cell, arrays)
        for cell, arrays in held.items()
        if cell.team == "pair" and varies(cell)
    ]


def shared_noise(held: dict[Cell, dict[str, ndarray]]) -> dict | None:
    """Rows of two heads whose chains have noise of their own, or the same: reliability of their difference."""
    first = pair("l3h1")
    own, same = replace(pair("l3h0"), replicates=4), replace(pair("l3h0"), replicates=4, noise="l3h1")
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
        "command": f"python benchmarks/efficiency {folder} {f'--run {run} ' if run else ''}--json FILE",
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
