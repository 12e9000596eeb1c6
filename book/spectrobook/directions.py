r"""Slopes of all token losses at w*: the susceptibility to leading order, and what other directions give instead.

Where the posterior of a component is narrow, its susceptibility is a product of slopes (`exact`; chapter Response),

    χ_xy = -<∇L, ∇d_xy> / γ + terms of order 1/γ²,          d_xy = l_xy - L,

the derivative of d_xy along one direction of weight space, ∇L. Put any other direction a there: the result is what an
observable with the gradient a would give. With a normal, a row of such slopes is a random projection of the token's
gradient, so that on average over a

    E[ <a, ∇l> <a, ∇l'> ] = <∇l, ∇l'>,                      a ~ N(0, I),

which divided by γ is the covariance Cov(l, l') of two losses at nβ = 0 to leading order: the influence kernel. Nothing
is sampled here, so rows of either kind hold no sampling noise, and can be compared as they are.

Slopes are central differences through the engine: PyTorch's forward mode does not pass its attention kernel.
``python -m spectrobook slopes`` makes those of the bundled model that ship with the project.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from spectrolib.model.components import blocks, check_component, gather, weight_count
from spectrolib.model.engine import Engine, groups, one_thread
from spectrolib.model.gradients import mean_gradient
from spectrolib.model.loading import engine_of
from spectrolib.posterior import stable_seed
from spectrolib.run.plan import Plan

from . import DATA

REACH = 0.3
"""Length of a step in weights: small for a shake at γ = 300, whose length is some 7, and large against rounding."""


class Parts(NamedTuple):
    """How losses change between w* - v and w* + v, nats."""

    odd: Float[ndarray, "directions tokens components"]
    """½ [l(w* + v) - l(w* - v)]: to leading order the slope <v, ∇l>."""
    even: Float[ndarray, "directions tokens components"]
    """½ [l(w* + v) + l(w* - v)] - l(w*): to leading order half the curvature, ½ vᵀ∇²l v."""


def mirrored(engine: Engine, windows, moves: Mapping[str, Float[Tensor, "directions parameters"]]) -> Parts:
    """Odd and even part of every token's loss, for steps of each component from w* while the others stay there.

    Args:
        windows: `Windows` or token ids (windows, length); the first token of each has no loss.
        moves: the steps v of each component, as many for one as for another; the order is that of the result.

    Raises:
        ValueError: for no component or an unknown one, steps of a wrong shape, or different numbers of steps.
    """
    _check_moves(engine, moves)
    start = engine.losses(windows).flatten()
    columns: dict[str, tuple[Tensor, Tensor]] = {}
    for names in groups(list(moves)):
        count = len(moves[names[0]])
        group = engine.group([name for name in names for _ in range(count)])
        cached, steps = group.cache(windows), [v.to(engine.device) for name in names for v in moves[name]]
        above, below = (
            group.losses([w + sign * v for w, v in zip(group.start, steps, strict=True)], cached).flatten(1).double()
            for sign in (1, -1)
        )
        odd, even = (above - below) / 2, (above + below) / 2 - start
        for i, name in enumerate(names):
            mine = slice(i * count, (i + 1) * count)
            columns[name] = odd[mine], even[mine]
    stacked = (torch.stack([columns[name][part] for name in moves], dim=-1) for part in (0, 1))
    return Parts(*(part.cpu().numpy() for part in stacked))


def slopes(
    engine: Engine, windows, directions: Mapping[str, Float[Tensor, "directions parameters"]], *, reach: float = REACH
) -> Float[ndarray, "directions tokens components"]:
    """<a, ∇l> at w* for every token and every direction a of each component.

    A central difference over a step of length ``reach``; it errs by a sixth of reach² times the third derivative along
    a, and by rounding of about 1e-7 nats / reach times |a|.

    Args:
        windows, directions: as for `mirrored`; directions of any length but zero.

    Raises:
        ValueError: as `mirrored`; or for a direction of length zero.
    """
    lengths = {name: a.norm(dim=-1, keepdim=True) for name, a in directions.items()}
    for name, length in lengths.items():
        if not (length > 0).all():
            raise ValueError(f"a direction of component {name!r} has no length: there is no slope along it")
    odd = mirrored(engine, windows, {name: a * (reach / lengths[name]) for name, a in directions.items()}).odd
    scale = np.stack([lengths[name][:, 0].cpu().numpy() for name in directions], axis=-1) / reach
    return odd * scale[:, None]


def mean_gradients(engine: Engine, windows, components: Sequence[str]) -> dict[str, Float[Tensor, " parameters"]]:
    """∇L at w* for each component, L the mean loss over all tokens of the windows."""
    whole = mean_gradient(engine, windows)
    return {name: gather(whole, blocks(name, engine.shape, tuple(whole))) for name in components}


def random_directions(
    engine: Engine, components: Sequence[str], count: int, *, seed: int = 0
) -> dict[str, Float[Tensor, "directions parameters"]]:
    """Standard normal directions of each component: they depend on its name and the seed alone."""
    found = {}
    for name in components:
        generator = torch.Generator().manual_seed(stable_seed("directions", seed, name))
        found[name] = torch.randn(count, weight_count(name, engine.shape), generator=generator).to(engine.device)
    return found


def _check_moves(engine: Engine, moves: Mapping[str, Tensor]) -> None:
    if not moves:
        raise ValueError("there are no steps: give those of one component at least")
    for name, steps in moves.items():
        check_component(name, engine.shape)
        parameters = weight_count(name, engine.shape)
        if steps.ndim != 2 or steps.shape[1] != parameters or len(steps) == 0:
            raise ValueError(
                f"steps of component {name!r} must have the shape (directions, {parameters}), got {tuple(steps.shape)}"
            )
    counts = {name: len(steps) for name, steps in moves.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"every component needs as many steps as every other, got {counts}")


# What ships with the project -----------------------------------------------------------------------------------------

SHIPPED = DATA / "directions.npz"
KINDS = ("loss 1", "loss 2", "random 1", "random 2", "random 3", "draw")
"""Slopes along ∇L of two separate texts; along three random directions; and the whole change of the loss for the draw
from N(w*, I/γ) that lies along the first of them."""


@dataclass(frozen=True)
class Table:
    """Slopes of the tokens of some probe windows, by kind (`KINDS`)."""

    values: Mapping[str, Float[ndarray, "tokens components"]]
    components: tuple[str, ...]
    windows: Int[ndarray, " windows"]
    """Which of the probe windows."""
    gamma: float
    """Of the draw."""
    hashes: Mapping[str, str]
    """Of the model and the probe windows."""

    def save(self, file: str | Path) -> None:
        """Write a small file: half precision, each column by its standard deviation."""
        stacked = np.stack([self.values[kind] for kind in KINDS])
        scale = stacked.std(axis=1, keepdims=True)
        np.savez_compressed(
            file,
            values=(stacked / scale).astype(np.float16),
            scale=scale.astype(np.float32),
            components=np.array(self.components),
            windows=self.windows,
            gamma=self.gamma,
            **{f"hash_{name}": value for name, value in self.hashes.items()},
        )

    @classmethod
    def open(cls, file: str | Path) -> Table:
        """Read what `save` wrote."""
        with np.load(file) as held:
            values = held["values"].astype(np.float64) * held["scale"]
            return cls(
                dict(zip(KINDS, values, strict=True)),
                tuple(held["components"].tolist()),
                held["windows"],
                held["gamma"].item(),
                {name: held[f"hash_{name}"].item() for name in ("model", "probe")},
            )


def tabulate(plan: Plan, *, every: int = 2, text: int = 64, seed: int = 0) -> Table:
    """Slopes of every so many probe windows of a plan, for all its components.

    Args:
        every: take each window whose number is a multiple of this.
        text: windows of each of the two texts that define ∇L, spread over the sampling windows and disjoint.
    """
    engine, components = engine_of(plan.model), plan.components
    windows = np.arange(0, len(plan.probe), every)
    probe = plan.probe.take(windows)
    texts = _disjoint(len(plan.sampling), text)
    gamma = plan.settings.gamma
    with one_thread():
        loss = [mean_gradients(engine, plan.sampling.take(rows), components) for rows in texts]
        random = random_directions(engine, components, 3, seed=seed)
        along = {name: torch.cat([torch.stack([a[name] for a in loss]), random[name]]) for name in components}
        found = list(slopes(engine, probe, along))
        draw = mirrored(engine, probe, {name: random[name][:1] / gamma**0.5 for name in components})
    found.append(draw.odd[0] + draw.even[0])
    values = {kind: table.astype(np.float64) for kind, table in zip(KINDS, found, strict=True)}
    return Table(values, components, windows, gamma, {"model": plan.model.hash, "probe": plan.probe.hash})


def _disjoint(available: int, wanted: int) -> Iterator[Int[ndarray, " wanted"]]:
    """Two sets of windows, each spread over all that there are."""
    if 2 * wanted > available:
        raise ValueError(f"two texts of {wanted} windows need {2 * wanted} sampling windows, there are {available}")
    both = np.arange(2 * wanted) * available // (2 * wanted)
    return iter((both[::2], both[1::2]))


def shipped() -> Table:
    """The table that ships with the project: the bundled model, every other probe window of profile ``book``."""
    return Table.open(SHIPPED)
