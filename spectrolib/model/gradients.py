r"""The gradient of every token's loss with respect to every component's weights at w*, sketched.

Add independent noise of variance 1/γ to each weight of a component, and look at the losses of two tokens. To first
order each changes by the inner product of its gradient with the noise, so that

    Cov_C( l_xy, l_x'y' ) = ∇_C l_xy · ∇_C l_x'y' / γ  +  O(1/γ²)        (nβ = 0) [D].

So gradients can take the place of the channels of resolved rows (`estimator`), without a chain: there is no sampling
noise, and no γ, ε or number of draws to choose. A gradient has as many entries as the component has weights. What is
kept is a *sketch*: its product with a random matrix S of ``width`` columns and entries ±1/√width. Each component has an
S of its own. Inner products of sketches equal those of gradients on average over S; a squared length has a relative
variance of about 2/width.

One backward pass for each token gives the gradients of all components. It runs only through what the token depends on:
its own row of logits, and the positions up to it. For a matrix W that maps x to y the gradient is Σ_s δ_s x_sᵀ over
positions s, with δ_s the gradient with respect to y_s. Where a side of W is longer than `SIDE` (a vocabulary, a wide
layer), that side is first reduced to `REDUCED` dimensions by another random matrix, which adds 2/`REDUCED` to the
variance for each such side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ..posterior import stable_seed
from .components import FULL, Block, blocks, check_component
from .engine import Engine
from .layers import activate, embed, forward, norm, norms_of
from .loss import cross_entropy
from .operations import REDUCED, SIDE
from .shapes import HEAD_NORMS, Shape

TARGETS = 32
"""Tokens whose backward passes run together."""


class Found(NamedTuple):
    """Losses and sketched gradients of one window, for every token but its first."""

    losses: Float[Tensor, " time"]
    """Loss of each token, nats."""
    rows: Float[Tensor, "halves time components width"]
    """Sketched gradients; the halves are independent sketches of the same gradients."""
    slopes: Float[Tensor, "time components"]
    """∇_C l · ∇_C L, not sketched: how fast a token's loss falls when the component C descends the gradient of the mean
    loss L. Zero if no mean gradient was given."""


def random_signs(rows: int, columns: int, *name: object, like: Tensor) -> Float[Tensor, "rows columns"]:
    """A random matrix S with entries ±1/√columns, so that E[S Sᵀ] = 1. ``name`` alone decides its seed."""
    generator = torch.Generator().manual_seed(stable_seed("signs", *name))
    signs = torch.randint(0, 2, (rows, columns), generator=generator, dtype=torch.int8)
    return ((2 * signs - 1) / math.sqrt(columns)).to(like)


class Side(NamedTuple):
    """One side of a block: its rows (or columns) of the matrix, and the random matrix that reduces them, if any."""

    index: slice
    reduce: Tensor | None

    def __call__(self, x: Float[Tensor, "... size"]) -> Float[Tensor, "... kept"]:
        """The block's part of the whole matrix's inputs or outputs, reduced if the side is long."""
        x = x[..., self.index]
        return x if self.reduce is None else x @ self.reduce


class Sketch:
    """The sketch of the gradient of one block of a component's weights: a matrix (outputs, inputs), or a bias.

    In embedding and unembedding the tokens of the vocabulary count as outputs.
    """

    def __init__(self, block: Block, weight: Tensor, width: int, seed: tuple, transposed: bool = False):
        index = (block.index + (slice(None),) * 2)[: weight.ndim]
        sizes = [len(range(*part.indices(size))) for part, size in zip(index, weight.shape, strict=True)]
        if transposed and weight.ndim == 2:
            index, sizes = index[::-1], sizes[::-1]

        def signs(rows: int, columns: int, what: str) -> Tensor:
            return random_signs(rows, columns, *seed, block.parameter, str(block.index), what, like=weight)

        names = ("outputs", "inputs")[: weight.ndim]
        reduce = [signs(n, REDUCED, name) if n > SIDE else None for n, name in zip(sizes, names, strict=True)]
        self.sides = [Side(*side) for side in zip(index, reduce, strict=True)]
        self.kept = [n if by is None else REDUCED for n, by in zip(sizes, reduce, strict=True)]
        self.signs = signs(math.prod(self.kept), width, "all")

    def __call__(self, gradient: Float[Tensor, "tokens ..."]) -> Float[Tensor, "tokens width"]:
        """Sketches of gradients whose long sides are already reduced."""
        return gradient.flatten(1) @ self.signs

    def matrix(self) -> Float[Tensor, "weights width"]:
        """S itself, for tests and small models; its rows in the order of (outputs, inputs)."""
        result = self.signs.view(*self.kept, -1)
        for axis, side in enumerate(self.sides):
            if side.reduce is not None:
                result = torch.tensordot(result, side.reduce, dims=([axis], [1])).movedim(-1, axis)
        return result.flatten(0, -2)


@dataclass
class Tape:
    """Inputs and outputs of the matrices of a forward pass, by their names."""

    read: dict[str, Float[Tensor, "time inputs"]] = field(default_factory=dict)
    wrote: dict[str, Float[Tensor, "time outputs"]] = field(default_factory=dict)


@dataclass(frozen=True)
class Back:
    """The backward pass of some tokens (targets) of a window: what their weight gradients are computed from."""

    ids: Int[Tensor, " time"]
    """Token ids that the model read."""
    read: Mapping[str, Float[Tensor, "time inputs"]]
    """Inputs of each matrix, by its name."""
    slopes: Mapping[str, Float[Tensor, "targets time outputs"]]
    """Gradient of each target's loss with respect to the outputs of each matrix."""
    start: Float[Tensor, "targets time width"]
    """Gradient with respect to the embedded tokens."""
    error: Float[Tensor, "targets vocabulary"]
    """Gradient with respect to the logits: p - e_y."""
    hidden: Float[Tensor, "targets width"]
    """Inputs of the unembedding."""


class TokenGradients:
    """The sketched gradients of token losses at w*, for some components.

    Memory: the random matrices hold ``halves * width`` numbers for each weight of the components, where a side of a
    matrix longer than `SIDE` counts as `REDUCED`.

    Args:
        engine: the model at w*.
        components: names; any but ``full``.
        width: columns of each sketch: so many numbers for each token and component.
        seed: of the sketches. The sketch of a component depends on neither the other components nor the text.
        halves: how many independent sketches to make of each gradient.
        mean: gradient of the mean loss by parameter (`mean_gradient`), for `Found.slopes`.

    Raises:
        ValueError: for an unknown component, ``full``, or a width below 1.
    """

    def __init__(
        self,
        engine: Engine,
        components: Sequence[str],
        *,
        width: int = 64,
        seed: int = 0,
        halves: int = 2,
        mean: Mapping[str, Tensor] | None = None,
    ):
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}")
        for name in components:
            check_component(name, engine.shape)
            if name == FULL:
                raise ValueError("'full' has no sketch of its own: name its components, their inner products add up")
        self.engine, self.components, self.width, self.halves = engine, tuple(components), width, halves
        self.mean = mean or {}
        self.blocks = {name: blocks(name, engine.shape) for name in self.components}
        self.sketches = {
            (name, i): [self._sketch(name, block, (seed, half)) for half in range(halves)]
            for name, owned in self.blocks.items()
            for i, block in enumerate(owned)
        }

    def _sketch(self, name: str, block: Block, seed: tuple) -> Sketch:
        table = name in ("embed", "unembed")
        transposed = self.engine.shape.where.transposed and not table
        return Sketch(block, self.engine.weights[block.parameter], self.width, (*seed, name), transposed)

    def __call__(self, windows, report: Callable[[int], None] = lambda tokens: None) -> Iterator[Found]:
        """Sketched gradients of all tokens but the first, window by window. Each depends on its own window alone.

        Args:
            windows: `Windows`, or an integer array (windows, length).
            report: called with the number of tokens that were done since the last call.
        """
        for ids in self.engine.ids(windows):
            pieces = []
            for first in range(0, len(ids) - 1, TARGETS):
                end = min(first + TARGETS, len(ids) - 1)
                pieces.append(self._targets(ids[: end + 1], first))
                report(end - first)
            losses, rows, slopes = zip(*pieces, strict=True)
            yield Found(torch.cat(losses), torch.cat(rows, dim=1), torch.cat(slopes))

    def _targets(self, ids: Int[Tensor, " length"], first: int) -> Found:
        """Losses, sketches and slopes of the tokens after position ``first``, up to the last."""
        losses, back = self._back(ids, first)
        rows = losses.new_zeros(self.halves, len(losses), len(self.components), self.width)
        slopes = losses.new_zeros(len(losses), len(self.components))
        for i, name in enumerate(self.components):
            for j, block in enumerate(self.blocks[name]):
                for half, sketch in enumerate(self.sketches[name, j]):
                    rows[half, :, i] += self._row(name, block, sketch, back)
                if block.parameter in self.mean:
                    slopes[:, i] += self._slope(name, block, self.mean[block.parameter], back)
        return Found(losses, rows, slopes)

    def _back(self, ids: Int[Tensor, " length"], first: int) -> tuple[Float[Tensor, " targets"], Back]:
        engine, shape, tape = self.engine, self.engine.shape, Tape()
        with torch.enable_grad():
            start = embed(engine.weights, shape, ids[None, :-1])[0].detach().requires_grad_()
            states = recorded(engine, start, tape)
        hidden, targets = states.detach()[first:], ids[first + 1 :]
        own, unembedding = torch.arange(len(targets)), engine.weights[shape.unembed]
        logits = hidden @ unembedding.T
        error = logits.softmax(dim=1)
        error[own, targets] = 0
        error[own, targets] = -error.sum(dim=1)  # p_y - 1, without the digits that it loses where p_y is near 1
        above = hidden.new_zeros(len(own), *states.shape)
        above[own, first + own] = error @ unembedding
        needed = sorted({_matrix(block) for owned in self.blocks.values() for block in owned} & set(tape.wrote))
        sources = [start, *(tape.wrote[name] for name in needed)]
        found = torch.autograd.grad(states, sources, above, is_grads_batched=True)
        slopes = dict(zip(needed, found[1:], strict=True))
        losses = F.cross_entropy(logits, targets, reduction="none")
        return losses, Back(ids[:-1], tape.read, slopes, found[0], error, hidden)

    def _row(self, name: str, block: Block, sketch: Sketch, back: Back) -> Float[Tensor, "targets width"]:
        if name not in ("embed", "unembed"):
            slope, read = back.slopes[_matrix(block)], back.read[_matrix(block)]
            if len(sketch.sides) == 1:  # a bias
                return sketch(sketch.sides[0](slope.sum(dim=1)))
            outputs, inputs = sketch.sides
            return sketch(outputs(slope).mT @ inputs(read))
        tokens, width = sketch.sides
        row = back.hidden.new_zeros(len(back.hidden), self.width)
        if name == "embed":
            one_hot = F.one_hot(back.ids, len(self.engine.weights[block.parameter])) if tokens.reduce is None else None
            known = one_hot.to(back.start) if one_hot is not None else tokens.reduce[back.ids]
            row += sketch(known.T @ width(back.start))
        if name == "unembed" or self.engine.shape.tied:
            row += sketch(tokens(back.error)[:, :, None] * width(back.hidden)[:, None])
        return row

    def _slope(self, name: str, block: Block, mean: Tensor, back: Back) -> Float[Tensor, " targets"]:
        """∇l · ∇L over one block."""
        if name not in ("embed", "unembed"):
            slope, own = back.slopes[_matrix(block)], _only(block, mean)
            if own.ndim == 2:
                own = back.read[_matrix(block)] @ (own if self.engine.shape.where.transposed else own.T)
            return (slope * own).sum(dim=(1, 2))
        total = back.hidden.new_zeros(len(back.hidden))
        if name == "embed":
            total += (back.start * mean[back.ids]).sum(dim=(1, 2))
        if name == "unembed" or self.engine.shape.tied:
            total += (back.error * (back.hidden @ mean.T)).sum(dim=1)
        return total


def _matrix(block: Block) -> str:
    """The name of the matrix that a block of weights, or of its bias, belongs to."""
    return block.parameter.rsplit(".", 1)[0]


def _only(block: Block, weight: Tensor) -> Tensor:
    """The weight with zeros outside the block."""
    own = torch.zeros_like(weight)
    own[block.index or ...] = weight[block.index or ...]
    return own


def mean_gradient(engine: Engine, windows) -> dict[str, Tensor]:
    """The gradient of the mean loss of all tokens of the windows, by parameter."""
    ids = engine.ids(windows)
    total = weighted_gradient(engine, ids, torch.ones(ids[:, 1:].shape, device=ids.device))
    return {name: slope / ids[:, 1:].numel() for name, slope in total.items()}


def weighted_gradient(engine: Engine, windows, weights: Float[Tensor, "windows time"]) -> dict[str, Tensor]:
    """The gradient of Σ weights · losses over the tokens of the windows, by parameter.

    Args:
        weights: of the loss of every token but the first of each window. Windows whose weights are all zero are
            skipped.
    """
    ids, needed = engine.ids(windows), weights.any(dim=1)
    ids, weights = ids[needed], weights[needed]
    moving = {name: tensor.detach().requires_grad_() for name, tensor in engine.weights.items()}
    total = {name: torch.zeros_like(tensor) for name, tensor in moving.items()}
    size = max(1, engine.tokens_per_pass // (ids.shape[1] - 1))
    for some, own in zip(ids.split(size), weights.split(size), strict=True):
        with torch.enable_grad():
            hidden = forward(moving, engine.shape, engine.rotary, some[:, :-1]).flatten(0, 1)
            losses = cross_entropy(hidden, moving[engine.shape.unembed], some[:, 1:].flatten())
            loss = (losses * own.flatten()).sum()
        for name, slope in zip(moving, torch.autograd.grad(loss, list(moving.values())), strict=True):
            total[name] += slope
    return total


def recorded(engine: Engine, x: Float[Tensor, "time width"], tape: Tape) -> Float[Tensor, "time width"]:
    """The final hidden states of one window, from its embedded tokens; the tape records all inputs and outputs."""
    weights, shape, time = engine.weights, engine.shape, len(x)
    mask = engine.rotary.mask(time).to(x)
    turns = engine.rotary.turns(time) if shape.rotary else None

    def linear(name: str, x: Tensor) -> Tensor:
        weight = weights[f"{name}.weight"]
        y = F.linear(x, weight.T if shape.where.transposed else weight, weights.get(f"{name}.bias"))
        tape.read[name], tape.wrote[name] = x.detach(), y
        return y

    for layer in range(shape.layers):
        prefix, (before_attention, before_mlp) = shape.where.layer.format(layer), norms_of(shape, layer)
        entering = norm(x, weights, before_attention, shape)
        q, k, v = _heads(shape, [linear(prefix + name, entering) for name in shape.where.attention])
        if shape.head_norms:
            gains = (weights[f"{prefix}{name}.weight"] for name in HEAD_NORMS)
            q, k = (
                F.rms_norm(y, y.shape[-1:], gain, shape.norm_epsilon) for y, gain in zip((q, k), gains, strict=True)
            )
        q, k = (_turned(y, turns, shape.rotary) for y in (q, k))
        k, v = (y.repeat_interleave(shape.shared, dim=1) for y in (k, v))
        q, k, v = (y.transpose(0, 1) for y in (q, k, v))
        context = ((q @ k.mT) / math.sqrt(shape.head_dim) + mask).softmax(dim=-1) @ v
        y = x + linear(prefix + shape.where.out, context.transpose(0, 1).flatten(1))
        entering = norm(x if shape.parallel else y, weights, before_mlp, shape)
        inner, *others = (linear(prefix + name, entering) for name in shape.where.up)
        inner = activate(shape, inner)
        x = y + linear(prefix + shape.where.down, inner * others[0] if others else inner)
    return norm(x, weights, shape.where.final_norm, shape)


def _heads(shape: Shape, outputs: Sequence[Tensor]) -> list[Float[Tensor, "time heads dim"]]:
    """Queries, keys and values from what their matrix or matrices give."""
    if shape.where.fused == "interleaved":
        return list(outputs[0].unflatten(1, (shape.heads, 3, shape.head_dim)).unbind(2))
    parts = outputs[0].chunk(3, dim=1) if shape.where.fused else outputs
    return [part.unflatten(1, (-1, shape.head_dim)) for part in parts]


def _turned(x: Float[Tensor, "time heads dim"], turns: Tensor | None, dims: int) -> Tensor:
    """The rotary embedding in real numbers, since complex ones have no batched backward pass."""
    if turns is None:
        return x
    cos, sin = turns.real[:, None], turns.imag[:, None]
    first, second, kept = x.split([dims // 2, dims // 2, x.shape[-1] - dims], dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin, kept], dim=-1)
