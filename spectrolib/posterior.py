r"""The localised Gibbs posterior, and SGLD chains that sample it.

The posterior (paper, "Susceptibilities"; Lau et al. 2023) around the trained weights w* is

    p(w) ∝ exp{ -nβ L_n(w) - (γ/2) |w - w*|² }.

A step of stochastic-gradient Langevin dynamics with step size ε, plain or RMSProp-preconditioned, is

    v_t = a v_{t-1} + (1 - a) g_t²                                      (elementwise)
    G_t = 1 / (√v_t + e)                                                (plain SGLD: G = 1)
    w  += -(ε G_t / 2) [ nβ g_t + γ (w - w*) ] + √(ε G_t) N(0, I)

with g_t the gradient of the mean token loss on a minibatch, not scaled by nβ inside v. This is the update of the
authors' library ``devinterp`` 2.0.1 (v starts at 0, no bias correction, a = 0.99, e = 0.1, no divergence term Γ), which
a test checks step by step. ``rmsprop_corrected`` starts v at 1 and divides it by 1 - aᵗ, after the group's later paper;
the exact formula there is not known to us, so this reading is an inference.

Coupled chains
--------------
A chain can run as a *team*: chains that share noise and minibatches, each of them an ordinary SGLD chain.

* ``antithetic``: a second chain with mirrored noise, -ξ for ξ. Where the loss is close to quadratic around w*, the two
  chains lie nearly opposite each other, and terms of odd order in w - w* nearly cancel in the mean over both.
* ``tilt`` = η: chains at nβ + η and nβ - η. Since ∂ log p / ∂(nβ) = -(L - <L>), the one-chain susceptibility is a
  derivative with respect to nβ, which a difference between the two chains' means estimates:

      -Cov[L, f] = ∂<f> / ∂(nβ) = ( <f>_{nβ+η} - <f>_{nβ-η} ) / 2η + O(η²).

  With common noise the two positions stay close, so this difference has a much smaller variance than the sample
  covariance, which averages products of fluctuations. The method needs chains that forget their start; the pull of γ
  towards w* sees to that. It is described by Assaraf, Jourdain, Lelièvre and Roux (2018). The mean over both chains is
  the mean at nβ up to O(η²).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

Preconditioner = Literal["none", "rmsprop", "rmsprop_corrected"]
PRECONDITIONERS = ("none", "rmsprop", "rmsprop_corrected")


class Member(NamedTuple):
    """One chain of a team."""

    nbeta: float
    mirrored: bool
    """Whether its noise is -ξ."""
    tilt: float
    """Its nβ minus that of the settings: η, -η or 0."""


@dataclass(frozen=True)
class Settings:
    """Everything that defines the sampling of one posterior. One setting serves all components.

    Raises:
        ValueError: if a value is out of range; the message names it.
    """

    nbeta: float = 10.0
    """nβ, inverse temperature times sample size: the weight of the loss. With 0 the loss has no weight and the
    posterior is the Gaussian around w* alone, which serves as a control."""
    gamma: float = 300.0
    """Localisation γ: the precision (inverse variance) of the Gaussian around w*."""
    step_size: float = 3e-4
    """ε of the update."""
    batch_size: int = 16
    """Windows in a minibatch."""
    chains: int = 4
    draws: int = 100
    """Draws kept from each chain."""
    steps_between_draws: int = 10
    burn_in: int = 0
    """Steps that are discarded; the first draw comes ``steps_between_draws`` steps after them."""
    preconditioner: Preconditioner = "rmsprop"
    rms_decay: float = 0.99
    """a of the update."""
    rms_epsilon: float = 0.1
    """e of the update."""
    share_batches: bool = True
    """Whether all chains see the same minibatches (they then differ by noise only), or each its own."""
    antithetic: bool = False
    """Whether each chain has a twin with mirrored noise (module docstring)."""
    tilt: float = 0.0
    """η: each chain runs at nβ + η and at nβ - η with the same noise (module docstring). 0: at nβ alone.
    nβ - η may lie below 0, as it does around nβ = 0; γ then has to hold the chain."""
    max_rise: float = 10.0
    """The largest rise of the loss, in nats, that still counts as local; a chain that exceeds it ends with
    `ChainError`. At every step the minibatch loss is compared with that of the first step, and at every draw of a
    measurement the loss on fixed windows with L(w*)."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.preconditioner not in PRECONDITIONERS:
            raise ValueError(f"preconditioner must be one of {PRECONDITIONERS}, got {self.preconditioner!r}")
        for name in ("batch_size", "chains", "draws", "steps_between_draws"):
            _require_integer(self, name, 1)
        for name in ("burn_in", "seed"):
            _require_integer(self, name, 0)
        for name in ("gamma", "step_size", "rms_epsilon"):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)!r}")
        if not self.max_rise > 0:
            raise ValueError(f"max_rise must be positive, got {self.max_rise!r}")
        for name in ("nbeta", "tilt"):
            if not (getattr(self, name) >= 0 and math.isfinite(getattr(self, name))):
                raise ValueError(f"{name} must be zero or positive, got {getattr(self, name)!r}")
        if not 0 < self.rms_decay < 1:
            raise ValueError(f"rms_decay must lie between 0 and 1, got {self.rms_decay!r}")
        if (
            not all(map(self.drives, self.members)) and self.relaxed_fraction() >= 2
        ):  # no loss is looked at that could report it
            raise ValueError(
                "step_size * gamma / 2 must be below 2, or the nbeta = 0 chain diverges: "
                f"got {self.relaxed_fraction():g}, so lower step_size (now {self.step_size:g})"
            )

    @property
    def steps(self) -> int:
        """Steps of one chain."""
        return self.burn_in + self.draws * self.steps_between_draws

    @property
    def members(self) -> list[Member]:
        """The chains of a team: 4, 2 or 1, as ``antithetic`` and ``tilt`` are both, one or none in use.

        Order: not mirrored before mirrored; within each, nβ + η before nβ - η.
        """
        tilts = (self.tilt, -self.tilt) if self.tilt else (0.0,)
        return [
            Member(self.nbeta + tilt, mirrored, tilt)
            for mirrored in ((False, True) if self.antithetic else (False,))
            for tilt in tilts
        ]

    @property
    def needs_gradient(self) -> bool:
        """Whether any chain of a team needs the gradient of the loss; False for plain SGLD at nβ = 0."""
        return any(self.drives(member) for member in self.members)

    def drives(self, member: Member) -> bool:
        """Whether the gradient of the loss enters the updates of a chain: through nβ, or through the preconditioner."""
        return member.nbeta != 0 or self.preconditioner != "none"

    def plain(self) -> Settings:
        """Settings for the same posterior with uncoupled chains, and as many draws in all."""
        return replace(self, draws=self.draws * len(self.members), antithetic=False, tilt=0.0)

    def relaxed_fraction(self, precondition: float = 1.0) -> float:
        """εGγ/2: the part of its distance to w* that a weight loses in one step; keep it below about 0.2.

        ``precondition`` is G: 1 for plain SGLD, at most 1/rms_epsilon for RMSProp.
        """
        return self.step_size * precondition * self.gamma / 2


def _require_integer(settings: Settings, name: str, least: int) -> None:
    value = getattr(settings, name)
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")


class ChainError(RuntimeError):
    """The loss of a chain became non-finite, or rose by more than ``Settings.max_rise``."""


def stable_seed(*parts: object) -> int:
    """A 63-bit seed that depends on ``parts`` alone: not on the process, the order of tasks or the platform."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def minibatches(windows: int, settings: Settings, chain: int) -> Iterator[np.ndarray]:
    """An endless stream of minibatches: arrays of ``settings.batch_size`` window indices.

    Each pass over the windows takes them in a new random order. The order depends on the seed and, unless the chains
    share their batches, on the chain; never on the component.

    Raises:
        ValueError: if there are no windows.
    """
    if windows < 1:
        raise ValueError("there are no sampling windows: give at least one")
    rng = np.random.default_rng(stable_seed("batches", settings.seed, 0 if settings.share_batches else chain))
    queue = np.empty(0, dtype=np.int64)
    while True:
        while len(queue) < settings.batch_size:
            queue = np.concatenate([queue, rng.permutation(windows)])
        yield queue[: settings.batch_size]
        queue = queue[settings.batch_size :]


class Chain:
    """One SGLD chain: its current weights, the state of its preconditioner, and its noise generator.

    Args:
        start: w* restricted to the component, flat.
        name: the component. Name, ``settings.seed`` and ``chain`` together fix the noise.
        chain: number of the chain.
        member: nβ and the sign of the noise, for a chain of a team; by default those of a chain on its own.
    """

    def __init__(
        self,
        start: Float[Tensor, " parameters"],
        settings: Settings,
        *,
        name: str = "",
        chain: int = 0,
        member: Member | None = None,
    ):
        self.settings, self.name, self.chain = settings, name, chain
        self.member = member or Member(settings.nbeta, False, 0.0)
        self.driven = settings.drives(self.member)
        self.centre = start.detach()
        self.position = start.detach().clone()
        self.generator = torch.Generator(start.device).manual_seed(stable_seed("noise", settings.seed, name, chain))
        self.steps = 0
        if settings.preconditioner != "none":
            begin = 1.0 if settings.preconditioner == "rmsprop_corrected" else 0.0
            self.square = torch.full_like(self.position, begin)

    def precondition(self, gradient: Tensor) -> Tensor:
        """Update v_t with the gradient, and return G_t (module docstring)."""
        s = self.settings
        self.square.mul_(s.rms_decay).addcmul_(gradient, gradient, value=1 - s.rms_decay)
        correction = 1 - s.rms_decay**self.steps if s.preconditioner == "rmsprop_corrected" else 1.0
        return (self.square / correction).sqrt_().add_(s.rms_epsilon).reciprocal_()

    def step(self, gradient: Float[Tensor, " parameters"] | None) -> None:
        """One SGLD update, in place.

        Args:
            gradient: of the mean minibatch loss at ``position``. None leaves the loss out, which only plain SGLD can
                do.

        Raises:
            ValueError: if the chain is preconditioned and there is no gradient.
        """
        s = self.settings
        self.steps += 1
        drift = (self.position - self.centre).mul_(s.gamma)
        if gradient is not None:
            drift.add_(gradient, alpha=self.member.nbeta)
        noise = torch.empty_like(self.position).normal_(generator=self.generator)  # not kept: chains are many
        amplitude = -(s.step_size**0.5) if self.member.mirrored else s.step_size**0.5
        if s.preconditioner == "none":
            self.position.add_(drift, alpha=-s.step_size / 2).add_(noise, alpha=amplitude)
        elif gradient is None:
            raise ValueError("a preconditioned step needs the gradient of the loss")
        else:
            scale = self.precondition(gradient)
            self.position.addcmul_(scale, drift, value=-s.step_size / 2)
            self.position.addcmul_(scale.sqrt_(), noise, value=amplitude)

    def check(self, rise: float, draw: int) -> None:
        """Raise a `ChainError` unless the rise of the loss (nats) is finite and at most ``max_rise``.

        ``draw`` is the number of the draw that the message names.
        """
        s = self.settings
        if math.isfinite(rise) and rise <= s.max_rise:
            return
        what = f"rose by {rise:.3g}, more than {s.max_rise:g}" if math.isfinite(rise) else "is not finite"
        raise ChainError(
            f"component {self.name or 'unnamed'}, chain {self.chain}, draw {draw}: the loss {what}. "
            f"The chain is no longer local: lower step_size (now {s.step_size:g}) if the loss jumped, "
            f"else raise gamma (now {s.gamma:g}) or raise nbeta (now {s.nbeta:g}) so that the loss holds it."
        )


def team(start: Float[Tensor, " parameters"], settings: Settings, *, name: str = "", chain: int = 0) -> list[Chain]:
    """The team of chain number ``chain``: a chain for each of ``settings.members``, in that order."""
    return [Chain(start, settings, name=name, chain=chain, member=member) for member in settings.members]


@dataclass(frozen=True)
class Draw:
    """One draw of all chains that run in lockstep: their positions and minibatch losses."""

    index: int
    step: int
    positions: tuple[Tensor, ...]
    """Flat weights of each chain. The next step overwrites these tensors: copy what you keep."""
    losses: tuple[float, ...]
    """Minibatch loss of each chain at its last step, before the update (nan if no gradient was needed)."""

    @property
    def position(self) -> Tensor:
        """The weights of the first chain (the only one, unless chains are coupled)."""
        return self.positions[0]


# Positions of the driven chains -> their losses and the gradients of their mean losses, on the minibatch of this step.
Gradients = Callable[[Sequence[Tensor]], tuple[Sequence[float], Sequence[Tensor]]]


@runtime_checkable
class Sampled(Protocol):
    """A model whose components can be sampled, as `sample` needs it: a `LanguageModel` is one."""

    def moving(
        self, component: str, windows, settings: Settings, chain: int
    ) -> tuple[Float[Tensor, " parameters"], Gradients]:
        """w* restricted to the component, flat, and the gradients of its driven chains on their minibatches."""


def lockstep(chains: Sequence[Chain], gradients: Gradients, settings: Settings) -> Iterator[Draw]:
    """Advance all chains one step at a time, with one call of ``gradients`` a step, and yield every draw.

    Moving together lets the chains share the cost of a minibatch. ``gradients`` gets the positions of the chains that
    need the loss (`Settings.drives`), and no others.

    Raises:
        ChainError: at the first step at which a loss is not finite or rose by more than ``settings.max_rise``.
    """
    driven = [chain for chain in chains if chain.driven]
    free = [chain for chain in chains if not chain.driven]
    losses: Sequence[float] = []
    first: Sequence[float] = ()
    for step in range(1, settings.steps + 1):
        draw, offset = divmod(step - settings.burn_in - 1, settings.steps_between_draws)
        if driven:
            losses = _advance(driven, gradients, first, max(draw, 0))
            first = first or losses
        for chain in free:
            chain.step(None)
        if step > settings.burn_in and offset == settings.steps_between_draws - 1:
            known = iter(losses)
            yield Draw(
                draw,
                step,
                tuple(chain.position for chain in chains),
                tuple(next(known) if chain.driven else math.nan for chain in chains),
            )


def _advance(driven: Sequence[Chain], gradients: Gradients, first: Sequence[float], draw: int) -> Sequence[float]:
    """One step of the chains that need the loss; returns their losses before the step.

    The gradients go out of scope here, so their memory is free before the caller evaluates a draw.
    """
    losses, slopes = gradients([chain.position for chain in driven])
    for chain, loss, begin, slope in zip(driven, losses, first or losses, slopes, strict=True):
        chain.check(loss - begin, draw)
        chain.step(slope)
    return losses


def sample(
    potential_or_model,
    settings: Settings,
    *,
    start: Float[Tensor, " parameters"] | None = None,
    component: str = "full",
    windows=None,
    chain: int = 0,
) -> Iterator[Draw]:
    """The draws of one chain, one by one. Where chains are coupled, a draw holds the whole team (`Settings.members`).

    Args:
        potential_or_model: a differentiable function L(w) of a flat tensor that returns a scalar tensor, or a model
            (`Sampled`).
        settings: the posterior and its sampler; ``draws`` draws are yielded.
        start: w*, for a function.
        component: the block of weights that moves, for a language model; every other weight stays as it is.
        windows: `Windows` or an integer array (windows, length) from which minibatches are drawn, for a language model.
        chain: number of the chain. Chains with the same seed and different numbers differ in their noise.

    Raises:
        ValueError: for an unknown component, or where ``start`` or ``windows`` is missing.
        ChainError: if the loss is not finite or rises by more than ``settings.max_rise``.
    """
    if isinstance(potential_or_model, Sampled):
        if windows is None:
            raise ValueError("sampling a language model needs windows: token windows to draw minibatches from")
        begin, gradients = potential_or_model.moving(component, windows, settings, chain)
    else:
        if start is None:
            raise ValueError("sampling a potential needs start: the flat tensor w* around which it is localised")
        begin, gradients = start, _autograd(potential_or_model)
    yield from lockstep(team(begin, settings, name=component, chain=chain), gradients, settings)


def _autograd(potential: Callable[[Tensor], Tensor]) -> Gradients:
    def gradients(positions: Sequence[Tensor]) -> tuple[list[float], list[Tensor]]:
        leaves = [position.detach().clone().requires_grad_() for position in positions]
        losses = [potential(leaf) for leaf in leaves]
        slopes = torch.autograd.grad(losses, leaves)
        return [loss.item() for loss in losses], list(slopes)

    return gradients
