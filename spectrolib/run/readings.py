"""Readings: the losses of the loss windows and the probe windows at each draw of some chains.

Most callers need `readings`, which samples the chains of some components in lockstep and evaluates every draw. Its
three steps, `teams`, `sampled` and `read`, serve other kinds of chains, and draws that come from a bank.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from ..model.engine import Engine, Group
from ..posterior import Chain, Draw, Settings, lockstep, team


@dataclass(frozen=True)
class Reading:
    """Losses at one draw of chains that run in lockstep, nats. Members stand team by team, as in `teams`."""

    draw: Draw
    loss: Float[Tensor, "members windows time"]
    """On the loss windows."""
    probe: Float[Tensor, "members windows time"]
    """On the probe windows."""
    rise: Float[Tensor, " members"]
    """g = L(w) - L(w*), with L the mean over the loss windows."""
    probe_start: Float[Tensor, " tokens"]
    """On the probe windows at w*."""

    @property
    def change(self) -> Float[Tensor, "members tokens"]:
        """l_xy(w) - l_xy(w*)."""
        return self.probe.double().flatten(1) - self.probe_start

    @property
    def excess(self) -> Float[Tensor, "members tokens"]:
        """d_xy = l_xy(w) - L(w), minus its value at w*. That constant changes no estimate, and would cost digits."""
        return self.change - self.rise[:, None]


def readings(
    engine: Engine, names: Sequence[str], chain: int, settings: Settings, *, sampling, probe, loss=None
) -> Iterator[Reading]:
    """Sample chain number ``chain`` of some components of one group (`engine.groups`), and read every draw.

    Args:
        sampling: windows that minibatches are drawn from.
        probe, loss: windows that are read, as for `read`.

    Raises:
        ChainError: if a loss is not finite, or a chain is no longer local.
    """
    group, chains = teams(engine, names, settings, chain)
    yield from read(group, chains, sampled(group, chains, settings, sampling), probe=probe, loss=loss)


def teams(engine: Engine, names: Sequence[str], settings: Settings, chain: int) -> tuple[Group, list[Chain]]:
    """The teams of chain number ``chain`` of each component: the group that moves them together, and their chains.

    Members stand team by team, each team in the order of ``settings.members``.
    """
    size = len(settings.members)
    group = engine.group([name for name in names for _ in range(size)])
    starts = zip(names, group.start[::size], strict=True)
    return group, [member for name, start in starts for member in team(start, settings, name=name, chain=chain)]


def sampled(group: Group, chains: Sequence[Chain], settings: Settings, sampling) -> Iterator[Draw]:
    """The draws of the chains, one for each member of the group, on minibatches of the sampling windows."""
    driven = [member for member, chain in zip(group.members, chains, strict=True) if chain.driven]
    moving = group.engine.group(driven or group.members)
    return lockstep(chains, moving.minibatch_gradients(sampling, settings, chains[0].chain), settings)


def read(group: Group, chains: Sequence[Chain], draws: Iterable[Draw], *, probe, loss=None) -> Iterator[Reading]:
    """The readings of the draws of some chains, one for each member of the group.

    Args:
        probe: windows whose tokens are read.
        loss: windows on which L(w) and L(w*) are both taken; by default the probe windows.

    Raises:
        ChainError: if a loss is not finite, or a chain is no longer local.
    """
    engine, cached = group.engine, group.cache(probe)
    probe_start = engine.losses(probe).double().flatten()
    text = None if loss is None else group.cache(loss)
    loss_start = probe_start.mean() if loss is None else engine.losses(loss).double().mean()
    for draw in draws:
        rows = group.losses(draw.positions, cached)
        losses = rows if text is None else group.losses(draw.positions, text)
        rise = losses.double().mean(dim=(1, 2)) - loss_start
        for chain, own in zip(chains, rise.tolist(), strict=True):
            chain.check(own, draw.index)
        yield Reading(draw, losses, rows, rise, probe_start)
