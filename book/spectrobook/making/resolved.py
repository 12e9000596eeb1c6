"""The measurements behind the chapter Clusters that come back, and the tables that it shows.

Three runs: to first order on all shipped probe windows (``first``) and with shuffled weights (``shuffled``); by
sampling on a part of the windows (``draws``). A run goes on where it was stopped. What ships is small: a table of how
well each kind of rows repeats, the controls, and the clusters.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from spectrolib import graph
from spectrolib.clustering import Clustering, conductance_clusters, overlaps, stable_clusters
from spectrolib.estimator import standardise
from spectrolib.model.activations import activations
from spectrolib.model.layers import norm
from spectrolib.model.loading import LanguageModel, load_model
from spectrolib.run import profiles
from spectrolib.run.measure import measure
from spectrolib.run.plan import Plan, profile_windows
from spectrolib.run.resolved import rows_of
from spectrolib.run.store import open_clusters, open_result
from spectrolib.run.workers import available_cores

from .. import robustness
from .controls import shuffled

K, MIN_SIZE, REPEATS = 15, 10, 10
"""Neighbours, tokens of the smallest cluster, and repetitions, in all of the tables."""
EVERY = 8
"""One of so many probe windows is read by sampling."""


def plans(folder: Path, model: LanguageModel | None = None) -> dict[str, Plan]:
    """The runs, by name; the model with shuffled weights is kept in the folder."""
    model = model or load_model("bundled", device="cpu")
    profile = profiles.get("book")
    windows = profile_windows(profile, model)
    probe = windows["probe"]
    some = windows | {"probe": probe.take(np.arange(0, len(probe), EVERY))}
    more = windows | {"probe": probe.take(np.arange(0, len(probe), EVERY // 2))}
    first = {"settings": profile.settings, "channels": 2048, "first_order": True}
    sampler = replace(profile.settings, chains=4, draws=8, tilt=0.0, batch_size=2)
    sampled = {"channels": 4096, "estimator": "one_chain"}
    return {
        "first": Plan(model=model, **windows, **first),
        "shuffled": Plan(model=shuffled(model, folder / "shuffled-model"), **more, **first),
        "draws": Plan(model=model, settings=sampler, **some, **sampled),
    }


def run(folder: Path) -> None:
    """Carry out the runs that are not finished."""
    for name, plan in plans(folder).items():
        measure(plan, folder / name)


# How well rows repeat ------------------------------------------------------------------------------------------------


def unit(rows: Float[ndarray, "tokens channels"]) -> Float[ndarray, "tokens channels"]:
    """Rows of unit length; rows of zeros stay."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)


def cut(rows: Float[ndarray, "tokens channels"], seed: int = 0) -> tuple[Int[ndarray, "tokens k"], Clustering]:
    """Neighbours and clusters of some rows, once."""
    near = graph.nearest(rows, K)
    return near.indices, conductance_clusters(graph.join(near, "mutual"), min_size=MIN_SIZE, seed=seed)


def agreement(first: ndarray, second: ndarray, result) -> dict:
    """How far two tables of rows of the same tokens lead to the same neighbours and clusters.

    Shares come with their 95 % intervals: those of neighbours over windows, of clusters by Wilson, within tokens over
    token ids.
    """
    (near, one), (others, two) = cut(first), cut(second)
    kept = robustness.common_neighbours(near, others)
    return {
        "channels": first.shape[1],
        "neighbours": list(robustness.mean_by_window(kept, result["sequence"].values)),
        "clusters": [len(one.sizes), len(two.sizes)],
        "coverage": one.coverage,
        "come back": list(robustness.survival(one.labels, two.labels).share),
        "adjusted Rand": robustness.adjusted_rand(one.labels, two.labels),
        "within tokens": list(robustness.agreement_within(one.labels, two.labels, result["token_id"].values)),
    }


def thinned(rows: Float[ndarray, "tokens channels"], owner: ndarray, most: int) -> Float[ndarray, "tokens channels"]:
    """The first channels of each component, so many of each."""
    kept = np.concatenate([np.flatnonzero(owner == name)[:most] for name in dict.fromkeys(owner.tolist())])
    return rows[:, kept]


def combined(rows: ndarray, owner: ndarray, seed: int) -> Float[ndarray, "tokens components"]:
    """One random combination of each component's channels: what an observable that knows nothing would keep."""
    rng = np.random.default_rng(seed)
    names = list(dict.fromkeys(owner.tolist()))
    return np.stack([rows[:, owner == name] @ rng.normal(size=(owner == name).sum()) for name in names], axis=1)


def ladder(draws, first) -> list[dict]:
    """Kinds of rows from the paper's to first order, half against half, on the tokens that were sampled."""
    owner, rungs = draws["channel_component"].values, []
    half = draws["half_susceptibility"].sel(estimator="one_chain").isel(block=-1).values

    def add(name: str, rows: list[ndarray], like=draws) -> None:
        rungs.append({"rows": name} | agreement(*rows, like))

    add("the paper's: covariance with the mean loss", [standardise(one) for one in half])
    known = [rows_of(draws, halves=[h]) for h in (0, 1)]
    add(
        "a random combination of each component's draws",
        [standardise(combined(x, owner, h)) for h, x in enumerate(known)],
    )
    most = int((owner == owner[0]).sum())
    for count in (n for n in (4, 8, 16, 32, 64) if n <= most):
        add(f"{count} draws", [unit(thinned(x, owner, count)) for x in known])
    own, tokens = first["channel_component"].values, among(first, draws, EVERY)
    for width in (4, 16, 64):
        rows = [unit(thinned(rows_of(first, halves=[h])[tokens], own, width)) for h in (0, 1)]
        add(f"first order, {width} numbers", rows)
    both = [unit(np.concatenate(known, axis=1)), unit(rows_of(first)[tokens])]
    add("all draws against first order", both)
    return rungs


def among(first, part, step: int) -> Int[ndarray, " tokens"]:
    """Where the tokens of a result stand in another that holds its windows, one of so many.

    Raises:
        ValueError: if the two are of other windows.
    """
    length = int(first["position"].values.max())
    windows = np.arange(0, first.sizes["token"] // length, step)
    rows = (windows[:, None] * length + np.arange(length)).ravel()
    if not np.array_equal(first["token_id"].values[rows], part["token_id"].values):
        raise ValueError("the two measurements are of other windows")
    return rows


# Controls ------------------------------------------------------------------------------------------------------------


def simple_rows(model: LanguageModel, ids: Int[ndarray, "windows length"]) -> dict[str, Float[ndarray, "tokens d"]]:
    """Rows that know of the output alone: what a gradient with respect to components must beat."""
    import torch
    import torch.nn.functional as F

    weights = model.weights
    unembedding = weights[model.shape.unembed].numpy()
    layers = model.shape.layers
    x = torch.from_numpy(activations(model, ids[:, :-1], f"l{layers - 1} residual"))
    hidden = norm(x.flatten(0, 1), weights, model.shape.where.final_norm, model.shape).numpy()
    targets = ids[:, 1:].ravel()
    error = F.softmax(torch.from_numpy(hidden @ unembedding.T), dim=1).numpy()
    error[np.arange(len(targets)), targets] -= 1
    return {"final state": hidden, "output error": error, "gradient at the final state": error @ unembedding}


def controls(first, shuffled, model: LanguageModel, seed: int = 0) -> list[dict]:
    """First order's clusters beside those of other rows of the same tokens: every other window of every fourth.

    ``within tokens`` says how far occurrences of one token fall apart in the same way.
    """
    tokens = among(first, shuffled, EVERY // 2)
    ids = window_ids(first)[:: EVERY // 2]
    mine = [unit(rows_of(first, halves=[h])[tokens]) for h in (0, 1)]
    owner = first["channel_component"].values
    kinds = {
        "heads alone": [name for name in dict.fromkeys(owner.tolist()) if "h" in name],
        "MLPs alone": [name for name in dict.fromkeys(owner.tolist()) if name.endswith("mlp")],
        "one layer (3)": [name for name in dict.fromkeys(owner.tolist()) if name.startswith("l3")],
        "one head (l3h1)": ["l3h1"],
    }
    other = {"another sketch of the same": mine[1]}
    other |= {name: unit(rows_of(first, some, halves=[1])[tokens]) for name, some in kinds.items()}
    other |= {"weights shuffled": unit(rows_of(shuffled, halves=[1]))}
    other |= {name: unit(rows.astype(np.float32)) for name, rows in simple_rows(model, ids).items()}
    other |= {"normal, of the same covariance": unit(normal_like(mine[0], seed))}
    found = [{"rows": name} | agreement(mine[0], rows, shuffled) for name, rows in other.items()]
    return [*found, {"rows": "token identity"} | identity(mine[0], shuffled)]


def identity(rows: ndarray, result) -> dict:
    """How far clusters are those of token identity: a cluster for each frequent token."""
    _, one = cut(rows)
    ids, number, counts = np.unique(result["token_id"].values, return_inverse=True, return_counts=True)
    labels = np.where(counts[number] >= MIN_SIZE, number, -1)
    back = robustness.survival(one.labels, labels).share
    return {
        "channels": len(ids),
        "clusters": [len(one.sizes), int((counts >= MIN_SIZE).sum())],
        "come back": list(back),
        "adjusted Rand": robustness.adjusted_rand(one.labels, labels),
    }


def normal_like(rows: Float[ndarray, "tokens channels"], seed: int) -> Float[ndarray, "tokens channels"]:
    """A normal sample with the covariance of the rows: what has no clusters."""
    centred = rows - rows.mean(axis=0)
    mix = np.random.default_rng(seed).normal(size=(len(rows), len(rows))).astype(np.float32)
    return mix @ centred / np.float32(np.sqrt(len(rows))) + rows.mean(axis=0)


def window_ids(result) -> Int[ndarray, "windows length"]:
    """The windows of a result, first tokens included."""
    length = int(result["position"].values.max())
    first = result["first_token"].values.reshape(-1, length)[:, :1]
    return np.concatenate([first, result["token_id"].values.reshape(-1, length)], axis=1).astype(np.int64)


# Clusters ------------------------------------------------------------------------------------------------------------


def halves(first, shuffled_result, workers: int | None = None) -> list[Clustering]:
    """Clusters that come back, of either half of the channels, on the tokens of the controls."""
    tokens = among(first, shuffled_result, EVERY // 2)
    options = {"k": K, "min_size": MIN_SIZE, "repeats": REPEATS, "workers": workers or available_cores()}
    return [stable_clusters(rows_of(first, halves=[half])[tokens], seed=half, **options) for half in (0, 1)]


def calibration(one: Clustering, two: Clustering) -> dict:
    """Of the clusters of one half: in what share of repetitions they came back, and whether the other half has them."""
    best = overlaps(one.labels, two.labels).max(axis=1).toarray().ravel()
    return {
        "share": one.share.tolist(),
        "came back": (best > 0.5).tolist(),
        "clusters": [len(one.sizes), len(two.sizes)],
        "adjusted Rand": robustness.adjusted_rand(one.labels, two.labels),
    }


def tables(folder: Path, report: Callable[[str], None] = print) -> tuple[dict, dict[str, ndarray]]:
    """What the chapter shows of finished runs: tables, and the clusters as arrays."""
    model, results = load_model("bundled", device="cpu"), {name: open_result(folder / name) for name in plans(folder)}
    table = {"settings": {"k": K, "min_size": MIN_SIZE, "repeats": REPEATS, "every": EVERY}}
    report("how well rows repeat")
    table["ladder"] = ladder(results["draws"], results["first"])
    report("controls")
    table["controls"] = controls(results["first"], results["shuffled"], model)
    report("clusters that come back")
    table["calibration"] = calibration(*halves(results["first"], results["shuffled"]))
    found, first = open_clusters(folder / "first"), folder / "first"
    table["cards"] = json.loads((first / "cards.json").read_text())["about"]
    table["matches"] = json.loads((first / "matches.json").read_text())["about"]
    table["manifests"] = {name: json.loads(result.attrs["manifest"]) for name, result in results.items()}
    length = np.linalg.norm(rows_of(results["first"]), axis=1)
    arrays = {name: value for name, value in vars(found).items() if isinstance(value, ndarray)}
    return table, arrays | {"length": length.astype(np.float32)}


def write(folder: Path) -> None:
    """The tables of finished runs, in the folder ``made``; the first must have clusters, cards and matches."""
    table, arrays = tables(folder)
    made = folder / "made"
    made.mkdir(exist_ok=True)
    (made / "resolved.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    np.savez_compressed(made / "resolved.npz", **arrays)
