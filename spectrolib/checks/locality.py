"""Whether a posterior is local: how far Gaussian noise of variance 1/γ raises the loss, tried before any sampling.

At nβ = 0 the posterior is a normal one around w*, of variance 1/γ in each weight, so its width is known. The paper's γ
(300) suits its models. A larger model has more weights to shake, and the same γ can be far too loose for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ..model.components import FULL
from ..model.engine import Engine
from ..posterior import Settings, stable_seed

STEP = math.sqrt(10)
"""Between values of γ that are tried for one that would do."""
LARGEST = 1e9
"""The last one."""


class TooLoose(ValueError):
    """Noise of the posterior's width leaves the neighbourhood of w*."""


def rise_at(engine: Engine, gamma: float, windows, *, component: str = FULL, seed: int = 0) -> float:
    """How far two mirrored draws from N(w*, 1/γ) in a component's weights raise the mean loss, nats.

    Args:
        windows: `Windows`, or token ids (windows, length), that the loss is taken on.
    """
    group = engine.group([component] * 2)
    generator = torch.Generator(group.start[0].device).manual_seed(stable_seed("width", seed, component))
    noise = torch.randn(group.start[0].shape, generator=generator, device=generator.device) / math.sqrt(gamma)
    moved = [group.start[0] + noise, group.start[0] - noise]
    return float(group.losses(moved, group.cache(windows)).double().mean() - engine.losses(windows).double().mean())


def check_locality(engine: Engine, settings: Settings, windows, components: Sequence[str] = (FULL,)) -> None:
    """Refuse a γ at which a chain would leave the neighbourhood of w*.

    Nothing is checked where no chain has nβ = 0, since the loss itself may then keep chains near w*.

    Args:
        windows: those that the loss is taken on.
        components: what chains run for. The whole model, where it is among them, is shaken the most.

    Raises:
        TooLoose: if noise of the posterior's width raises the loss by more than ``settings.max_rise``, with a γ that
            would do.
    """
    if all(member.nbeta for member in settings.members):
        return
    rises = {
        name: rise_at(engine, settings.gamma, windows, component=name)
        for name in ([FULL] if FULL in components else components)
    }
    loudest, rise = max(rises.items(), key=lambda item: math.inf if math.isnan(item[1]) else item[1])
    if rise <= settings.max_rise:
        return
    gamma = settings.gamma
    while not rise_at(engine, gamma, windows, component=loudest) <= settings.max_rise / 10 and gamma < LARGEST:
        gamma *= STEP
    where = "all its weights" if loudest == FULL else loudest
    raise TooLoose(
        f"gamma {settings.gamma:g} is too loose for this model: noise of that width in {where} raises the loss "
        f"by {rise:.3g} nats, more than max_rise ({settings.max_rise:g}). --gamma {float(f'{gamma:.1g}'):g} would do"
    )
