"""A few gradient steps on text in which some tokens count for more, everything else equal.

The text is tilted towards a set S of tokens as the paper tilts a data distribution, q_h = q + h (q_S - q): its loss is

    L_h = (1 - h) L + h L_S,

with L the mean loss of the text and L_S that of the set. Steps w -= η ∇L_h start at w*. What the tilt does is the
difference to as many steps at h = 0. To first order in ηh the loss of any token falls by

    η steps h ∇l · (∇L_S - ∇L),

so steering asks the same of the model as a kernel of gradients does, in one stroke for all weights.
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
    """How far, and how hard.

    Raises:
        ValueError: if a value is out of range; the message names it.
    """

    h: float = 0.5
    """Weight of the set's mean loss; the text's has the rest."""
    steps: int = 3
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
    """A model, a text to steer it on, and another to see what that does.

    Args:
        text: windows whose loss is L.
        fit: windows that sets are taken from.
        test: windows whose losses are looked at.
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
            chosen: the set, by the numbers of its tokens among those of the fit windows, where the first token of each
                window, which nothing predicts, is not counted.

        Raises:
            ValueError: for an empty set, or a token that there is not.
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
