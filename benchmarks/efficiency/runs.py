"""Chains of each cell, sampled on the bundled model: what they cost, and every draw that the analysis reads."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray

from spectrobook.directions import mirrored
from spectrolib.model.engine import Engine, one_thread
from spectrolib.model.loading import engine_of, load_model
from spectrolib.posterior import Chain, ChainError, lockstep
from spectrolib.run.plan import profile_windows
from spectrolib.run.profiles import get

from .analysis import response, sample_covariance
from .grid import CENTRE, COMPONENTS, LONG, OWN_DRAWS, Cell

PROBE_WINDOWS = 4


class Work(NamedTuple):
    """A model and the windows that a cell needs."""

    engine: Engine
    sampling: ndarray
    loss: ndarray
    probe: ndarray


def bundled_work() -> Work:
    """The bundled model, with the book's windows: all for minibatches and the loss, a few to probe."""
    model = load_model("bundled", device="cpu")
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
    with one_thread():
        try:
            parts = [replicate(work, cell, seed) for seed in range(cell.replicates)]
        except ChainError as error:
            return {"message": np.array(str(error))}
    return {key: np.stack([part[key] for part in parts]) for key in parts[0]}


def replicate(work: Work, cell: Cell, seed: int) -> dict[str, ndarray]:
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
    with one_thread():
        group = work.engine.group([component])
        rows = np.arange(min(windows, len(work.sampling)))
        _, (gradient,) = group.gradients(group.start, group.cache(work.sampling), rows)
        step = -0.3 * gradient / torch.linalg.vector_norm(gradient)
        return mirrored(work.engine, work.probe, {component: step[None]}).odd[0, :, 0]


def long_run(work: Work, component: str, draws: int = 500, replicates: int = 8) -> dict[str, ndarray]:
    """A long plain run, and the response: do they estimate the same number?

    They can agree only if the observable g and the loss that drives the chains are of the same text. So both take four
    loss windows, all of them at each step, and one probe window. At nβ = 0, where steps of the plain chain need no
    gradient and draws are cheap.

    Returns:
        ``plain``, ``response`` (replicates, tokens): minus the sample covariance of one chain of so many draws, and the
        response of one team of four chains with four draws.
    """
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
        quads = [replicate(small, teams, seed)["excess"] for seed in range(replicates)]
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
    cell = Cell(component, *CENTRE, "quad", replicates, OWN_DRAWS, batch=len(work.loss))
    with one_thread():
        parts = [replicate(work._replace(sampling=work.loss), cell, seed)["excess"] for seed in range(replicates)]
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
