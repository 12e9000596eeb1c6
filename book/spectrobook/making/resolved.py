"""The measurements behind the chapters on clusters that come back, and the tables that they show.

Runs to first order: on all shipped probe windows (``first``), the same with fresh random inputs (``fresh``), and on
parts of them with other weights (``shuffled``, ``initial``) or with the mean loss of another text (``prose``,
``code``). Runs by sampling, on a part of the windows: ``draws``, ``zero`` at nβ = 0, and the paper's own ``protocol``.
A run goes on where it was stopped. What ships is small: a table of how well each kind of rows repeats, the controls,
and the clusters.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from spectrolib import graph
from spectrolib.checks.intervals import wilson
from spectrolib.clustering import Clustering, conductance_clusters, stable_clusters
from spectrolib.dictionaries.windows import measured_windows
from spectrolib.estimator import CONTROLS, ESTIMATORS, standardise
from spectrolib.model.activations import activations
from spectrolib.model.guesses import guesses
from spectrolib.model.layers import norm
from spectrolib.model.loading import LanguageModel, load_model
from spectrolib.reading import rules, tokenmap
from spectrolib.reading.cards import open_cards, save_cards
from spectrolib.reading.conditions import GROUPS, OUTPUT, Features, describe
from spectrolib.run import profiles
from spectrolib.run.files import write_whole
from spectrolib.run.measure import measure
from spectrolib.run.plan import Plan, profile_windows
from spectrolib.run.resolved import rows_of
from spectrolib.run.store import open_clusters, open_result
from spectrolib.run.workers import available_cores
from spectrolib.text.runningtext import running_text, token_names

from .. import robustness, shipped
from .controls import initial, shuffled

K, MIN_SIZE, REPEATS = 15, 10, 10
"""Neighbours, tokens of the smallest cluster, and repetitions, in all of the tables."""
NEAREST = 2
"""Tokens that the map names beside each."""
EVERY = 8
"""One of so many probe windows is read by sampling."""
PROSE = ("docstrings", "latex", "licences", "readme", "translations")
CODE = ("build", "c", "cython", "javascript", "python", "stdlib")
"""Domains of two texts that have nothing in common, to take the mean loss of."""


def plans(folder: Path, model: LanguageModel | None = None) -> dict[str, Plan]:
    """The runs, by name; models with other weights are kept in the folder.

    Runs that are compared as independent looks (``first`` and ``fresh``, ``draws`` and ``zero``) have other seeds.
    """
    model = model or load_model("bundled", device="cpu")
    profile = profiles.get("book")
    windows = profile_windows(profile, model)
    probe = windows["probe"]
    some = windows | {"probe": probe.take(np.arange(0, len(probe), EVERY))}
    more = windows | {"probe": probe.take(np.arange(0, len(probe), EVERY // 2))}
    first = {"settings": profile.settings, "channels": 2048, "first_order": True}
    sampler = replace(profile.settings, chains=4, draws=8, tilt=0.0, batch_size=2)
    sampled = {"channels": 4096, "estimator": "one_chain"}
    protocol = replace(profile.settings.plain(), chains=4, draws=100, batch_size=2)
    read = {
        name: windows["sampling"].take(np.flatnonzero(np.isin(windows["sampling"].domain, domains)))
        for name, domains in (("prose", PROSE), ("code", CODE))
    }
    return {
        "first": Plan(model=model, **windows, **first),
        "fresh": Plan(model=model, **windows, **first | {"settings": replace(profile.settings, seed=1)}),
        "shuffled": Plan(model=shuffled(model, folder / "shuffled-model"), **more, **first),
        "initial": Plan(model=initial(model, folder / "initial-model"), **more, **first),
        "prose": Plan(model=model, **some | {"sampling": read["prose"]}, **first | {"channels": 32}),
        "code": Plan(model=model, **some | {"sampling": read["code"]}, **first | {"channels": 32}),
        "draws": Plan(model=model, settings=sampler, **some, **sampled),
        "zero": Plan(model=model, settings=replace(sampler, draws=2, nbeta=0.0, seed=1), **some, **sampled),
        "protocol": Plan(model=model, settings=protocol, **some, channels=4096, estimator="two_chain"),
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
    return near.indices, conductance_clusters(graph.join(near, "mutual"), min_size=MIN_SIZE, seed=seed).complete()


def stable(rows: Float[ndarray, "tokens channels"]) -> Clustering:
    """The clusters of all tables that come back."""
    options = {"k": K, "min_size": MIN_SIZE, "repeats": REPEATS}
    return stable_clusters(rows, **options, workers=available_cores(), progress=True).complete()


def agreement(first: ndarray, second: ndarray, result, clusters: Int[ndarray, " tokens"] | None = None) -> dict:
    """How far two tables of rows of the same tokens lead to the same neighbours and clusters.

    Shares come with their 95 % intervals: those of neighbours and of the Rand index over windows, of clusters by
    Wilson, within tokens over token ids.

    Args:
        clusters: the cluster of each token by the second rows, where another method than ours made them.
    """
    (near, one), (others, two) = cut(first), cut(second)
    labels = two.labels if clusters is None else clusters
    windows = result["sequence"].values
    return {
        "channels": second.shape[1],
        "neighbours": list(robustness.mean_by_window(robustness.common_neighbours(near, others), windows)),
        "clusters": [len(one.sizes), int(labels.max(initial=-1)) + 1],
        "coverage": one.coverage,
        "come back": list(robustness.survival(one.labels, labels).share),
        "adjusted Rand": list(robustness.agreement_by_window(one.labels, labels, windows)),
        "within tokens": list(robustness.agreement_within(one.labels, labels, result["token_id"].values)),
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


def ladder(draws, zero, first) -> list[dict]:
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
    flat = [unit(rows_of(zero, halves=[h])) for h in (0, 1)]
    add(f"nβ = 0, {flat[0].shape[1] // len(set(owner))} draws", flat)
    own, tokens = first["channel_component"].values, among(first, draws, EVERY)
    for width in (4, 16, 64):
        rows = [unit(thinned(rows_of(first, halves=[h])[tokens], own, width)) for h in (0, 1)]
        add(f"first order, {width} numbers", rows)
    return rungs


def protocol(own, first) -> list[dict]:
    """The paper's own protocol, as far as it is known: rows of one number for each component, half against half.

    Then the same draws with another observable and with every draw a channel, and each beside first order. The permuted
    observable belongs to another draw: its covariance is pooled over all chains, so that it has no halves.
    """
    owner, tokens = own["channel_component"].values, among(first, own, EVERY)
    kernel, known = unit(rows_of(first)[tokens]), [rows_of(own, halves=[h]) for h in (0, 1)]
    half = own["half_susceptibility"].isel(block=-1)
    two, one = ([standardise(table) for table in half.sel(estimator=name).values] for name in ESTIMATORS)
    mixed = [standardise(combined(rows, owner, h)) for h, rows in enumerate(known)]
    permuted = standardise(own["control_covariance"].sel(control=CONTROLS[0]).values.astype(np.float64))
    pairs = {
        "the two-chain value": two,
        "the covariance alone": one,
        "a random combination of each component's draws": mixed,
        "all draws": [unit(rows) for rows in known],
        "the two-chain value, and first order": (standardise(own["susceptibility"].values), kernel),
        "the covariance alone, and first order": (standardise(-own["covariance"].values), kernel),
        "the observable permuted, and first order": (permuted, kernel),
        "all draws, and first order": (unit(rows_of(own)), kernel),
    }
    return [{"rows": name} | agreement(*rows, own) for name, rows in pairs.items()]


def against(draws, zero, prose, code, first) -> list[dict]:
    """What two measurements share that have no draw, no minibatch and no random number in common.

    Most are set beside the channels of first order: the nearest that we have to the whole kernel. The paper's number
    to first order has no noise. It knows the text that it is sampled on by the gradient of that text's mean loss alone.
    """
    owner, tokens = draws["channel_component"].values, among(first, draws, EVERY)
    kernel, known = unit(rows_of(first)[tokens]), rows_of(draws)
    of_paper = standardise(draws["susceptibility"].values)
    all_draws, of_gaussian = unit(known), unit(rows_of(zero))
    of_gradients = standardise(first["susceptibility"].values[tokens])
    exact = [standardise(run["susceptibility"].values) for run in (prose, code)]
    pairs = {
        "the paper's rows, and first order": (of_paper, kernel),
        "a random combination, and first order": (standardise(combined(known, np.tile(owner, 2), 0)), kernel),
        "128 channels, and first order": (unit(thinned(rows_of(draws, halves=[0]), owner, 4)), kernel),
        "all draws, and first order": (all_draws, kernel),
        "all draws at nβ = 0, and first order": (of_gaussian, kernel),
        "all draws, and all draws at nβ = 0": (all_draws, of_gaussian),
        "the paper's rows to first order, and first order": (of_gradients, kernel),
        "the paper's rows to first order, on prose and on code": tuple(exact),
    }
    return [{"rows": name, "width": one.shape[1]} | agreement(one, two, draws) for name, (one, two) in pairs.items()]


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


def simple_rows(
    model: LanguageModel, ids: Int[ndarray, "windows length"], seed: int = 0
) -> dict[str, Float[ndarray, "tokens d"]]:
    """Rows that know of the token and the output alone: what a gradient with respect to components must beat.

    The embedding of the token has a trace of noise, so that chance breaks the ties between its occurrences.
    """
    import torch
    import torch.nn.functional as F

    weights = model.weights
    unembedding, embedding = (weights[name].numpy() for name in (model.shape.unembed, model.shape.where.embed))
    layers = model.shape.layers
    x = torch.from_numpy(activations(model, ids[:, :-1], f"l{layers - 1} residual"))
    hidden = norm(x.flatten(0, 1), weights, model.shape.where.final_norm, model.shape).numpy()
    targets = ids[:, 1:].ravel()
    chances = F.softmax(torch.from_numpy(hidden @ unembedding.T), dim=1).numpy()
    error = chances.copy()
    error[np.arange(len(targets)), targets] -= 1
    own = unit(embedding[targets])
    return {
        "embedding of the token": own + 1e-3 * np.random.default_rng(seed).normal(size=own.shape),
        "embedding that is expected": chances @ embedding,
        "final state": hidden,
        "output error": error,
        "gradient at the final state": error @ unembedding,
    }


def whole_gradient(first, half: int) -> Float[ndarray, "tokens channels"]:
    """The gradient with respect to all components as one vector, sketched: each with its own length again."""
    scale = dict(zip(first["component"].values.tolist(), first["resolved_scale"].values[half].tolist(), strict=True))
    owner = first["channel_component"].values.tolist()
    return rows_of(first, halves=[half]) * np.array([scale[name] for name in owner], dtype=np.float32)


def quanta(rows: Float[ndarray, "tokens channels"], clusters: int, seed: int = 0) -> Int[ndarray, " tokens"]:
    """So many clusters by the method of quanta discovery (Michaud et al., 2023): spectral, every token in one.

    Two tokens have affinity 1 - angle / π, the angle being that between their gradients. There, tokens of loss above
    0.1 nats, and those that induction predicts, were left out. Here all are in, as for the other rows.
    """
    from sklearn.cluster import SpectralClustering

    cosine = unit(rows) @ unit(rows).T
    affinity = 1 - np.arccos(np.clip(cosine, -1, 1)) / np.pi
    return SpectralClustering(clusters, affinity="precomputed", random_state=seed).fit_predict(affinity)


def controls(first, shuffled, initial, model: LanguageModel, seed: int = 0) -> list[dict]:
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
    other |= {"all components as one": unit(whole_gradient(first, 1)[tokens])}
    other |= {"the paper's rows, to first order": standardise(first["susceptibility"].values[tokens])}
    other |= {"weights shuffled": unit(rows_of(shuffled, halves=[1]))}
    other |= {"weights drawn anew": unit(rows_of(initial, halves=[1]))}
    other |= {name: unit(rows.astype(np.float32)) for name, rows in simple_rows(model, ids, seed).items()}
    other |= {"normal, of the same covariance": unit(normal_like(mine[0], seed))}
    found = [{"rows": name} | agreement(mine[0], rows, shuffled) for name, rows in other.items()]
    discovered = quanta(other["all components as one"], found[0]["clusters"][0], seed)
    found.append(
        {"rows": "quanta discovery"} | agreement(mine[0], other["all components as one"], shuffled, discovered)
    )
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
        "adjusted Rand": list(robustness.agreement_by_window(one.labels, labels, result["sequence"].values)),
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


def calibration(found: Clustering, fresh: Clustering, result) -> dict:
    """The sceptic's question: do the published clusters come back, with fresh random inputs, as often as they say?"""
    _, documents = np.unique(result["document"].values, return_inverse=True)
    every, *levels = robustness.promises(found.share, found.labels, fresh.labels, documents)
    windows = result["sequence"].values
    return {
        "clusters": [len(found.sizes), len(fresh.sizes)],
        "all": every,
        "levels": levels,
        "in the other direction": robustness.promises(fresh.share, fresh.labels, found.labels, documents)[0],
        "adjusted Rand": list(robustness.agreement_by_window(found.labels, fresh.labels, windows)),
        "within tokens": list(robustness.agreement_within(found.labels, fresh.labels, result["token_id"].values)),
    }


def readable(
    found: Clustering, result, model: LanguageModel, others: Mapping[str, Int[ndarray, " tokens"]], seed: int = 0
) -> list[dict]:
    """For how many clusters a short rule holds, by what rules may speak of; beside labels that must have none.

    Shuffled labels: among all tokens, and among the occurrences of each token, where rules on the token alone go on
    holding.

    Args:
        others: more labels of the same tokens, by name.
    """
    text = running_text(result, model.tokens)
    windows = measured_windows(result, model)
    place = text.windows * (windows.length - 1) + text.position - 1
    expected = guesses(model, windows).take(place)
    names = token_names(model.tokens, expected.token)
    features = describe(text, loss=result["loss"].values, guesses=expected, names=names)
    text_alone = [group for group in GROUPS if group not in OUTPUT]
    rng = np.random.default_rng(seed)
    partitions = {
        "as found": found.labels,
        "shuffled": rng.permutation(found.labels),
        "shuffled among equal tokens": shuffled_within(found.labels, text.token_id, rng),
        **others,
    }
    speak = {"text": text_alone, "text and output": list(GROUPS)}
    found_rules = []
    for what, groups in speak.items():
        some = features.only(*groups)
        for labels, own in partitions.items():
            fitted = rules.rules(some, own, seed=seed)
            sure = [rule for rule in fitted if rule is not None and rule.confident]
            found_rules.append(
                {
                    "speak of": what,
                    "labels": labels,
                    "clusters": len(fitted),
                    "confident": list(wilson(len(sure) / len(fitted), len(fitted))),
                    "likely": sum(rule is not None and _likely(rule) for rule in fitted) / len(fitted),
                    "without": sum(rule is None for rule in fitted),
                    "same rule twice": sum(rule.halves == 2 for rule in sure),
                    "of the output": sum(_of_the_output(rule, some) for rule in sure),
                }
            )
    return found_rules


def shuffled_within(labels: Int[ndarray, " n"], groups: Int[ndarray, " n"], rng) -> Int[ndarray, " n"]:
    """Labels shuffled among the tokens of each group."""
    mixed, order, other = labels.copy(), np.argsort(groups, kind="stable"), rng.permutation(len(labels))
    mixed[order] = labels[other[np.argsort(groups[other], kind="stable")]]
    return mixed


def _likely(rule: rules.Rule) -> bool:
    """Whether precision and recall themselves, not their intervals, are what is asked for."""
    return rule.precision.value > rules.READABLE[0] and rule.recall.value > rules.READABLE[1]


def _of_the_output(rule: rules.Rule, features: Features) -> bool:
    group = {condition.text: condition.group for condition in features.conditions}
    listed = rules.LISTS["expected"]
    return any(group.get(text) in OUTPUT or text.startswith(listed) for text in rule.conditions)


def tables(folder: Path, report: Callable[[str], None] = print) -> tuple[dict, dict[str, ndarray]]:
    """What the chapter shows of finished runs: tables, and the clusters as arrays.

    Each table is kept in the folder when it is made, and not made again.
    """
    model, first = load_model("bundled", device="cpu"), folder / "first"
    found = open_clusters(first)
    of = functools.cache(lambda name: open_result(folder / name))
    make = {
        "calibration": lambda: calibration(found, open_clusters(folder / "fresh"), of("first")),
        "rules": lambda: readable(found, of("first"), model, {"the paper's rows": of_paper(of("first"))}),
        "controls": lambda: controls(of("first"), of("shuffled"), of("initial"), model),
        "against": lambda: against(*map(of, ("draws", "zero", "prose", "code", "first"))),
        "protocol": lambda: protocol(of("protocol"), of("first")),
        "ladder": lambda: ladder(of("draws"), of("zero"), of("first")),
    }
    table = {"settings": {"k": K, "min_size": MIN_SIZE, "repeats": REPEATS, "every": EVERY}}
    for name, one in make.items():
        table[name] = kept(folder / "tables", name, one, report)
    for name in ("cards", "matches"):
        about = json.loads((first / f"{name}.json").read_text())["about"]
        table[name] = {key: value for key, value in about.items() if key != "run"}  # where it lay is nobody's business
    table["manifests"] = {name: json.loads(of(name).attrs["manifest"]) for name in plans(folder)}
    arrays = {name: value for name, value in vars(found).items() if isinstance(value, ndarray)}
    return table, arrays | shown(folder, of("first"))


def shown(folder: Path, first) -> dict[str, ndarray]:
    """What map and catalogue show of tokens and clusters besides: length of rows, layout, nearest tokens, cards."""
    rows = rows_of(first)
    cards = save_cards(open_cards(folder / "first"), folder / "tables")  # without the name of the folder
    return {
        "length": np.linalg.norm(rows, axis=1).astype(np.float32),
        "layout": tokenmap.layout(unit(rows), k=K).astype(np.float16),
        "near": graph.nearest(unit(rows), NEAREST).indices.astype(np.uint16),
        "cards": np.frombuffer(cards.read_bytes(), dtype=np.uint8),
    }


def of_paper(result) -> Int[ndarray, " tokens"]:
    """The clusters of the paper's rows that ship with the book, of the same tokens.

    Raises:
        ValueError: if they are of others.
    """
    if not np.array_equal(result["token_id"].values, shipped.shipped_result()["token_id"].values):
        raise ValueError("the shipped measurement is of other tokens: make it anew first")
    return shipped.clusters().labels


def kept(folder: Path, name: str, make: Callable[[], list | dict], report: Callable[[str], None]) -> list | dict:
    """What is made once and then read from the folder."""
    file = folder / f"{name}.json"
    if not file.exists():
        report(f"making the table of {name}")
        folder.mkdir(exist_ok=True)
        text = json.dumps(make())
        write_whole(file, lambda part: part.write_text(text, encoding="utf-8"))
    return json.loads(file.read_text(encoding="utf-8"))


def write(folder: Path) -> None:
    """The tables of finished runs, in the folder ``made``.

    The first must have clusters, cards and matches, the fresh one clusters.
    """
    table, arrays = tables(folder)
    made = folder / "made"
    made.mkdir(exist_ok=True)
    (made / "resolved.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    np.savez_compressed(made / "resolved.npz", **arrays)
