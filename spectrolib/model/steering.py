"""Steering: a few gradient steps on text in which a chosen set of tokens has more weight.

The text is tilted towards a set S of tokens as the paper tilts a data distribution, q_h = q + h (q_S - q). The loss is

    L_h = (1 - h) L + h L_S,

with L the mean loss of the text and L_S that of the set. Steps w -= η ∇L_h start at w*. The effect of the tilt is the
difference to the same number of steps at h = 0. To first order in ηh, the tilt lowers the loss l of any token by

    η steps h ∇l · (∇L_S - ∇L).

So the effect of steering is predicted by inner products of gradients, here over all weights of the model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from .engine import Engine
from .gradients import mean_gradient, weighted_gradient


@dataclass(frozen=True)
class Steering:
    """How strong the tilt is, and how far the steps go.

    Raises:
        ValueError: if a value is out of range; the message names it.
    """

    h: float = 0.5
    """Weight of the set's mean loss; the mean loss of the text has weight 1 - h."""
    steps: int = 3
    """Number of gradient steps."""
    fall: float = 0.01
    """Nats by which a step at h = 0 would lower the loss of the text, to first order: it fixes η = fall / |∇L|²."""

    def __post_init__(self) -> None:
        if not 0 < self.h <= 1:
            raise ValueError(f"h must lie above 0 and be at most 1, got {self.h}")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if not self.fall > 0:
            raise ValueError(f"fall must be positive, got {self.fall}")


class Steered:
    """A model that is steered on one text, with losses before and after on another.

    Args:
        engine: the model at w*, left as it is.
        text: windows whose mean loss is L.
        fit: windows that hold the sets S.
        test: windows whose losses are compared.
    """

    def __init__(self, engine: Engine, text, fit, test, settings: Steering = Steering()):
        self.engine, self.settings = engine, settings
        self.text, self.fit, self.test = (engine.ids(windows) for windows in (text, fit, test))
        self.slope = mean_gradient(engine, self.text)  # of the first step, whatever the set
        self.rate = settings.fall / float(sum(part.double().square().sum() for part in self.slope.values()))
        self.plain = self._after(0.0, None)

    def fall(self, chosen: Int[ndarray, " set"]) -> Float[ndarray, " tokens"]:
        """How much more the loss of each token of the test windows falls with the tilt than without, nats.

        Args:
            chosen: the set S: numbers of tokens of the fit windows, counted from 0 through all windows, without the
                first token of each, which nothing predicts.

        Raises:
            ValueError: for an empty set, or a number that is out of range.
        """
        tokens = self.fit[:, 1:].numel()
        chosen = np.unique(chosen)
        if not len(chosen) or chosen[0] < 0 or chosen[-1] >= tokens:
            raise ValueError(f"a set holds some of the {tokens} tokens of the fit windows, numbered from 0")
        weights = torch.zeros(tokens, device=self.engine.device)
        weights[torch.as_tensor(chosen, device=self.engine.device)] = 1 / len(chosen)
        return (self.plain - self._after(self.settings.h, weights.view(len(self.fit), -1))).cpu().numpy()

    def _after(self, h: float, weights: Tensor | None) -> Float[Tensor, " tokens"]:
        """Losses of the test windows after the steps."""
        engine = self.engine
        for step in range(self.settings.steps):
            slope = mean_gradient(engine, self.text) if step else self.slope
            if weights is not None:
                own = weighted_gradient(engine, self.fit, weights)
                slope = {name: (1 - h) * part + h * own[name] for name, part in slope.items()}
            moved = {name: w - self.rate * slope[name] for name, w in engine.weights.items()}
            engine = Engine(engine.shape, moved, tokens_per_pass=engine.tokens_per_pass)
        return engine.losses(self.test).double().flatten()
